//! The whole flow: a source that writes, its slot, the receiver, the spool, replay.

use super::world::World;
use coordinator::replay::receive::{self, Receiver};
use pg::{Conninfo, PgLsn, SessionName, sql, walsender::PgoutputOptions};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn what_a_source_streams_while_it_writes_arrives_equal() {
    let tables = "create table t (id int primary key, v text); create table n (id int, v text)";
    let world = World::new(tables).await;
    let source = Conninfo::parse(&world.source_server.conninfo("source")).unwrap();
    let config = receive::Config {
        source,
        name: SessionName::new("x", 1, "receive", 0),
        client_encoding: "UTF8".to_owned(),
        options: PgoutputOptions::new(["p".to_owned()]),
        retain: receive::Retain::Spool,
    };
    let (applied, is_applied) = watch::channel(world.start);
    let (receiver, _handle) = Receiver::new(config, world.spool.clone(), is_applied);
    world.source_server.set("logical_decoding_work_mem", "64kB").unwrap();
    world.source_server.reload();
    let token = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let stop = token.clone();
    tasks.spawn(async move { receiver.run(stop).await.unwrap() });
    let mut running = world.start(None);

    // Streamed in blocks while it is open, parts of it rolled back, others between.
    let other = world.source_server.client("source").await.unwrap();
    other
        .batch(&sql!(
            "set search_path = public; begin; insert into t select i, repeat('x', 50) from generate_series(1, 20000) i"
        ))
        .await
        .unwrap();
    for id in 1..=50 {
        world.write(&format!("insert into n values ({id}, 'n')")).await;
        other
            .batch(&sql!(
                "savepoint a; insert into t select i, 'gone' from generate_series(100000, 101000) i; rollback to a;
                 update t set v = v || '!' where id % 50 = {}",
                id % 50
            ))
            .await
            .unwrap();
    }
    other.batch(&sql!("delete from t where id % 7 = 0; commit")).await.unwrap();
    world.write("update t set id = -id where id = 1; insert into n values (0, 'last')").await;
    let end: PgLsn = world
        .source
        .query_one(&sql!("select pg_current_wal_insert_lsn()"), &[])
        .await
        .unwrap()
        .get(0);
    running.end.send(Some(end)).unwrap();
    running.until(|status| status.drained).await;
    running.stop().await.unwrap();
    world.assert_equal();
    drop(applied);
    token.cancel();
    tasks.join_all().await;
}
