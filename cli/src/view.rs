//! What `--json` prints. Field names are stable: added, never renamed.
//!
//! In: messages of the contract. Out: values for `serde_json`. Promise: positions are printed
//! as PostgreSQL prints them and are null while unknown; times are RFC 3339 in UTC; units
//! stand in the names.

use crate::unit;
use proto::v1;
use serde::Serialize;

/// Phases as scripts know them.
pub(crate) fn phase_name(phase: v1::Phase) -> &'static str {
    match phase {
        v1::Phase::Unspecified => "unknown",
        v1::Phase::Preflight => "preflight",
        v1::Phase::Provisioning => "provisioning",
        v1::Phase::Copying => "copying",
        v1::Phase::CatchingUp => "catching_up",
        v1::Phase::Ready => "ready",
        v1::Phase::CuttingOver => "cutting_over",
        v1::Phase::Done => "done",
        v1::Phase::Aborting => "aborting",
        v1::Phase::Aborted => "aborted",
    }
}

fn class_name(class: v1::ErrorClass) -> &'static str {
    match class {
        v1::ErrorClass::Unspecified | v1::ErrorClass::Transient => "transient",
        v1::ErrorClass::Conflict => "conflict",
        v1::ErrorClass::Fenced => "fenced",
        v1::ErrorClass::Definite => "definite",
        v1::ErrorClass::Bug => "bug",
    }
}

pub(crate) fn outcome_name(outcome: v1::CheckOutcome) -> &'static str {
    match outcome {
        v1::CheckOutcome::Unspecified => "unknown",
        v1::CheckOutcome::Pass => "pass",
        v1::CheckOutcome::Warning => "warning",
        v1::CheckOutcome::Failure => "failure",
    }
}

/// An error beside a phase, a table, or at the end of a command.
#[derive(Debug, Serialize)]
pub(crate) struct Fault {
    reason: String,
    class: &'static str,
    primary: String,
    detail: String,
    hint: String,
}

impl From<&v1::ErrorDetail> for Fault {
    fn from(detail: &v1::ErrorDetail) -> Self {
        Self {
            reason: detail.reason.clone(),
            class: class_name(detail.class()),
            primary: detail.primary.clone(),
            detail: detail.detail.clone(),
            hint: detail.hint.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Migration {
    name: String,
    phase: &'static str,
    fault: Option<Fault>,
    paused: bool,
    started: bool,
    activity: String,
    created_at: Option<String>,
    phase_since: Option<String>,
    epoch: u64,
    positions: Positions,
    progress: Progress,
    source_state: SourceState,
    cutover: Option<Cutover>,
    not_moved: Vec<String>,
    notices: Vec<String>,
    spec: Option<Spec>,
}

#[derive(Debug, Serialize)]
struct Positions {
    consistent_point_lsn: Option<String>,
    received_lsn: Option<String>,
    spooled_lsn: Option<String>,
    applied_lsn: Option<String>,
    confirmed_flush_lsn: Option<String>,
    source_lsn: Option<String>,
    end_lsn: Option<String>,
}

#[derive(Debug, Serialize)]
struct Progress {
    tables_total: u64,
    tables_done: u64,
    tasks_total: u64,
    tasks_done: u64,
    bytes_total: u64,
    bytes_done: u64,
    rows_done: u64,
    copied_bytes: u64,
    copy_rate_bytes_per_s: f64,
    indexes_total: u64,
    indexes_done: u64,
    eta_s: Option<u64>,
    transactions_applied: u64,
    changes_applied: u64,
    apply_rate_changes_per_s: f64,
    lag_bytes: u64,
    lag_s: f64,
    spool_bytes: u64,
    bytes_at_risk: u64,
    running: Vec<Task>,
}

#[derive(Debug, Serialize)]
struct Task {
    task_id: u64,
    kind: String,
    object: String,
    worker: String,
    bytes: u64,
    seconds: u64,
}

#[derive(Debug, Serialize)]
struct SourceState {
    snapshot_age_s: u64,
    snapshot_epoch: u32,
    holder_count: u32,
    retained_wal_bytes: u64,
    oldest_transaction_age_s: u64,
    oldest_transaction: String,
    waiting_for_us: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Cutover {
    attempt: u32,
    state: String,
    steps: Vec<Step>,
    writes_stopped_s: f64,
    late_writes: Vec<LateWrite>,
    lift_sql: String,
    deadline: Option<String>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: String,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct LateWrite {
    table: String,
    changes: u64,
}

/// References to secrets, never what is behind them.
#[derive(Debug, Serialize)]
struct Spec {
    source: String,
    target: String,
    cutover_mode: &'static str,
    workers: u32,
    lanes: u32,
}

impl From<&v1::Migration> for Migration {
    fn from(migration: &v1::Migration) -> Self {
        let progress = migration.progress.clone().unwrap_or_default();
        let source = migration.source.clone().unwrap_or_default();
        let time = |at: Option<i64>| at.and_then(unit::instant);
        Self {
            name: migration.name.clone(),
            phase: phase_name(migration.phase()),
            fault: migration.fault.as_ref().map(Fault::from),
            paused: migration.paused,
            started: migration.started,
            activity: migration.activity.clone(),
            created_at: time(migration.created_at.as_ref().map(|at| at.seconds)),
            phase_since: time(migration.phase_since.as_ref().map(|at| at.seconds)),
            epoch: migration.epoch,
            positions: Positions::from(&migration.positions.unwrap_or_default()),
            progress: Progress::from(progress),
            source_state: SourceState::from(source),
            cutover: migration.cutover.as_ref().map(Cutover::from),
            not_moved: migration.not_moved.clone(),
            notices: migration.notices.clone(),
            spec: migration.spec.as_ref().map(Spec::from),
        }
    }
}

impl From<&v1::Positions> for Positions {
    fn from(positions: &v1::Positions) -> Self {
        Self {
            consistent_point_lsn: unit::position(positions.consistent_point_lsn),
            received_lsn: unit::position(positions.received_lsn),
            spooled_lsn: unit::position(positions.spooled_lsn),
            applied_lsn: unit::position(positions.applied_lsn),
            confirmed_flush_lsn: unit::position(positions.confirmed_flush_lsn),
            source_lsn: unit::position(positions.source_lsn),
            end_lsn: unit::position(positions.end_lsn),
        }
    }
}

impl From<v1::Progress> for Progress {
    fn from(progress: v1::Progress) -> Self {
        let running = progress.running.into_iter().map(|task| Task {
            task_id: task.task_id,
            kind: task.kind,
            object: task.object,
            worker: task.worker,
            bytes: task.bytes,
            seconds: task.seconds,
        });
        Self {
            tables_total: progress.tables_total,
            tables_done: progress.tables_done,
            tasks_total: progress.tasks_total,
            tasks_done: progress.tasks_done,
            bytes_total: progress.bytes_total,
            bytes_done: progress.bytes_done,
            rows_done: progress.rows_done,
            copied_bytes: progress.copied_bytes,
            copy_rate_bytes_per_s: progress.copy_rate_bytes_per_s,
            indexes_total: progress.indexes_total,
            indexes_done: progress.indexes_done,
            eta_s: (progress.eta_s != 0).then_some(progress.eta_s),
            transactions_applied: progress.transactions_applied,
            changes_applied: progress.changes_applied,
            apply_rate_changes_per_s: progress.apply_rate_changes_per_s,
            lag_bytes: progress.lag_bytes,
            lag_s: progress.lag_s,
            spool_bytes: progress.spool_bytes,
            bytes_at_risk: progress.bytes_at_risk,
            running: running.collect(),
        }
    }
}

impl From<v1::SourceState> for SourceState {
    fn from(source: v1::SourceState) -> Self {
        Self {
            snapshot_age_s: source.snapshot_age_s,
            snapshot_epoch: source.snapshot_epoch,
            holder_count: source.holder_count,
            retained_wal_bytes: source.retained_wal_bytes,
            oldest_transaction_age_s: source.oldest_transaction_age_s,
            oldest_transaction: source.oldest_transaction,
            waiting_for_us: source.waiting_for_us,
        }
    }
}

impl From<&v1::CutoverReport> for Cutover {
    fn from(report: &v1::CutoverReport) -> Self {
        let step = |step: &v1::CutoverStep| Step { name: step.name.clone(), seconds: step.seconds };
        let late =
            |late: &v1::LateWrite| LateWrite { table: late.table.clone(), changes: late.changes };
        Self {
            attempt: report.attempt,
            state: report.state.clone(),
            steps: report.steps.iter().map(step).collect(),
            writes_stopped_s: report.writes_stopped_s,
            late_writes: report.late_writes.iter().map(late).collect(),
            lift_sql: report.lift_sql.clone(),
            deadline: report.deadline.as_ref().and_then(|at| unit::instant(at.seconds)),
        }
    }
}

impl From<&v1::MigrationSpec> for Spec {
    fn from(spec: &v1::MigrationSpec) -> Self {
        let mode = spec.cutover.unwrap_or_default().mode();
        Self {
            source: crate::secret::shown(&spec.source),
            target: crate::secret::shown(&spec.target),
            cutover_mode: if mode == v1::CutoverMode::Auto { "auto" } else { "manual" },
            workers: spec.copy.unwrap_or_default().workers,
            lanes: spec.replay.unwrap_or_default().lanes,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Check {
    name: String,
    r#where: String,
    outcome: &'static str,
    found: String,
    detail: String,
    fix: String,
}

impl From<&v1::Check> for Check {
    fn from(check: &v1::Check) -> Self {
        Self {
            name: check.name.clone(),
            r#where: check.r#where.clone(),
            outcome: outcome_name(check.outcome()),
            found: check.found.clone(),
            detail: check.detail.clone(),
            fix: check.fix.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Worker {
    worker_id: String,
    host: String,
    pid: u32,
    slots: u32,
    running: u32,
    seen_at: Option<String>,
    draining: bool,
    version: String,
}

impl From<&v1::Worker> for Worker {
    fn from(worker: &v1::Worker) -> Self {
        Self {
            worker_id: worker.worker_id.clone(),
            host: worker.host.clone(),
            pid: worker.pid,
            slots: worker.slots,
            running: worker.running,
            seen_at: worker.seen_at.as_ref().and_then(|at| unit::instant(at.seconds)),
            draining: worker.draining,
            version: worker.version.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct TableVerdict {
    table: String,
    equal: bool,
    source_rows: u64,
    target_rows: u64,
    source_digest: String,
    target_digest: String,
    differences: Vec<String>,
    error: Option<Fault>,
}

impl From<&v1::TableVerdict> for TableVerdict {
    fn from(verdict: &v1::TableVerdict) -> Self {
        Self {
            table: verdict.table.clone(),
            equal: verdict.equal,
            source_rows: verdict.source_rows,
            target_rows: verdict.target_rows,
            source_digest: verdict.source_digest.clone(),
            target_digest: verdict.target_digest.clone(),
            differences: verdict.differences.clone(),
            error: verdict.error.as_ref().map(Fault::from),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct VerifySummary {
    tables: u64,
    different: u64,
    failed: u64,
    source_rows: u64,
    target_rows: u64,
    seconds: f64,
    notes: Vec<String>,
}

impl From<&v1::VerifySummary> for VerifySummary {
    fn from(summary: &v1::VerifySummary) -> Self {
        Self {
            tables: summary.tables,
            different: summary.different,
            failed: summary.failed,
            source_rows: summary.source_rows,
            target_rows: summary.target_rows,
            seconds: summary.seconds,
            notes: summary.notes.clone(),
        }
    }
}
