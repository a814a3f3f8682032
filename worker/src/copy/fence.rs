//! The task's row in the target: first statement of the transaction, and its finishing mark.
//!
//! ```text
//! take (row locked, token and snapshot epoch as granted) -> rows or objects -> mark -> commit
//! ```
//! Promise: nothing is written under a token that is not the task's newest, nor twice; whether
//! a COMMIT whose answer was lost took effect is read from the mark, and only once the session
//! that sent it is gone.

use crate::{
    backoff::Backoff,
    error::{Error, Result},
    sessions,
    task::Task,
};
use pg::{Session, sql};
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;
use tracing::{info, warn};

/// How long a commit's outcome is looked for: longer than the server needs to notice a dead
/// peer (keepalives, about 10 s) and to restart after a crash.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);

/// What the task's row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// The row is locked by us: write.
    Taken,
    /// Someone committed this task: nothing to do but to say so.
    Finished { rows: u64, bytes: u64 },
}

/// Begins the transaction and takes the task's row.
pub(crate) async fn take(target: &Session, task: &Task) -> Result<Fence> {
    let (id, token) = task.mark()?;
    // A stale session of this task that still holds the row is ended by the coordinator.
    let begin = sql!(
        "begin; set local lock_timeout = '10s'; \
         select finished_at is not null, coalesce(rows, 0), coalesce(bytes, 0) from skein.task \
         where task_id = {} and token = {} and snapshot_epoch = {} for update; \
         set local lock_timeout = 0",
        id,
        token,
        task.snapshot_epoch
    );
    let answer = target.simple(&begin).await.map_err(|source| mark_error(task, source))?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.ok_or(Error::Fenced { task: task.id, token: task.token })?;
    let number = |column: usize| row.get(column).and_then(|text| text.parse().ok()).unwrap_or(0);
    match row.get(0) {
        Some("t") => Ok(Fence::Finished { rows: number(1), bytes: number(2) }),
        _ => Ok(Fence::Taken),
    }
}

/// Writes the finishing mark.
pub(crate) async fn mark(target: &Session, task: &Task, rows: u64, bytes: u64) -> Result<()> {
    let (id, token) = task.mark()?;
    let mark = sql!(
        "update skein.task set finished_at = clock_timestamp(), rows = {}, bytes = {} \
         where task_id = {} and token = {} and finished_at is null",
        rows,
        bytes,
        id,
        token
    );
    match target.execute(&mark, &[]).await.map_err(|source| mark_error(task, source))? {
        1 => Ok(()),
        // The row is locked by us: it cannot have changed.
        _ => Err(Error::Fenced { task: task.id, token: task.token }),
    }
}

/// Commits, and finds out whether it did when the answer is lost.
pub(crate) async fn commit(target: &Session, task: &Task) -> Result<()> {
    match target.batch(&sql!("commit")).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_connection_lost() => {
            warn!(task = task.id, token = task.token, "connection lost during commit");
            resolve(task, error).await
        }
        Err(source) => Err(mark_error(task, source)),
    }
}

/// Reads the mark in a new session. The row lock of the old one, if its server process still
/// lives, makes us wait for its end.
async fn resolve(task: &Task, lost: pg::Error) -> Result<()> {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut backoff = Backoff::new();
    loop {
        let attempt = async {
            let target = sessions::open_write(task, "resolve").await?;
            take(&target, task).await
        };
        match attempt.await {
            Ok(Fence::Finished { .. }) => {
                info!(task = task.id, token = task.token, "the commit had taken effect");
                return Ok(());
            }
            Ok(Fence::Taken) => return Err(mark_error(task, lost)),
            Err(error @ Error::Fenced { .. }) => return Err(error),
            Err(_) if Instant::now() < deadline => backoff.pause().await,
            Err(_) => return Err(Error::CommitUnknown { task: task.id, source: lost }),
        }
    }
}

fn mark_error(task: &Task, source: pg::Error) -> Error {
    Error::Mark { task: task.id, source }
}
