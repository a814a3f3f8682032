//! What a worker counts for a collector. Names and units: `telemetry::metric`.

use crate::run::Outcome;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram},
};
use std::time::Duration;
use telemetry::{field, metric};

/// Made once, when telemetry is set up.
#[derive(Debug)]
pub(crate) struct Meters {
    copied_bytes: Counter<u64>,
    copied_rows: Counter<u64>,
    finished_tasks: Counter<u64>,
    returned_tasks: Counter<u64>,
    task_duration: Histogram<f64>,
}

impl Meters {
    pub(crate) fn new() -> Self {
        Self {
            copied_bytes: metric::COPIED_BYTES.counter(),
            copied_rows: metric::COPIED_ROWS.counter(),
            finished_tasks: metric::FINISHED_TASKS.counter(),
            returned_tasks: metric::RETURNED_TASKS.counter(),
            task_duration: metric::TASK_DURATION.histogram(),
        }
    }

    /// A task whose mark is committed.
    pub(crate) fn finished(
        &self,
        migration: &str,
        kind: &'static str,
        outcome: &Outcome,
        duration: Duration,
    ) {
        let migration = KeyValue::new(field::MIGRATION, migration.to_owned());
        if let Outcome::Copied { rows, bytes } = outcome {
            self.copied_rows.add(*rows, std::slice::from_ref(&migration));
            self.copied_bytes.add(*bytes, std::slice::from_ref(&migration));
        }
        let labels = [migration, KeyValue::new(field::TASK_KIND, kind)];
        self.finished_tasks.add(1, &labels);
        self.task_duration.record(duration.as_secs_f64(), &labels);
    }

    /// A task given back.
    pub(crate) fn returned(&self, migration: &str, kind: &'static str) {
        let migration = KeyValue::new(field::MIGRATION, migration.to_owned());
        self.returned_tasks.add(1, &[migration, KeyValue::new(field::TASK_KIND, kind)]);
    }
}
