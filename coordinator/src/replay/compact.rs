//! Folds the changes of a batch. Pure.
//!
//! In: events in commit order. Out: [`Step`]s, to be run in their order: per table deletes, then
//! updates, then inserts. Promise: the steps leave what the events one by one would leave, and say
//! how many rows each is meant to meet.
//!
//! Per key (rules, part 5): first operation, last state, columns laid over from left to right; an
//! unchanged TOAST value never overwrites. A key change ends its table's fold. FULL has no keys to
//! fold by: [`super::images`].
//! Tables are independent of each other, since no foreign key stands before cutover; those of one
//! target table are folded together.

use super::{
    error::Error,
    images,
    relation::{Identity, Relation},
    row::{Change, Event, Operation, Row, Truncate, Value},
};
use std::{collections::HashMap, sync::Arc};

/// One piece of work.
#[derive(Clone, Debug)]
pub enum Step {
    Fold(Fold),
    /// As it came: a key change.
    One(Change),
    /// One table's changes under FULL, in their order.
    Full(Vec<Change>),
    Truncate(Truncate),
}

/// What is left of a table's changes. Rows are whole, in the target's columns.
#[derive(Clone, Debug)]
pub struct Fold {
    pub relation: Arc<Relation>,
    /// Rows of which only the key counts.
    pub deletes: Vec<Row>,
    /// Key, and the values that are set; the others are [`Value::UnchangedToast`].
    pub updates: Vec<Row>,
    pub inserts: Vec<Row>,
}

/// Folds a batch.
///
/// # Errors
/// [`Error::Fold`] when the changes of one key contradict each other.
pub fn compact(events: Vec<Event>) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    // Order of first appearance, so that equal input gives equal output.
    let mut open: Vec<Table> = Vec::new();
    let mut places: HashMap<u32, usize> = HashMap::new();
    for event in events {
        let change = match event {
            Event::Change(change) => change,
            Event::Truncate(truncate) => {
                places.clear();
                for table in open.drain(..) {
                    steps.extend(table.finish());
                }
                steps.push(Step::Truncate(truncate));
                continue;
            }
        };
        let place = *places.entry(change.relation.table.id).or_insert_with(|| {
            open.push(Table::default());
            open.len() - 1
        });
        open[place].take(change)?;
    }
    for table in open {
        steps.extend(table.finish());
    }
    Ok(steps)
}

/// What was gathered for one table of the target.
#[derive(Default)]
struct Table {
    steps: Vec<Step>,
    folding: Option<Folding>,
    full: Vec<Change>,
}

struct Folding {
    relation: Arc<Relation>,
    keys: HashMap<Vec<u8>, usize>,
    rows: Vec<Folded>,
}

impl Table {
    fn take(&mut self, change: Change) -> Result<(), Error> {
        let alone = match change.relation.identity {
            Identity::Key(_) => change.changes_key(),
            Identity::Nothing => !matches!(change.operation, Operation::Insert { .. }),
            Identity::Full => {
                // Leaves of one root come mixed; rows of the same columns have the same images.
                let fits = |open: &Change| {
                    Arc::ptr_eq(&open.relation, &change.relation)
                        || images::columns(&open.relation) == images::columns(&change.relation)
                };
                if self.folding.is_some() || self.full.last().is_some_and(|open| !fits(open)) {
                    self.close();
                }
                self.full.push(change);
                return Ok(());
            }
        };
        if alone {
            self.close();
            self.steps.push(Step::One(change));
            return Ok(());
        }
        // Leaves of one root may differ in their identity.
        let fits = |folding: &Folding| {
            let (open, new) = (&folding.relation, &change.relation);
            Arc::ptr_eq(open, new) || open.identity == new.identity && open.written == new.written
        };
        if !self.folding.as_ref().is_some_and(fits) {
            // Changes under FULL of another leaf end, too.
            self.close();
        }
        self.folding
            .get_or_insert_with(|| Folding {
                relation: Arc::clone(&change.relation),
                keys: HashMap::new(),
                rows: Vec::new(),
            })
            .take(change)
    }

    fn close(&mut self) {
        if let Some(folding) = self.folding.take() {
            self.steps.push(Step::Fold(folding.finish()));
        }
        if !self.full.is_empty() {
            self.steps.push(Step::Full(std::mem::take(&mut self.full)));
        }
    }

    fn finish(mut self) -> Vec<Step> {
        self.close();
        self.steps
    }
}

impl Folding {
    fn take(&mut self, change: Change) -> Result<(), Error> {
        let place = match change.relation.key() {
            None => None,
            Some(key) => {
                let bytes = key_bytes(change.key_before(key));
                let next = self.rows.len();
                let place = *self.keys.entry(bytes).or_insert(next);
                (place < next).then_some(place)
            }
        };
        let contradiction = || Error::Fold { table: self.relation.table.name.clone() };
        let key = change.relation.key().unwrap_or_default();
        match place {
            None => self.rows.push(Folded::first(change.operation, key)),
            Some(place) => {
                self.rows[place].next(change.operation).ok_or_else(contradiction)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Fold {
        let mut fold = Fold {
            relation: self.relation,
            deletes: Vec::new(),
            updates: Vec::new(),
            inserts: Vec::new(),
        };
        for row in self.rows {
            match (row.existed, row.last) {
                (false, Last::Absent(_)) => {}
                (false, Last::Present { row }) => fold.inserts.push(row),
                (true, Last::Absent(key)) => fold.deletes.push(key),
                (true, Last::Present { row: last }) => {
                    if row.was_absent {
                        fold.deletes.push(last.clone());
                        fold.inserts.push(last);
                    } else {
                        fold.updates.push(last);
                    }
                }
            }
        }
        fold
    }
}

/// One key's changes so far.
struct Folded {
    /// The first operation was not an insert.
    existed: bool,
    /// It was absent at some time after that.
    was_absent: bool,
    last: Last,
}

enum Last {
    Present {
        row: Row,
    },
    /// The row that was deleted: its key counts.
    Absent(Row),
}

impl Folded {
    fn first(operation: Operation, key: &[usize]) -> Self {
        match operation {
            Operation::Insert { new } => {
                Self { existed: false, was_absent: false, last: Last::Present { row: new } }
            }
            Operation::Update { old, mut new } => {
                // A TOASTed key that did not change stands in the old row only.
                if let Some(old) = old {
                    for &at in key {
                        new[at] = old[at].clone();
                    }
                }
                Self { existed: true, was_absent: false, last: Last::Present { row: new } }
            }
            Operation::Delete { old } => {
                Self { existed: true, was_absent: true, last: Last::Absent(old) }
            }
        }
    }

    /// None: this cannot follow what was.
    fn next(&mut self, operation: Operation) -> Option<()> {
        self.last = match (std::mem::replace(&mut self.last, Last::Absent(Row::new())), operation) {
            (Last::Absent(_), Operation::Insert { new }) => Last::Present { row: new },
            (Last::Present { mut row }, Operation::Update { new, .. }) => {
                for (value, newer) in row.iter_mut().zip(new) {
                    if newer != Value::UnchangedToast {
                        *value = newer;
                    }
                }
                Last::Present { row }
            }
            (Last::Present { .. }, Operation::Delete { old }) => {
                self.was_absent = true;
                Last::Absent(old)
            }
            (Last::Present { .. }, Operation::Insert { .. })
            | (Last::Absent(_), Operation::Update { .. } | Operation::Delete { .. }) => {
                return None;
            }
        };
        Some(())
    }
}

/// Fields behind their lengths, so that ("ab", "c") is not ("a", "bc").
fn key_bytes<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        match value {
            Value::Text(text) | Value::Binary(text) => {
                bytes.extend_from_slice(&text.len().to_be_bytes());
                bytes.extend_from_slice(text);
            }
            Value::Null | Value::UnchangedToast => {
                bytes.extend_from_slice(&usize::MAX.to_be_bytes());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::relation;
    use pg::PgLsn;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<u8, Row>;

    fn text(value: u8) -> Value {
        Value::Text(vec![value].into())
    }

    fn key_of(row: &Row) -> u8 {
        match &row[0] {
            Value::Text(bytes) => bytes[0],
            _ => panic!("a key is never null"),
        }
    }

    fn lay_over(row: &mut Row, newer: &Row) {
        for (value, newer) in row.iter_mut().zip(newer) {
            if *newer != Value::UnchangedToast {
                *value = newer.clone();
            }
        }
    }

    /// One change as PostgreSQL would make it.
    fn apply_one(model: &mut Model, operation: &Operation) {
        match operation {
            Operation::Insert { new } => {
                assert!(model.insert(key_of(new), new.clone()).is_none());
            }
            Operation::Update { old, new } => {
                let mut row = model.remove(&key_of(old.as_ref().unwrap_or(new))).expect("a row");
                lay_over(&mut row, new);
                assert!(model.insert(key_of(&row), row).is_none());
            }
            Operation::Delete { old } => assert!(model.remove(&key_of(old)).is_some()),
        }
    }

    fn apply_steps(model: &mut Model, steps: &[Step]) {
        for step in steps {
            match step {
                Step::One(change) => apply_one(model, &change.operation),
                Step::Truncate(_) => model.clear(),
                Step::Full(_) => panic!("a table with a key"),
                Step::Fold(fold) => {
                    for old in &fold.deletes {
                        apply_one(model, &Operation::Delete { old: old.clone() });
                    }
                    for new in &fold.updates {
                        apply_one(model, &Operation::Update { old: None, new: new.clone() });
                    }
                    for new in &fold.inserts {
                        assert!(!new.contains(&Value::UnchangedToast));
                        apply_one(model, &Operation::Insert { new: new.clone() });
                    }
                }
            }
        }
    }

    /// Turns arbitrary numbers into changes that are possible one after the other.
    fn history(start: &Model, draws: &[(u8, u8, u8, u8)]) -> Vec<Event> {
        let relation = relation::tests::sample(&["k", "a", "b"], &["k"]);
        let mut model = start.clone();
        let mut events = Vec::new();
        for &(kind, key, a, b) in draws {
            let value = |draw: u8| match draw % 4 {
                0 => Value::Null,
                1 => Value::UnchangedToast,
                _ => text(draw),
            };
            let present = model.contains_key(&key);
            let operation = match kind % 8 {
                0 | 1 if !present => Operation::Insert { new: vec![text(key), text(a), text(b)] },
                2 | 3 if present => {
                    Operation::Update { old: None, new: vec![text(key), value(a), value(b)] }
                }
                4 | 5 if present => {
                    Operation::Delete { old: vec![text(key), Value::Null, Value::Null] }
                }
                6 if present && !model.contains_key(&(a % 6)) => Operation::Update {
                    old: Some(vec![text(key), Value::Null, Value::Null]),
                    new: vec![text(a % 6), value(a), value(b)],
                },
                7 if a == 0 => {
                    model.clear();
                    events.push(Event::Truncate(Truncate {
                        relations: vec![Arc::clone(&relation)],
                        restart_identity: false,
                        end_lsn: PgLsn::from(1),
                    }));
                    continue;
                }
                _ => continue,
            };
            apply_one(&mut model, &operation);
            events.push(Event::Change(Change {
                relation: Arc::clone(&relation),
                end_lsn: PgLsn::from(1),
                operation,
            }));
        }
        events
    }

    proptest! {
        #[test]
        fn folding_leaves_what_the_changes_one_by_one_leave(
            start in prop::collection::btree_map(0u8..6, (2u8.., 2u8..), 0..6),
            draws in prop::collection::vec((any::<u8>(), 0u8..6, any::<u8>(), any::<u8>()), 0..80),
        ) {
            let start: Model = start
                .into_iter()
                .map(|(key, (a, b))| (key, vec![text(key), text(a), text(b)]))
                .collect();
            let events = history(&start, &draws);
            let mut one_by_one = start.clone();
            for event in &events {
                match event {
                    Event::Change(change) => apply_one(&mut one_by_one, &change.operation),
                    Event::Truncate(_) => one_by_one.clear(),
                }
            }
            let mut folded = start;
            apply_steps(&mut folded, &compact(events).unwrap());
            prop_assert_eq!(folded, one_by_one);
        }
    }

    fn changes(operations: Vec<Operation>, key: &[&str]) -> Vec<Event> {
        let relation = relation::tests::sample(&["k", "a", "b"], key);
        operations
            .into_iter()
            .map(|operation| {
                let relation = Arc::clone(&relation);
                Event::Change(Change { relation, end_lsn: PgLsn::from(1), operation })
            })
            .collect()
    }

    #[test]
    fn an_unchanged_toast_value_never_overwrites() {
        let update = |a: Value, b: Value| Operation::Update { old: None, new: vec![text(1), a, b] };
        let steps = compact(changes(
            vec![
                update(text(7), Value::UnchangedToast),
                update(Value::UnchangedToast, Value::Null),
            ],
            &["k"],
        ))
        .unwrap();
        let [Step::Fold(fold)] = &steps[..] else { panic!("one fold") };
        assert_eq!(fold.updates, vec![vec![text(1), text(7), Value::Null]]);
    }

    #[test]
    fn a_row_deleted_and_inserted_again_is_both() {
        let steps = compact(changes(
            vec![
                Operation::Delete { old: vec![text(1), Value::Null, Value::Null] },
                Operation::Insert { new: vec![text(1), text(2), text(3)] },
            ],
            &["k"],
        ))
        .unwrap();
        let [Step::Fold(fold)] = &steps[..] else { panic!("one fold") };
        assert_eq!((fold.deletes.len(), fold.updates.len(), fold.inserts.len()), (1, 0, 1));
    }

    #[test]
    fn two_inserts_of_one_key_contradict() {
        let insert = || Operation::Insert { new: vec![text(1), text(2), text(3)] };
        let folded = compact(changes(vec![insert(), insert()], &["k"]));
        assert!(matches!(folded, Err(Error::Fold { .. })));
    }

    #[test]
    fn changes_under_full_stay_together_in_their_order() {
        let leaf = || {
            let relation = relation::tests::sample(&["k"], &[]);
            Arc::new(Relation { identity: Identity::Full, ..(*relation).clone() })
        };
        // Two leaves of one root.
        let mut leaves = [leaf(), leaf()].into_iter().cycle();
        let operations = [
            Operation::Insert { new: vec![text(1)] },
            Operation::Delete { old: vec![text(1)] },
            Operation::Insert { new: vec![text(2)] },
        ];
        let events = operations
            .iter()
            .map(|operation| {
                let (relation, operation) = (leaves.next().unwrap(), operation.clone());
                Event::Change(Change { relation, end_lsn: PgLsn::from(1), operation })
            })
            .collect();
        let steps = compact(events).unwrap();
        let [Step::Full(changes)] = &steps[..] else { panic!("one step") };
        assert!(changes.iter().map(|change| &change.operation).eq(&operations));
    }
}
