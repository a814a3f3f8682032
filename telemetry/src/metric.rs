//! Every metric that Skein sends: name, unit, meaning.
//!
//! Promise: a metric is made from one of these constants and nowhere else. Names follow
//! OpenTelemetry (dots, no unit in the name; units by UCUM); labels are `field` names. No label
//! holds a table, since a database has a hundred thousand.

use opentelemetry::{
    global,
    metrics::{Counter, Gauge, Histogram, Meter},
};

/// Units by UCUM.
pub mod unit {
    pub const BYTES: &str = "By";
    pub const SECONDS: &str = "s";
    pub const ROWS: &str = "{row}";
    pub const CHANGES: &str = "{change}";
    pub const TRANSACTIONS: &str = "{transaction}";
    pub const TASKS: &str = "{task}";
    pub const WORKERS: &str = "{worker}";
    pub const FAULTS: &str = "{fault}";
}

/// Name, unit and meaning of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub description: &'static str,
}

impl Metric {
    const fn new(name: &'static str, unit: &'static str, description: &'static str) -> Self {
        Self { name, unit, description }
    }

    /// Something that only grows. Make it once, and keep it.
    pub fn counter(&self) -> Counter<u64> {
        meter()
            .u64_counter(self.name)
            .with_unit(self.unit)
            .with_description(self.description)
            .build()
    }

    /// The value now. Make it once, and keep it.
    pub fn gauge(&self) -> Gauge<f64> {
        meter().f64_gauge(self.name).with_unit(self.unit).with_description(self.description).build()
    }

    /// A distribution. Make it once, and keep it.
    pub fn histogram(&self) -> Histogram<f64> {
        meter()
            .f64_histogram(self.name)
            .with_unit(self.unit)
            .with_description(self.description)
            .build()
    }
}

fn meter() -> Meter {
    global::meter("skein")
}

// Counters of copying (label: migration).
pub const COPIED_BYTES: Metric =
    Metric::new("skein.copy.io", unit::BYTES, "Bytes of rows committed on the target by copying");
pub const COPIED_ROWS: Metric =
    Metric::new("skein.copy.rows", unit::ROWS, "Rows committed on the target by copying");
pub const FINISHED_TASKS: Metric =
    Metric::new("skein.tasks.finished", unit::TASKS, "Tasks finished (label: task_kind)");
pub const RETURNED_TASKS: Metric =
    Metric::new("skein.tasks.returned", unit::TASKS, "Tasks given back unfinished");

// Counters of replay (label: migration).
pub const RECEIVED_BYTES: Metric =
    Metric::new("skein.replay.received", unit::BYTES, "Bytes of changes received from the source");
pub const APPLIED_CHANGES: Metric =
    Metric::new("skein.replay.changes", unit::CHANGES, "Changes committed on the target");
pub const APPLIED_TRANSACTIONS: Metric = Metric::new(
    "skein.replay.transactions",
    unit::TRANSACTIONS,
    "Source transactions committed on the target",
);
pub const FAULTS: Metric =
    Metric::new("skein.faults", unit::FAULTS, "Faults raised (label: reason)");

// Values now (label: migration).
pub const LAG_BYTES: Metric = Metric::new(
    "skein.replay.lag",
    unit::BYTES,
    "WAL between the source's current position and applied_lsn",
);
pub const LAG_SECONDS: Metric = Metric::new(
    "skein.replay.lag.time",
    unit::SECONDS,
    "Age of the newest change on the source that is not on the target",
);
pub const SPOOL_BYTES: Metric =
    Metric::new("skein.spool.size", unit::BYTES, "Changes received and not yet applied, on disk");
pub const RETAINED_WAL_BYTES: Metric =
    Metric::new("skein.slot.retained", unit::BYTES, "WAL that the slot keeps on the source");
pub const SNAPSHOT_AGE: Metric =
    Metric::new("skein.snapshot.age", unit::SECONDS, "Age of the held snapshot");
pub const WORKERS: Metric = Metric::new("skein.workers", unit::WORKERS, "Workers registered");
pub const WAITING_TASKS: Metric =
    Metric::new("skein.tasks.waiting", unit::TASKS, "Tasks of the plan not yet finished");

// Distributions (label: migration).
pub const BATCH_DURATION: Metric =
    Metric::new("skein.replay.batch.duration", unit::SECONDS, "Time to apply and commit a batch");
pub const TASK_DURATION: Metric =
    Metric::new("skein.task.duration", unit::SECONDS, "Time of a task (label: task_kind)");
pub const WRITES_STOPPED: Metric =
    Metric::new("skein.cutover.duration", unit::SECONDS, "Time for which writes were stopped");
