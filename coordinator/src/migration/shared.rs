//! What others see of a migration while its driver works: the operator's view, the leases and
//! the snapshot to hold. Display only: nothing here decides anything.

use crate::{
    clock, lease::Leases, migration::phase::Phase, replay::spool::Space, store::record::Record,
};
use pg::PgLsn;
use proto::v1;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Window over which rates are taken: long against one COPY buffer, short against a chunk.
const RATE_WINDOW: Duration = Duration::from_secs(15);

/// Positions and counts of the stream, as its parts report them.
#[derive(Clone, Debug, Default)]
pub struct StreamView {
    pub received_lsn: u64,
    pub spooled_lsn: u64,
    pub confirmed_flush_lsn: u64,
    pub applied_lsn: u64,
    pub source_lsn: u64,
    pub end_lsn: u64,
    pub spool_bytes: u64,
    pub space: Space,
    /// What the receiver, or replay, is trying again. Empty: nothing.
    pub receive_trouble: String,
    pub replay_trouble: String,
    pub transactions: u64,
    pub changes: u64,
    /// Seconds between the commit of the last applied transaction and now; 0 when caught up.
    pub lag_s: f64,
    pub late_writes: Vec<v1::LateWrite>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    copied_bytes: u64,
    changes: u64,
}

#[derive(Debug, Default)]
struct View {
    activity: String,
    stream: StreamView,
    source: v1::SourceState,
    samples: VecDeque<Sample>,
}

/// See the module.
#[derive(Debug)]
pub struct Shared {
    record: Mutex<Record>,
    leases: Mutex<Option<Leases>>,
    /// None: not looked at yet by this process.
    holds: Mutex<Option<Vec<v1::Hold>>>,
    view: Mutex<View>,
    lift_sql: Mutex<(String, Option<prost_types::Timestamp>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(record: Record) -> Self {
        Self {
            record: Mutex::new(record),
            leases: Mutex::default(),
            holds: Mutex::default(),
            view: Mutex::default(),
            lift_sql: Mutex::default(),
        }
    }

    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    pub fn set_record(&self, record: Record) {
        *lock(&self.record) = record;
    }

    pub fn leases(&self) -> Option<Leases> {
        lock(&self.leases).clone()
    }

    pub fn set_leases(&self, leases: Option<Leases>) {
        *lock(&self.leases) = leases;
    }

    /// The snapshots that workers should hold. None: this process cannot say yet, and a worker
    /// that outlived the last one keeps what it holds.
    pub fn holds(&self) -> Option<Vec<v1::Hold>> {
        let holds = lock(&self.holds).clone();
        if holds.is_none() && lock(&self.record).snapshots.is_empty() {
            return Some(Vec::new());
        }
        holds
    }

    pub fn set_holds(&self, holds: Vec<v1::Hold>) {
        *lock(&self.holds) = Some(holds);
    }

    /// One line: what is going on now.
    pub fn set_activity(&self, activity: impl Into<String>) {
        let activity = activity.into();
        let mut view = lock(&self.view);
        if view.activity != activity {
            tracing::info!(%activity, "activity");
            view.activity = activity;
        }
    }

    pub fn set_source(&self, source: v1::SourceState) {
        lock(&self.view).source = source;
    }

    pub fn set_lift_sql(&self, sql: String, deadline: Option<prost_types::Timestamp>) {
        *lock(&self.lift_sql) = (sql, deadline);
    }

    pub fn change_stream(&self, edit: impl FnOnce(&mut StreamView)) {
        edit(&mut lock(&self.view).stream);
    }

    pub fn stream(&self) -> StreamView {
        lock(&self.view).stream.clone()
    }

    /// Takes a sample for the rates; called about once a second.
    pub fn sample(&self) {
        let copied_bytes = self.leases().map_or(0, |leases| {
            let running: u64 = leases.running().iter().map(|task| task.bytes).sum();
            leases.totals().copied_bytes + running
        });
        let mut view = lock(&self.view);
        let changes = view.stream.changes;
        let at = Instant::now();
        view.samples.push_back(Sample { at, copied_bytes, changes });
        while view.samples.front().is_some_and(|first| at - first.at > RATE_WINDOW) {
            view.samples.pop_front();
        }
    }

    /// As `skein status` shows it.
    pub fn migration(&self) -> v1::Migration {
        let record = self.record();
        let (stream, source, activity, rates) = {
            let view = lock(&self.view);
            (view.stream.clone(), view.source.clone(), view.activity.clone(), rates(&view.samples))
        };
        let progress = self.progress(&stream, rates);
        let late_writes = stream.late_writes.clone();
        let (mut lift_sql, deadline) = lock(&self.lift_sql).clone();
        let outcome = record.cutover.clone().unwrap_or_default();
        if lift_sql.is_empty() {
            lift_sql.clone_from(&outcome.lift_sql);
        }
        let end_lsn = match record.phase {
            Phase::Done { end_position } => end_position.into(),
            _ => stream.end_lsn,
        };
        v1::Migration {
            name: record.spec.name.clone(),
            phase: wire_phase(&record.phase).into(),
            paused: record.paused,
            fault: record.fault.clone().map(Into::into),
            positions: Some(v1::Positions {
                consistent_point_lsn: record
                    .stream
                    .as_ref()
                    .map_or(0, |stream| PgLsn::into(stream.consistent_point)),
                received_lsn: stream.received_lsn,
                spooled_lsn: stream.spooled_lsn,
                applied_lsn: stream.applied_lsn,
                confirmed_flush_lsn: stream.confirmed_flush_lsn,
                source_lsn: stream.source_lsn,
                end_lsn,
            }),
            progress: Some(progress),
            source: Some(v1::SourceState {
                snapshot_age_s: record
                    .snapshots
                    .first()
                    .map_or(0, |snapshot| clock::now().saturating_sub(snapshot.taken_at)),
                snapshot_epoch: record.snapshot_epoch,
                ..source
            }),
            cutover: record.cutover.is_some().then_some(v1::CutoverReport {
                attempt: outcome.attempt,
                state: outcome.state,
                steps: outcome.steps,
                writes_stopped_s: outcome.writes_stopped_s,
                late_writes,
                lift_sql,
                deadline,
            }),
            activity: if record.fault.is_some() {
                activity
            } else {
                with_trouble(activity, &stream)
            },
            created_at: Some(clock::timestamp(record.created_at)),
            phase_since: Some(clock::timestamp(record.phase_since)),
            epoch: self.leases().map_or(0, |leases| leases.epoch()),
            not_moved: record.not_moved,
            notices: record.notices,
            started: record.started,
            spec: Some(record.spec),
        }
    }

    fn progress(&self, stream: &StreamView, (copy_rate, apply_rate): (f64, f64)) -> v1::Progress {
        let leases = self.leases();
        let totals = leases.as_ref().map(Leases::totals).unwrap_or_default();
        let (tables_total, tables_done) =
            leases.as_ref().map(Leases::table_counts).unwrap_or_default();
        let running = leases.as_ref().map(Leases::running).unwrap_or_default();
        let running_bytes: u64 = running.iter().map(|task| task.bytes).sum();
        let left = totals.bytes_total.saturating_sub(totals.bytes_done);
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        // an estimate for people; a rate is never negative
        let eta_s = if copy_rate > 1.0 { (left as f64 / copy_rate) as u64 } else { 0 };
        v1::Progress {
            tables_total,
            tables_done,
            tasks_total: totals.tasks_total,
            tasks_done: totals.tasks_done,
            bytes_total: totals.bytes_total,
            bytes_done: totals.bytes_done,
            rows_done: totals.rows_done,
            copied_bytes: totals.copied_bytes + running_bytes,
            copy_rate_bytes_per_s: copy_rate,
            indexes_total: totals.builds_total,
            indexes_done: totals.builds_done,
            eta_s,
            transactions_applied: stream.transactions,
            changes_applied: stream.changes,
            apply_rate_changes_per_s: apply_rate,
            lag_bytes: if stream.applied_lsn == 0 {
                0
            } else {
                stream.source_lsn.saturating_sub(stream.applied_lsn)
            },
            lag_s: stream.lag_s,
            spool_bytes: stream.spool_bytes,
            bytes_at_risk: leases.as_ref().map_or(0, Leases::bytes_at_risk),
            running,
        }
    }
}

/// The activity, with what is being tried again or waited for beside it.
fn with_trouble(activity: String, stream: &StreamView) -> String {
    let mut line = activity;
    line.push_str(match stream.space {
        Space::Free => "",
        Space::Full => "; the spool is full, the source keeps the WAL until changes are applied",
        Space::Exceeded => {
            "; the spool is over its limit by transactions in progress on the source, and takes \
             disk until they end"
        }
        Space::DiskFull => {
            "; the disk of the spool is full, the source keeps the WAL until there is room: free \
             space there"
        }
    });
    for (part, trouble) in
        [("receiving", &stream.receive_trouble), ("replaying", &stream.replay_trouble)]
    {
        if !trouble.is_empty() {
            line.push_str(&format!("; {part} is tried again: {trouble}"));
        }
    }
    line
}

/// Bytes and changes per second over the window.
fn rates(samples: &VecDeque<Sample>) -> (f64, f64) {
    let (Some(first), Some(last)) = (samples.front(), samples.back()) else { return (0.0, 0.0) };
    let seconds = (last.at - first.at).as_secs_f64();
    if seconds <= 0.0 {
        return (0.0, 0.0);
    }
    #[allow(clippy::cast_precision_loss)] // a rate for people
    let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
    (rate(first.copied_bytes, last.copied_bytes), rate(first.changes, last.changes))
}

/// The phase on the wire.
pub fn wire_phase(phase: &Phase) -> v1::Phase {
    match phase {
        Phase::Preflight => v1::Phase::Preflight,
        Phase::Provisioning => v1::Phase::Provisioning,
        Phase::Copying { .. } => v1::Phase::Copying,
        Phase::CatchingUp { .. } => v1::Phase::CatchingUp,
        Phase::Ready => v1::Phase::Ready,
        Phase::CuttingOver { .. } => v1::Phase::CuttingOver,
        Phase::Done { .. } => v1::Phase::Done,
        Phase::Aborting => v1::Phase::Aborting,
        Phase::Aborted => v1::Phase::Aborted,
    }
}
