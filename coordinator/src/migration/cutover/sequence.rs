//! Sequences: the stream does not carry them, so they are read once behind the fence.
//!
//! ```text
//! source: list (catalogs) -> values (union all, by hundreds) -> target: setval, fenced -> compared
//! ```
//! Promise: last value and `is_called` of each arrive exactly, also of identity columns,
//! descending ones and ones never used; what was set is read back and compared.

use super::Error;
use crate::{filter::Filter, migration::context::Context};
use pg::{Session, Sql, TableName, sql, sql::Literal};
use std::collections::HashMap;

/// Sequences in one statement: each is opened by it, and a statement has a lock for each.
const BATCH: usize = 200;

/// Where a sequence stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub sequence: TableName,
    pub last_value: i64,
    pub is_called: bool,
}

/// Every sequence of the source that belongs to the migration, with its value.
///
/// # Errors
/// When the source cannot be read; reading a sequence takes SELECT on it.
pub async fn read(source: &Session, filter: &Filter) -> Result<Vec<Value>, Error> {
    let sequences = list(source, filter).await?;
    values(source, &sequences).await.map_err(Error::source("the sequences"))
}

/// Sequences by name. One that is owned by a table goes with it; of an extension's only those
/// that it declares as configuration.
async fn list(source: &Session, filter: &Filter) -> Result<Vec<TableName>, Error> {
    let statement = sql!(
        "select n.nspname::text, c.relname::text, tn.nspname::text, t.relname::text
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
           left join pg_depend o on o.classid = 'pg_catalog.pg_class'::regclass
                and o.objid = c.oid and o.refclassid = 'pg_catalog.pg_class'::regclass
                and o.deptype in ('a', 'i') and o.refobjsubid > 0
           left join pg_class t on t.oid = o.refobjid
           left join pg_namespace tn on tn.oid = t.relnamespace
          where c.relkind = 'S' and c.relpersistence <> 't'
            and n.nspname not in ('pg_catalog', 'information_schema', 'skein')
            and not exists (
              select 1 from pg_depend e join pg_extension x on x.oid = e.refobjid
               where e.classid = 'pg_catalog.pg_class'::regclass and e.objid = c.oid
                 and e.refclassid = 'pg_catalog.pg_extension'::regclass and e.deptype = 'e'
                 and not c.oid = any(coalesce(x.extconfig, '{}')))
          order by 1, 2"
    );
    let read = async {
        let mut sequences = Vec::new();
        for row in source.query(&statement, &[]).await? {
            let sequence =
                TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
            let owner: (Option<String>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
            let belongs = match owner {
                (Some(schema), Some(table)) => filter.matches_table(&TableName::new(schema, table)),
                _ => filter.matches_table(&sequence),
            };
            if belongs {
                sequences.push(sequence);
            }
        }
        Ok(sequences)
    };
    read.await.map_err(Error::source("the sequences"))
}

/// `pg_sequences` hides the value of a sequence that is not called yet, so each is read itself.
async fn values(session: &Session, sequences: &[TableName]) -> pg::Result<Vec<Value>> {
    let mut values = Vec::with_capacity(sequences.len());
    for batch in sequences.chunks(BATCH) {
        let parts = batch.iter().zip(0_usize..).map(|(sequence, i)| {
            sql!("select {}::int8, last_value, is_called from {}", i, sequence)
        });
        let rows = session.query(&Sql::join(parts, " union all "), &[]).await?;
        for row in rows {
            let at = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(usize::MAX);
            let Some(sequence) = batch.get(at) else { continue };
            values.push(Value {
                sequence: sequence.clone(),
                last_value: row.try_get(1)?,
                is_called: row.try_get(2)?,
            });
        }
    }
    Ok(values)
}

/// Sets them on the target and reads them back. Safe to repeat until the target is open.
/// `setval` is not undone by a rollback: that the row of the fence is held meanwhile is what
/// keeps a newer coordinator from opening the target under it.
///
/// # Errors
/// [`Error::SequenceMissing`]; [`Error::SequenceDiffers`]; [`Error::Superseded`].
pub async fn set(target: &Session, context: &Context, values: &[Value]) -> Result<(), Error> {
    let missing = absent(target, values).await?;
    if !missing.is_empty() {
        return Err(Error::SequenceMissing { sequences: missing });
    }
    let epoch = context.epoch;
    for batch in values.chunks(BATCH) {
        let calls = batch.iter().map(|value| {
            sql!(
                "setval({}, {}, {})",
                Literal(&value.sequence.to_string()),
                value.last_value,
                value.is_called
            )
        });
        write(target, epoch, &sql!("select {}", Sql::join(calls, ", "))).await?;
    }
    compare(target, values).await
}

async fn write(target: &Session, epoch: u64, statements: &Sql) -> Result<(), Error> {
    let done = crate::target::fenced(target, epoch, statements).await;
    match done.map_err(Error::target("the sequences"))? {
        true => Ok(()),
        false => Err(Error::Superseded { epoch }),
    }
}

async fn absent(target: &Session, values: &[Value]) -> Result<Vec<TableName>, Error> {
    let names: Vec<String> = values.iter().map(|value| value.sequence.to_string()).collect();
    let statement = sql!(
        "select i::int8 from unnest($1::text[]) with ordinality as named(name, i)
          where not exists (select 1 from pg_class c
                             where c.oid = to_regclass(name) and c.relkind = 'S')"
    );
    let rows = target.query(&statement, &[&names]).await;
    let rows = rows.map_err(Error::target("the sequences"))?;
    Ok(rows
        .iter()
        .filter_map(|row| usize::try_from(row.get::<_, i64>(0) - 1).ok())
        .filter_map(|i| values.get(i).map(|value| value.sequence.clone()))
        .collect())
}

async fn compare(target: &Session, wanted: &[Value]) -> Result<(), Error> {
    let sequences: Vec<TableName> = wanted.iter().map(|value| value.sequence.clone()).collect();
    let found = self::values(target, &sequences).await.map_err(Error::target("the sequences"))?;
    let found: HashMap<&TableName, &Value> =
        found.iter().map(|value| (&value.sequence, value)).collect();
    let differing: Vec<TableName> = wanted
        .iter()
        .filter(|value| found.get(&value.sequence) != Some(value))
        .map(|value| value.sequence.clone())
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    Err(Error::SequenceDiffers { sequences: differing })
}
