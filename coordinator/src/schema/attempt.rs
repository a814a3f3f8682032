//! A transaction on the target in which single statements may be refused, and are said.
//!
//! ```text
//! begin, fence -> attempt (savepoint; refused: note) ... -> mark -> commit
//! ```
//! Promise: what is not refused, the notes and the mark commit together.

use super::NotMoved;
use super::error::{Error, Result, passes};
use super::step;
use crate::target;
use pg::{Session, Sql, sql};
use serde::Serialize;

/// An open transaction behind the fence. Rolled back when its session is dropped.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    session: &'a Session,
    action: &'static str,
    pub(super) notes: NotMoved,
}

impl<'a> Attempt<'a> {
    /// Begins; `action` completes "could not ...".
    ///
    /// # Errors
    /// [`Error::Fenced`] when a newer epoch acts.
    pub(super) async fn begin(
        session: &'a Session,
        epoch: u64,
        action: &'static str,
    ) -> Result<Self> {
        session.batch(&sql!("begin")).await.map_err(Error::server(action))?;
        let fence = session.query_opt(&target::fence(epoch), &[]).await;
        if fence.map_err(Error::server(action))?.is_none() {
            session.batch(&sql!("rollback")).await.map_err(Error::server(action))?;
            return Err(Error::Fenced);
        }
        Ok(Self { session, action, notes: NotMoved::new() })
    }

    /// Runs statements that may be refused; `what` begins the note that says so. Tells whether
    /// they were taken.
    ///
    /// # Errors
    /// When the session is lost, or the refusal passes by itself.
    pub(super) async fn attempt(&mut self, what: &str, statements: &Sql) -> Result<bool> {
        match self.refused(statements).await? {
            None => Ok(true),
            Some(message) => {
                self.notes.push(format!("{what}: {message}"));
                Ok(false)
            }
        }
    }

    /// As [`Attempt::attempt`], without a note: the server's message when it was refused.
    pub(super) async fn refused(&mut self, statements: &Sql) -> Result<Option<String>> {
        let session = self.session;
        let server = || Error::server(self.action);
        session.batch(&sql!("savepoint attempt")).await.map_err(server())?;
        match session.batch(statements).await {
            Ok(()) => {
                session.batch(&sql!("release attempt")).await.map_err(server())?;
                Ok(None)
            }
            Err(error) if passes(&error) => Err(server()(error)),
            Err(pg::Error::Server(error)) => {
                session.batch(&sql!("rollback to attempt")).await.map_err(server())?;
                Ok(Some(error.message.clone()))
            }
            Err(error) => Err(server()(error)),
        }
    }

    /// Leaves the mark and commits.
    pub(super) async fn commit(self, mark: &str, detail: &impl Serialize) -> Result<NotMoved> {
        let mut last = step::mark(mark, detail);
        last.push("; commit");
        self.session.batch(&last).await.map_err(Error::server(self.action))?;
        Ok(self.notes)
    }

    /// Takes back the objects, keeps the mark: a trial.
    pub(super) async fn undo(self) -> Result<NotMoved> {
        self.session.batch(&sql!("rollback")).await.map_err(Error::server(self.action))?;
        Ok(self.notes)
    }
}
