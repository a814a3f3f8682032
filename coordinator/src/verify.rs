//! Comparisons of source and target, table by table, done by the workers.
//!
//! ```text
//! operator asks -> Board::begin: a task per table -> workers lease them -> verdicts, a stream
//! ```
//! Nothing is written anywhere, so a comparison needs no token of the target: who asked holds
//! the stream, and a coordinator that dies takes the comparison with it. Differing keys are row
//! values: they go to who asked and nowhere else.

use crate::{lease::LEASE_TIME, lease::grant::wire_name, migration::context::Context};
use pg::TableName;
use proto::{status::Report, v1};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::mpsc, time::Instant};

/// Task ids of comparisons begin here: far above those of a plan.
const FIRST_ID: u64 = 1 << 48;

/// One table to be compared.
#[derive(Clone, Debug)]
pub struct Table {
    pub source: TableName,
    pub target: TableName,
    /// Inheritance children are compared by themselves.
    pub only: bool,
    pub columns: Vec<String>,
    pub key_columns: Vec<String>,
}

#[derive(Debug)]
struct Item {
    task: v1::Task,
    table: String,
    verdicts: mpsc::Sender<v1::TableVerdict>,
    held: Option<(String, Instant)>,
    attempts: u32,
}

/// Attempts at one table before its verdict is the error.
const MAX_ATTEMPTS: u32 = 3;

/// Comparisons under way.
#[derive(Clone, Debug, Default)]
pub struct Board {
    items: Arc<Mutex<(u64, BTreeMap<u64, Item>)>>,
}

impl Board {
    /// Puts a task per table on the board; the verdicts come as they are reached, and the
    /// channel ends after the last.
    pub fn begin(
        &self,
        context: &Context,
        tables: Vec<Table>,
        max_differences: u32,
    ) -> mpsc::Receiver<v1::TableVerdict> {
        let (verdicts, receiver) = mpsc::channel(tables.len().max(1));
        let mut items = self.items();
        for table in tables {
            items.0 += 1;
            let task_id = FIRST_ID + items.0;
            let endpoint = |conninfo: &pg::Conninfo, server_version| {
                Some(v1::Endpoint { conninfo: conninfo.expose().to_owned(), server_version })
            };
            let task = v1::Task {
                migration: context.name.clone(),
                task_id,
                fencing_token: 1,
                epoch: context.epoch,
                snapshot_epoch: 0,
                source: endpoint(&context.source, context.source_version),
                target: endpoint(&context.target, context.target_version),
                client_encoding: context.source_encoding.clone(),
                work: Some(v1::task::Work::Verify(v1::VerifyWork {
                    source_table: Some(wire_name(&table.source)),
                    target_table: Some(wire_name(&table.target)),
                    only: table.only,
                    columns: table.columns,
                    key_columns: table.key_columns,
                    max_differences,
                })),
            };
            let table = table.source.to_string();
            let verdicts = verdicts.clone();
            items.1.insert(task_id, Item { task, table, verdicts, held: None, attempts: 0 });
        }
        receiver
    }

    /// The next table nobody compares now. Tables whose asker went away are dropped.
    pub fn grant(&self, worker: &str) -> Option<v1::Task> {
        let mut items = self.items();
        items.1.retain(|_, item| !item.verdicts.is_closed());
        let free = items
            .1
            .values_mut()
            .find(|item| item.held.as_ref().is_none_or(|(_, seen)| seen.elapsed() >= LEASE_TIME))?;
        free.held = Some((worker.to_owned(), Instant::now()));
        free.task.fencing_token += 1;
        Some(free.task.clone())
    }

    /// Which of `leases` are of this board and still this worker's; they are renewed.
    pub fn renew(&self, worker: &str, leases: &[v1::HeldLease]) -> Vec<v1::HeldLease> {
        let mut items = self.items();
        let mut fenced = Vec::new();
        for held in leases.iter().filter(|held| held.task_id >= FIRST_ID) {
            match items.1.get_mut(&held.task_id) {
                Some(item)
                    if item.task.fencing_token == held.fencing_token
                        && item.held.as_ref().is_some_and(|(of, _)| of == worker) =>
                {
                    item.held = Some((worker.to_owned(), Instant::now()));
                }
                _ => fenced.push(held.clone()),
            }
        }
        fenced
    }

    /// Whether the task is a comparison.
    pub fn is_of(task_id: u64) -> bool {
        task_id >= FIRST_ID
    }

    /// A verdict came.
    pub fn complete(&self, task_id: u64, result: v1::VerifyResult) {
        let Some(item) = self.items().1.remove(&task_id) else { return };
        let verdict = v1::TableVerdict {
            equal: result.source_rows == result.target_rows
                && result.source_digest == result.target_digest,
            table: item.table,
            source_rows: result.source_rows,
            target_rows: result.target_rows,
            source_digest: hex(&result.source_digest),
            target_digest: hex(&result.target_digest),
            differences: result.differences,
            error: None,
        };
        send(&item.verdicts, verdict);
    }

    /// The comparison failed: tried again by anyone, a few times.
    pub fn release(&self, task_id: u64, cause: v1::ReleaseCause, error: Option<v1::ErrorDetail>) {
        let mut items = self.items();
        let Some(item) = items.1.get_mut(&task_id) else { return };
        item.held = None;
        if cause == v1::ReleaseCause::HandedBack {
            return;
        }
        item.attempts += 1;
        let report: Option<Report> = error.clone().map(Into::into);
        let definite =
            report.is_some_and(|report| report.class == proto::status::ErrorClass::Definite);
        if (definite || item.attempts >= MAX_ATTEMPTS)
            && let Some(item) = items.1.remove(&task_id)
        {
            let error = error.or_else(|| {
                Some(Report::definite("VERIFY_FAILED", "could not compare the table").into())
            });
            let verdict = v1::TableVerdict { table: item.table, error, ..Default::default() };
            send(&item.verdicts, verdict);
        }
    }

    fn items(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Item>)> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(verdicts: &mpsc::Sender<v1::TableVerdict>, verdict: v1::TableVerdict) {
    // The channel has room for every table; it is closed when the asker went away.
    if verdicts.try_send(verdict).is_err() {
        tracing::debug!("who asked for the comparison is gone");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tables to compare, with the columns both sides have and a key where there is one.
///
/// A partitioned table is compared through its root, since the target may be partitioned
/// otherwise; every other table by itself.
///
/// # Errors
/// What the source refused.
pub async fn tables(
    session: &pg::Session,
    filter: &crate::filter::Filter,
) -> pg::Result<Vec<Table>> {
    let keys = keys(session).await?;
    let rows = session
        .query(
            &pg::sql!(
                "select c.oid, n.nspname::text, c.relname::text, c.relkind = 'r',
       coalesce((select array_agg(a.attname::text order by a.attnum)
          from pg_catalog.pg_attribute a
         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), array[]::text[])
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
   and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'skein')
   and not exists (select from pg_catalog.pg_depend d
          where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid
            and d.deptype = 'e')
 order by pg_catalog.pg_relation_size(c.oid) desc, c.oid"
            ),
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            Table {
                source: table.clone(),
                target: table,
                only: row.get(3),
                columns: row.get(4),
                key_columns: keys.get(&row.get::<_, u32>(0)).cloned().unwrap_or_default(),
            }
        })
        .filter(|table| filter.matches_table(&table.source))
        .collect())
}

/// Primary key columns by table.
async fn keys(session: &pg::Session) -> pg::Result<HashMap<u32, Vec<String>>> {
    let rows = session
        .query(
            &pg::sql!(
                "select i.indrelid, array_agg(a.attname::text order by k.position)
  from pg_catalog.pg_index i,
       unnest(i.indkey::int2[]) with ordinality k(attnum, position),
       pg_catalog.pg_attribute a
 where i.indisprimary and i.indisvalid and k.position <= i.indnkeyatts
   and a.attrelid = i.indrelid and a.attnum = k.attnum
 group by i.indrelid"
            ),
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
