//! Many changes of rows found by their image at once: REPLICA IDENTITY FULL. Pure.
//!
//! In: changes of one table in commit order. Out: [`Images`]: the rows that were there before and
//! are gone, and those that are there after; SQL that deletes the former. Promise: one look
//! through the table for all of them, where one a change took a million looks for a million rows;
//! of equal rows exactly as many go as were changed.
//!
//! Rows of one image cannot be told apart, so that an update is a delete and an insert, and only
//! how many rows of an image come and go counts.

use super::{
    identity_full::image,
    relation::Relation,
    row::{Change, Operation, Row, Value},
    stage::key_column,
    table::Table,
};
use pg::{Sql, sql, sql::Ident};
use std::collections::HashMap;

/// What is left of the changes.
#[derive(Debug, Default)]
pub struct Images {
    /// One for each row that goes.
    pub deletes: Vec<Row>,
    pub inserts: Vec<Row>,
}

/// Columns that make the image: those of the stream, ascending. None where the target has columns
/// that the stream lacks, whose values only a real update keeps.
pub fn columns(relation: &Relation) -> Option<Vec<usize>> {
    let mut columns = relation.map.clone();
    columns.sort_unstable();
    let is_whole = relation.table.written().all(|at| columns.binary_search(&at).is_ok());
    (is_whole && !columns.is_empty() && !relation.written.is_empty()).then_some(columns)
}

/// Folds changes of one relation.
pub fn fold(changes: Vec<Change>) -> Images {
    let mut folded = Images::default();
    // Rows that came within these changes, by image.
    let mut inserts: Vec<Option<Row>> = Vec::new();
    let mut present: HashMap<Row, Vec<usize>> = HashMap::new();
    for change in changes {
        let (gone, new) = match change.operation {
            Operation::Insert { new } => (None, Some(new)),
            Operation::Delete { old } => (Some(old), None),
            Operation::Update { old, new } => {
                let old = old.unwrap_or_else(|| new.clone());
                let new = laid_over(&old, new);
                if new == old {
                    continue;
                }
                (Some(old), Some(new))
            }
        };
        if let Some(gone) = gone {
            match present.get_mut(&gone).and_then(Vec::pop) {
                Some(place) => inserts[place] = None,
                None => folded.deletes.push(gone),
            }
        }
        if let Some(new) = new {
            present.entry(new.clone()).or_default().push(inserts.len());
            inserts.push(Some(new));
        }
    }
    folded.inserts = inserts.into_iter().flatten().collect();
    folded
}

/// The row after an update: what the stream left out is as it was.
fn laid_over(old: &Row, new: Row) -> Row {
    let lay = |(old, new): (&Value, Value)| match new {
        Value::UnchangedToast => old.clone(),
        new => new,
    };
    old.iter().zip(new).map(lay).collect()
}

/// Deletes as many rows of each image as the staging table `stage` holds. An equality that an
/// index may know stands beside the image, where none of `rows` is null in it.
pub fn delete(table: &Table, stage: &str, columns: &[usize], rows: &[Row]) -> Sql {
    let staged: Vec<String> = (0..columns.len()).map(key_column).collect();
    let stage_image = Sql::join(staged.iter().map(|name| image(&sql!("s.{}", Ident(name)))), ", ");
    let table_image =
        Sql::join(columns.iter().map(|&at| image(&sql!("t.{}", table.ident(at)))), ", ");
    let mut equal = vec![sql!("array[{}] operator(pg_catalog.=) w.image", table_image)];
    for (&at, name) in columns.iter().zip(&staged) {
        let column = &table.columns[at];
        if column.indexable && rows.iter().all(|row| matches!(row[at], Value::Text(_))) {
            equal.push(sql!("t.{} {} w.{}", table.ident(at), column.equality, Ident(name)));
        }
    }
    sql!(
        "delete from {} as d using (select t.ctid as c, t.tableoid as o, w.meant, \
           row_number() over (partition by w.image) as place \
         from (select distinct on (n.image) n.* from (select array[{}] as image, \
             count(*) over (partition by array[{}]) as meant, s.* from pg_temp.{} as s) as n \
             order by n.image) as w \
         join {} as t on {}) as hit \
         where hit.place <= hit.meant and d.ctid = hit.c and d.tableoid = hit.o",
        table.only(),
        stage_image,
        stage_image,
        Ident(stage),
        table.only(),
        Sql::join(equal, " and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::relation::tests::sample;
    use pg::PgLsn;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, sync::Arc};

    type Counts = BTreeMap<u8, i32>;

    fn text(value: u8) -> Value {
        Value::Text(vec![value].into())
    }

    fn row_of(value: u8) -> Row {
        vec![text(value)]
    }

    fn value_of(row: &Row) -> u8 {
        match &row[0] {
            Value::Text(bytes) => bytes[0],
            _ => panic!("a text"),
        }
    }

    fn changes(operations: Vec<Operation>) -> Vec<Change> {
        let relation = sample(&["a"], &[]);
        let change = |operation| {
            let relation = Arc::clone(&relation);
            Change { relation, end_lsn: PgLsn::from(1), operation }
        };
        operations.into_iter().map(change).collect()
    }

    proptest! {
        #[test]
        fn as_many_rows_of_each_image_come_and_go_as_one_by_one(
            start in prop::collection::vec(0u8..4, 0..8),
            draws in prop::collection::vec((0u8..3, 0u8..4, 0u8..4), 0..60),
        ) {
            let mut counts = Counts::new();
            start.iter().for_each(|value| *counts.entry(*value).or_default() += 1);
            let mut after = counts.clone();
            let mut operations = Vec::new();
            for (kind, one, other) in draws {
                if kind > 0 && after.get(&one).copied().unwrap_or(0) == 0 {
                    continue;
                }
                if kind > 0 {
                    *after.entry(one).or_default() -= 1;
                }
                operations.push(match kind {
                    0 => Operation::Insert { new: row_of(one) },
                    1 => Operation::Delete { old: row_of(one) },
                    _ => Operation::Update { old: Some(row_of(one)), new: row_of(other) },
                });
                match kind {
                    0 => *after.entry(one).or_default() += 1,
                    1 => {}
                    _ => *after.entry(other).or_default() += 1,
                }
            }
            let images = fold(changes(operations));
            for row in &images.deletes {
                let count = counts.entry(value_of(row)).or_default();
                *count -= 1;
                prop_assert!(*count >= 0, "a row goes that was not there before");
            }
            for row in &images.inserts {
                *counts.entry(value_of(row)).or_default() += 1;
            }
            counts.retain(|_, count| *count > 0);
            after.retain(|_, count| *count > 0);
            prop_assert_eq!(counts, after);
        }
    }

    #[test]
    fn an_unchanged_toast_value_is_that_of_the_old_row() {
        let update = Operation::Update {
            old: Some(vec![text(1), text(2)]),
            new: vec![text(3), Value::UnchangedToast],
        };
        let images = fold(changes(vec![update]));
        assert_eq!(images.deletes, [vec![text(1), text(2)]]);
        assert_eq!(images.inserts, [vec![text(3), text(2)]]);
    }
}
