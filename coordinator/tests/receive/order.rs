//! Every commit arrives exactly once, in order, whatever the stream went through.

use super::rig::{DATABASE, Replica, Rig, eventually, files, streaming};
use coordinator::replay::receive::State;
use loadtest::cluster::{
    postgres::{Postgres, Stop},
    proxy::{Fault, Proxy},
};
use std::time::Duration;

/// About 600 kB of rows, in an open transaction: streamed in several blocks.
const LARGE_INSERT: &str =
    "insert into t select i, repeat('x', 200) from generate_series(1000, 3999) i";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subtransactions_that_were_rolled_back_are_left_out() {
    rolled_back_subtransactions(Rig::new(streaming()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subtransactions_that_were_rolled_back_are_left_out_on_17() {
    let Some(server) = streaming().major(17).start_or_skip().unwrap() else { return };
    rolled_back_subtransactions(Rig::on(server).await).await;
}

async fn rolled_back_subtransactions(rig: Rig) {
    let mut running = rig.start();
    running.until_streaming().await;
    let client = rig.server.client(DATABASE).await.unwrap();
    let block = |from: u32| {
        format!(
            "insert into public.t select i, repeat('s', 300) \
             from generate_series({from}, {from} + 999) i;"
        )
    };
    // Rolled back: one in a streamed block, one nested in a kept one, one that changed the
    // table's shape, and at last a whole transaction.
    let statements = [
        "begin;".to_owned(),
        block(10_000),
        "savepoint a;".to_owned(),
        block(20_000),
        "rollback to a;".to_owned(),
        "savepoint b;".to_owned(),
        block(30_000),
        "savepoint c;".to_owned(),
        block(40_000),
        "alter table public.t add column extra int;".to_owned(),
        block(50_000),
        "rollback to c;".to_owned(),
        "release b;".to_owned(),
        "update public.t set v = 'kept' where id % 100 = 0;".to_owned(),
        "delete from public.t where id % 100 = 1;".to_owned(),
        "commit;".to_owned(),
        "begin;".to_owned(),
        block(60_000),
        "rollback;".to_owned(),
        "insert into public.t values (1, 'after');".to_owned(),
    ];
    client.batch(&pg::Sql::trusted(statements.concat())).await.unwrap();
    let mut replica = Replica::new();
    rig.assert_equal(&running, &mut replica).await;
    assert!(!replica.rows.contains_key(&20_000) && replica.rows.contains_key(&30_000));
    assert_eq!(files(&rig.spool_dir(), "txn").len(), 1, "it was streamed; the aborted one is gone");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interleaved_commits_arrive_once_and_in_order() {
    let rig = Rig::new(streaming()).await;
    let mut running = rig.start();
    running.until_streaming().await;
    let clients = 6_i64;
    let mut writers = tokio::task::JoinSet::new();
    for client_id in 0..clients {
        let client = rig.server.client(DATABASE).await.unwrap();
        writers.spawn(async move {
            for i in 0..40_i64 {
                // Small, large enough to be streamed, with a subtransaction rolled back, none.
                let rows = [1, 900, 30, 500][usize::try_from((client_id + i) % 4).unwrap()];
                let from = client_id * 1_000_000 + i * 1_000;
                let end = if i % 9 == 4 { "rollback" } else { "commit" };
                let statements = format!(
                    "begin; insert into public.t select n, repeat('a', 150) \
                       from generate_series({from}, {from} + {rows} - 1) n; \
                     savepoint s; update public.t set v = 'lost' \
                       where id between {from} and {from} + {rows}; rollback to s; \
                     delete from public.t where id = {from} + {rows} - 1 and id % 2 = 1; {end};"
                );
                client.batch(&pg::Sql::trusted(statements)).await.unwrap();
            }
        });
    }
    let mut replica = Replica::new();
    let mut reader = running.spool.reader(rig.consistent_point);
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    replica.read_until(&mut reader, rig.end()).await;
    assert_eq!(replica.rows, rig.content());
    let mut transactions = replica.transactions.clone();
    transactions.sort_unstable();
    transactions.dedup();
    assert_eq!(transactions.len(), replica.transactions.len());
    // 4 or 5 of 40 were rolled back; one more is the end's message.
    assert_eq!(transactions.len(), usize::try_from(clients).unwrap() * 36 + 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_broke_is_sent_again_whole_and_kept_once() {
    let rig = Rig::new(streaming()).await;
    let mut running = rig.start();
    running.until_streaming().await;
    let client = rig.server.client(DATABASE).await.unwrap();
    client
        .batch(&pg::Sql::trusted(format!("set search_path = public; begin; {LARGE_INSERT}")))
        .await
        .unwrap();
    eventually("a piece in the spool", || !files(&rig.spool_dir(), "txn").is_empty()).await;
    let piece = files(&rig.spool_dir(), "txn");
    // The server sends it whole after a new start, since it has committed by then.
    client
        .batch(&pg::Sql::trusted(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where active; \
             commit; insert into t values (1, 'after')"
                .to_owned(),
        ))
        .await
        .unwrap();
    let mut replica = Replica::new();
    rig.assert_equal(&running, &mut replica).await;
    assert_eq!(replica.rows.len(), 3_001);
    assert!(!piece[0].exists(), "the first connection's piece is gone");
    // And once more, with an open transaction that is then rolled back.
    client
        .batch(&pg::Sql::trusted(format!(
            "begin; {}; select pg_terminate_backend(active_pid) from pg_replication_slots \
             where active; rollback",
            LARGE_INSERT.replace("1000, 3999", "5000, 8999")
        )))
        .await
        .unwrap();
    rig.assert_equal(&running, &mut replica).await;
    assert_eq!(replica.rows.len(), 3_001);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_in_mid_stream_loses_and_doubles_nothing() {
    let mut rig = Rig::new(streaming()).await;
    let mut running = rig.start();
    running.until_streaming().await;
    rig.server
        .psql(DATABASE, "insert into t select i, 'a' from generate_series(1, 500) i")
        .unwrap();
    let client = rig.server.client(DATABASE).await.unwrap();
    client
        .batch(&pg::Sql::trusted(format!("set search_path = public; begin; {LARGE_INSERT}")))
        .await
        .unwrap();
    eventually("a piece in the spool", || !files(&rig.spool_dir(), "txn").is_empty()).await;
    rig.server.stop(Stop::Immediate).unwrap();
    running.until("connecting", |seen| seen.state == State::Connecting).await;
    rig.server.start_again().unwrap();
    rig.server.psql(DATABASE, "update t set v = 'b' where id <= 100").unwrap();
    let mut replica = Replica::new();
    rig.assert_equal(&running, &mut replica).await;
    assert_eq!(replica.rows.len(), 500);
    assert_eq!(files(&rig.spool_dir(), "txn").len(), 0);
    assert_eq!(running.state.borrow().fault, None, "an old fault is not kept");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_stop_of_the_server_does_not_wait_for_us() {
    let mut rig = Rig::new(Postgres::builder()).await;
    let mut running = rig.start();
    running.until_streaming().await;
    rig.server.psql(DATABASE, "insert into t values (1, 'a')").unwrap();
    // The walsender ends only when everything was confirmed.
    rig.server.stop(Stop::Fast).unwrap();
    rig.server.start_again().unwrap();
    rig.server.psql(DATABASE, "insert into t values (2, 'b')").unwrap();
    rig.assert_equal(&running, &mut Replica::new()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_network_is_noticed_and_taken_up_again() {
    let rig = Rig::new(streaming()).await;
    let proxy = Proxy::start(rig.server.port()).unwrap();
    let mut running = rig.start_at(&rig.server.conninfo_at(proxy.port(), DATABASE));
    running.until_streaming().await;
    let mut replica = Replica::new();
    for round in 0..4 {
        let from = round * 10_000;
        rig.server
            .psql(
                DATABASE,
                &format!("insert into t select i, repeat('n', 100) from generate_series({from}, {from} + 4999) i"),
            )
            .unwrap();
        if round % 2 == 0 {
            proxy.reset();
        } else {
            proxy.set(Fault::Refuse);
            proxy.reset();
            running.until("connecting", |seen| seen.state == State::Connecting).await;
            proxy.set(Fault::None);
        }
        rig.assert_equal(&running, &mut replica).await;
    }
    assert_eq!(replica.rows.len(), 20_000);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_source_goes_on_and_its_wal_is_given_back() {
    let rig = Rig::new(Postgres::builder()).await;
    let mut running = rig.start();
    running.until_streaming().await;
    // Nothing that is published: only keepalives say how far it is.
    rig.server
        .psql(
            DATABASE,
            "create table other (id int); insert into other select generate_series(1, 5000)",
        )
        .unwrap();
    let current = rig.server.psql(DATABASE, "select pg_current_wal_insert_lsn()").unwrap();
    let current = current.parse().unwrap();
    running.until_spooled(current).await;
    running.until("confirmed", |seen| seen.confirmed_flush_lsn >= current).await;
    eventually("confirmed on the server", || {
        let confirmed = "select confirmed_flush_lsn from pg_replication_slots";
        rig.server.psql(DATABASE, confirmed).unwrap().parse::<pg::PgLsn>().unwrap() >= current
    })
    .await;
    tokio::time::timeout(Duration::from_secs(10), running.stop()).await.unwrap();
}
