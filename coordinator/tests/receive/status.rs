//! Status updates wait for nobody.

use super::rig::{DATABASE, DEADLINE, Replica, Rig, streaming};
use coordinator::replay::receive::State;
use loadtest::cluster::postgres::Postgres;
use std::time::Duration;

/// The shortest after which a silent client is dropped, for a test that must outlast it.
const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_stops_reading_and_nothing_else() {
    let builder = Postgres::builder().setting("wal_sender_timeout", "2s");
    let mut rig = Rig::new(builder).await;
    rig.limit_bytes = 2_000_000;
    let mut running = rig.start();
    running.until_streaming().await;
    let walsender = rig.walsender_pid();
    // What does not compress, and more than the sockets hold.
    rig.server
        .psql(
            DATABASE,
            "do $$ begin for n in 0..39 loop
               insert into t select n * 1000 + i,
                 (select string_agg(md5(random()::text), '') from generate_series(1, 30) where i > 0)
               from generate_series(1, 500) i; commit; end loop; end $$",
        )
        .unwrap();
    running.until("full", |seen| seen.state == State::SpoolFull).await;
    let bytes = running.spool.bytes();
    assert!(bytes < 2 * rig.limit_bytes, "{bytes} bytes");
    // Three times what a silent client is given.
    tokio::time::sleep(3 * WAL_SENDER_TIMEOUT).await;
    assert_eq!(running.state.borrow().state, State::SpoolFull);
    assert_eq!(running.spool.bytes(), bytes);
    assert_eq!(rig.walsender_pid(), walsender);
    // Applied: it goes on, on the same connection.
    let end = rig.end();
    let mut replica = Replica::new();
    let mut reader = running.spool.reader(rig.consistent_point);
    while replica.end_lsn < end {
        let item = tokio::time::timeout(DEADLINE, reader.next()).await;
        let item = item.unwrap_or_else(|_| {
            panic!("stuck: {:?}, {} bytes", running.state.borrow(), running.spool.bytes())
        });
        replica.take(&item.unwrap());
        if !replica.is_open() {
            running.spool.release(replica.end_lsn);
        }
    }
    assert_eq!(replica.rows, rig.content());
    assert_eq!(rig.walsender_pid(), walsender);
    // Replay reads on, positions too: a segment is given back once all of it was read.
    let spool = running.spool.clone();
    let reads_on = async {
        loop {
            replica.take(&reader.next().await.unwrap());
            if !replica.is_open() {
                spool.release(replica.end_lsn);
            }
        }
    };
    tokio::select! {
        () = running.until("room", |seen| seen.state == State::Streaming) => {}
        () = reads_on => {}
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_outlives_wal_sender_timeout() {
    let rig = Rig::new(streaming().setting("wal_sender_timeout", "1s")).await;
    let mut running = rig.start();
    running.until_streaming().await;
    let walsender = rig.walsender_pid();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.walsender_pid(), walsender);
    running.stop().await;
}
