//! What several tests begin with.

use crate::coordinator::Coordinator;
use proto::v1::{self, Phase};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything: a loaded machine needs seconds to start a process.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until something holds.
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    let mut holds = holds;
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A coordinator that serves, in a directory of its own.
pub(crate) fn coordinator() -> (TempDir, Coordinator) {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::serving(dir.path());
    (dir, coordinator)
}

/// A migration in mid-copy, with a value in every field that is shown.
pub(crate) fn copying(name: &str) -> v1::Migration {
    let spec = v1::MigrationSpec {
        name: name.into(),
        source: format!("file:/secrets/{name}.source"),
        target: "postgres://app:hunter2@db2/shop".into(),
        copy: Some(v1::CopyOptions { workers: 2, ..v1::CopyOptions::default() }),
        replay: Some(v1::ReplayOptions { lanes: 4, ..v1::ReplayOptions::default() }),
        ..v1::MigrationSpec::default()
    };
    let positions = v1::Positions {
        consistent_point_lsn: 0x16_B374_D848,
        received_lsn: 0x16_B374_E000,
        spooled_lsn: 0x16_B374_DF00,
        applied_lsn: 0x16_B374_D900,
        confirmed_flush_lsn: 0x16_B374_DF00,
        source_lsn: 0x16_B374_F000,
        end_lsn: 0,
    };
    let running = v1::TaskProgress {
        task_id: 7,
        kind: "copy".into(),
        object: "public.orders".into(),
        worker: "w1".into(),
        bytes: 1 << 20,
        seconds: 12,
    };
    let progress = v1::Progress {
        tables_total: 40,
        tables_done: 12,
        tasks_total: 60,
        tasks_done: 20,
        bytes_total: 4 << 30,
        bytes_done: 1 << 30,
        rows_done: 1_234_567,
        copied_bytes: 1 << 30,
        copy_rate_bytes_per_s: 89_128_960.0,
        indexes_total: 22,
        indexes_done: 3,
        eta_s: 42,
        transactions_applied: 12,
        changes_applied: 1234,
        apply_rate_changes_per_s: 56.5,
        lag_bytes: 5888,
        lag_s: 0.5,
        spool_bytes: 4096,
        bytes_at_risk: 1 << 29,
        running: vec![running],
    };
    let source = v1::SourceState {
        snapshot_age_s: 130,
        retained_wal_bytes: 3 << 20,
        oldest_transaction_age_s: 61,
        oldest_transaction: "pid 4711 of app".into(),
        waiting_for_us: vec!["pid 4712: create index concurrently".into()],
        snapshot_epoch: 1,
        holder_count: 3,
    };
    v1::Migration {
        name: name.into(),
        phase: Phase::Copying.into(),
        started: true,
        spec: Some(spec),
        positions: Some(positions),
        progress: Some(progress),
        source: Some(source),
        activity: "copying rows under the snapshot".into(),
        epoch: 1,
        notices: vec!["two tables have no statistics".into()],
        not_moved: vec!["foreign server old: left out by the configuration".into()],
        ..v1::Migration::default()
    }
}

/// The same at its end.
pub(crate) fn done(name: &str) -> v1::Migration {
    let step = |name: &str, seconds| v1::CutoverStep { name: name.into(), seconds };
    let mut migration = copying(name);
    migration.set_phase(Phase::Done);
    let progress = migration.progress.as_mut().unwrap();
    progress.tables_done = 40;
    progress.indexes_done = 22;
    progress.running.clear();
    migration.cutover = Some(v1::CutoverReport {
        attempt: 1,
        state: "opened".into(),
        steps: vec![step("end sessions", 0.25), step("drain", 1.5)],
        writes_stopped_s: 1.843,
        ..v1::CutoverReport::default()
    });
    migration
}
