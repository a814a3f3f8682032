//! Tables that come, go or change their place on the source while a migration runs.
//!
//! ```text
//! survey against what was published -> new, swapped, attached, detached, unpublished
//!   -> identity and publication at once -> (caught up) target's table -> new consistent point, copy
//! dropped on both sides -> forgotten        renamed, or the target's table missing -> stop by name
//! ```
//! The stream says nothing of any of it. Promise: no such table is passed over in silence; looked
//! for while running, and once more behind the fence.

mod partition;

use super::{
    connect::refused,
    context::Context,
    flow::Flow,
    provision::{self, KNOWN, ORIGINALS, filter_of, plan_leaves, read_step, write_step},
    replan,
};
use crate::{
    plan::Leaf,
    source::{
        identity::{self, Originals},
        publication,
        watch::{self, Change, Known},
    },
    target,
};
use partition::{exists, make_target};
use pg::{Session, Settings, Sql, TableName, sql};
use proto::status::{Classify as _, Report};
use std::{collections::HashSet, time::Duration};
use tokio::time::Instant;

/// Pause between two surveys; longer where one takes long, so that it costs a twentieth at most.
const SURVEY_PAUSE: Duration = Duration::from_secs(5);
const SURVEY_SHARE: u32 = 20;

/// How long the tables' locks for REPLICA IDENTITY may take altogether.
const IDENTITY_DEADLINE: Duration = Duration::from_secs(60);

/// What a survey may do about fresh tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adding {
    /// Publish them.
    Nothing,
    /// And copy those that stand in another's place. New partitions wait until the indexes of
    /// their root stand on the target: made before, they would keep them invalid.
    Replaced,
    /// And copy all.
    All,
}

/// When the next survey is due.
#[derive(Debug)]
pub struct Survey {
    due_at: Instant,
}

impl Default for Survey {
    fn default() -> Self {
        Self { due_at: Instant::now() + SURVEY_PAUSE }
    }
}

impl Survey {
    /// The next call surveys.
    pub fn now(&mut self) {
        self.due_at = Instant::now();
    }
}

/// What changed, sorted by what is done about it.
#[derive(Debug, Default)]
struct Todo {
    /// Published and copied anew.
    fresh: HashSet<u32>,
    /// Gone: `(oid, name)`.
    gone: Vec<(u32, TableName)>,
    /// Lost their identity.
    identity: bool,
    renamed: Vec<(TableName, TableName)>,
}

fn sorted(changes: Vec<Change>) -> Todo {
    let mut todo = Todo::default();
    for change in changes {
        match change {
            Change::New { oid, .. }
            | Change::Detached { oid, .. }
            | Change::Attached { oid, .. }
            | Change::Unpublished { oid, .. } => {
                todo.fresh.insert(oid);
            }
            Change::Swapped { table, known_oid, oid } => {
                todo.fresh.insert(oid);
                todo.gone.push((known_oid, table));
            }
            Change::Dropped { oid, table } => todo.gone.push((oid, table)),
            Change::Renamed { known, table, .. } => todo.renamed.push((known, table)),
            Change::IdentityLost { .. } => todo.identity = true,
        }
    }
    todo
}

fn new_partition(change: &Change) -> Option<u32> {
    match change {
        Change::New { oid, root: Some(_), .. } => Some(*oid),
        Change::New { .. }
        | Change::Dropped { .. }
        | Change::Swapped { .. }
        | Change::Renamed { .. }
        | Change::Detached { .. }
        | Change::Attached { .. }
        | Change::Unpublished { .. }
        | Change::IdentityLost { .. } => None,
    }
}

/// Looks once, after the fence: nothing may have come since.
///
/// # Errors
/// `TABLES_CHANGED`, naming them.
pub async fn unchanged(context: &Context) -> Result<(), Report> {
    let target = context
        .target_session("tables", 0)
        .await
        .map_err(|error| refused("reach the target", &error))?;
    let changes = changes(context, &target).await?;
    if changes.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = changes.iter().map(named).collect();
    Err(Report::definite("TABLES_CHANGED", "tables of the source changed before the fence fell")
        .with_detail(format!("{}.", names.join("; ")))
        .with_hint("Wait until they are handled, then cut over again: skein cutover"))
}

async fn changes(context: &Context, target: &Session) -> Result<Vec<Change>, Report> {
    let Some(known) = read_step::<Vec<Known>>(target, KNOWN).await? else { return Ok(Vec::new()) };
    let source = context
        .source_session("tables", 0)
        .await
        .map_err(|error| refused("reach the source", &error))?;
    watch::published_changes(&source, context, &filter_of(context)?, &known)
        .await
        .map_err(|error| error.report())
}

fn named(change: &Change) -> String {
    match change {
        Change::New { table, .. } => format!("{table} is new"),
        Change::Dropped { table, .. } => format!("{table} was dropped"),
        Change::Swapped { table, .. } => format!("{table} means another table now"),
        Change::Renamed { known, table, .. } => format!("{known} was renamed to {table}"),
        Change::Detached { table, .. } => format!("{table} was detached"),
        Change::Attached { table, .. } => format!("{table} was attached"),
        Change::Unpublished { table, .. } => format!("{table} was taken out of our publication"),
        Change::IdentityLost { table, .. } => format!("{table} lost its replica identity"),
    }
}

impl Flow {
    /// Surveys the source when it is due. New tables are published at once; as far as `adding`
    /// says, they are also copied, while replay stands still.
    ///
    /// # Errors
    /// `TABLES_CHANGED` when a person has to do something on the target or the source.
    pub(super) async fn watch_tables(
        &mut self,
        context: &Context,
        adding: Adding,
    ) -> Result<(), Report> {
        if Instant::now() < self.survey.due_at {
            return Ok(());
        }
        let begun = Instant::now();
        let target = self.target(context, "tables").await?;
        let changes = changes(context, &target).await?;
        self.survey.due_at = Instant::now() + SURVEY_PAUSE.max(begun.elapsed() * SURVEY_SHARE);
        if changes.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = changes.iter().map(named).collect();
        let partitions: HashSet<u32> = changes.iter().filter_map(new_partition).collect();
        let mut todo = sorted(changes);
        if let Some((known, table)) = todo.renamed.first() {
            return Err(changed(&names).with_hint(format!(
                "Rename {table} back to {known} on the source, then run: skein resume"
            )));
        }
        self.publish_fresh(context, &target, &todo).await?;
        if adding == Adding::Replaced {
            todo.fresh.retain(|oid| !partitions.contains(oid));
        }
        if adding == Adding::Nothing || (todo.fresh.is_empty() && todo.gone.is_empty()) {
            return Ok(());
        }
        tracing::warn!(tables = ?names, "tables of the source changed");
        self.shared().set_activity(format!("handling changed tables: {}", names.join("; ")));
        self.add_fresh(context, &target, (&todo, &names)).await
    }

    /// Identity and publication: UPDATE on the source must go on, and no change be lost.
    async fn publish_fresh(
        &mut self,
        context: &Context,
        target: &Session,
        todo: &Todo,
    ) -> Result<(), Report> {
        if todo.fresh.is_empty() && !todo.identity {
            return Ok(());
        }
        let settings = Settings::write(context.session_name("publish", 0))
            .encoding(crate::migration::context::UTF_8);
        let source = Session::connect(&context.source, &settings)
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let survey = identity::survey(&source, &filter_of(context)?)
            .await
            .map_err(|error| error.report())?;
        let decisions = provision::decide(context, &survey)?;
        let known: Originals = read_step(target, ORIGINALS).await?.unwrap_or_default();
        let originals = known.merged_with(identity::originals(&survey, &decisions));
        write_step(context, target, ORIGINALS, &originals).await?;
        identity::set_identities(&source, &originals, IDENTITY_DEADLINE)
            .await
            .map_err(|error| error.report())?;
        let fresh: Vec<_> =
            decisions.into_iter().filter(|one| todo.fresh.contains(&one.oid)).collect();
        publication::add(&source, context, &fresh).await.map_err(|error| error.report())
    }

    /// Copies the fresh tables under a new snapshot, forgets the gone ones, and writes down what
    /// is known now. Killed in its midst, the next survey finds the same tables again.
    async fn add_fresh(
        &mut self,
        context: &Context,
        target: &Session,
        (todo, names): (&Todo, &[String]),
    ) -> Result<(), Report> {
        let mut gone = Vec::new();
        for (oid, table) in &todo.gone {
            let replaced = self.is_replaced(context, table, &todo.fresh).await?;
            if !replaced && exists(target, table).await? {
                return Err(changed(names).with_hint(format!(
                    "Drop {table} on the target as well, then run: skein resume"
                )));
            }
            gone.push((*oid, replaced));
        }
        let leases = self.leases(context).await?;
        leases.close();
        if let Some(stream) = &mut self.stream {
            stream.stop_replay().await;
        }
        let snapshot = self.next_snapshot(context, &[]).await?;
        let session = self.snapshots.session(context, "plan", snapshot.epoch).await?;
        let survey = identity::survey(&session, &filter_of(context)?)
            .await
            .map_err(|error| error.report())?;
        let decisions = provision::decide(context, &survey)?;
        // Only what is copied counts as known: the survey may show others by now.
        let before: Vec<Known> = read_step(target, KNOWN).await?.unwrap_or_default();
        let mut kept: HashSet<u32> = before.iter().map(|one| one.oid).collect();
        kept.retain(|oid| !todo.gone.iter().any(|(gone, _)| gone == oid));
        kept.extend(&todo.fresh);
        let mut known = watch::known(&survey, &decisions);
        known.retain(|one| kept.contains(&one.oid));
        let append_only: HashSet<u32> = known
            .iter()
            .filter(|one| one.publish == identity::Publish::AppendOnly)
            .map(|one| one.oid)
            .collect();
        let mut leaves: Vec<Leaf> = plan_leaves(context, &session, target).await?;
        // Leaves whose rows go through one root are emptied together, and so copied together.
        let roots: HashSet<TableName> = leaves
            .iter()
            .filter(|leaf| leaf.through_root && todo.fresh.contains(&leaf.relid))
            .map(|leaf| leaf.target.clone())
            .collect();
        leaves.retain(|leaf| {
            todo.fresh.contains(&leaf.relid) || leaf.through_root && roots.contains(&leaf.target)
        });
        for leaf in &mut leaves {
            leaf.append_only = append_only.contains(&leaf.relid);
            make_target(&session, context, target, (leaf, names)).await?;
        }
        replan::begin_again(context, target, &leaves, &snapshot).await?;
        // A table that was swapped away is there under its other name.
        gone.retain(|(oid, _)| !todo.fresh.contains(oid));
        forget(context, target, &gone).await?;
        write_step(context, target, KNOWN, &known).await?;
        leases.reload().await.map_err(|error| error.report())?;
        let notice =
            format!("Tables changed on the source and were followed: {}.", names.join("; "));
        self.change(|record| record.notices.push(notice)).await?;
        Box::pin(self.finish_copies(context, &leases)).await
    }

    /// Whether a fresh table of the source bears this name now.
    async fn is_replaced(
        &self,
        context: &Context,
        table: &TableName,
        fresh: &HashSet<u32>,
    ) -> Result<bool, Report> {
        let source = context
            .source_session("tables", 1)
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let row = source
            .query_one(&sql!("select to_regclass($1)::oid"), &[&table.to_string()])
            .await
            .map_err(|error| refused("look for a table", &error))?;
        Ok(row.get::<_, Option<u32>>(0).is_some_and(|oid| fresh.contains(&oid)))
    }
}

fn changed(names: &[String]) -> Report {
    Report::definite("TABLES_CHANGED", "tables of the source changed")
        .with_detail(format!("{}. The stream does not carry such changes.", names.join("; ")))
}

/// Forgets what is gone. Builds stay where another table took the name: they are of the target's
/// table, which is still the same; of one that is gone there, too, they would fail for ever.
async fn forget(context: &Context, session: &Session, gone: &[(u32, bool)]) -> Result<(), Report> {
    if gone.is_empty() {
        return Ok(());
    }
    let list = Sql::join(gone.iter().map(|(oid, _)| oid), ", ");
    let mut statements = sql!(
        "delete from skein.task where relid in ({}) and kind = 'copy';
delete from skein.relation where relid in ({});",
        list,
        list
    );
    for (oid, _) in gone.iter().filter(|(_, replaced)| !replaced) {
        statements.push(sql!("delete from skein.task where relid = {};", *oid));
    }
    match target::fenced(session, context.epoch, &statements).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(replan::fenced_out()),
        Err(error) => Err(refused("forget a dropped table", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_table_is_fresh_and_its_predecessor_gone() {
        let table = TableName::new("s", "t");
        let todo = sorted(vec![
            Change::Swapped { table: table.clone(), known_oid: 1, oid: 2 },
            Change::New { oid: 3, table: table.clone(), root: None, inherits: vec![] },
        ]);
        assert_eq!(todo.gone, [(1, table)]);
        assert_eq!(todo.fresh, HashSet::from([2, 3]));
    }
}
