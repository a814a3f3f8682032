//! Statements and their mark are one.

use crate::bench::Bench;
use proto::v1::{self, ErrorClass, ReleaseCause};

fn build(statements: &[&str]) -> v1::task::Work {
    v1::task::Work::Build(v1::BuildWork {
        object: "INDEX public.t_idx".to_owned(),
        statements: statements.iter().map(|&text| text.to_owned()).collect(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_built_once_and_all_or_nothing() {
    let mut bench = Bench::new().await;
    bench.target.run("create table public.t (id int); insert into public.t values (1), (1)").await;
    bench.work(1);
    let unique = ["create index t_a on public.t (id)", "create unique index t_b on public.t (id)"];
    let task = bench.task("build", build(&unique)).await;
    bench.coordinator.offer(task.clone());
    let error = bench.coordinator.released(ReleaseCause::Failed).await;
    assert_eq!((error.class(), error.reason.as_str()), (ErrorClass::Definite, "BUILD_FAILED"));
    assert!(error.primary.contains("INDEX public.t_idx") && error.detail.contains("23505"));
    let indexes = "select count(*) from pg_indexes where tablename = 't'";
    assert_eq!(bench.target.value(indexes).await, "0");
    assert!(!bench.is_marked(&task).await);
    bench.target.run("truncate public.t").await;
    for _ in 0..2 {
        bench.coordinator.run(task.clone()).await;
    }
    assert_eq!(bench.target.value(indexes).await, "2");
    let stale = bench.task("build", build(&["create index t_c on public.t (id)"])).await;
    bench.granted_again(&stale).await;
    bench.coordinator.offer(stale);
    bench.coordinator.released(ReleaseCause::Fenced).await;
    assert_eq!(bench.target.value(indexes).await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_build_no_longer_runs_on_the_server() {
    let mut bench = Bench::new().await;
    bench.work(1);
    // Neither reads nor writes its connection, as a long sort does.
    let task = bench.task("build", build(&["select pg_sleep(60)"])).await;
    bench.coordinator.offer(task.clone());
    let name = format!("skein/m/3/build/{}.10", task.task_id);
    let running = format!(
        "select count(*) from pg_stat_activity where application_name = '{name}' \
         and wait_event = 'PgSleep' and datname = current_database()"
    );
    bench.target.until(&running, "1").await;
    let lease = bench
        .coordinator
        .until("lease", |state| state.beats.values().find_map(|beat| beat.leases.first().cloned()))
        .await;
    bench.coordinator.state().answer.revoked = vec![lease];
    bench.coordinator.released(ReleaseCause::HandedBack).await;
    // client_connection_check_interval alone would take up to two seconds.
    let begun = std::time::Instant::now();
    bench.target.until(&running, "0").await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_without_statements_is_no_build() {
    let mut bench = Bench::new().await;
    bench.work(1);
    let task = bench.task("build", build(&[])).await;
    bench.coordinator.offer(task.clone());
    let error = bench.coordinator.released(ReleaseCause::Failed).await;
    assert_eq!(error.reason, "TASK_MALFORMED");
    assert!(!bench.is_marked(&task).await);
}
