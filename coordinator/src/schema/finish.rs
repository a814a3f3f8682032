//! Entries of a stage as the statements that are run. Pure.
//!
//! ```text
//! foreign key, valid on the source   -> Cutover: NOT VALID   AfterOpen: VALIDATE
//!   on a partitioned table, before 18 -> Cutover: NOT VALID on each leaf (the root takes none)
//!                                        AfterOpen: VALIDATE these, then the root adopts them
//! foreign key, NOT VALID              -> Cutover: as it is
//! subscription                        -> and SET (slot_name = NONE): never the source's slot
//! everything else                     -> as it is
//! ```

use super::archive::Archive;
use super::beside::LeafKey;
use super::entry::{Entry, Stage};
use super::restore::Piece;
use super::statement::{self, AddConstraint};
use pg::{Sql, sql, sql::Ident};

/// The first server that takes NOT VALID foreign keys on partitioned tables.
const NOT_VALID_PARTITIONED: u32 = 180_000;

/// What is run in a stage, in order.
pub(super) fn pieces(archive: &Archive, stage: Stage, target_version: u32) -> Vec<Piece<'_>> {
    if stage == Stage::AfterOpen {
        let foreign_keys = archive.entries.iter().filter(|entry| entry.kind == "FK CONSTRAINT");
        return foreign_keys
            .flat_map(|entry| {
                let statements = after_open(archive, entry, target_version).into_iter();
                statements.map(move |statements| Piece { entry, statements })
            })
            .collect();
    }
    archive
        .stage(stage)
        .map(|entry| {
            let statements = match entry.kind.as_str() {
                "FK CONSTRAINT" => at_cutover(archive, entry, target_version),
                "SUBSCRIPTION" => without_slot(entry),
                _ => entry.statements(),
            };
            Piece { entry, statements }
        })
        .collect()
}

/// The keys of the leaves stand in for one that the server does not take as NOT VALID.
fn leaves<'a>(
    archive: &'a Archive,
    entry: &Entry,
    constraint: &AddConstraint<'_>,
    target_version: u32,
) -> Option<impl Iterator<Item = &'a LeafKey> + use<'a>> {
    let root = entry.oid;
    (constraint.partitioned && target_version < NOT_VALID_PARTITIONED)
        .then(|| archive.leaf_keys.iter().filter(move |key| key.root == root))
}

fn at_cutover(archive: &Archive, entry: &Entry, target_version: u32) -> Sql {
    let Some(constraint) = AddConstraint::parse(&entry.sql) else { return entry.statements() };
    if statement::is_not_valid(&entry.sql) {
        return entry.statements();
    }
    let Some(leaves) = leaves(archive, entry, &constraint, target_version) else {
        return Sql::trusted(format!("{} NOT VALID;", statement::body(&entry.sql)));
    };
    let mut statements = sql!("");
    for key in leaves {
        statements.push(sql!(
            "alter table only {} add constraint {} {} not valid;\n",
            key.table,
            Ident(&key.name),
            Sql::trusted(&key.definition)
        ));
    }
    statements
}

fn after_open(archive: &Archive, entry: &Entry, target_version: u32) -> Vec<Sql> {
    let Some(constraint) = AddConstraint::parse(&entry.sql) else { return Vec::new() };
    if statement::is_not_valid(&entry.sql) {
        return Vec::new();
    }
    let Some(leaves) = leaves(archive, entry, &constraint, target_version) else {
        let AddConstraint { table, name, .. } = constraint;
        return vec![Sql::trusted(format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name};"))];
    };
    leaves
        .map(|key| sql!("alter table {} validate constraint {}", key.table, Ident(&key.name)))
        .chain([entry.statements()])
        .collect()
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

    fn both(entry: &Entry, target_version: u32) -> [Vec<String>; 2] {
        let key = LeafKey {
            root: entry.oid,
            relid: 7,
            table: pg::TableName::new("app", "leaf"),
            name: "leaf_fk".to_owned(),
            definition: "FOREIGN KEY (a) REFERENCES p(id)".to_owned(),
        };
        let archive = Archive { leaf_keys: vec![key], ..Archive::of(vec![entry.clone()]) };
        [Stage::Cutover, Stage::AfterOpen].map(|stage| {
            let pieces = pieces(&archive, stage, target_version);
            pieces.iter().map(|piece| piece.statements.as_str().trim().to_owned()).collect()
        })
    }

    #[test]
    fn a_valid_foreign_key_is_added_not_valid_and_validated_later() {
        let entry = foreign_key(
            "ALTER TABLE ONLY app.t\n    ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES p(id);",
        );
        let [cutover, after_open] = both(&entry, 150_000);
        assert!(cutover[0].ends_with("REFERENCES p(id) NOT VALID;"));
        assert_eq!(after_open, ["ALTER TABLE app.t VALIDATE CONSTRAINT fk;"]);
    }

    #[test]
    fn one_that_was_not_valid_stays_so() {
        let entry = foreign_key(
            "ALTER TABLE ONLY t\n    ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES p(id) NOT VALID;",
        );
        let [cutover, after_open] = both(&entry, 150_000);
        assert_eq!(cutover, [entry.sql.as_str()]);
        assert!(after_open.is_empty());
    }

    #[test]
    fn one_on_a_partitioned_table_is_enforced_by_its_leaves_before_18() {
        let entry =
            foreign_key("ALTER TABLE t\n    ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES p(id);");
        let [cutover, after_open] = both(&entry, 170_000);
        assert_eq!(
            cutover,
            ["alter table only \"app\".\"leaf\" add constraint \"leaf_fk\" \
              FOREIGN KEY (a) REFERENCES p(id) not valid;"]
        );
        assert_eq!(
            after_open,
            ["alter table \"app\".\"leaf\" validate constraint \"leaf_fk\"", entry.sql.as_str()]
        );
        let [cutover, after_open] = both(&entry, 180_000);
        assert!(cutover[0].ends_with("NOT VALID;"));
        assert!(after_open[0].contains("VALIDATE"));
    }
}
