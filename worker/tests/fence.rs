//! At most one commit per task, whoever still runs an old lease (rules, parts 7 and 9).

use crate::{
    bench::{Bench, Chunk, server},
    coordinator::Heard,
    proxy::{Loss, Proxy},
};
use proto::v1::{ReleaseCause, complete_task_request::Result::Copy};
use std::sync::atomic::Ordering;

async fn bench() -> Bench {
    let mut bench = Bench::new().await;
    bench.both("create table public.t (id int, v text)").await;
    bench
        .source
        .run("insert into public.t select g, repeat('v', 100) from generate_series(1, 3000) g")
        .await;
    bench.export().await;
    bench
}

const WHOLE: Chunk<'_> =
    Chunk { table: "t", columns: &["id", "v"], binary: false, blocks: (0, None) };

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_token_or_snapshot_writes_nothing() {
    let mut bench = bench().await;
    bench.work(1);
    let old = bench.chunk(WHOLE).await;
    let new = bench.granted_again(&old).await;
    bench.coordinator.offer(old.clone());
    let error = bench.coordinator.released(ReleaseCause::Fenced).await;
    assert_eq!(error.reason, "FENCED");
    let mut of_old_snapshot = new.clone();
    of_old_snapshot.snapshot_epoch = 0;
    bench.coordinator.offer(of_old_snapshot);
    bench.coordinator.released(ReleaseCause::Fenced).await;
    assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
    assert!(!bench.is_marked(&old).await);
    bench.coordinator.run(new).await;
    bench.assert_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_task_is_completed_again_without_a_row() {
    let mut bench = bench().await;
    bench.work(1);
    let task = bench.chunk(WHOLE).await;
    let first = bench.coordinator.run(task.clone()).await;
    // The name means nothing any more: it is not even looked at.
    bench.source.run("drop table public.t").await;
    let second = bench.coordinator.run(task).await;
    assert_eq!(first, second);
    assert!(matches!(first, Copy(result) if result.rows == 3000 && result.bytes > 300_000));
    assert_eq!(bench.target.value("select count(*) from public.t").await, "3000");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_on_one_task_commit_it_once() {
    let mut bench = bench().await;
    bench.work(2);
    bench.work(2);
    for round in 0..12 {
        bench.target.run("truncate public.t").await;
        let old = bench.chunk(WHOLE).await;
        // The same grant twice, and in every second round an older one beside a newer.
        let new = if round % 2 == 0 { old.clone() } else { bench.granted_again(&old).await };
        for task in [&old, &new, &new] {
            bench.coordinator.offer(task.clone());
        }
        let mut completed = 0;
        for _ in 0..3 {
            match bench.coordinator.heard().await {
                Heard::Completed(request) => {
                    assert_eq!(request.fencing_token, new.fencing_token);
                    completed += 1;
                }
                Heard::Released(request) => {
                    assert_eq!(request.cause(), ReleaseCause::Fenced, "{request:?}");
                }
            }
        }
        assert_eq!(completed, if round % 2 == 0 { 3 } else { 2 });
        bench.assert_equal("t").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_found_by_its_mark() {
    for loss in [Loss::Answer, Loss::Request] {
        let mut bench = bench().await;
        let server = server(15).unwrap().port();
        let proxy = Proxy::start(server, loss).await;
        let (direct, port) = (server.to_string(), proxy.port.to_string());
        bench.target_conninfo = Some(bench.target.conninfo.replace(&direct, &port));
        bench.work(1);
        let task = bench.chunk(WHOLE).await;
        bench.coordinator.offer(task.clone());
        match (loss, bench.coordinator.heard().await) {
            (Loss::Answer, Heard::Completed(_)) => {}
            (Loss::Request, Heard::Released(request)) => {
                assert_eq!(request.cause(), ReleaseCause::Failed);
                assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
                bench.coordinator.run(task).await;
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(proxy.cuts.load(Ordering::SeqCst), 1);
        bench.assert_equal("t").await;
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_repeated_until_it_is_heard() {
    let mut bench = bench().await;
    bench.coordinator.state().deaf = 3;
    let worker = bench.work(1);
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.run(task.clone()).await;
    assert_eq!(bench.coordinator.state().deaf, 0);
    bench
        .coordinator
        .until("the lease is gone", |state| state.beats[&worker].leases.is_empty().then_some(()))
        .await;
}
