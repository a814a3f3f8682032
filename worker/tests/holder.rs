//! A snapshot outlives whoever exported it first (rules, part 2).

use crate::bench::{Bench, Chunk};
use proto::v1;

fn hold(bench: &Bench, snapshots: &[String]) -> v1::Hold {
    v1::Hold {
        migration: "m".to_owned(),
        epoch: 3,
        snapshot_epoch: 1,
        source: Some(v1::Endpoint {
            conninfo: bench.source.conninfo.clone(),
            server_version: 150_000,
        }),
        snapshots: snapshots.to_vec(),
    }
}

async fn held_by(bench: &Bench, worker: &str, but: &[String]) -> String {
    bench
        .coordinator
        .until("a snapshot is held", |state| {
            let holder = state.beats.get(worker)?.holders.first()?;
            (!but.contains(&holder.snapshot)).then(|| holder.snapshot.clone())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_survives_its_exporter_and_a_lost_holder() {
    let mut bench = Bench::new().await;
    bench.both("create table public.t (id int)").await;
    bench.source.run("insert into public.t values (1)").await;
    bench.export().await;
    bench.source.run("insert into public.t values (2)").await;
    let first = bench.snapshot.clone();
    bench.coordinator.state().answer.holds = vec![hold(&bench, std::slice::from_ref(&first))];
    let (one, two) = (bench.work(1), bench.work(1));
    let (name_one, name_two) = (held_by(&bench, &one, &[]).await, held_by(&bench, &two, &[]).await);
    assert!(name_one != name_two && name_one != first);
    bench.lose_snapshot();
    // The coordinator lists the living names from now on.
    bench.coordinator.state().answer.holds =
        vec![hold(&bench, &[name_one.clone(), name_two.clone()])];
    let end = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity \
         where application_name = 'skein/m/3/holder/{one}' and datname = current_database()"
    );
    assert_eq!(bench.source.value(&end).await, "1");
    let again = held_by(&bench, &one, std::slice::from_ref(&name_one)).await;
    let mut task = bench.chunk(Chunk::whole("t", &["id"])).await;
    crate::bench::copy_of(&mut task).snapshots = vec![name_one, again];
    bench.coordinator.run(task).await;
    assert_eq!(bench.target.content("public.t").await, "1:\n(1)");
    // A coordinator that does not know yet what is to be held lets nothing go.
    bench.coordinator.state().answer.holds_unknown = true;
    bench.coordinator.state().answer.holds.clear();
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let held = |state: &crate::coordinator::State| {
        state.beats.values().map(|beat| beat.holders.len()).sum::<usize>()
    };
    assert_eq!(held(&bench.coordinator.state()), 2);
    // No longer listed: let go.
    bench.coordinator.state().answer.holds_unknown = false;
    let holders = "select count(*) from pg_stat_activity where application_name like '%/holder/%' \
                   and datname = current_database()";
    bench.source.until(holders, "0").await;
    bench
        .coordinator
        .until("nothing is reported", |state| {
            state.beats.values().all(|beat| beat.holders.is_empty()).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_outlives_the_timeouts_of_its_role_and_a_restarted_coordinator() {
    let mut bench = Bench::new().await;
    bench.export().await;
    bench
        .source
        .run("do $$ begin execute format('alter database %I set idle_in_transaction_session_timeout = 300', current_database()); end $$")
        .await;
    bench.coordinator.state().answer.holds = vec![hold(&bench, &[bench.snapshot.clone()])];
    let worker = bench.work(1);
    let name = held_by(&bench, &worker, &[]).await;
    bench.coordinator.die();
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    bench.coordinator.state().beats.clear();
    bench.coordinator.serve();
    assert_eq!(held_by(&bench, &worker, &[]).await, name);
    assert_eq!(bench.coordinator.state().registered, 2);
}
