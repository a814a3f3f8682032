//! Ends every session of the source's database that may not have seen the fence.

use super::{Error, permission::Missing};
use pg::{Session, sql};
use std::time::Duration;
use tokio::time::Instant;

/// Pause between two looks: a session that was told to end is gone in some milliseconds.
const POLL: Duration = Duration::from_millis(50);

/// How long a session that we may not end may take to end by itself: a short one of a superuser
/// (a monitoring program's) is no reason to give up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ends the sessions of this database that began before now, and those that are writing, until
/// none is left. Ours (`skein/NAME/...`) stay: they write nothing on the source.
///
/// A session shows in `pg_stat_activity` only at the end of its start, after it has read its
/// settings. One that is starting holds a lock on its database the while (InitPostgres), which
/// `pg_locks` shows: those are waited for first, so that none slips through between.
///
/// # Errors
/// [`Error::SessionsRemain`] at `deadline`; [`Error::NotPermitted`] where we may not end one.
pub async fn end_sessions(source: &Session, name: &str, deadline: Instant) -> Result<(), Error> {
    let failed = || Error::source("the sessions");
    // The source's clock, after the setting was committed.
    let since: String = source
        .query_one(&sql!("select clock_timestamp()::text"), &[])
        .await
        .map_err(failed())?
        .get(0);
    let mut starting = starting(source).await.map_err(failed())?;
    let ours = format!("skein/{name}/");
    let mut permitted_at = Instant::now();
    loop {
        if !starting.is_empty() {
            let now = self::starting(source).await.map_err(failed())?;
            starting.retain(|one| now.contains(one));
        }
        let others = others(source, &ours, &since).await.map_err(failed())?;
        if starting.is_empty() && others.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let mut sessions: Vec<String> = others.into_iter().map(|one| one.1).collect();
            sessions.extend(starting.into_iter().map(|one| format!("{one}, starting")));
            return Err(Error::SessionsRemain { sessions });
        }
        let mut missing = Vec::new();
        for (pid, text) in others {
            missing.extend(end(source, pid, text).await?);
        }
        if missing.is_empty() {
            permitted_at = Instant::now();
        } else if permitted_at.elapsed() > PATIENCE {
            return Err(Error::NotPermitted { missing });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Tells a session to end; what is missing where we may not.
async fn end(source: &Session, pid: i32, text: String) -> Result<Option<Missing>, Error> {
    match source.query(&sql!("select pg_terminate_backend($1)"), &[&pid]).await {
        Ok(_) => Ok(None),
        Err(error) if error.sqlstate() == Some("42501") => Ok(Some(Missing {
            what: format!("end session {text}"),
            statement: format!("select pg_terminate_backend({pid});"),
        })),
        Err(error) => Err(Error::source("the sessions")(error)),
    }
}

/// Processes that are starting in this database, as text that names one start.
async fn starting(source: &Session) -> pg::Result<Vec<String>> {
    let statement = sql!(
        "select 'process ' || l.pid || ' (' || l.virtualtransaction || ')' from pg_locks l
          where l.locktype = 'object' and l.classid = 'pg_catalog.pg_database'::regclass
            and l.objid = (select oid from pg_database where datname = current_database())
            and l.mode = 'RowExclusiveLock' and l.granted and l.pid <> pg_backend_pid()"
    );
    let mut found = Vec::new();
    for row in source.query(&statement, &[]).await? {
        found.push(row.try_get(0)?);
    }
    Ok(found)
}

/// Sessions of others that began up to `since` or hold a transaction id; pid and text.
/// Autovacuum writes nothing that anybody sees, and parallel workers end with their leader.
async fn others(source: &Session, ours: &str, since: &str) -> pg::Result<Vec<(i32, String)>> {
    let statement = sql!(
        "select pid, coalesce(usename::text, ''), coalesce(application_name, ''),
                coalesce(backend_type, 'session')
           from pg_stat_activity
          where datname = current_database() and pid <> pg_backend_pid()
            and not starts_with(coalesce(application_name, ''), $1)
            and coalesce(backend_type, '') not in ('autovacuum worker', 'parallel worker')
            and (backend_start is null or backend_start <= $2::text::timestamptz
                 or backend_xid is not null)"
    );
    let mut found = Vec::new();
    for row in source.query(&statement, &[&ours, &since]).await? {
        let (pid, user): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
        let (application, kind): (String, String) = (row.try_get(2)?, row.try_get(3)?);
        found.push((pid, format!("{pid} ({kind}, user \"{user}\", \"{application}\")")));
    }
    Ok(found)
}
