//! What fails in the middle of a chunk leaves nothing behind, and the next try is equal.

use crate::{
    bench::{Bench, Chunk, Database, TASK_TABLE},
    coordinator::until,
};
use loadtest::cluster::postgres::{Postgres, Stop};
use proto::v1::{ErrorClass, ReleaseCause};
use std::time::{Duration, Instant};

const WHOLE: Chunk<'_> =
    Chunk { table: "t", columns: &["id", "v"], binary: false, blocks: (0, None) };

/// A table of 4 MB, and a worker that takes 8 s to copy it.
async fn slow_bench() -> Bench {
    slow(Bench::new().await).await
}

async fn slow(mut bench: Bench) -> Bench {
    bench.both("create table public.t (id int, v text)").await;
    bench
        .source
        .run("insert into public.t select g, repeat('v', 1000) from generate_series(1, 4000) g")
        .await;
    bench.export().await;
    bench.coordinator.state().answer.rate_bytes_per_s = 500_000;
    let worker = bench.work(1);
    bench.coordinator.until("beats", |state| state.beats.get(&worker).map(|_| ())).await;
    // The rate counts from the answer to a heartbeat.
    tokio::time::sleep(Duration::from_millis(250)).await;
    bench
}

async fn in_mid_copy(bench: &Bench) {
    bench
        .coordinator
        .until("bytes are on their way", |state| {
            let mut beats = state.beats.values();
            beats.any(|beat| beat.leases.iter().any(|lease| lease.bytes > 200_000)).then_some(())
        })
        .await;
}

fn full_speed(bench: &Bench) {
    bench.coordinator.state().answer.rate_bytes_per_s = 0;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ended_in_mid_copy_on_either_side_leaves_nothing() {
    for role in ["read", "copy"] {
        let mut bench = slow_bench().await;
        let task = bench.chunk(WHOLE).await;
        bench.coordinator.offer(task.clone());
        in_mid_copy(&bench).await;
        let name = format!("skein/m/3/{role}/{}.10", task.task_id);
        let database = if role == "read" { &bench.source } else { &bench.target };
        let end = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where application_name = '{name}' and datname = current_database()"
        );
        assert_eq!(database.value(&end).await, "1");
        let error = bench.coordinator.released(ReleaseCause::Failed).await;
        assert_eq!(error.class(), ErrorClass::Transient, "{error:?}");
        assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
        full_speed(&bench);
        let again = bench.granted_again(&task).await;
        bench.coordinator.run(again).await;
        bench.assert_equal("t").await;
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_stopped_in_mid_copy_takes_the_chunk_once_it_is_back() {
    let started = tokio::task::spawn_blocking(|| Postgres::builder().start().unwrap());
    let mut server = started.await.unwrap();
    let mut bench = slow_bench().await;
    bench.target = Database::open(server.conninfo("postgres")).await;
    bench.target.run(TASK_TABLE).await;
    bench.target.run("create table public.t (id int, v text)").await;
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task.clone());
    in_mid_copy(&bench).await;
    let mut server = tokio::task::spawn_blocking(move || {
        server.stop(Stop::Immediate).unwrap();
        server
    })
    .await
    .unwrap();
    let error = bench.coordinator.released(ReleaseCause::Failed).await;
    assert_eq!(error.class(), ErrorClass::Transient, "{error:?}");
    bench.coordinator.offer(task.clone());
    let error = bench.coordinator.released(ReleaseCause::Failed).await;
    assert_eq!(error.reason, "TARGET_UNREACHABLE");
    assert_eq!(error.class(), ErrorClass::Transient, "{error:?}");
    let server = tokio::task::spawn_blocking(move || {
        server.start_again().unwrap();
        server
    });
    let server = server.await.unwrap();
    full_speed(&bench);
    bench.target = Database::open(server.conninfo("postgres")).await;
    assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
    bench.coordinator.run(task).await;
    bench.assert_equal("t").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_chunk_ends_at_once_and_its_lock_is_gone() {
    let mut bench = slow_bench().await;
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task.clone());
    in_mid_copy(&bench).await;
    let waiting = {
        let conninfo = bench.source.conninfo.clone();
        async move {
            let waiter = Database::open(conninfo).await;
            waiter.run("alter table public.t add w int").await;
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(waiting);
    let blocked = "select count(*) from pg_locks where not granted and mode = 'AccessExclusiveLock' \
                   and relation = 'public.t'::regclass";
    bench.source.until(blocked, "1").await;
    let begun = Instant::now();
    let lease = bench
        .coordinator
        .until("lease", |state| state.beats.values().find_map(|beat| beat.leases.first().cloned()));
    let lease = lease.await;
    bench.coordinator.state().answer.revoked = vec![lease];
    let error = bench.coordinator.released(ReleaseCause::HandedBack).await;
    assert_eq!(error.reason, "LEASE_REVOKED");
    tasks.join_next().await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
    bench.coordinator.state().answer.revoked.clear();
    full_speed(&bench);
    let again = bench.granted_again(&task).await;
    bench.coordinator.run(again).await;
    assert_eq!(bench.target.value("select count(*) from public.t").await, "4000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_lease_ends_its_copy_and_another_goes_on() {
    let mut bench = slow_bench().await;
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task.clone());
    in_mid_copy(&bench).await;
    let lease = bench
        .coordinator
        .until("lease", |state| state.beats.values().find_map(|beat| beat.leases.first().cloned()))
        .await;
    let mut older = lease.clone();
    older.fencing_token -= 1;
    bench.coordinator.state().answer.fenced = vec![older];
    tokio::time::sleep(Duration::from_millis(300)).await;
    bench.coordinator.state().answer.fenced = vec![lease];
    bench.coordinator.released(ReleaseCause::Fenced).await;
    assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_locked_by_the_application_is_handed_back() {
    let mut bench = slow_bench().await;
    full_speed(&bench);
    let task = bench.chunk(WHOLE).await;
    bench.source.run("begin; lock table public.t in access exclusive mode").await;
    bench.coordinator.offer(task.clone());
    let error = bench.coordinator.released(ReleaseCause::HandedBack).await;
    assert_eq!(error.reason, "SOURCE_TABLE_LOCKED");
    assert!(!error.hint.is_empty());
    bench.source.run("rollback").await;
    bench.coordinator.run(task).await;
    bench.assert_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_snapshot_is_said_to_be_lost_and_a_living_one_beside_it_is_found() {
    for majors in [(15, 15), (17, 17)] {
        if let Some(bench) = Bench::between(majors).await {
            lose_snapshot(slow(bench).await).await;
        }
    }
}

async fn lose_snapshot(mut bench: Bench) {
    full_speed(&bench);
    let mut task = bench.chunk(WHOLE).await;
    let living = bench.snapshot.clone();
    crate::bench::copy_of(&mut task).snapshots =
        vec!["00000003-0000FFFF-1".to_owned(), "no name".to_owned(), living];
    bench.coordinator.run(task).await;
    bench.assert_equal("t").await;
    bench.target.run("truncate public.t").await;
    let task = bench.chunk(WHOLE).await;
    bench.lose_snapshot();
    let gone = "select count(*) from pg_stat_activity where state = 'idle in transaction' \
                and datname = current_database()";
    bench.source.until(gone, "0").await;
    bench.coordinator.offer(task.clone());
    let error = bench.coordinator.released(ReleaseCause::SnapshotLost).await;
    assert_eq!(error.class(), ErrorClass::Conflict);
    assert_eq!(bench.target.value("select count(*) from public.t").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_value_names_table_and_code_and_not_the_value() {
    let mut bench = Bench::new().await;
    bench.source.run("create table public.t (v text)").await;
    bench.target.run("create table public.t (v int)").await;
    bench.source.run("insert into public.t values ('4111 1111 1111 1111')").await;
    bench.export().await;
    bench.work(1);
    let task = bench.chunk(Chunk::whole("t", &["v"])).await;
    bench.coordinator.offer(task);
    let error = bench.coordinator.released(ReleaseCause::Failed).await;
    let text = format!("{error:?}");
    assert_eq!(error.class(), ErrorClass::Definite);
    assert!(text.contains("22P02") && text.contains(r#"\"public\".\"t\""#), "{text}");
    assert!(!text.contains("4111"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_is_named_without_its_password() {
    let mut bench = slow_bench().await;
    bench.source_conninfo = Some("postgresql://u:hunter2@127.0.0.1:1/db".to_owned());
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task);
    let error = bench.coordinator.released(ReleaseCause::Failed).await;
    assert_eq!(error.reason, "SOURCE_UNREACHABLE");
    assert_eq!(error.class(), ErrorClass::Transient);
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_keeps_its_sessions_from_one_task_to_the_next() {
    let mut bench = slow_bench().await;
    full_speed(&bench);
    let pids = "select string_agg(pid::text, ' ') from pg_stat_activity \
                where application_name like 'skein/m/3/copy/%' and datname = current_database()";
    let mut seen = Vec::new();
    let tasks = [bench.chunk(WHOLE).await, bench.chunk(WHOLE).await, bench.chunk(WHOLE).await];
    for task in tasks {
        bench.coordinator.run(task).await;
        seen.push(bench.target.value(pids).await);
    }
    assert!(!seen[0].is_empty());
    assert!(seen.iter().all(|pid| *pid == seen[0]), "{seen:?}");
    bench.stop().await;
    until("the sessions are gone", async || {
        bench.target.value(pids).await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept_and_a_lifted_limit_is_felt() {
    let mut bench = slow_bench().await;
    let task = bench.chunk(WHOLE).await;
    bench.coordinator.offer(task);
    let begun = Instant::now();
    in_mid_copy(&bench).await;
    bench
        .coordinator
        .until("two megabytes", |state| {
            let mut beats = state.beats.values();
            beats.any(|beat| beat.leases.iter().any(|it| it.bytes > 2_000_000)).then_some(())
        })
        .await;
    let slow = begun.elapsed();
    assert!(slow > Duration::from_secs(3), "{slow:?} for 2 MB at 0.5 MB/s");
    full_speed(&bench);
    bench.coordinator.completed().await;
    assert!(begun.elapsed() - slow < Duration::from_secs(2));
    bench.assert_equal("t").await;
}
