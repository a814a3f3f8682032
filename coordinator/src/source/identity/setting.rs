//! Sets REPLICA IDENTITY FULL where it was chosen, and puts back what was there.
//!
//! In: [`Originals`], which the caller made durable first (`skein.step` on the target, step
//! `source/identity_originals`). Out: settings on the source. Promise: one table a transaction,
//! a lock is waited for two seconds at most at a time; both ways may run twice, and neither
//! touches a setting that somebody else has changed meanwhile.

use super::{Decision, Setting, Survey};
use crate::source::{Error, LOCK_PAUSE, LOCK_TIMEOUT};
use pg::{Session, Sql, TableName, sql, sql::Ident};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// What a table's setting was before ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    pub oid: u32,
    pub table: TableName,
    pub setting: Setting,
    /// Of USING INDEX, where the index was still there.
    pub index: Option<String>,
}

/// Every table whose setting we change. Written on the target before the first change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Originals(pub Vec<Original>);

impl Originals {
    /// `self`, which was durable before, and what `newer` adds: after a crash a later survey
    /// sees our FULL in place of the original.
    #[must_use]
    pub fn merged_with(mut self, newer: Self) -> Self {
        let known: std::collections::HashSet<u32> = self.0.iter().map(|one| one.oid).collect();
        self.0.extend(newer.0.into_iter().filter(|one| !known.contains(&one.oid)));
        self
    }
}

/// What would be changed, and what is there now. Pure.
pub fn originals(survey: &Survey, decisions: &[Decision]) -> Originals {
    let changed = decisions.iter().filter(|decision| decision.set_full);
    let tables = changed.filter_map(|decision| survey.table(decision.oid));
    Originals(
        tables
            .map(|table| Original {
                oid: table.oid,
                table: table.table.clone(),
                setting: table.setting,
                index: table.marked_index.clone(),
            })
            .collect(),
    )
}

/// Sets FULL on each table that does not have it yet. The originals must be durable by now.
///
/// # Errors
/// [`Error::Locked`] after `deadline` from now on one table; what the server refused.
pub async fn set_identities(
    session: &Session,
    originals: &Originals,
    deadline: Duration,
) -> Result<(), Error> {
    let now = current(session, originals).await?;
    for original in &originals.0 {
        let Some((table, setting, _)) = now.get(&original.oid) else { continue };
        if *setting != Setting::Full {
            let statement = sql!("alter table only {} replica identity full", table);
            alter(session, table, &statement, deadline).await?;
        }
    }
    Ok(())
}

/// Puts back what was there, where FULL still stands. Returns what could not be put back as it
/// was, as sentences.
///
/// # Errors
/// As [`set_identities`].
pub async fn restore_identities(
    session: &Session,
    originals: &Originals,
    deadline: Duration,
) -> Result<Vec<String>, Error> {
    let now = current(session, originals).await?;
    let mut notices = Vec::new();
    for original in &originals.0 {
        let Some((table, Setting::Full, indexes)) = now.get(&original.oid) else { continue };
        let before = match (original.setting, &original.index) {
            (Setting::Full, _) => continue,
            (Setting::Default, _) => Sql::from("default"),
            (Setting::Nothing, _) => Sql::from("nothing"),
            (Setting::Index, Some(index)) if indexes.contains(index) => {
                sql!("using index {}", Ident(index))
            }
            // a marked index that is gone means the same as NOTHING (manual, ALTER TABLE)
            (Setting::Index, index) => {
                if let Some(index) = index {
                    notices.push(format!(
                        "Replica identity of {table} was set to nothing: its index \"{index}\" \
                         is gone."
                    ));
                }
                Sql::from("nothing")
            }
        };
        let statement = sql!("alter table only {} replica identity {}", table, before);
        alter(session, table, &statement, deadline).await?;
    }
    Ok(notices)
}

type Current = HashMap<u32, (TableName, Setting, Vec<String>)>;

/// Name, setting and indexes by now, of those that are still there.
async fn current(session: &Session, originals: &Originals) -> Result<Current, Error> {
    let oids: Vec<u32> = originals.0.iter().map(|original| original.oid).collect();
    let statement = sql!(
        "select c.oid, n.nspname::text, c.relname::text, c.relreplident::text,
                array(select ic.relname::text from pg_index i
                        join pg_class ic on ic.oid = i.indexrelid
                       where i.indrelid = c.oid and i.indisunique)
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where c.oid = any($1)"
    );
    let read = async {
        let mut now = HashMap::new();
        for row in session.query(&statement, &[&oids]).await? {
            let table = TableName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?);
            let setting = super::survey::setting_of(row.try_get(3)?);
            now.insert(row.try_get(0)?, (table, setting, row.try_get(4)?));
        }
        Ok(now)
    };
    read.await.map_err(Error::read("the replica identities"))
}

/// One statement in a transaction of its own, tried until the lock is had or `deadline` is over.
async fn alter(
    session: &Session,
    table: &TableName,
    statement: &Sql,
    deadline: Duration,
) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let error = match briefly_locked(session, statement).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // dropped meanwhile: nothing to set and nothing to put back
        if error.sqlstate() == Some("42P01") {
            return Ok(());
        }
        if !matches!(error.sqlstate(), Some("55P03" | "40P01")) {
            return Err(Error::Change {
                what: format!("replica identity of {table}"),
                source: error,
            });
        }
        if begun.elapsed() >= deadline {
            let blockers = holders_of(session, table).await.unwrap_or_default();
            return Err(Error::Locked { table: table.clone(), waited: begun.elapsed(), blockers });
        }
        tracing::info!(table = %table, "lock not had in time, trying again");
        tokio::time::sleep(LOCK_PAUSE.min(deadline.saturating_sub(begun.elapsed()))).await;
    }
}

/// Runs `statement` in a transaction that waits for a lock no longer than [`LOCK_TIMEOUT`].
pub(in crate::source) async fn briefly_locked(
    session: &Session,
    statement: &Sql,
) -> pg::Result<()> {
    let lock_timeout_ms = u64::try_from(LOCK_TIMEOUT.as_millis()).unwrap_or(2000);
    let done = session
        .batch(&sql!(
            "begin read write; set local lock_timeout = {}; {}; commit",
            lock_timeout_ms,
            statement
        ))
        .await;
    if done.is_err() && !session.is_closed() {
        session.batch(&sql!("rollback")).await?;
    }
    done
}

/// Who holds or waits for a lock on a table, as text.
pub(in crate::source) async fn holders_of(
    session: &Session,
    table: &TableName,
) -> pg::Result<Vec<String>> {
    let statement = sql!(
        "select distinct coalesce(l.pid, 0), coalesce(a.application_name, ''),
                coalesce(a.state, ''), coalesce(p.gid, ''),
                coalesce(extract(epoch from now() - coalesce(a.xact_start, p.prepared)), 0)::int8
           from pg_locks l
           left join pg_stat_activity a on a.pid = l.pid
           left join pg_prepared_xacts p on l.virtualtransaction = '-1/' || p.transaction::text
          where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
            and l.database = (select oid from pg_database where datname = current_database())
            and l.relation = to_regclass($1)"
    );
    let mut holders = Vec::new();
    for row in session.query(&statement, &[&table.to_string()]).await? {
        let (pid, gid): (i32, String) = (row.try_get(0)?, row.try_get(3)?);
        let age_s: i64 = row.try_get(4)?;
        holders.push(if gid.is_empty() {
            let (application, state): (String, String) = (row.try_get(1)?, row.try_get(2)?);
            format!("process {pid} (\"{application}\", {state}, {age_s} s)")
        } else {
            format!("prepared transaction '{gid}' ({age_s} s)")
        });
    }
    Ok(holders)
}
