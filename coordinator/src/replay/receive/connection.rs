//! One connection: checked, then read, written and answered by three that do not wait for each
//! other.
//!
//! ```text
//! read (task) --batches, bounded--> write (thread): assemble, spool, sync
//! answer (task): status.rs
//! ```
//! Promise: it ends as a whole, and only when all three have ended; what was committed by then
//! is durable.

use super::{
    Config, Error, Receiver, assemble::Assembler, check, error::Lost, status, status::Heard,
};
use crate::replay::spool::Spool;
use pg::{
    PgLsn, Session, Settings, Walsender, sql,
    sql::Literal,
    walsender::{Frame, FrameReader, ReplicationStream},
};
use std::time::Duration;
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Frames are handed over in batches of about this much.
const BATCH_BYTES: usize = 256 * 1024;

/// Batches between reading and writing: with the sockets' buffers, what may wait while a sync
/// is slow.
const BATCHES: usize = 16;

/// Checks and START_REPLICATION, up to its first answer: catalog look-ups on a busy server. A
/// server that accepts and then says nothing must not hold us for ever.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Tries to take the slot from an older session of ours, before it is an error.
const TAKE_ATTEMPTS: u32 = 20;
/// Pause between two.
const TAKE_PAUSE: Duration = Duration::from_millis(50);

/// A stream that has just begun.
pub(super) struct Connected {
    stream: ReplicationStream,
    status_interval: Duration,
}

/// As [`connect_and_check`], in bounded time.
pub(super) async fn connect(config: &Config, spool: &Spool) -> Result<Connected, Error> {
    let connected = tokio::time::timeout(START_TIMEOUT, connect_and_check(config, spool)).await;
    connected.unwrap_or_else(|_| {
        let reason = format!("no answer in {} s", START_TIMEOUT.as_secs());
        let slot = spool.identity().slot.clone();
        Err(Error::Stream { slot, source: pg::Error::Connection(reason) })
    })
}

/// Connects, checks that the stream joins the spool, begins it at `spooled_lsn`.
async fn connect_and_check(config: &Config, spool: &Spool) -> Result<Connected, Error> {
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
            check_again(config, slot, start).await?;
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

/// Asks once more, now that the slot is ours and nobody else can move it: another may have
/// taken it, confirmed, and let go between the first check and START_REPLICATION. Nothing was
/// confirmed by us yet.
async fn check_again(config: &Config, slot: &str, start: PgLsn) -> Result<(), Error> {
    let failed = |source| Error::Stream { slot: slot.to_owned(), source };
    let session = Session::connect(&config.source, &Settings::read(config.name.clone()))
        .await
        .map_err(failed)?;
    let query = sql!(
        "select confirmed_flush_lsn from pg_catalog.pg_replication_slots where slot_name = {}",
        Literal(slot)
    );
    let row = session.query_one(&query, &[]).await.map_err(failed)?;
    match row.get::<_, Option<PgLsn>>(0) {
        Some(confirmed) if confirmed > start => {
            let what = Lost::Confirmed { confirmed, spooled: start };
            Err(Error::ChangesLost { slot: slot.to_owned(), what })
        }
        _ => Ok(()),
    }
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
    let runtime = Handle::current();
    loop {
        let batch = match batches.try_recv() {
            Ok(batch) => Some(batch),
            Err(_) => {
                let patience = assembler.idle()?;
                let next = async { tokio::time::timeout(patience, batches.recv()).await };
                match runtime.block_on(next) {
                    Ok(Some(batch)) => Some(batch),
                    Ok(None) => return assembler.sync(),
                    Err(_) => None,
                }
            }
        };
        if let Some(batch) = batch {
            assembler.frames(batch)?;
        }
    }
}
