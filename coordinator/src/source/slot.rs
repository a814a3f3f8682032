//! The replication slot, and what it waits for.
//!
//! In: a session on the source. Out: the slot's state as the server shows it, whatever its
//! version; who keeps a slot from being made; what we keep the source from doing. Promise: a
//! slot that a stranger uses is not touched.

use super::Error;
use pg::{PgLsn, Session, sql, sql::Sql};
use std::{fmt, time::Duration};
use tokio::time::Instant;

/// A slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub temporary: bool,
    pub active_pid: Option<i32>,
    pub confirmed_flush_lsn: Option<PgLsn>,
    pub restart_lsn: Option<PgLsn>,
    /// reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
    /// Why it can no longer be used, in one phrase; the server's words from 17 on.
    pub invalidation: Option<String>,
    /// WAL that the source keeps for it.
    pub retained_wal_bytes: u64,
    /// Bytes of WAL that may still be written before it is lost, where that is limited.
    pub safe_wal_bytes: Option<u64>,
}

impl SlotState {
    pub fn is_active(&self) -> bool {
        self.active_pid.is_some()
    }
}

/// A transaction that keeps a slot from being made, or WAL from being recycled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    /// None for a prepared one.
    pub pid: Option<i32>,
    pub gid: Option<String>,
    pub application: String,
    pub user: String,
    pub database: String,
    pub xid: Option<String>,
    /// 0 where we may not see it.
    pub age_s: u64,
}

impl fmt::Display for OpenTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.gid, self.pid) {
            (Some(gid), _) => write!(f, "prepared transaction '{gid}'")?,
            (None, pid) => {
                write!(f, "process {} (\"{}\"", pid.unwrap_or(0), self.application)?;
                write!(f, ", user {}, database {})", self.user, self.database)?;
            }
        }
        if let Some(xid) = &self.xid {
            write!(f, ", transaction {xid}")?;
        }
        write!(f, ", open for {} s", self.age_s)
    }
}

/// The slot, if it is there.
///
/// # Errors
/// When it cannot be read.
pub async fn inspect(session: &Session, slot: &str) -> Result<Option<SlotState>, Error> {
    // as jsonb, since columns came with 14, 16, 17 and 18
    let statement = sql!(
        "select j->>'plugin', j->>'database', (j->>'temporary')::bool, (j->>'active_pid')::int,
                (j->>'confirmed_flush_lsn')::pg_lsn, (j->>'restart_lsn')::pg_lsn,
                j->>'wal_status', j->>'invalidation_reason', (j->>'conflicting')::bool,
                coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), (j->>'restart_lsn')::pg_lsn), 0)
                  ::int8,
                (j->>'safe_wal_size')::int8
           from pg_replication_slots s cross join lateral to_jsonb(s) j
          where s.slot_name = $1"
    );
    let read = async {
        let Some(row) = session.query_opt(&statement, &[&slot]).await? else { return Ok(None) };
        let wal_status: Option<String> = row.try_get(6)?;
        let reason: Option<String> = row.try_get(7)?;
        let conflicting: Option<bool> = row.try_get(8)?;
        let invalidation = reason.or_else(|| match (wal_status.as_deref(), conflicting) {
            (Some("lost"), _) => Some("wal_removed".to_owned()),
            (_, Some(true)) => Some("conflict".to_owned()),
            _ => None,
        });
        Ok(Some(SlotState {
            plugin: row.try_get(0)?,
            database: row.try_get(1)?,
            temporary: row.try_get(2)?,
            active_pid: row.try_get(3)?,
            confirmed_flush_lsn: row.try_get(4)?,
            restart_lsn: row.try_get(5)?,
            wal_status,
            invalidation,
            retained_wal_bytes: u64::try_from(row.try_get::<_, i64>(9)?).unwrap_or(0),
            safe_wal_bytes: row.try_get::<_, Option<i64>>(10)?.and_then(|n| n.try_into().ok()),
        }))
    };
    read.await.map_err(Error::read("the replication slot"))
}

/// How long a walsender may take to go once it was told to.
const WALSENDER_END: Duration = Duration::from_secs(30);

/// How often the slot is looked at meanwhile.
const POLL: Duration = Duration::from_millis(100);

/// Drops the slot, where it is. A session on it is ended first if its `application_name`
/// begins with `ours` (`skein/NAME/`).
///
/// # Errors
/// [`Error::SlotInUse`] where somebody else uses it; [`Error::SlotBusy`] where ours does not go.
pub async fn drop(session: &Session, slot: &str, ours: &str) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let Some(state) = inspect(session, slot).await? else { return Ok(()) };
        let Some(pid) = state.active_pid else {
            match session.execute(&sql!("select pg_drop_replication_slot($1)"), &[&slot]).await {
                Ok(_) => return Ok(()),
                Err(error) if error.sqlstate() == Some("42704") => return Ok(()),
                // taken again meanwhile
                Err(error) if error.sqlstate() == Some("55006") => {}
                Err(error) => {
                    return Err(Error::change(format!("replication slot \"{slot}\""))(error));
                }
            }
            continue;
        };
        let application = application_of(session, pid).await?;
        match application {
            Some(application) if !application.starts_with(ours) => {
                return Err(Error::SlotInUse { slot: slot.to_owned(), pid, application });
            }
            Some(_) => {
                let end = sql!("select pg_terminate_backend($1)");
                session
                    .execute(&end, &[&pid])
                    .await
                    .map_err(Error::change(format!("the session on slot \"{slot}\"")))?;
            }
            None => {}
        }
        if begun.elapsed() > WALSENDER_END {
            return Err(Error::SlotBusy { slot: slot.to_owned(), waited: begun.elapsed() });
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn application_of(session: &Session, pid: i32) -> Result<Option<String>, Error> {
    let statement =
        sql!("select coalesce(application_name, '') from pg_stat_activity where pid = $1");
    let read = async {
        let row = session.query_opt(&statement, &[&pid]).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    };
    read.await.map_err(Error::read("the session on the replication slot"))
}

/// Transactions with a transaction id, prepared ones too, of the whole server: creation of a
/// slot waits for each. Oldest first.
///
/// # Errors
/// When they cannot be read.
pub async fn blockers(session: &Session) -> Result<Vec<OpenTransaction>, Error> {
    read_open(session, &open_transactions("a.backend_xid is not null")).await
}

/// The oldest open transaction of others, with or without a transaction id.
///
/// # Errors
/// When it cannot be read.
pub async fn oldest_transaction(session: &Session) -> Result<Option<OpenTransaction>, Error> {
    let any = "a.state is distinct from 'idle' and a.xact_start is not null
            and coalesce(a.backend_type, 'client backend') = 'client backend'
            and coalesce(a.application_name, '') not like 'skein/%'";
    Ok(read_open(session, &open_transactions(any)).await?.into_iter().next())
}

fn open_transactions(which: &'static str) -> Sql {
    sql!(
        "select a.pid, null::text as gid, coalesce(a.application_name, ''),
                coalesce(a.usename::text, ''), coalesce(a.datname::text, ''),
                a.backend_xid::text,
                coalesce(greatest(extract(epoch from clock_timestamp() - a.xact_start), 0), 0)
                  ::int8 as age_s
           from pg_stat_activity a
          where a.pid <> pg_backend_pid() and {}
         union all
         select null, gid, '', owner::text, database::text, transaction::text,
                greatest(extract(epoch from clock_timestamp() - prepared), 0)::int8
           from pg_prepared_xacts
          order by age_s desc",
        which
    )
}

async fn read_open(session: &Session, statement: &Sql) -> Result<Vec<OpenTransaction>, Error> {
    let read = async {
        let mut open = Vec::new();
        for row in session.query(statement, &[]).await? {
            open.push(OpenTransaction {
                pid: row.try_get(0)?,
                gid: row.try_get(1)?,
                application: row.try_get(2)?,
                user: row.try_get(3)?,
                database: row.try_get(4)?,
                xid: row.try_get(5)?,
                age_s: u64::try_from(row.try_get::<_, i64>(6)?).unwrap_or(0),
            });
        }
        Ok(open)
    };
    read.await.map_err(Error::read("the open transactions"))
}

/// Sessions that wait until ours (`skein/NAME/`) let go of their snapshot: CREATE INDEX
/// CONCURRENTLY, REINDEX CONCURRENTLY, DETACH CONCURRENTLY. As text for `status`.
///
/// # Errors
/// When they cannot be read.
pub async fn waiting_for_us(session: &Session, ours: &str) -> Result<Vec<String>, Error> {
    let statement = sql!(
        "select distinct w.pid, coalesce(w.application_name, ''), coalesce(w.usename::text, ''),
                coalesce(extract(epoch from clock_timestamp() - w.query_start), 0)::int8
           from pg_locks l
           join pg_stat_activity w on w.pid = l.pid
          where l.locktype = 'virtualxid' and not l.granted
            and exists (select from unnest(pg_blocking_pids(l.pid)) b (pid)
                          join pg_stat_activity h on h.pid = b.pid
                         where starts_with(h.application_name, $1))"
    );
    let read = async {
        let mut waiting = Vec::new();
        for row in session.query(&statement, &[&ours]).await? {
            let (pid, application, user): (i32, String, String) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let waited_s: i64 = row.try_get(3)?;
            waiting.push(format!(
                "process {pid} (\"{application}\", user {user}) waits for our snapshot, \
                 {waited_s} s"
            ));
        }
        Ok(waiting)
    };
    read.await.map_err(Error::read("who waits for our snapshot"))
}
