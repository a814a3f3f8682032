//! A change as replay carries it: values in the order of the target's columns.
//!
//! In: a pgoutput tuple and its relation's map. Out: [`Change`]. Promise: `Debug` prints no value.

use super::relation::Relation;
use pg::PgLsn;
pub use pg::pgoutput::Value;
use std::sync::Arc;

/// One value per column of the target's table, in its order. A column that the stream does not
/// carry (generated ones) is [`Value::UnchangedToast`], as is an unchanged TOAST value.
pub type Row = Vec<Value>;

/// What a row undergoes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Insert {
        new: Row,
    },
    /// `old`: the identity before, where the stream says it (key change, FULL).
    Update {
        old: Option<Row>,
        new: Row,
    },
    Delete {
        old: Row,
    },
}

impl Operation {
    /// As an error names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Insert { .. } => "insert",
            Self::Update { .. } => "update",
            Self::Delete { .. } => "delete",
        }
    }

    /// The row that names its place: the new one, else the old one.
    pub fn row(&self) -> &Row {
        match self {
            Self::Insert { new } | Self::Update { new, .. } => new,
            Self::Delete { old } => old,
        }
    }
}

/// One row's change.
#[derive(Clone, Debug)]
pub struct Change {
    pub relation: Arc<Relation>,
    /// Of its transaction.
    pub end_lsn: PgLsn,
    pub operation: Operation,
}

impl Change {
    /// The identity of an update differs before and after. Never for FULL: there the whole row
    /// is the identity and is matched by image.
    pub fn changes_key(&self) -> bool {
        let Operation::Update { old: Some(old), new } = &self.operation else { return false };
        self.relation.key().is_some_and(|key| {
            key.iter().any(|&i| !matches!(new[i], Value::UnchangedToast) && old[i] != new[i])
        })
    }

    /// Values of the identity before this change, for a relation with a key.
    pub fn key_before<'a>(&'a self, key: &'a [usize]) -> impl Iterator<Item = &'a Value> {
        let row = match &self.operation {
            Operation::Insert { new } | Operation::Update { old: None, new } => new,
            Operation::Update { old: Some(old), .. } | Operation::Delete { old } => old,
        };
        key.iter().map(|&i| &row[i])
    }

    /// About what it holds in memory.
    pub fn size_bytes(&self) -> usize {
        let row = |row: &Row| row.iter().map(value_size).sum::<usize>();
        64 + match &self.operation {
            Operation::Insert { new } | Operation::Update { old: None, new } => row(new),
            Operation::Update { old: Some(old), new } => row(old) + row(new),
            Operation::Delete { old } => row(old),
        }
    }
}

fn value_size(value: &Value) -> usize {
    let bytes = match value {
        Value::Null | Value::UnchangedToast => 0,
        Value::Text(bytes) | Value::Binary(bytes) => bytes.len(),
    };
    bytes + size_of::<Value>()
}

/// `TRUNCATE` of tables of the plan, one statement.
#[derive(Clone, Debug)]
pub struct Truncate {
    pub relations: Vec<Arc<Relation>>,
    pub restart_identity: bool,
    pub end_lsn: PgLsn,
}

/// What a transaction is made of.
#[derive(Clone, Debug)]
pub enum Event {
    Change(Change),
    Truncate(Truncate),
}
