//! The program: signals, the lock file, a coordinator that goes away, kill -9.

use crate::{
    bench::{Bench, Chunk},
    coordinator::DEADLINE,
};
use proto::v1::{self, ReleaseCause};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

const WHOLE: Chunk<'_> =
    Chunk { table: "t", columns: &["id", "v"], binary: true, blocks: (0, None) };

fn program(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein-worker"));
    command.args(["--coordinator", &bench.coordinator.url(), "--slots", "1"]);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).unwrap();
    kill_process(pid, signal).unwrap();
}

async fn code(child: &mut Child) -> Option<i32> {
    tokio::time::timeout(DEADLINE, child.wait()).await.expect("it ends").unwrap().code()
}

async fn bench_of(rows: u32) -> Bench {
    let mut bench = Bench::new().await;
    bench.both("create table public.t (id int, v text)").await;
    let insert = format!(
        "insert into public.t select g, repeat('v', 1000) from generate_series(1, {rows}) g"
    );
    bench.source.run(&insert).await;
    bench.export().await;
    bench
}

async fn in_mid_copy(bench: &Bench) {
    bench
        .coordinator
        .until("bytes are on their way", |state| {
            let mut beats = state.beats.values();
            beats.any(|beat| beat.leases.iter().any(|lease| lease.bytes > 100_000)).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_drains_and_hands_back_what_does_not_finish() {
    let mut bench = bench_of(4000).await;
    bench.coordinator.state().answer.rate_bytes_per_s = 400_000;
    let mut child = program(&bench, &["--drain-timeout", "500ms"]).spawn().unwrap();
    bench.coordinator.until("beats", |state| (!state.beats.is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task.clone());
    in_mid_copy(&bench).await;
    // A hang-up is nothing to it.
    send(&child, Signal::HUP);
    send(&child, Signal::TERM);
    let error = bench.coordinator.released(ReleaseCause::HandedBack).await;
    assert_eq!(error.reason, "WORKER_DRAINED");
    assert_eq!(code(&mut child).await, Some(0));
    assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
    assert!(!bench.is_marked(&task).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_finishes_what_can_be_finished_and_takes_nothing_new() {
    let mut bench = bench_of(1000).await;
    bench.coordinator.state().answer.rate_bytes_per_s = 500_000;
    let mut child = program(&bench, &["--drain-timeout", "1m"]).spawn().unwrap();
    bench.coordinator.until("beats", |state| (!state.beats.is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let (running, next) = (bench.chunk(WHOLE).await, bench.chunk(WHOLE).await);
    bench.coordinator.offer(running.clone());
    in_mid_copy(&bench).await;
    bench.coordinator.offer(next.clone());
    send(&child, Signal::TERM);
    assert_eq!(bench.coordinator.completed().await.task_id, running.task_id);
    assert_eq!(code(&mut child).await, Some(0));
    assert!(!bench.is_marked(&next).await);
    bench.assert_equal("t").await;
}

/// As the coordinator grants it after a worker was lost: sessions ended, a newer token, if
/// there is no mark.
async fn regrant(bench: &Bench, task: &v1::Task) -> v1::Task {
    let stale = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity \
         where application_name like 'skein/m/%/{}.%' and datname = current_database()",
        task.task_id
    );
    bench.target.until(&stale, "0").await;
    if bench.is_marked(task).await { task.clone() } else { bench.granted_again(task).await }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_at_random_moments_commit_each_task_once() {
    let mut bench = bench_of(500).await;
    // A chunk takes some 30 ms: the kills are spread over it.
    for round in 0..10_u64 {
        bench.target.run("truncate public.t").await;
        let mut task = bench.chunk(WHOLE).await;
        for attempt in 0..2 {
            let before = bench.coordinator.state().registered;
            let mut child = program(&bench, &[]).spawn().unwrap();
            bench.coordinator.offer(task.clone());
            let pause_ms = (round * 7 + attempt * 31) % 67;
            bench
                .coordinator
                .until("registered", |state| (state.registered > before).then_some(()))
                .await;
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            child.kill().await.unwrap();
            bench.coordinator.withdraw();
            task = regrant(&bench, &task).await;
        }
        let mut last = program(&bench, &[]).spawn().unwrap();
        bench.coordinator.offer(task.clone());
        while bench.coordinator.completed().await.fencing_token != task.fencing_token {}
        last.kill().await.unwrap();
        bench.assert_equal("t").await;
        bench.coordinator.forget_heard();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let bench = bench_of(4000).await;
    bench.coordinator.state().answer.rate_bytes_per_s = 100_000;
    let mut child = program(&bench, &["--drain-timeout", "10m"]).spawn().unwrap();
    bench.coordinator.until("beats", |state| (!state.beats.is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task.clone());
    in_mid_copy(&bench).await;
    send(&child, Signal::INT);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(child.try_wait().unwrap().is_none());
    let begun = Instant::now();
    send(&child, Signal::INT);
    assert_eq!(code(&mut child).await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lock_file_is_told_by_the_exit_code() {
    let bench = bench_of(1).await;
    let directory = tempfile::tempdir().unwrap();
    let lock = directory.path().join("worker-1.lock");
    let lock = lock.to_str().unwrap();
    let mut first = program(&bench, &["--lock", lock]).spawn().unwrap();
    bench.coordinator.until("beats", |state| (!state.beats.is_empty()).then_some(())).await;
    let second = program(&bench, &["--lock", lock]).output().await.unwrap();
    assert_eq!(second.status.code(), Some(75));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("is held by another process"), "{text}");
    first.kill().await.unwrap();
    let mut third = program(&bench, &["--lock", lock]).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(third.try_wait().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_outlives_a_killed_coordinator_and_is_told_to_the_next() {
    let mut bench = bench_of(1000).await;
    bench.coordinator.state().answer.rate_bytes_per_s = 400_000;
    let _child = program(&bench, &["--orphan-timeout", "1m"]).spawn().unwrap();
    bench.coordinator.until("beats", |state| (!state.beats.is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task.clone());
    in_mid_copy(&bench).await;
    bench.coordinator.die();
    let mark = format!(
        "select count(*) from skein.task where task_id = {} and finished_at is not null",
        task.task_id
    );
    bench.target.until(&mark, "1").await;
    bench.coordinator.serve();
    assert_eq!(bench.coordinator.completed().await.task_id, task.task_id);
    bench.assert_equal("t").await;
    bench.coordinator.until("again", |state| (state.registered == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_ends_by_itself() {
    let mut bench = bench_of(1).await;
    let mut child = program(&bench, &["--orphan-timeout", "1s"]).spawn().unwrap();
    bench.coordinator.until("beats", |state| (!state.beats.is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(child.try_wait().unwrap().is_none(), "it has a coordinator");
    bench.coordinator.die();
    assert_eq!(code(&mut child).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_is_named_and_help_has_an_example() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein-worker"));
    let output = command.args(["--coordinator", "tcp:nowhere"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tcp:nowhere"));
    let help = Command::new(env!("CARGO_BIN_EXE_skein-worker")).arg("--help").output().await;
    assert!(String::from_utf8_lossy(&help.unwrap().stdout).contains("Example:"));
}

/// Each place where a worker may die, with what is then in the target.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_anywhere_leaves_a_task_that_is_committed_once() {
    let mut bench = bench_of(1000).await;
    let places = ["before_fence", "mid_copy", "before_mark", "before_commit", "before_complete"];
    for place in places {
        bench.target.run("truncate public.t").await;
        let task = bench.chunk(WHOLE).await;
        let mut command = program(&bench, &[]);
        let mut child =
            command.env("FAILPOINTS", format!("worker::{place}=pause")).spawn().unwrap();
        bench.coordinator.offer(task.clone());
        let role = if place == "mid_copy" { "read" } else { "copy" };
        let session = format!(
            "select count(*) from pg_stat_activity where application_name = 'skein/m/3/{role}/{}.10'",
            task.task_id
        );
        bench.target.until(&session, "1").await;
        // The pause itself makes no sign; what follows it never comes.
        tokio::time::sleep(Duration::from_millis(500)).await;
        child.kill().await.unwrap();
        bench.target.until(&session, "0").await;
        let committed = place == "before_complete";
        assert_eq!(bench.is_marked(&task).await, committed, "{place}");
        let count = bench.target.value("select count(*) from public.t").await;
        assert_eq!(count, if committed { "1000" } else { "0" }, "{place}");
        // The coordinator grants it again only while there is no mark.
        let next = if committed { task } else { bench.granted_again(&task).await };
        let mut second = program(&bench, &[]).spawn().unwrap();
        bench.coordinator.run(next).await;
        bench.assert_equal("t").await;
        second.kill().await.unwrap();
    }
}
