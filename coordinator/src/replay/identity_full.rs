//! Finds one row by its image: REPLICA IDENTITY FULL. Pure.
//!
//! Promise: exactly one row, also among duplicates. Plain `=` deleted 1.00 for 1.0, and json has
//! none (rules, part 5): the text of every column decides, `format('%s', ...)` since that is the
//! output function itself, where `::text` may be another cast. An equality that an index may know
//! goes before, then one row by (tableoid, ctid).

use super::{
    relation::Relation,
    row::{Row, Value},
    statement::{Parameters, Statement, assignments, reinsert, statement},
};
use pg::{PgLsn, Sql, sql};

/// Deletes the one row that is `old`.
pub fn delete(relation: &Relation, old: &Row, end_lsn: PgLsn) -> Statement {
    let mut parameters = Parameters::default();
    let sql = sql!(
        "with hit as materialized ({}) delete from {} as t using hit \
         where t.ctid = hit.c and t.tableoid = hit.o",
        one_row(relation, old, &mut parameters),
        relation.table.only()
    );
    statement(relation, sql, parameters, "delete", end_lsn)
}

/// Sets what differs in the one row that is `old`; None when nothing does.
pub fn update(relation: &Relation, old: &Row, new: &Row, end_lsn: PgLsn) -> Option<Statement> {
    let table = &*relation.table;
    let set: Vec<usize> = relation
        .written
        .iter()
        .copied()
        .filter(|&at| new[at] != Value::UnchangedToast && new[at] != old[at])
        .collect();
    if set.is_empty() {
        return None;
    }
    let mut parameters = Parameters::default();
    let hit = one_row(relation, old, &mut parameters);
    let sql = if set.iter().any(|&at| table.columns[at].identity_always) {
        let gone = sql!(
            "delete from {} as t using ({}) as hit where t.ctid = hit.c and t.tableoid = hit.o \
             returning t.*",
            table.only(),
            hit
        );
        reinsert(table, &gone, &set, new, &mut parameters)
    } else {
        sql!(
            "with hit as materialized ({}) update {} as t set {} from hit \
             where t.ctid = hit.c and t.tableoid = hit.o",
            hit,
            table.only(),
            assignments(table, &set, new, &mut parameters)
        )
    };
    Some(statement(relation, sql, parameters, "update", end_lsn))
}

/// How a value prints; null where it is null.
pub(super) fn image(value: &Sql) -> Sql {
    // `is null` would be true for a row of nulls.
    sql!(
        "case when pg_catalog.num_nulls({}) = 0 then pg_catalog.format('%s', {}) end collate \"C\"",
        value,
        value
    )
}

/// Place of one row whose every known column prints as in `old`.
fn one_row(relation: &Relation, old: &Row, parameters: &mut Parameters) -> Sql {
    let table = &*relation.table;
    let mut conditions = Vec::new();
    for (at, column) in table.columns.iter().enumerate() {
        if column.indexable && matches!(old[at], Value::Text(_)) {
            let value = parameters.add(&old[at]);
            conditions.push(sql!("{} {} {}", table.ident(at), column.equality, value));
        }
    }
    for (at, value) in old.iter().enumerate() {
        match value {
            // `is null` would be true for a row of nulls.
            Value::Null => conditions.push(sql!("pg_catalog.num_nulls({}) = 1", table.ident(at))),
            Value::Text(_) | Value::Binary(_) => {
                let value = parameters.add(value);
                conditions.push(sql!(
                    "pg_catalog.format('%s', {}) operator(pg_catalog.=) {} collate \"C\"",
                    table.ident(at),
                    value
                ));
            }
            // The stream does not carry it.
            Value::UnchangedToast => {}
        }
    }
    let found = if conditions.is_empty() { sql!("true") } else { Sql::join(conditions, " and ") };
    sql!("select ctid as c, tableoid as o from {} where {} limit 1", table.only(), found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::relation;

    #[test]
    fn the_text_decides_and_an_equality_goes_before() {
        let relation = relation::tests::sample(&["a", "b"], &[]);
        let old = vec![Value::Text("1.0".into()), Value::Null];
        let made = delete(&relation, &old, PgLsn::from(1));
        let sql = made.sql.as_str();
        assert!(sql.contains(r#"where "a" operator(pg_catalog.=) $1 and pg_catalog.format"#));
        assert!(sql.contains(r#"num_nulls("b") = 1"#));
        assert!(sql.contains("limit 1"));
        assert_eq!(made.meant, Some(1));
    }

    #[test]
    fn an_update_that_changes_nothing_is_nothing() {
        let relation = relation::tests::sample(&["a"], &[]);
        let row = vec![Value::Text("1".into())];
        assert!(update(&relation, &row, &row, PgLsn::from(1)).is_none());
    }
}
