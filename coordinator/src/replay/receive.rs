//! Receives changes and makes them durable.
//!
//! ```text
//! connect -> check -> START_REPLICATION at spooled_lsn          (again, for ever, with backoff)
//!   frames:   walsender --batches--> assemble (own thread) --> spool --> spooled_lsn
//!   status:   timer, fsync, reply wanted ------------> walsender: flush = spooled_lsn
//! ```
//! Promise (rules, part 4): nothing is confirmed that is not durable here; the stream is never
//! taken up from a place that the spool does not join ([`check`]); status updates wait for
//! nobody, so a full spool stops reading and nothing else; a new connection drops what the old
//! one had not finished. Killed at any point, the next run goes on from the spool.

mod assemble;
pub mod check;
mod connection;
mod error;
mod status;

pub use error::Error;

use super::spool::Spool;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use pg::{Conninfo, PgLsn, SessionName, walsender::PgoutputOptions};
use proto::status::{Classify as _, ErrorClass, Report};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Pauses between two connections: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// A stream that lasted this long was a good one: the next pause is the first again.
const GOOD_STREAM: Duration = Duration::from_secs(10);

/// What may be confirmed to the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// What is durable in the spool: the source may recycle its WAL.
    Spool,
    /// What is applied on the target: the source keeps the rest.
    Source,
}

/// What a receiver needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Conninfo,
    /// `skein/MIGRATION/EPOCH/ROLE/ID`; a session of an older epoch on our slot is ended.
    pub name: SessionName,
    /// The source's server encoding.
    pub client_encoding: String,
    pub options: PgoutputOptions,
    pub retain: Retain,
}

/// Where receiving stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Connecting,
    Streaming,
    /// The spool's limit, or its disk: nothing is read until there is room.
    SpoolFull,
    /// Told to, or by a fault.
    Stopped,
}

/// What others see of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveState {
    /// Latest position read from the walsender on any connection.
    pub received_lsn: PgLsn,
    /// What we told the slot last.
    pub confirmed_flush_lsn: PgLsn,
    pub state: State,
    /// What stopped it, or what it is trying again.
    pub fault: Option<Report>,
}

/// Others' end of a receiver.
#[derive(Clone, Debug)]
pub struct ReceiverHandle {
    pub state: watch::Receiver<ReceiveState>,
}

/// Receives one migration's changes.
#[derive(Debug)]
pub struct Receiver {
    config: Config,
    spool: Spool,
    applied: watch::Receiver<PgLsn>,
    state: watch::Sender<ReceiveState>,
}

impl Receiver {
    /// `applied`: the watermark, told to the source; it bounds what is confirmed under
    /// [`Retain::Source`].
    pub fn new(
        config: Config,
        spool: Spool,
        applied: watch::Receiver<PgLsn>,
    ) -> (Self, ReceiverHandle) {
        let (state, seen) = watch::channel(ReceiveState {
            received_lsn: spool.spooled_lsn(),
            confirmed_flush_lsn: PgLsn::from(0),
            state: State::Connecting,
            fault: None,
        });
        (Self { config, spool, applied, state }, ReceiverHandle { state: seen })
    }

    /// Receives until cancelled, or until a definite fault (in the state, and returned).
    ///
    /// # Errors
    /// [`Error::ChangesLost`] and every other failure that another attempt would not cure.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        let mut pauses = pauses();
        let outcome = loop {
            let begun = Instant::now();
            let ended = self.stream(&cancel).await;
            if cancel.is_cancelled() {
                break Ok(());
            }
            let error = ended.err().unwrap_or(Error::Thread);
            let report = error.report();
            self.state.send_modify(|state| {
                state.state = State::Connecting;
                state.fault = Some(report.clone());
            });
            if error.class() != ErrorClass::Transient {
                break Err(error);
            }
            tracing::warn!(error = %report, detail = %report.detail, "stream lost, connecting again");
            if begun.elapsed() > GOOD_STREAM {
                pauses = self::pauses();
            }
            let pause = pauses.next().unwrap_or(LAST_PAUSE);
            // 1 stop   2 again
            tokio::select! { biased;
                () = cancel.cancelled() => break Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        };
        self.state.send_modify(|state| state.state = State::Stopped);
        outcome
    }

    fn slot(&self) -> String {
        self.spool.identity().slot.clone()
    }

    /// One connection, from its checks to its end.
    async fn stream(&self, cancel: &CancellationToken) -> Result<(), Error> {
        // 1 stop   2 connect
        let connected = tokio::select! { biased;
            () = cancel.cancelled() => return Ok(()),
            connected = connection::connect(&self.config, &self.spool) => connected?,
        };
        connection::stream(self, connected, cancel).await
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LAST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}
