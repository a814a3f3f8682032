//! How long to wait between two attempts.

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// First pause: a coordinator that restarts is back within a second or two.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause: a worker that was forgotten costs the other side nothing.
const LONGEST: Duration = Duration::from_secs(5);

/// Growing pauses with jitter, for ever; `reset` after a success.
#[derive(Debug)]
pub(crate) struct Backoff(ExponentialBackoff);

impl Backoff {
    pub(crate) fn new() -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST);
        Self(builder.with_jitter().without_max_times().build())
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.0.next().unwrap_or(LONGEST)).await;
    }
}
