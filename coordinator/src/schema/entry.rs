//! One object of the archive, and when it is made on the target. Pure.
//!
//! ```text
//! PreData   before the copy: types, functions, tables, sequences, defaults, grants
//! Build     per table, when its rows are in: indexes, keys, statistics objects
//! AfterBuild  what needs one of those: views over keys, SQL-body functions, their grants
//! Refresh   materialised views
//! Cutover   what fires or is enforced on writes: foreign keys, triggers, rules, policies,
//!           publications, subscriptions, event triggers, default privileges
//! AfterOpen validation of the foreign keys
//! ```
//! Promise: an entry's stage is never before a stage of what it depends on.

use super::statement;
use pg::Sql;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt};

/// When an object is made on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    PreData,
    Build,
    AfterBuild,
    Refresh,
    Cutover,
    AfterOpen,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreData => "pre_data",
            Self::Build => "build",
            Self::AfterBuild => "after_build",
            Self::Refresh => "refresh",
            Self::Cutover => "cutover",
            Self::AfterOpen => "after_open",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// pg_dump's own division.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    PreData,
    PostData,
}

/// One entry of the archive's table of contents, with its statements.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Dump id: unique in the archive; `depends_on` refers to it.
    pub id: u32,
    /// Place in the whole archive, from 0: marks on the target speak of it, so that a filter
    /// that was narrowed since does not shift them.
    pub place: usize,
    /// OID of the catalog on the source, 0 for comments, grants and the like.
    pub class_oid: u32,
    /// OID of the object on the source.
    pub oid: u32,
    /// `TABLE`, `INDEX`, `FK CONSTRAINT`: pg_dump's word.
    pub kind: String,
    pub schema: Option<String>,
    /// Name as pg_dump prints it in a comment: new lines became blanks, so it is for people and
    /// filters, not for SQL.
    pub tag: String,
    pub owner: Option<String>,
    pub section: Section,
    pub depends_on: Vec<u32>,
    /// Value of `default_tablespace` for it, as SQL.
    pub tablespace: String,
    /// Value of `default_table_access_method` for it, as SQL.
    pub access_method: String,
    /// May hold a subscription's password.
    pub sql: String,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {})", self.id, self.label())
    }
}

/// Value of both settings that stands when pg_restore printed none.
pub(super) const NO_TABLESPACE: &str = "''";
pub(super) const HEAP: &str = "heap";

impl Entry {
    /// `KIND schema.name`, as people read it and as `filter.exclude_objects` takes it.
    pub fn label(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{} {schema}.{}", self.kind, self.tag),
            None => format!("{} {}", self.kind, self.tag),
        }
    }

    /// The statements, with the settings they need, put back afterwards.
    pub fn statements(&self) -> Sql {
        let mut text = String::new();
        let settings = [
            ("default_tablespace", self.tablespace.as_str(), NO_TABLESPACE),
            ("default_table_access_method", self.access_method.as_str(), HEAP),
        ];
        for (name, value, usual) in settings {
            if value != usual {
                text.push_str(&format!("SET LOCAL {name} = {value};\n"));
            }
        }
        text.push_str(&self.sql);
        for (name, value, usual) in settings {
            if value != usual {
                text.push_str(&format!("\nSET LOCAL {name} = {usual};"));
            }
        }
        Sql::trusted(text)
    }

    /// Earliest stage by kind alone.
    fn own_stage(&self) -> Stage {
        match self.kind.as_str() {
            "INDEX" | "CONSTRAINT" | "INDEX ATTACH" | "STATISTICS" => Stage::Build,
            "MATERIALIZED VIEW DATA" => Stage::Refresh,
            // A view that was printed as a dummy first gets its query; it fires on nothing.
            "RULE" if self.tag.ends_with(" _RETURN") => Stage::AfterBuild,
            "CHECK CONSTRAINT" if !statement::is_not_valid(&self.sql) => Stage::AfterBuild,
            // NOT VALID: old rows break it, and a table may have to be copied again.
            "CHECK CONSTRAINT" | "FK CONSTRAINT" | "TRIGGER" | "RULE" | "POLICY"
            | "ROW SECURITY" | "EVENT TRIGGER" | "DEFAULT ACL" => Stage::Cutover,
            kind if kind.starts_with("PUBLICATION") || kind.starts_with("SUBSCRIPTION") => {
                Stage::Cutover
            }
            _ => match self.section {
                Section::PreData => Stage::PreData,
                Section::PostData if self.depends_on.is_empty() => Stage::AfterBuild,
                // Comments and grants follow what they speak of; others need a built object.
                Section::PostData if self.class_oid == 0 => Stage::PreData,
                Section::PostData => Stage::AfterBuild,
            },
        }
    }
}

/// Stage of each entry, by id; and of those built per table, how many builds come before.
#[derive(Clone, Debug, Default)]
pub struct Staging {
    stages: HashMap<u32, Stage>,
    levels: HashMap<u32, i32>,
}

impl Staging {
    /// Of entries in the order in which they can be restored.
    pub fn of(entries: &[Entry]) -> Self {
        let kinds: HashMap<u32, &str> = entries.iter().map(|e| (e.id, e.kind.as_str())).collect();
        let mut staging = Self::default();
        for entry in entries {
            let own = entry.own_stage();
            let needed = entry.depends_on.iter().filter_map(|id| staging.stages.get(id).copied());
            let needed = needed.max().unwrap_or(Stage::PreData);
            let on_view =
                entry.depends_on.iter().any(|id| kinds.get(id) == Some(&"MATERIALIZED VIEW"));
            let stage = match (own, needed) {
                // A materialised view has no rows to wait for.
                (Stage::Build, _) if on_view && entry.kind != "STATISTICS" => Stage::AfterBuild,
                (Stage::Build, Stage::PreData | Stage::Build) => Stage::Build,
                (_, Stage::Build) => own.max(Stage::AfterBuild),
                _ => own.max(needed),
            };
            if stage == Stage::Build {
                let before = entry.depends_on.iter().filter_map(|id| staging.levels.get(id)).max();
                staging.levels.insert(entry.id, before.map_or(0, |level| level + 1));
            }
            staging.stages.insert(entry.id, stage);
        }
        staging
    }

    pub fn stage(&self, entry: &Entry) -> Stage {
        self.stages.get(&entry.id).copied().unwrap_or(Stage::PreData)
    }

    /// Builds of level 0 need only their table's rows; of level n, builds below.
    pub fn level(&self, entry: &Entry) -> i32 {
        self.levels.get(&entry.id).copied().unwrap_or(0)
    }
}

#[cfg(test)]
pub(super) fn sample(id: u32, kind: &str, tag: &str, depends_on: &[u32]) -> Entry {
    Entry {
        id,
        place: id as usize,
        class_oid: 1259,
        oid: 16_000 + id,
        kind: kind.to_owned(),
        schema: Some("app".to_owned()),
        tag: tag.to_owned(),
        owner: Some("owner".to_owned()),
        section: match kind {
            "TABLE" | "VIEW" | "MATERIALIZED VIEW" | "FUNCTION" | "SCHEMA" | "TYPE" => {
                Section::PreData
            }
            _ => Section::PostData,
        },
        depends_on: depends_on.to_vec(),
        tablespace: NO_TABLESPACE.to_owned(),
        access_method: HEAP.to_owned(),
        sql: format!("-- {kind} {tag}\n;"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_key_waits_for_it_and_so_does_what_needs_that() {
        let mut grant = sample(8, "ACL", "TABLE by_key", &[7]);
        grant.class_oid = 0;
        let mut comment = sample(9, "COMMENT", "TABLE t", &[1]);
        comment.class_oid = 0;
        let entries = [
            sample(1, "TABLE", "t", &[]),
            sample(2, "CONSTRAINT", "t t_pkey", &[1]),
            sample(3, "INDEX", "root_idx", &[1]),
            sample(4, "INDEX ATTACH", "leaf_idx", &[2, 3]),
            sample(5, "RULE", "by_key _RETURN", &[2]),
            sample(6, "RULE", "t log", &[1]),
            sample(7, "VIEW", "by_key", &[2]),
            grant,
            comment,
            sample(10, "MATERIALIZED VIEW", "m", &[7]),
            sample(11, "INDEX", "m_idx", &[10]),
            sample(12, "MATERIALIZED VIEW DATA", "m", &[10]),
            sample(13, "FK CONSTRAINT", "t fk", &[2]),
            sample(14, "COMMENT", "CONSTRAINT fk ON t", &[13]),
            sample(15, "INDEX", "over_function", &[1, 7]),
        ];
        let staging = Staging::of(&entries);
        let stages: Vec<_> = entries.iter().map(|e| staging.stage(e)).collect();
        use Stage::{AfterBuild, Build, Cutover, PreData, Refresh};
        assert_eq!(
            stages,
            [
                PreData, Build, Build, Build, AfterBuild, Cutover, AfterBuild, AfterBuild, PreData,
                AfterBuild, AfterBuild, Refresh, Cutover, Cutover, AfterBuild
            ]
        );
        assert_eq!([1, 2, 3].map(|i: usize| staging.level(&entries[i])), [0, 0, 1]);
    }
}
