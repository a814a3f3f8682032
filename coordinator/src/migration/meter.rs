//! Metrics of one migration, recorded about once a second by the observer.

use super::shared::Shared;
use crate::plan::REFRESH_STAGE;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge},
};
use telemetry::{field, metric};

/// Instruments, and the totals that were recorded last.
#[derive(Debug)]
pub struct Meter {
    labels: [KeyValue; 1],
    received: Counter<u64>,
    changes: Counter<u64>,
    transactions: Counter<u64>,
    lag_bytes: Gauge<f64>,
    lag_seconds: Gauge<f64>,
    spool_bytes: Gauge<f64>,
    retained_wal: Gauge<f64>,
    snapshot_age: Gauge<f64>,
    waiting_tasks: Gauge<f64>,
    last: [u64; 3],
}

impl Meter {
    pub fn new(migration: &str) -> Self {
        Self {
            labels: [KeyValue::new(field::MIGRATION, migration.to_owned())],
            received: metric::RECEIVED_BYTES.counter(),
            changes: metric::APPLIED_CHANGES.counter(),
            transactions: metric::APPLIED_TRANSACTIONS.counter(),
            lag_bytes: metric::LAG_BYTES.gauge(),
            lag_seconds: metric::LAG_SECONDS.gauge(),
            spool_bytes: metric::SPOOL_BYTES.gauge(),
            retained_wal: metric::RETAINED_WAL_BYTES.gauge(),
            snapshot_age: metric::SNAPSHOT_AGE.gauge(),
            waiting_tasks: metric::WAITING_TASKS.gauge(),
            last: [0; 3],
        }
    }

    /// Records what the view shows now.
    #[allow(clippy::cast_precision_loss)] // gauges are floating point; bytes below 2^53
    pub fn record(&mut self, shared: &Shared) {
        let migration = shared.migration();
        let stream = shared.stream();
        let progress = migration.progress.unwrap_or_default();
        let source = migration.source.unwrap_or_default();
        let totals = [stream.received_lsn, stream.changes, stream.transactions];
        let counters = [&self.received, &self.changes, &self.transactions];
        for ((counter, total), last) in counters.into_iter().zip(totals).zip(self.last) {
            // The first position received is where the stream begins, not a number of bytes.
            if last > 0 || total == 0 {
                counter.add(total.saturating_sub(last), &self.labels);
            }
        }
        self.last = totals;
        self.lag_bytes.record(progress.lag_bytes as f64, &self.labels);
        self.lag_seconds.record(progress.lag_s, &self.labels);
        self.spool_bytes.record(progress.spool_bytes as f64, &self.labels);
        self.retained_wal.record(source.retained_wal_bytes as f64, &self.labels);
        self.snapshot_age.record(source.snapshot_age_s as f64, &self.labels);
        let waiting = shared.leases().map_or(0, |leases| leases.unfinished_through(REFRESH_STAGE));
        self.waiting_tasks.record(waiting as f64, &self.labels);
    }
}

/// Counts a fault by its reason.
pub fn fault(migration: &str, reason: &str) {
    let labels = [
        KeyValue::new(field::MIGRATION, migration.to_owned()),
        KeyValue::new(field::REASON, reason.to_owned()),
    ];
    metric::FAULTS.counter().add(1, &labels);
}

/// Seconds that a cutover stopped writes.
pub fn writes_stopped(migration: &str, seconds: f64) {
    let labels = [KeyValue::new(field::MIGRATION, migration.to_owned())];
    metric::WRITES_STOPPED.histogram().record(seconds, &labels);
}
