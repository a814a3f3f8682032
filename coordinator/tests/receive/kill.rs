//! Killed at any moment, the next run goes on from the spool.
//!
//! The test starts its own program again as the receiver, and kills that with SIGKILL.

use super::rig::{self, DATABASE, Replica, Rig, streaming};
use coordinator::replay::receive::Retain;
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const CONNINFO: &str = "SKEIN_TEST_RECEIVE_CONNINFO";
const DIR: &str = "SKEIN_TEST_RECEIVE_DIR";
const CHILD: &str = "receive::kill::receiver_of_another_process";

/// Not a test of its own: what the children run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_of_another_process() {
    let (Ok(conninfo), Ok(dir)) = (std::env::var(CONNINFO), std::env::var(DIR)) else { return };
    let lsn = pg::PgLsn::from(0);
    let _running = rig::start(&conninfo, Path::new(&dir), 1 << 30, Retain::Spool, lsn);
    std::future::pending::<()>().await;
}

fn start_child(rig: &Rig) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD])
        .env(CONNINFO, rig.server.conninfo(DATABASE))
        .env(DIR, rig.spool_dir())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_it_keeps_every_commit_once() {
    let rig = Rig::new(streaming()).await;
    let client = rig.server.client(DATABASE).await.unwrap();
    let mut writer = tokio::task::JoinSet::new();
    writer.spawn(async move {
        for i in 0..150 {
            let rows = if i % 5 == 0 { 1_500 } else { 20 };
            let statements = format!(
                "begin; insert into public.t select {i} * 10000 + n, repeat('k', 100) \
                   from generate_series(1, {rows}) n; \
                 savepoint s; delete from public.t where id < {i} * 10000; rollback to s; commit"
            );
            client.batch(&pg::Sql::trusted(statements)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    // Moments of death at random enough distances; the first may come while it connects.
    for millis in [60, 700, 250, 400, 900, 330, 510] {
        let mut child = start_child(&rig);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    while let Some(written) = writer.join_next().await {
        written.unwrap();
    }
    let running = rig.start();
    let mut replica = Replica::new();
    rig.assert_equal(&running, &mut replica).await;
    assert_eq!(replica.rows.len(), 30 * 1_500 + 120 * 20);
    running.stop().await;
}
