//! Sessions that keep the exported snapshot alive.
//!
//! ```text
//! slot creation exports a name -> each holder imports it, exports its own name
//!                                 -> copy sessions and other holders import any of them
//! ```
//! Promise: a holder does nothing but `select 1` every 30 s, since a failed statement in its
//! transaction would drop the snapshot; a name is reported only while its session lives. The
//! snapshot is gone when no holder session stands and no recorded name imports.

use crate::migration::context::Context;
use pg::{Result, Session, Settings, sql, sql::Literal};
use std::time::Duration;

/// Pause between two signs of life of a holder. Any value below the source's network idle
/// limits will do; firewalls drop silent connections after minutes.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// A session inside a transaction that imported the snapshot and exported it again.
#[derive(Debug)]
pub struct Holder {
    session: Session,
    /// By which others import it.
    pub name: String,
}

impl Holder {
    /// Imports `snapshot` and exports it again.
    ///
    /// # Errors
    /// 22023 or 42704 when the name is dead; or the server cannot be reached.
    pub async fn import(context: &Context, id: u32, snapshot: &str) -> Result<Self> {
        let settings =
            Settings::read(context.session_name("holder", id)).lock_timeout(Duration::ZERO);
        let session = Session::connect(&context.source, &settings).await?;
        begin_under(&session, snapshot).await?;
        let row = session.query_one(&sql!("select pg_export_snapshot()"), &[]).await?;
        Ok(Self { session, name: row.get(0) })
    }

    /// Whether the session stands.
    pub fn is_alive(&self) -> bool {
        !self.session.is_closed()
    }

    /// A sign of life; a failure shows in `is_alive`.
    pub async fn ping(&self) {
        if let Err(error) = self.session.query_one(&sql!("select 1"), &[]).await {
            tracing::warn!(%error, "snapshot holder is gone");
        }
    }
}

/// Begins a transaction that sees what `snapshot` sees.
///
/// # Errors
/// When the name is dead.
pub async fn begin_under(session: &Session, snapshot: &str) -> Result<()> {
    session
        .batch(&sql!(
            "begin isolation level repeatable read read only; set transaction snapshot {}",
            Literal(snapshot)
        ))
        .await
}

/// The first of `names` that can be imported becomes a new holder's.
///
/// # Errors
/// When the source cannot be reached. `Ok(None)`: every name is dead.
pub async fn import_any(context: &Context, id: u32, names: &[String]) -> Result<Option<Holder>> {
    for name in names {
        match Holder::import(context, id, name).await {
            Ok(holder) => return Ok(Some(holder)),
            Err(error) if is_dead_name(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether the server said that a snapshot's name means nothing (any more).
pub fn is_dead_name(error: &pg::Error) -> bool {
    matches!(error.sqlstate(), Some("22023" | "42704" | "55000" | "58P01"))
}

/// Holder sessions of this migration that the source shows, of any epoch and any machine.
///
/// # Errors
/// What the server refused.
pub async fn sessions(session: &Session, migration: &str) -> Result<i64> {
    let row = session
        .query_one(
            &sql!(
                "select count(*) from pg_catalog.pg_stat_activity
 where application_name like $1 and state is not null"
            ),
            &[&format!("skein/{}/%/holder/%", like_escaped(migration))],
        )
        .await?;
    Ok(row.get(0))
}

/// `text` with the wildcards of LIKE escaped.
pub fn like_escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}
