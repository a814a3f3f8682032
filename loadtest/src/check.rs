//! Compares two databases, and owes nothing to Skein's own `verify`.
//!
//! ```text
//! catalog -> tables, sequences, large objects -> count and digest on each side -> differences
//! ```
//! Promise: an empty list means that every row of every user table, every sequence's position and
//! every large object is the same text on both sides; nothing is left out but what [`Scope`]
//! names, and schema `skein`. Both sides must be quiet.

use pg::{Conninfo, Session, SessionName, Settings, Sql, TableName, sql, sql::Literal};
use std::{collections::BTreeMap, fmt};

/// What is compared.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Tables that were left out on purpose.
    pub except_tables: Vec<TableName>,
    /// Sequences are set at cutover; before it they differ.
    pub without_sequences: bool,
    /// They are refreshed on the target; equal only where they were fresh on the source.
    pub with_materialized_views: bool,
}

/// One thing that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub object: String,
    pub source: String,
    pub target: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: source {}, target {}", self.object, self.source, self.target)
    }
}

/// What a comparison saw.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    pub differences: Vec<Difference>,
    /// Of the source.
    pub table_count: u64,
    pub row_count: u64,
}

impl Comparison {
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tables, {} rows, ", self.table_count, self.row_count)?;
        write!(f, "{} differences", self.differences.len())?;
        self.differences.iter().try_for_each(|difference| write!(f, "\n  {difference}"))
    }
}

/// Object to what is there; compared as text.
type Contents = BTreeMap<String, String>;

/// Compares all there is.
///
/// # Errors
/// A server could not be read; no difference is an error.
pub async fn compare(source: &str, target: &str, scope: &Scope) -> pg::Result<Comparison> {
    let (source, target) = tokio::try_join!(contents(source, scope), contents(target, scope))?;
    let mut comparison = Comparison {
        table_count: source.table_count,
        row_count: source.row_count,
        differences: Vec::new(),
    };
    let names = source.objects.keys().chain(target.objects.keys());
    let names: std::collections::BTreeSet<&String> = names.collect();
    for name in names {
        let side = |objects: &Contents| objects.get(name).cloned().unwrap_or("absent".to_owned());
        let (on_source, on_target) = (side(&source.objects), side(&target.objects));
        if on_source != on_target {
            comparison.differences.push(Difference {
                object: name.clone(),
                source: on_source,
                target: on_target,
            });
        }
    }
    Ok(comparison)
}

struct Side {
    objects: Contents,
    table_count: u64,
    row_count: u64,
}

async fn contents(conninfo: &str, scope: &Scope) -> pg::Result<Side> {
    let conninfo = Conninfo::parse(conninfo)?;
    let settings = Settings::read(SessionName::of_role("loadtest-check"));
    let session = Session::connect(&conninfo, &settings).await?;
    let mut side = Side { objects: Contents::new(), table_count: 0, row_count: 0 };
    let kinds: &[&str] = if scope.with_materialized_views { &["r", "p", "m"] } else { &["r", "p"] };
    for (table, kind) in relations(&session, kinds).await? {
        if scope.except_tables.contains(&table) {
            continue;
        }
        let (rows, text) = table_contents(&session, &table, &kind).await?;
        // A partitioned root has no rows of its own; it is read through, so that a target with
        // other partitions can be compared by its roots.
        if kind != "p" {
            side.row_count += rows;
            side.table_count += 1;
        }
        side.objects.insert(format!("table {table}"), text);
    }
    if !scope.without_sequences {
        for (sequence, _) in relations(&session, &["S"]).await? {
            let statement = sql!("select last_value::text, is_called from {}", &sequence);
            let row = session.query_one(&statement, &[]).await?;
            let text = format!("{} called {}", row.get::<_, String>(0), row.get::<_, bool>(1));
            side.objects.insert(format!("sequence {sequence}"), text);
        }
    }
    side.objects.insert("large objects".to_owned(), large_objects(&session).await?);
    Ok(side)
}

/// User relations of some kinds, in the order of their names.
async fn relations(session: &Session, kinds: &[&str]) -> pg::Result<Vec<(TableName, String)>> {
    let kinds = Sql::join(kinds.iter().map(|kind| Literal(kind)), ", ");
    let statement = sql!(
        "select n.nspname::text, c.relname::text, c.relkind::text \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where c.relkind::text in ({}) and c.relpersistence <> 't' \
           and (c.relkind <> 'm' or c.relispopulated) \
           and n.nspname not in ('pg_catalog', 'information_schema', 'skein') \
           and n.nspname !~ '^pg_(toast|temp)' \
         order by 1, 2",
        kinds
    );
    let rows = session.query(&statement, &[]).await?;
    let table = |row: &tokio_postgres::Row| {
        TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))
    };
    Ok(rows.iter().map(|row| (table(row), row.get(2))).collect())
}

/// Rows, and their count with the sum of their md5 (each half of 128 bits): free of order, and
/// two equal rows do not cancel out.
async fn table_contents(
    session: &Session,
    table: &TableName,
    kind: &str,
) -> pg::Result<(u64, String)> {
    let only = if kind == "p" { "" } else { "only " };
    let statement = sql!(
        "select count(*), \
           coalesce(sum(('x' || left(md5, 16))::bit(64)::bigint::numeric), 0)::text, \
           coalesce(sum(('x' || right(md5, 16))::bit(64)::bigint::numeric), 0)::text \
         from (select pg_catalog.md5(skein_row::text) as md5 from {}{} as skein_row) as digest",
        only,
        table
    );
    let row = session.query_one(&statement, &[]).await?;
    let count = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    let text = format!("{count} rows {} {}", row.get::<_, String>(1), row.get::<_, String>(2));
    Ok((count, text))
}

async fn large_objects(session: &Session) -> pg::Result<String> {
    let statement = sql!(
        "select count(*), coalesce(pg_catalog.md5(string_agg( \
             m.oid::text || coalesce((select string_agg(pg_catalog.md5(l.data), '' order by pageno) \
                from pg_catalog.pg_largeobject l where l.loid = m.oid), ''), ',' order by m.oid)), '') \
         from pg_catalog.pg_largeobject_metadata m"
    );
    let row = session.query_one(&statement, &[]).await?;
    Ok(format!("{} digest {}", row.get::<_, i64>(0), row.get::<_, String>(1)))
}
