//! The two sessions of a slot, kept from one task to the next.
//!
//! ```text
//! task -> read, write -> Session named after the task -> keep_read, keep_write -> next task
//! ```
//! Promise: a session carries the name of the task it works for, is taken over only by a task
//! of the same migration, epoch and server, and only after its last task ended well; any other
//! is closed, which rolls back what it had begun. Why kept: opening one costs more than a small
//! table's copy, and there may be 100,000 of them.

use crate::{
    error::{Error, Result, Side},
    task::Task,
};
use futures::future::join_all;
use pg::{Conninfo, Session, Settings, session::CancelToken, sql, sql::Literal};
use std::time::Duration;

/// Idle sessions of one slot.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    read: Option<(Origin, Session)>,
    write: Option<(Origin, Session)>,
    /// Of the sessions in use.
    cancels: Vec<CancelToken>,
}

/// For whom a session was opened.
#[derive(Debug)]
struct Origin {
    migration: String,
    epoch: u64,
    conninfo: Conninfo,
}

/// How long a cancel request may take; the session is closed whether it succeeds or not.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

impl Origin {
    fn new(task: &Task, conninfo: &Conninfo) -> Self {
        let conninfo = conninfo.clone();
        Self { migration: task.migration.clone(), epoch: task.epoch, conninfo }
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.migration == other.migration
            && self.epoch == other.epoch
            && self.conninfo.expose() == other.conninfo.expose()
    }
}

impl Sessions {
    /// A read-only session on the source.
    pub(crate) async fn read(&mut self, task: &Task, role: &str) -> Result<Session> {
        let idle = self.read.take();
        let idle = renamed(idle, &Origin::new(task, &task.source), task, role).await;
        let session = match idle {
            Some(session) => session,
            None => open_read(task, Side::Source, role).await?,
        };
        self.cancels.push(session.cancel_token());
        Ok(session)
    }

    /// A writing session on the target; triggers and foreign keys do not fire in it where the
    /// server lets us say so.
    pub(crate) async fn write(&mut self, task: &Task, role: &str) -> Result<Session> {
        let idle = self.write.take();
        let idle = renamed(idle, &Origin::new(task, &task.target), task, role).await;
        let session = match idle {
            Some(session) => session,
            None => open_write(task, role).await?,
        };
        self.cancels.push(session.cancel_token());
        Ok(session)
    }

    /// Keeps a session whose transaction ended well.
    pub(crate) fn keep_read(&mut self, task: &Task, session: Session) {
        self.read = Some((Origin::new(task, &task.source), session));
    }

    /// As [`Sessions::keep_read`].
    pub(crate) fn keep_write(&mut self, task: &Task, session: Session) {
        self.write = Some((Origin::new(task, &task.target), session));
    }

    /// The task in hand has ended: nothing of it is left to cancel.
    pub(crate) fn task_ended(&mut self) {
        self.cancels.clear();
    }

    /// Closes what is idle.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Cancels what sessions that were dropped in the middle of a statement still run, and
    /// closes what is idle. A server notices a closed session at its next write, from 14 on
    /// within two seconds; a lock that someone waits for is not held that long.
    pub(crate) async fn abandon(&mut self) {
        let cancels = std::mem::take(&mut self.cancels);
        let cancelling = join_all(cancels.iter().map(CancelToken::cancel));
        // Best effort: a server that is gone has nothing to cancel.
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, cancelling).await;
        self.clear();
    }
}

/// A read-only session on either side.
pub(crate) async fn open_read(task: &Task, side: Side, role: &str) -> Result<Session> {
    let conninfo = match side {
        Side::Source => &task.source,
        Side::Target => &task.target,
    };
    Session::connect(conninfo, &Settings::read(task.session_name(role)))
        .await
        .map_err(|source| Error::Connect { side, source })
}

/// A writing session on the target.
pub(crate) async fn open_write(task: &Task, role: &str) -> Result<Session> {
    let connect = async {
        let session =
            Session::connect(&task.target, &Settings::write(task.session_name(role))).await?;
        match session.batch(&sql!("set session_replication_role = replica")).await {
            Ok(()) => Ok(session),
            // The right is missing: then the target has no foreign keys and triggers yet.
            Err(error) if error.sqlstate() == Some("42501") => Ok(session),
            Err(error) => Err(error),
        }
    };
    connect.await.map_err(|source| Error::Connect { side: Side::Target, source })
}

/// The idle session under its new name, if it fits and lives.
async fn renamed(
    idle: Option<(Origin, Session)>,
    origin: &Origin,
    task: &Task,
    role: &str,
) -> Option<Session> {
    let (_, session) = idle.filter(|(of, session)| of == origin && !session.is_closed())?;
    let name = task.session_name(role);
    let rename = sql!("set application_name = {}", Literal(name.as_str()));
    session.batch(&rename).await.ok().map(|()| session)
}
