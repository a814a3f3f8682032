//! Statements for one row. Pure.
//!
//! In: a change, or a row that folding left. Out: [`Statement`]: SQL with `$n`, values as text, the
//! rows it is meant to meet. Values are parameters of the column's own type: a cast in the text
//! would cut a `varchar(n)` in silence.

use super::{
    identity_full,
    relation::{Identity, Relation},
    row::{Change, Operation, Row, Truncate, Value},
    table::{Column, Table},
};
use bytes::Bytes;
use pg::{PgLsn, Sql, TableName, sql};

/// One statement and what it is about.
#[derive(Debug)]
pub struct Statement {
    pub sql: Sql,
    pub values: Vec<Option<Bytes>>,
    /// Types of parameters that the server would not find by itself, by place.
    pub types: Vec<(usize, u32)>,
    /// Rows it is meant to meet; None: not known beforehand.
    pub meant: Option<u64>,
    pub operation: &'static str,
    pub table: TableName,
    pub end_lsn: PgLsn,
}

/// Collects parameters and numbers them.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    values: Vec<Option<Bytes>>,
    types: Vec<(usize, u32)>,
}

impl Parameters {
    /// `$n` for a value.
    pub(super) fn add(&mut self, value: &Value) -> Sql {
        self.values.push(match value {
            Value::Null | Value::UnchangedToast => None,
            Value::Text(bytes) | Value::Binary(bytes) => Some(bytes.clone()),
        });
        sql!("${}", self.values.len())
    }

    /// `$n` for a value that is compared with a column.
    fn compared(&mut self, value: &Value, column: &Column) -> Sql {
        if let Some(oid) = column.compared_type_oid {
            self.types.push((self.values.len(), oid));
        }
        self.add(value)
    }
}

/// A change as it came. None: nothing is to be done (an update that changes nothing).
pub fn of_change(change: &Change) -> Option<Statement> {
    let relation = &*change.relation;
    match (&change.operation, &relation.identity) {
        (Operation::Insert { new }, _) => Some(insert(relation, new, change.end_lsn)),
        (Operation::Delete { old }, Identity::Key(_) | Identity::Nothing) => {
            Some(delete(relation, old, change.end_lsn))
        }
        (Operation::Update { old, new }, Identity::Key(_) | Identity::Nothing) => {
            update(relation, old.as_ref(), new, change.end_lsn)
        }
        (Operation::Delete { old }, Identity::Full) => {
            Some(identity_full::delete(relation, old, change.end_lsn))
        }
        (Operation::Update { old, new }, Identity::Full) => {
            identity_full::update(relation, old.as_ref().unwrap_or(new), new, change.end_lsn)
        }
    }
}

/// `insert into ... overriding system value`.
pub fn insert(relation: &Relation, new: &Row, end_lsn: PgLsn) -> Statement {
    let table = &*relation.table;
    let mut parameters = Parameters::default();
    let columns = &relation.written;
    let sql = if columns.is_empty() {
        sql!("insert into {} default values", table.name)
    } else {
        let values = Sql::join(columns.iter().map(|&at| parameters.add(&new[at])), ", ");
        sql!(
            "insert into {} ({}) overriding system value values ({})",
            table.name,
            names(table, columns),
            values
        )
    };
    statement(relation, sql, parameters, "insert", end_lsn)
}

/// `delete ... where key = ...`.
pub fn delete(relation: &Relation, old: &Row, end_lsn: PgLsn) -> Statement {
    let mut parameters = Parameters::default();
    let found = by_key(relation, old, &mut parameters);
    let sql = sql!("delete from {} where {}", relation.table.only(), found);
    statement(relation, sql, parameters, "delete", end_lsn)
}

/// `update ... set ... where key = ...`. A key column is set only if it changes. A column
/// GENERATED ALWAYS AS IDENTITY cannot be set by UPDATE: there the row is deleted and inserted.
pub fn update(
    relation: &Relation,
    old: Option<&Row>,
    new: &Row,
    end_lsn: PgLsn,
) -> Option<Statement> {
    let before = old.unwrap_or(new);
    let mut parameters = Parameters::default();
    let set = set_columns(relation, before, new);
    if set.is_empty() {
        return None;
    }
    let found = by_key(relation, before, &mut parameters);
    let table = &*relation.table;
    let sql = if set.iter().any(|&at| table.columns[at].identity_always) {
        let gone = sql!("delete from {} where {} returning *", table.only(), found);
        reinsert(table, &gone, &set, new, &mut parameters)
    } else {
        sql!(
            "update {} set {} where {}",
            table.only(),
            assignments(table, &set, new, &mut parameters),
            found
        )
    };
    Some(statement(relation, sql, parameters, "update", end_lsn))
}

/// Columns that an update sets: what is known and written, key columns only where they change.
pub fn set_columns(relation: &Relation, before: &Row, new: &Row) -> Vec<usize> {
    let key = relation.key().unwrap_or_default();
    relation
        .written
        .iter()
        .copied()
        .filter(|&at| new[at] != Value::UnchangedToast)
        .filter(|at| !key.contains(at) || before[*at] != new[*at])
        .collect()
}

/// `truncate [only] a, only b`: one statement, as it was one on the source.
pub fn truncate<'a>(tables: impl Iterator<Item = &'a Table>, truncate: &Truncate) -> Sql {
    let names = Sql::join(tables.map(Table::only), ", ");
    let identity = if truncate.restart_identity { " restart identity" } else { "" };
    sql!("truncate table {}{}", names, identity)
}

pub(super) fn assignments(
    table: &Table,
    set: &[usize],
    new: &Row,
    parameters: &mut Parameters,
) -> Sql {
    let assignment = |&at: &usize| sql!("{} = {}", table.ident(at), parameters.add(&new[at]));
    Sql::join(set.iter().map(assignment), ", ")
}

/// Deletes by `gone` (which returns the row) and inserts it again with `set` laid over.
pub(super) fn reinsert(
    table: &Table,
    gone: &Sql,
    set: &[usize],
    new: &Row,
    parameters: &mut Parameters,
) -> Sql {
    let columns: Vec<usize> = table.written().collect();
    let values = columns.iter().map(|&at| {
        if set.contains(&at) { parameters.add(&new[at]) } else { sql!("gone.{}", table.ident(at)) }
    });
    let values = Sql::join(values, ", ");
    sql!(
        "with gone as ({}) insert into {} ({}) overriding system value select {} from gone",
        gone,
        table.name,
        names(table, &columns),
        values
    )
}

pub(super) fn names(table: &Table, columns: &[usize]) -> Sql {
    Sql::join(columns.iter().map(|&at| table.ident(at)), ", ")
}

fn by_key(relation: &Relation, row: &Row, parameters: &mut Parameters) -> Sql {
    let table = &*relation.table;
    let key = relation.key().unwrap_or_default();
    if key.is_empty() {
        return sql!("false");
    }
    let equal = key.iter().map(|&at| {
        let column = &table.columns[at];
        let value = parameters.compared(&row[at], column);
        sql!("{} {} {}", table.ident(at), column.equality, value)
    });
    Sql::join(equal, " and ")
}

pub(super) fn statement(
    relation: &Relation,
    sql: Sql,
    parameters: Parameters,
    operation: &'static str,
    end_lsn: PgLsn,
) -> Statement {
    Statement {
        sql,
        values: parameters.values,
        types: parameters.types,
        meant: Some(1),
        operation,
        table: relation.table.name.clone(),
        end_lsn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::relation;
    use std::sync::Arc;

    fn text(value: &'static str) -> Value {
        Value::Text(value.into())
    }

    #[test]
    fn an_unchanged_key_is_not_set() {
        let relation = relation::tests::sample(&["k", "v"], &["k"]);
        let new = vec![text("1"), text("2")];
        let made = update(&relation, None, &new, PgLsn::from(1)).unwrap();
        assert_eq!(
            made.sql.as_str(),
            r#"update only "public"."t" set "v" = $2 where "k" operator(pg_catalog.=) $1"#
        );
        let old = vec![text("0"), Value::Null];
        let moved = update(&relation, Some(&old), &new, PgLsn::from(1)).unwrap();
        assert!(moved.sql.as_str().contains(r#"set "k" = $2, "v" = $3"#));
    }

    #[test]
    fn an_identity_always_column_is_inserted_again() {
        let relation = relation::tests::sample(&["k", "n", "v"], &["k"]);
        let mut table = (*relation.table).clone();
        table.columns[1].identity_always = true;
        let relation = Relation { table: Arc::new(table), ..(*relation).clone() };
        let new = vec![text("1"), text("2"), Value::UnchangedToast];
        let made = update(&relation, None, &new, PgLsn::from(1)).unwrap();
        assert!(made.sql.as_str().ends_with(r#"select gone."k", $2, gone."v" from gone"#));
    }
}
