//! The fence: after it, no commit on the source that is not before the end position.
//!
//! ```text
//! check -> (before, written down on the target) -> raise: settings, subscriptions
//!       -> T := the source's clock -> sessions from before T ended -> none prepared, none writing
//!       -> message -> end position
//! lift: settings and subscriptions as before -> sessions of the fenced time ended
//! ```
//! Promise: everything that is set was written down first, so that any later coordinator, or a
//! person with [`lift_sql`], can take it back; what we may not do is found by [`plan`] before
//! anything is set.
//!
//! Why sessions are ended: `default_transaction_read_only` is read when a session begins, and
//! any session may set it off. Roles that have a setting of their own (in this database, or
//! anywhere) would not see the database's: each gets one in this database for the time.

mod before;
mod permission;
mod sessions;

pub use before::{Before, RoleSetting, read_before};
pub use permission::{Missing, Plan, plan};
pub use sessions::end_sessions;

use super::Error;
use crate::migration::context::Context;
use pg::{
    PgLsn, Result, Session, Settings, Sql, sql,
    sql::{Ident, Literal},
};
use std::time::Duration;
use tokio::time::Instant;

/// How long one statement of the fence may wait for a catalog lock; then it is tried again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a catalog lock was not had.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// Prefix under which our messages stand in the WAL.
const MESSAGE_PREFIX: &str = "skein";

/// A session on the source that may change settings.
///
/// # Errors
/// When the source cannot be reached.
pub async fn session(context: &Context) -> Result<Session> {
    let settings = Settings::write(context.session_name("fence", 0))
        .encoding(crate::migration::context::UTF_8)
        .lock_timeout(LOCK_TIMEOUT);
    Session::connect(&context.source, &settings).await
}

/// Statements that raise the fence.
fn raise_statements(database: &str, before: &Before) -> Vec<Sql> {
    let database = Ident(database);
    let mut statements =
        vec![sql!("alter database {} set default_transaction_read_only = on", database)];
    statements.extend(before.roles.iter().map(|role| {
        sql!(
            "alter role {} in database {} set default_transaction_read_only = on",
            Ident(&role.role),
            database
        )
    }));
    statements.extend(
        before.subscriptions.iter().map(|name| sql!("alter subscription {} disable", Ident(name))),
    );
    statements
}

/// Statements that take it back, exactly.
fn lift_statements(database: &str, before: &Before) -> Vec<Sql> {
    let database = Ident(database);
    let mut statements = vec![match &before.database {
        None => sql!("alter database {} reset default_transaction_read_only", database),
        Some(value) => sql!(
            "alter database {} set default_transaction_read_only = {}",
            database,
            Literal(value)
        ),
    }];
    for RoleSetting { role, in_database } in &before.roles {
        let role = Ident(role);
        statements.push(match in_database {
            None => sql!(
                "alter role {} in database {} reset default_transaction_read_only",
                role,
                database
            ),
            Some(value) => sql!(
                "alter role {} in database {} set default_transaction_read_only = {}",
                role,
                database,
                Literal(value)
            ),
        });
    }
    statements.extend(
        before.subscriptions.iter().map(|name| sql!("alter subscription {} enable", Ident(name))),
    );
    statements
}

/// What a person runs on the source, as superuser or the database's owner, to lift the fence.
pub fn lift_sql(database: &str, before: &Before) -> String {
    if !before.fence {
        return String::new();
    }
    // A new session is read-only like every other.
    let mut text = "set default_transaction_read_only = off;\n".to_owned();
    for statement in lift_statements(database, before) {
        text.push_str(&format!("{};\n", statement.as_str()));
    }
    // Sessions that began while it stood keep its setting.
    text.push_str(
        sql!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = {} \
             and backend_type = 'client backend' and pid <> pg_backend_pid() \
             and application_name not like 'skein/%';\n",
            Literal(database)
        )
        .as_str(),
    );
    text
}

/// Sets all of it and ends who could still write. Safe to repeat.
///
/// # Errors
/// [`Error::PreparedTransaction`], [`Error::SessionsRemain`] at `deadline`, or what the source
/// refused. The fence is up or half up then: lift it.
pub async fn raise(
    source: &Session,
    context: &Context,
    before: &Before,
    deadline: Instant,
) -> Result<(), Error> {
    if !before.fence {
        return Ok(());
    }
    let database = context.source.database();
    run(source, &raise_statements(database, before), deadline).await?;
    end_sessions(source, &context.name, deadline).await?;
    let gids = prepared(source).await?;
    if !gids.is_empty() {
        return Err(Error::PreparedTransaction { gids });
    }
    Ok(())
}

/// Takes the fence back. Safe to repeat; sessions that began behind it, and so are read-only
/// for their life, are ended.
///
/// # Errors
/// What the source refused: then it still stands.
pub async fn lower(
    source: &Session,
    context: &Context,
    before: &Before,
    deadline: Instant,
) -> Result<(), Error> {
    if !before.fence {
        return Ok(());
    }
    run(source, &lift_statements(context.source.database(), before), deadline).await?;
    match end_sessions(source, &context.name, deadline).await {
        // Writes are possible again; whoever is left reconnects in its own time.
        Err(Error::SessionsRemain { .. } | Error::NotPermitted { .. }) => Ok(()),
        other => other,
    }
}

/// All statements in one transaction, tried until a catalog lock is had.
async fn run(source: &Session, statements: &[Sql], deadline: Instant) -> Result<(), Error> {
    let all = sql!("begin; {}; commit", Sql::join(statements, "; "));
    loop {
        let Err(error) = source.batch(&all).await else { return Ok(()) };
        if !source.is_closed() {
            source.batch(&sql!("rollback")).await.map_err(Error::source("the fence"))?;
        }
        // lock_not_available, tuple concurrently updated
        let again = matches!(error.sqlstate(), Some("55P03" | "40P01" | "XX000"));
        if !again || Instant::now() >= deadline {
            return Err(Error::source("the fence")(error));
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// Names of prepared transactions in this database: COMMIT PREPARED passes the fence.
///
/// # Errors
/// When they cannot be read.
pub async fn prepared(source: &Session) -> Result<Vec<String>, Error> {
    let statement = sql!(
        "select gid from pg_prepared_xacts where database = current_database() order by prepared"
    );
    let rows = source.query(&statement, &[]).await;
    let rows = rows.map_err(Error::source("the prepared transactions"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether the database's setting is still ours: a person may have lifted it.
///
/// # Errors
/// When it cannot be read.
pub async fn stands(source: &Session) -> Result<bool, Error> {
    let now = read_before(source, true).await?;
    Ok(now.database.as_deref() == Some("on"))
}

/// Writes a transactional message and returns the end position: every commit that the source
/// acknowledged before is at or below it, and a walsender can reach it.
///
/// The message's own transaction commits with a local flush, so that when the answer is here
/// the WAL is flushed past its commit record, and with it past every record before: also past
/// commits with `synchronous_commit = off`, which were acknowledged unflushed. The flush
/// position, and not the insert position, since a walsender sends only what is flushed, and the
/// insert position may stand behind a page header where nothing follows on an idle source.
///
/// # Errors
/// What the source refused.
pub async fn mark_end(source: &Session, attempt: u32) -> Result<PgLsn, Error> {
    let statement = sql!(
        "begin; set local synchronous_commit = local; \
         select pg_logical_emit_message(true, {}, {}); commit",
        Literal(MESSAGE_PREFIX),
        Literal(&attempt.to_string())
    );
    let mark = async {
        source.batch(&statement).await?;
        let row = source.query_one(&sql!("select pg_current_wal_flush_lsn()"), &[]).await?;
        Ok(row.try_get(0)?)
    };
    mark.await.map_err(Error::source("the end position"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifting_gives_back_what_was_there() {
        let before = Before {
            fence: true,
            database: None,
            roles: vec![
                RoleSetting { role: "a\"b".into(), in_database: Some("off".into()) },
                RoleSetting { role: "c".into(), in_database: None },
            ],
            subscriptions: vec!["Sub".into()],
        };
        let text = lift_sql("My db", &before);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..5],
            [
                "set default_transaction_read_only = off;",
                "alter database \"My db\" reset default_transaction_read_only;",
                "alter role \"a\"\"b\" in database \"My db\" set default_transaction_read_only = 'off';",
                "alter role \"c\" in database \"My db\" reset default_transaction_read_only;",
                "alter subscription \"Sub\" enable;",
            ]
        );
        assert!(lines[5].starts_with("select pg_terminate_backend"));
        assert_eq!(lift_sql("x", &Before { fence: false, ..before }), "");
    }
}
