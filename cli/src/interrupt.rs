//! Ctrl-C, hang-up and SIGTERM: each detaches, none stops the work.

use crate::report::{Exit, Failure};
use proto::status::Report;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for a wish to leave. While it exists, these signals no longer end the process by
/// themselves.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    hang_up: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// # Errors
    /// The system refuses to hand out signals.
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(
                    Exit::Internal,
                    Report::definite("SIGNAL", "could not listen for signals")
                        .with_detail(format!("Cause: {error}.")),
                )
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Returns when one of them arrived.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ends what must not keep a person waiting: `work` blocks, and a signal meanwhile ends the
/// process at once.
pub(crate) async fn unless_interrupted(work: impl FnOnce() + Send + 'static) {
    let Ok(mut interrupts) = Interrupts::new() else { return work() };
    tokio::select! {
        _ = tokio::task::spawn_blocking(work) => {}
        () = interrupts.next() => std::process::exit(Exit::Interrupted.code().into()),
    }
}
