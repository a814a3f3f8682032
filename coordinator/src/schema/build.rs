//! What is built per table once its rows are in, as tasks for the workers. Pure.
//!
//! In: the archive. Out: a [`BuildPlan`] per index, key and statistics object, and one per
//! materialised view to refresh. Promise: a plan of stage n needs only plans of stages below n
//! and, in the first stage, the rows of its own table.

use super::archive::Archive;
use super::entry::{Entry, Stage};
use crate::plan::{REFRESH_STAGE, TABLE_BUILD_STAGE};
use std::collections::{HashMap, HashSet};

/// A task of kind `build` or `refresh`, before it has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildPlan {
    /// [`TABLE_BUILD_STAGE`], or higher when it needs other builds.
    pub stage: i32,
    /// OID of its table on the source; a partition root's for the root's own index, which has
    /// no rows to wait for.
    pub table_oid: u32,
    /// `INDEX app.t_idx`, for people.
    pub object: String,
    /// Run in order in one transaction, with the session's `default_tablespace` empty and
    /// `default_table_access_method` heap, and back at that afterwards.
    pub statements: Vec<String>,
}

/// Indexes, keys, exclusion constraints, statistics objects; attachments behind them.
pub fn build_tasks(archive: &Archive) -> Vec<BuildPlan> {
    let entries = archive.by_id();
    archive
        .stage(Stage::Build)
        .map(|entry| plan(entry, &entries, TABLE_BUILD_STAGE + archive.staging.level(entry)))
        .collect()
}

/// `REFRESH MATERIALIZED VIEW`, those that read others behind them.
///
/// A view over a function may read other views inside it, which no dependency tells: those come
/// one by one behind all others, in the archive's order.
pub fn refresh_tasks(archive: &Archive) -> Vec<BuildPlan> {
    let entries = archive.by_id();
    let (opaque, plain): (Vec<&Entry>, Vec<&Entry>) = archive
        .stage(Stage::Refresh)
        .partition(|entry| reads_function(entry, &entries, &mut HashSet::new()));
    let mut levels: HashMap<u32, i32> = HashMap::new();
    let mut plans = Vec::new();
    for entry in plain {
        let before = entry.depends_on.iter().filter_map(|id| levels.get(id)).max();
        let level = before.map_or(0, |level| level + 1);
        levels.insert(entry.id, level);
        plans.push(plan(entry, &entries, REFRESH_STAGE + level));
    }
    let mut stage = plans.iter().map(|plan| plan.stage).max().unwrap_or(REFRESH_STAGE - 1);
    for entry in opaque {
        stage += 1;
        plans.push(plan(entry, &entries, stage));
    }
    plans
}

/// Whether a function of the database stands between a view and its tables.
fn reads_function(entry: &Entry, entries: &HashMap<u32, &Entry>, seen: &mut HashSet<u32>) -> bool {
    entry.depends_on.iter().filter_map(|id| entries.get(id)).any(|needed| {
        let opens = matches!(
            needed.kind.as_str(),
            "VIEW" | "MATERIALIZED VIEW" | "MATERIALIZED VIEW DATA" | "RULE"
        );
        matches!(needed.kind.as_str(), "FUNCTION" | "AGGREGATE")
            || (opens && seen.insert(needed.id) && reads_function(needed, entries, seen))
    })
}

fn plan(entry: &Entry, entries: &HashMap<u32, &Entry>, stage: i32) -> BuildPlan {
    BuildPlan {
        stage,
        table_oid: table_oid(entry, entries, 0),
        object: entry.label(),
        statements: vec![entry.statements().as_str().to_owned()],
    }
}

/// The table that an entry belongs to: its own dependency, or that of the index it attaches.
fn table_oid(entry: &Entry, entries: &HashMap<u32, &Entry>, depth: u32) -> u32 {
    /// An attachment needs an index, an index its table.
    const DEEPEST: u32 = 3;
    let needed = || entry.depends_on.iter().filter_map(|id| entries.get(id));
    let is_relation = |kind: &str| matches!(kind, "TABLE" | "MATERIALIZED VIEW" | "FOREIGN TABLE");
    if let Some(table) = needed().find(|needed| is_relation(&needed.kind)) {
        return table.oid;
    }
    if depth == DEEPEST {
        return 0;
    }
    needed().map(|needed| table_oid(needed, entries, depth + 1)).find(|oid| *oid != 0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::entry::sample;
    use super::*;

    #[test]
    fn an_attachment_comes_after_both_indexes_and_names_a_table() {
        let mut fast = sample(3, "INDEX", "root_idx", &[1]);
        fast.tablespace = "fast".to_owned();
        let archive = Archive::of(vec![
            sample(1, "TABLE", "root", &[]),
            sample(2, "TABLE", "leaf", &[]),
            fast,
            sample(4, "INDEX", "leaf_idx", &[2]),
            sample(5, "INDEX ATTACH", "leaf_idx", &[4, 3]),
        ]);
        let plans = build_tasks(&archive);
        assert_eq!(plans.iter().map(|p| p.stage).collect::<Vec<_>>(), [1, 1, 2]);
        assert_eq!(plans.iter().map(|p| p.table_oid).collect::<Vec<_>>(), [16_001, 16_002, 16_002]);
        assert!(plans[0].statements[0].starts_with("SET LOCAL default_tablespace = fast;"));
    }

    #[test]
    fn a_view_over_a_function_is_refreshed_behind_all_others() {
        let archive = Archive::of(vec![
            sample(1, "FUNCTION", "f()", &[]),
            sample(2, "MATERIALIZED VIEW", "a_over_f", &[1]),
            sample(3, "MATERIALIZED VIEW", "b", &[]),
            sample(4, "MATERIALIZED VIEW", "c", &[3]),
            sample(5, "MATERIALIZED VIEW DATA", "a_over_f", &[2]),
            sample(6, "MATERIALIZED VIEW DATA", "b", &[3]),
            sample(7, "MATERIALIZED VIEW DATA", "c", &[4, 6]),
        ]);
        let plans: Vec<_> =
            refresh_tasks(&archive).into_iter().map(|plan| (plan.stage, plan.object)).collect();
        let object = |name: &str| format!("MATERIALIZED VIEW DATA app.{name}");
        assert_eq!(plans, [(100, object("b")), (101, object("c")), (102, object("a_over_f"))]);
    }
}
