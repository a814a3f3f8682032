//! One connection: checked, then read, written and answered by three that do not wait for each
//! other.
//!
//! ```text
//! read (task) --batches, bounded--> write (thread): assemble, spool, sync
//! answer (task): status.rs
//! ```
//! Promise: it ends as a whole, and only when all three have ended; what was committed by then
//! is durable.

use super::{Config, Error, Receiver, assemble::Assembler, check, status, status::Heard};
use crate::replay::spool::Spool;
use pg::{
    Walsender,
    walsender::{Frame, FrameReader, ReplicationStream},
};
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Frames are handed over in batches of about this much.
const BATCH_BYTES: usize = 256 * 1024;

/// Batches between reading and writing: with the sockets' buffers, what may wait while a sync
/// is slow.
const BATCHES: usize = 16;

/// Tries to take the slot from an older session of ours, before it is an error.
const TAKE_ATTEMPTS: u32 = 20;
/// Pause between two.
const TAKE_PAUSE: Duration = Duration::from_millis(50);

/// A stream that has just begun.
pub(super) struct Connected {
    stream: ReplicationStream,
    status_interval: Duration,
}

/// Connects, checks that the stream joins the spool, begins it at `spooled_lsn`.
pub(super) async fn connect(config: &Config, spool: &Spool) -> Result<Connected, Error> {
    let identity = spool.identity();
    let slot = &identity.slot;
    let failed = |source| Error::Stream { slot: slot.clone(), source };
    let mut walsender = Walsender::connect(&config.source, &config.name, &config.client_encoding)
        .await
        .map_err(failed)?;
    let timeout = walsender.wal_sender_timeout().await.map_err(failed)?;
    for _ in 0..TAKE_ATTEMPTS {
        let system = walsender.identify_system().await.map_err(failed)?;
        let state = walsender.slot(slot).await.map_err(failed)?;
        check::joins(identity, spool.spooled_lsn(), &system, state.as_ref())
            .map_err(|what| Error::ChangesLost { slot: slot.clone(), what })?;
        let Some(active) = state.and_then(|state| state.active) else {
            let start = spool.spooled_lsn();
            let stream =
                walsender.start_replication(slot, start, &config.options).await.map_err(failed)?;
            tracing::info!(slot, start_lsn = %start, "streaming");
            return Ok(Connected { stream, status_interval: status::interval(timeout) });
        };
        if !check::is_older_of_ours(&active, config.name.as_str()) {
            let (pid, application_name) = (active.pid, active.application_name);
            return Err(Error::SlotInUse { slot: slot.clone(), pid, application_name });
        }
        tracing::info!(slot, pid = active.pid, "ending an older session of ours on the slot");
        walsender.terminate(active.pid).await.map_err(failed)?;
        tokio::time::sleep(TAKE_PAUSE).await;
    }
    Err(Error::SlotInUse {
        slot: slot.clone(),
        pid: 0,
        application_name: config.name.as_str().to_owned(),
    })
}

/// Streams until cancelled or an error.
pub(super) async fn stream(
    receiver: &Receiver,
    connected: Connected,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let cancel = cancel.child_token();
    let slot = receiver.slot();
    let writer = receiver.spool.writer(cancel.clone())?;
    let heard = Heard::starting_at(receiver.spool.spooled_lsn());
    let (frames, answers) = connected.stream.split();
    let (sender, batches) = mpsc::channel(BATCHES);

    let mut parts = JoinSet::new();
    let assembler = Assembler::new(&slot, writer);
    parts.spawn_blocking(move || write(assembler, batches));
    parts.spawn({
        let (heard, cancel) = (std::sync::Arc::clone(&heard), cancel.clone());
        async move {
            // 1 stop   2 read
            tokio::select! { biased;
                () = cancel.cancelled() => Ok(()),
                read = read(frames, sender, &heard) => {
                    read.map_err(|source| Error::Stream { slot, source })
                }
            }
        }
    });
    let answer = status::run(receiver, answers, &heard, connected.status_interval);
    let watch = async {
        let mut outcome = Ok(());
        while let Some(part) = parts.join_next().await {
            cancel.cancel();
            let part = part.unwrap_or(Err(Error::Thread));
            // The writer's word counts: reading ends when it does.
            let is_cause = matches!(part, Err(Error::Spool { .. } | Error::OutOfOrder { .. }));
            if outcome.is_ok() || is_cause {
                outcome = part;
            }
        }
        outcome
    };
    let answer = async {
        // 1 stop, also while the server does not take our answer   2 answer
        let answered = tokio::select! { biased;
            () = cancel.cancelled() => Ok(()),
            answered = answer => answered,
        };
        cancel.cancel();
        answered
    };
    let (outcome, answered) = tokio::join!(watch, answer);
    outcome.and(answered)
}

/// Reads frames until the connection or the writer ends.
async fn read(
    mut frames: FrameReader,
    batches: mpsc::Sender<Vec<Frame>>,
    heard: &Heard,
) -> pg::Result<()> {
    loop {
        let mut next = Some(frames.next().await?);
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while let Some(frame) = next {
            match &frame {
                Frame::XLogData { wal_start, payload, .. } => {
                    heard.received(*wal_start);
                    batch_bytes += payload.len();
                }
                Frame::Keepalive { wal_end, reply_requested } => {
                    heard.received(*wal_end);
                    if *reply_requested {
                        heard.reply_wanted();
                    }
                }
            }
            batch.push(frame);
            next = if batch_bytes < BATCH_BYTES { frames.buffered()? } else { None };
        }
        if batches.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

/// Takes in batches, and syncs whenever there is none. Ends with the reading side.
fn write(mut assembler: Assembler, mut batches: mpsc::Receiver<Vec<Frame>>) -> Result<(), Error> {
    loop {
        let batch = match batches.try_recv() {
            Ok(batch) => batch,
            Err(_) => {
                assembler.sync()?;
                match batches.blocking_recv() {
                    Some(batch) => batch,
                    None => return Ok(()),
                }
            }
        };
        assembler.frames(batch)?;
    }
}
