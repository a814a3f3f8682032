//! Entries of a stage as the statements that are run. Pure.
//!
//! ```text
//! foreign key, valid on the source   -> Cutover: NOT VALID   AfterOpen: VALIDATE
//!   on a partitioned table, before 18 -> AfterOpen: as it is (NOT VALID is refused there)
//! foreign key, NOT VALID              -> Cutover: as it is
//! subscription                        -> and SET (slot_name = NONE): never the source's slot
//! everything else                     -> as it is
//! ```

use super::archive::Archive;
use super::entry::{Entry, Stage};
use super::restore::Piece;
use super::statement::{self, AddConstraint};
use pg::Sql;

/// The first server that takes NOT VALID foreign keys on partitioned tables.
const NOT_VALID_PARTITIONED: u32 = 180_000;

/// What is run in a stage, in order.
pub(super) fn pieces(archive: &Archive, stage: Stage, target_version: u32) -> Vec<Piece<'_>> {
    let foreign_keys = archive.entries.iter().filter(|entry| entry.kind == "FK CONSTRAINT");
    if stage == Stage::AfterOpen {
        return foreign_keys
            .filter_map(|entry| {
                let statements = after_open(entry, target_version)?;
                Some(Piece { entry, statements })
            })
            .collect();
    }
    archive
        .stage(stage)
        .filter_map(|entry| {
            let statements = match entry.kind.as_str() {
                "FK CONSTRAINT" => at_cutover(entry, target_version)?,
                "SUBSCRIPTION" => without_slot(entry),
                _ => entry.statements(),
            };
            Some(Piece { entry, statements })
        })
        .collect()
}

fn whole_after_open(constraint: &AddConstraint<'_>, target_version: u32) -> bool {
    constraint.partitioned && target_version < NOT_VALID_PARTITIONED
}

fn at_cutover(entry: &Entry, target_version: u32) -> Option<Sql> {
    let Some(constraint) = AddConstraint::parse(&entry.sql) else {
        return Some(entry.statements());
    };
    if statement::is_not_valid(&entry.sql) {
        return Some(entry.statements());
    }
    if whole_after_open(&constraint, target_version) {
        return None;
    }
    Some(Sql::trusted(format!("{} NOT VALID;", statement::body(&entry.sql))))
}

fn after_open(entry: &Entry, target_version: u32) -> Option<Sql> {
    let constraint = AddConstraint::parse(&entry.sql)?;
    if statement::is_not_valid(&entry.sql) {
        return None;
    }
    if whole_after_open(&constraint, target_version) {
        return Some(entry.statements());
    }
    let AddConstraint { table, name, .. } = constraint;
    Some(Sql::trusted(format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name};")))
}

/// It is made with connect = false, so it is disabled; the slot it names belongs to the source.
fn without_slot(entry: &Entry) -> Sql {
    let mut statements = entry.statements();
    let name = entry.sql.trim_start().strip_prefix("CREATE SUBSCRIPTION ");
    if let Some((name, _)) = name.and_then(statement::name) {
        statements.push(Sql::trusted(format!(
            "\nALTER SUBSCRIPTION {name} DISABLE;\nALTER SUBSCRIPTION {name} SET (slot_name = NONE);"
        )));
    }
    statements
}

#[cfg(test)]
mod tests {
    use super::super::entry::sample;
    use super::*;

    fn foreign_key(sql: &str) -> Entry {
        let mut entry = sample(1, "FK CONSTRAINT", "t fk", &[]);
        sql.clone_into(&mut entry.sql);
        entry
    }

    fn both(entry: &Entry, target_version: u32) -> [Option<String>; 2] {
        let archive = Archive::of(vec![entry.clone()]);
        [Stage::Cutover, Stage::AfterOpen].map(|stage| {
            let pieces = pieces(&archive, stage, target_version);
            pieces.first().map(|piece| piece.statements.as_str().to_owned())
        })
    }

    #[test]
    fn a_valid_foreign_key_is_added_not_valid_and_validated_later() {
        let entry = foreign_key(
            "ALTER TABLE ONLY app.t\n    ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES p(id);",
        );
        let [cutover, after_open] = both(&entry, 150_000);
        assert!(cutover.unwrap().ends_with("REFERENCES p(id) NOT VALID;"));
        assert_eq!(after_open.unwrap(), "ALTER TABLE app.t VALIDATE CONSTRAINT fk;");
    }

    #[test]
    fn one_that_was_not_valid_stays_so() {
        let entry = foreign_key(
            "ALTER TABLE ONLY t\n    ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES p(id) NOT VALID;",
        );
        let [cutover, after_open] = both(&entry, 150_000);
        assert_eq!(cutover.unwrap(), entry.sql);
        assert_eq!(after_open, None);
    }

    #[test]
    fn one_on_a_partitioned_table_waits_for_the_opening_before_18() {
        let entry =
            foreign_key("ALTER TABLE t\n    ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES p(id);");
        let [cutover, after_open] = both(&entry, 170_000);
        assert_eq!((cutover, after_open), (None, Some(entry.sql.clone())));
        let [cutover, after_open] = both(&entry, 180_000);
        assert!(cutover.unwrap().ends_with("NOT VALID;"));
        assert!(after_open.unwrap().contains("VALIDATE"));
    }
}
