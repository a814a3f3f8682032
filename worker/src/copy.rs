//! One chunk: rows from the source into the target, and the mark, in one transaction.
//!
//! ```text
//! fence -> read::open -> write::open -> read::forward ==frames==> write::forward -> mark
//! ```
//! Promise: the transaction it leaves open holds all rows of the chunk and the mark, or the
//! session is dropped and nothing is kept. Not here: COMMIT (`run`), which nothing interrupts.

pub(crate) mod fence;
mod read;
mod write;

use crate::{
    error::{Error, Result},
    failpoint,
    lease::Lease,
    run::{Outcome, Shared, Staged},
    sessions::Sessions,
    task::{Copy, Task},
};
use fence::Fence;
use pg::{Session, sql};
use read::ForwardError;
use tokio::sync::{Semaphore, mpsc};

/// Frames on their way; their bytes are bounded by [`read::READ_AHEAD_BYTES`].
const FRAME_COUNT: usize = 64;

/// Writes the chunk up to its mark.
pub(crate) async fn stage(
    shared: &Shared,
    sessions: &mut Sessions,
    task: &Task,
    copy: &Copy,
    lease: &Lease,
) -> Result<Staged> {
    let target = sessions.write(task, "copy").await?;
    failpoint::reach(failpoint::BEFORE_FENCE).await?;
    if let Fence::Finished { rows, bytes } = fence::take(&target, task).await? {
        return Ok(Staged::Finished(Outcome::Copied { rows, bytes }));
    }
    let source = sessions.read(task, "read").await?;
    let rows = transfer(shared, (&source, &target), task, copy, lease).await?;
    // The lock on the source is let go before the target's commit.
    source.batch(&sql!("rollback")).await.map_err(|error| read_error(copy, error))?;
    sessions.keep_read(task, source);
    failpoint::reach(failpoint::BEFORE_MARK).await?;
    fence::mark(&target, task, rows, lease.bytes()).await?;
    Ok(Staged::Open {
        target: Box::new(target),
        outcome: Outcome::Copied { rows, bytes: lease.bytes() },
    })
}

/// Streams the rows; their number comes back.
async fn transfer(
    shared: &Shared,
    (source, target): (&Session, &Session),
    task: &Task,
    copy: &Copy,
    lease: &Lease,
) -> Result<u64> {
    let stream = read::open(source, task, copy).await?;
    let write_error = |source| Error::Write { table: copy.target_table.clone(), source };
    let sink = write::open(target, task, copy).await.map_err(write_error)?;
    let read_ahead = Semaphore::new(read::READ_AHEAD_BYTES as usize);
    let (send, receive) = mpsc::channel(FRAME_COUNT);
    let reading = async {
        let read = read::forward(stream, send, &read_ahead, lease, &shared.rate).await;
        read.map_err(|error| match error {
            ForwardError::Source(error) => read_error(copy, error),
            ForwardError::Failpoint(error) => error,
        })
    };
    let writing = async { write::forward(sink, receive).await.map_err(write_error) };
    let ((), rows) = tokio::try_join!(reading, writing)?;
    Ok(rows)
}

fn read_error(copy: &Copy, source: pg::Error) -> Error {
    Error::Read { table: copy.source_table.clone(), source }
}
