//! Which lane takes a change. Pure.
//!
//! In: a change and the [`Routing`] in force. Out: a lane. Promise: changes of one row meet in one
//! lane as long as the routing stays; it is recorded beside the positions, since each lane resumes
//! at its own.
//!
//! By (table, key) where equality of keys is equality of bytes and no other unique index stands
//! (rules, part 5); by table otherwise. The name that is hashed is the target's, so that the leaves
//! of one root meet.

use super::{
    relation::Relation,
    row::{Change, Value},
    table::Table,
};
use pg::TableName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name and version of the hash: FNV-1a, 64 bits, then the remainder by the lane count.
pub const HASH: &str = "fnv1a64/1";

/// How changes are spread. Kept as JSON in `skein.lane.routing`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    pub hash: String,
    pub lanes: u16,
    /// Tables of the target spread by key, and the key's columns by name.
    pub by_key: BTreeMap<String, Vec<String>>,
}

impl Routing {
    /// What the target's tables allow now.
    pub fn of<'a>(lanes: u16, tables: impl IntoIterator<Item = &'a Table>) -> Self {
        let by_key = tables
            .into_iter()
            .filter_map(|table| {
                Some((table.name.to_string(), names(table, table.lane_key.as_ref()?)))
            })
            .collect();
        Self { hash: HASH.to_owned(), lanes: lanes.max(1), by_key }
    }

    /// Whether rows of this relation are spread by key: the table allows it, and its identity is
    /// that key.
    pub fn is_by_key(&self, relation: &Relation) -> bool {
        let table = &relation.table;
        self.lanes > 1
            && relation.key().is_some_and(|key| {
                self.by_key
                    .get(&table.name.to_string())
                    .is_some_and(|columns| *columns == names(table, key))
            })
    }

    /// The lane of a change that does not change its key, or whose table is not spread by key.
    pub fn lane(&self, change: &Change) -> usize {
        let mut hash = Fnv::of_table(&change.relation.table.name);
        if change.relation.by_key
            && let Some(key) = change.relation.key()
        {
            for value in change.key_before(key) {
                if let Value::Text(bytes) = value {
                    hash.field(bytes);
                }
            }
        }
        usize::try_from(hash.0 % u64::from(self.lanes.max(1))).unwrap_or(0)
    }
}

fn names(table: &Table, columns: &[usize]) -> Vec<String> {
    let mut names: Vec<String> = columns.iter().map(|&at| table.columns[at].name.clone()).collect();
    names.sort_unstable();
    names
}

/// FNV-1a over fields, each behind its length.
struct Fnv(u64);

impl Fnv {
    fn of_table(name: &TableName) -> Self {
        let mut hash = Self(0xcbf2_9ce4_8422_2325);
        hash.field(name.schema.as_bytes());
        hash.field(name.name.as_bytes());
        hash
    }

    fn field(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes();
        for byte in length.iter().chain(bytes) {
            self.0 ^= u64::from(*byte);
            self.0 = self.0.wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{
        relation::{self, Relation},
        row::Operation,
        table,
    };
    use pg::PgLsn;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn keyed() -> Arc<Relation> {
        let table = Arc::new(table::sample("t", &["k", "v"], Some(vec![0])));
        let sample = relation::tests::sample(&["k", "v"], &["k"]);
        Arc::new(Relation { table, ..(*sample).clone() })
    }

    fn text(value: &str) -> Value {
        Value::Text(value.as_bytes().to_vec().into())
    }

    fn change(relation: &Arc<Relation>, operation: Operation) -> Change {
        Change { relation: Arc::clone(relation), end_lsn: PgLsn::from(1), operation }
    }

    #[test]
    fn the_hash_never_changes() {
        let mut hash = Fnv::of_table(&TableName::new("public", "t"));
        hash.field(b"1");
        assert_eq!(hash.0, 11_413_341_203_029_223_335);
    }

    #[test]
    fn another_identity_than_the_key_goes_by_table() {
        let relation = keyed();
        let routing = Routing::of(4, [&*relation.table]);
        assert!(routing.is_by_key(&relation));
        let full = Relation { identity: relation::Identity::Full, ..(*relation).clone() };
        assert!(!routing.is_by_key(&full));
        let other = Relation { identity: relation::Identity::Key(vec![1]), ..(*relation).clone() };
        assert!(!routing.is_by_key(&other));
    }

    proptest! {
        #[test]
        fn every_change_of_a_row_meets_in_one_lane(key in ".{0,12}", v in ".{0,4}", lanes in 1u16..64) {
            let relation = keyed();
            let routing = Routing::of(lanes, [&*relation.table]);
            let mut keyed = (*relation).clone();
            keyed.by_key = routing.is_by_key(&relation);
            let relation = Arc::new(keyed);
            let row = |value: Value| vec![text(&key), value];
            let operations = [
                Operation::Insert { new: row(text(&v)) },
                Operation::Update { old: None, new: row(Value::UnchangedToast) },
                Operation::Update { old: Some(row(Value::Null)), new: vec![Value::UnchangedToast, text("x")] },
                Operation::Delete { old: row(Value::Null) },
            ];
            let met: Vec<usize> = operations
                .into_iter()
                .map(|operation| routing.lane(&change(&relation, operation)))
                .collect();
            prop_assert!(met.iter().all(|lane| *lane == met[0] && *lane < usize::from(lanes)));
        }
    }
}
