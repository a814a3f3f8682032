//! A large transaction needs no more memory than a small one, on its way in and out.
//!
//! Each test runs in a process of its own: memory is counted by process.

use super::rig::{DATABASE, Rig, streaming};
use coordinator::replay::spool::Item;
use loadtest::cluster::postgres::{Builder, Postgres};

/// Rows of about 400 bytes: 120 MB as messages.
const ROWS: u64 = 300_000;

/// What the process may grow by. A whole transaction's 4 MiB are there as entries, compressed and
/// as a block being read; frames wait in up to 4 MiB; the allocator keeps some.
const GROWTH_BYTES: u64 = 48 * 1024 * 1024;

/// Set in the process that measures.
const ALONE: &str = "SKEIN_TEST_ALONE";

/// Runs the test `name` again in a process of its own; true in that process.
fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("receive::memory::{name}"), "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    println!("{said}");
    false
}

/// Resident memory of this process (proc(5), statm; pages of 4 KiB).
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

async fn one_transaction_of_many_rows(builder: Builder) {
    let rig = Rig::new(builder).await;
    let mut running = rig.start();
    running.until_streaming().await;
    let before = resident_bytes();
    let mut most = before;
    let insert = format!(
        "insert into t select i, repeat(md5(i::text), 12) from generate_series(1, {ROWS}) i"
    );
    rig.server.psql(DATABASE, &insert).unwrap();
    let end = rig.end();
    let mut reader = running.spool.reader(rig.consistent_point);
    let (mut changes, mut bytes, mut is_done) = (0, 0, false);
    while !is_done {
        match reader.next().await.unwrap() {
            Item::Change(change) => {
                changes += 1;
                bytes += change.len() as u64;
            }
            Item::Commit { end_lsn } | Item::Position(end_lsn) => is_done = end_lsn >= end,
            Item::Begin(_) | Item::Relation(_) | Item::Type(_) => {}
        }
        if changes % 1_000 == 0 {
            most = most.max(resident_bytes());
        }
    }
    assert_eq!(changes, ROWS + 1, "the rows, and the end's message");
    assert!(bytes > ROWS * 380);
    let grown = most - before;
    eprintln!("grew by {} kB for {} kB", grown / 1024, bytes / 1024);
    assert!(grown < GROWTH_BYTES, "grew by {grown} bytes for {bytes}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_transaction_of_300_000_rows_is_read_in_little_memory() {
    if is_alone("a_streamed_transaction_of_300_000_rows_is_read_in_little_memory") {
        one_transaction_of_many_rows(streaming()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_transaction_of_300_000_rows_is_read_in_little_memory() {
    if is_alone("a_whole_transaction_of_300_000_rows_is_read_in_little_memory") {
        let builder = Postgres::builder().setting("logical_decoding_work_mem", "1GB");
        one_transaction_of_many_rows(builder).await;
    }
}
