//! What a table of the stream means on the target.
//!
//! In: [`RelationPlan`] (the plan), [`Table`] (the target's catalogs), a pgoutput Relation message.
//! Out: [`Relation`]: which value goes to which column, and by what a row is found. Promise: a
//! stream that does not fit the target is said before its first change is applied.

use super::{
    error::Error,
    row::{Row, Value},
    table::Table,
};
use pg::{PgLsn, TableName, pgoutput};
use std::sync::Arc;

/// A leaf table of the source and where its changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationPlan {
    /// OID on the source.
    pub relid: u32,
    pub source: TableName,
    /// The leaf of the same name, or the root when the target is partitioned otherwise.
    pub target: TableName,
    /// Transactions with `end_lsn <=` it are in the copy.
    pub consistent_point: PgLsn,
    /// Published for INSERT and TRUNCATE alone.
    pub append_only: bool,
    /// `target` is the partition root.
    pub through_root: bool,
    /// `pg_get_partition_constraintdef` of the source's leaf, for a TRUNCATE through the root.
    pub partition_constraint: Option<String>,
}

/// By what a row is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Columns of the target, ascending.
    Key(Vec<usize>),
    /// The whole row as it was.
    Full,
    /// Not at all: inserts only.
    Nothing,
}

/// A table of the stream, fitted to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub plan: Arc<RelationPlan>,
    pub table: Arc<Table>,
    pub identity: Identity,
    /// Columns that an INSERT gives, ascending: what the stream has and the target does not generate.
    pub written: Vec<usize>,
    /// Leaves of the plan that go to the same table of the target.
    pub siblings: usize,
    /// Its rows are spread over lanes by key.
    pub by_key: bool,
    /// Column of the target for each column of the stream.
    pub(super) map: Vec<usize>,
}

/// First OID that `initdb` does not give (transam.h, FirstNormalObjectId): a type below it is
/// the same on every server.
const FIRST_NORMAL_OID: u32 = 16_384;

impl Relation {
    /// Fits a Relation message to the target; `Err` says what differs.
    ///
    /// # Errors
    /// A sentence that names the columns.
    pub fn fit(
        message: &pgoutput::Relation,
        plan: Arc<RelationPlan>,
        table: Arc<Table>,
    ) -> Result<Self, String> {
        let mut map = Vec::with_capacity(message.columns.len());
        let mut key = Vec::new();
        for column in &message.columns {
            let Some(at) = table.columns.iter().position(|there| there.name == column.name) else {
                return Err(format!("column \"{}\" is missing on the target", column.name));
            };
            let there = &table.columns[at];
            let built_in = column.type_oid < FIRST_NORMAL_OID || there.type_oid < FIRST_NORMAL_OID;
            if built_in && column.type_oid != there.type_oid
                || column.type_modifier != there.type_modifier
            {
                return Err(format!("column \"{}\" has another type on the target", column.name));
            }
            map.push(at);
            if column.is_key {
                key.push(at);
            }
        }
        // A column with a default may have been added here before the stream comes to it.
        let missing = |at: &usize| table.columns[*at].required && !map.contains(at);
        if let Some(missing) = table.written().find(missing) {
            return Err(format!(
                "column \"{}\" of the target is missing on the source, it is NOT NULL and has no \
                 default",
                table.columns[missing].name
            ));
        }
        let written = table.written().filter(|at| map.contains(at)).collect();
        key.sort_unstable();
        let identity = match message.replica_identity {
            pgoutput::ReplicaIdentity::Full => Identity::Full,
            pgoutput::ReplicaIdentity::Nothing => Identity::Nothing,
            pgoutput::ReplicaIdentity::Default | pgoutput::ReplicaIdentity::Index
                if key.is_empty() =>
            {
                Identity::Nothing
            }
            pgoutput::ReplicaIdentity::Default | pgoutput::ReplicaIdentity::Index => {
                Identity::Key(key)
            }
        };
        Ok(Self { plan, table, identity, written, siblings: 1, by_key: false, map })
    }

    /// Columns of the identity, if it is a key.
    pub fn key(&self) -> Option<&[usize]> {
        match &self.identity {
            Identity::Key(key) => Some(key),
            Identity::Full | Identity::Nothing => None,
        }
    }

    /// A column that was in the stream before, is not now, and still stands on the target.
    pub fn dropped_since(&self, before: &Self) -> Option<&str> {
        let dropped = |name: &&str| {
            let here = |relation: &Self| {
                relation.map.iter().any(|&at| relation.table.columns[at].name == **name)
            };
            here(before) && !here(self)
        };
        self.table.columns.iter().map(|column| column.name.as_str()).find(dropped)
    }

    /// A tuple of the stream in the order of the target's columns.
    ///
    /// # Errors
    /// When its length is not the relation's, or a value is binary: the slot is not asked for it.
    pub fn row(&self, tuple: pgoutput::Tuple) -> Result<Row, Error> {
        if tuple.len() != self.map.len() {
            return Err(Error::Stream(format!(
                "a tuple of table {} has {} columns where {} were announced",
                self.plan.source,
                tuple.len(),
                self.map.len()
            )));
        }
        let mut row = vec![Value::UnchangedToast; self.table.columns.len()];
        for (value, &at) in tuple.into_iter().zip(&self.map) {
            if matches!(value, Value::Binary(_)) {
                return Err(Error::Stream(format!(
                    "a value of table {} is binary",
                    self.plan.source
                )));
            }
            row[at] = value;
        }
        Ok(row)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::replay::table;

    pub(crate) fn plan(name: &str) -> RelationPlan {
        RelationPlan {
            relid: 1,
            source: TableName::new("public", name),
            target: TableName::new("public", name),
            consistent_point: PgLsn::from(0),
            append_only: false,
            through_root: false,
            partition_constraint: None,
        }
    }

    fn column(name: &str, is_key: bool) -> pgoutput::Column {
        pgoutput::Column { name: name.to_owned(), is_key, type_oid: 25, type_modifier: -1 }
    }

    fn message(columns: Vec<pgoutput::Column>) -> pgoutput::Relation {
        pgoutput::Relation {
            relid: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            replica_identity: pgoutput::ReplicaIdentity::Default,
            columns,
        }
    }

    /// A relation of text columns, for tests of the pure parts.
    pub(crate) fn sample(columns: &[&str], key: &[&str]) -> Arc<Relation> {
        let table = Arc::new(table::sample("t", columns, None));
        let columns = columns.iter().map(|name| column(name, key.contains(name))).collect();
        Arc::new(Relation::fit(&message(columns), Arc::new(plan("t")), table).unwrap())
    }

    #[test]
    fn columns_are_matched_by_name() {
        let table = Arc::new(table::sample("t", &["a", "b"], None));
        let relation = Relation::fit(
            &message(vec![column("b", false), column("a", true)]),
            Arc::new(plan("t")),
            table,
        )
        .unwrap();
        let row = relation.row(vec![Value::Null, Value::Text("1".into())]).unwrap();
        assert_eq!(row, vec![Value::Text("1".into()), Value::Null]);
        assert_eq!(relation.identity, Identity::Key(vec![0]));
    }

    #[test]
    fn a_column_on_one_side_only_is_named() {
        let fit = |there: &[&str], here: Vec<pgoutput::Column>| {
            let mut table = table::sample("t", there, None);
            table.columns.iter_mut().for_each(|column| column.required = true);
            let table = Arc::new(table);
            Relation::fit(&message(here), Arc::new(plan("t")), table).unwrap_err()
        };
        assert!(fit(&["a"], vec![column("a", true), column("b", false)]).contains("\"b\""));
        assert!(fit(&["a", "c"], vec![column("a", true)]).contains("\"c\""));
    }

    #[test]
    fn a_changed_scale_is_a_changed_type() {
        let table = Arc::new(table::sample("t", &["a"], None));
        let mut wider = column("a", true);
        wider.type_modifier = 20;
        assert!(Relation::fit(&message(vec![wider]), Arc::new(plan("t")), table).is_err());
    }
}
