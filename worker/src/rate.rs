//! Byte budget of all COPY streams of this worker.
//!
//! In: bytes about to be forwarded, a limit that heartbeats change. Out: a pause. Promise: over
//! any second the streams together stay near the limit; a frame larger than it passes and is
//! paid for afterwards.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Longest single sleep, so that a raised limit is felt soon.
const STEP: Duration = Duration::from_millis(250);

/// The budget. A limit of 0 is no limit.
#[derive(Debug)]
pub(crate) struct Rate(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    limit_bytes_per_s: u64,
    /// Bytes that may pass now; below zero after a large frame.
    budget_bytes: f64,
    filled_at: Instant,
}

impl Rate {
    pub(crate) fn unlimited() -> Self {
        let filled_at = Instant::now();
        Self(Mutex::new(Bucket { limit_bytes_per_s: 0, budget_bytes: 0.0, filled_at }))
    }

    /// Sets the limit in bytes per second; 0: none.
    pub(crate) fn limit(&self, bytes_per_s: u64) {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.fill(Instant::now());
        bucket.limit_bytes_per_s = bytes_per_s;
    }

    /// Waits until `bytes` may pass.
    pub(crate) async fn take(&self, bytes: usize) {
        loop {
            let wait = {
                let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                bucket.take(Instant::now(), bytes)
            };
            match wait {
                None => return,
                Some(wait) => tokio::time::sleep(wait.min(STEP)).await,
            }
        }
    }
}

#[allow(clippy::cast_precision_loss)] // bytes per second are far below 2^52
impl Bucket {
    fn fill(&mut self, now: Instant) {
        let limit = self.limit_bytes_per_s as f64;
        let earned = now.duration_since(self.filled_at).as_secs_f64() * limit;
        // At most a tenth of a second is saved up.
        self.budget_bytes = (self.budget_bytes + earned).min(limit / 10.0);
        self.filled_at = now;
    }

    /// None: taken. Otherwise how long to wait before asking again.
    fn take(&mut self, now: Instant, bytes: usize) -> Option<Duration> {
        self.fill(now);
        if self.limit_bytes_per_s == 0 {
            self.budget_bytes = 0.0;
            return None;
        }
        if self.budget_bytes >= 0.0 {
            self.budget_bytes -= bytes as f64;
            return None;
        }
        let wait_s = -self.budget_bytes / self.limit_bytes_per_s as f64;
        Some(Duration::from_secs_f64(wait_s.max(0.001)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(limit_bytes_per_s: u64) -> Bucket {
        Bucket { limit_bytes_per_s, budget_bytes: 0.0, filled_at: Instant::now() }
    }

    #[test]
    fn ten_seconds_let_through_ten_times_the_limit() {
        let mut bucket = bucket(1_000_000);
        let start = bucket.filled_at;
        let mut passed = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            while bucket.take(now, 65_536).is_none() {
                passed += 65_536;
            }
        }
        assert!((9_900_000..10_300_000).contains(&passed), "{passed}");
    }

    #[test]
    fn no_limit_never_waits_and_a_limit_lifted_forgives_the_debt() {
        let mut bucket = bucket(10);
        let now = bucket.filled_at;
        assert!(bucket.take(now, 1_000_000).is_none());
        assert!(bucket.take(now, 1).is_some());
        bucket.limit_bytes_per_s = 0;
        assert!(bucket.take(now, usize::MAX).is_none());
    }
}
