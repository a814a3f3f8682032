//! What does not fit: one transaction larger than memory should hold, bytes of no encoding.

use crate::scenario::{NAME, Scenario};
use loadtest::cluster::postgres::Postgres;
use std::time::Duration;

/// Rows of one transaction; with their values about 150 MB as messages, 300 MB as decoded rows.
const ROWS: u64 = 1_000_000;

/// What the coordinator may take at its peak: batches, channels and one block of the spool, and
/// no more for a larger transaction.
const MEMORY_KB: u64 = 256 * 1024;

/// Peak of a process's resident memory (proc(5), status).
fn peak_kb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_transaction_of_a_million_rows_is_received_and_applied_in_little_memory() {
    let scenario = Scenario::new();
    let make = "create table big (id bigint primary key, v text);
        insert into big select i, 'copied' from generate_series(1, 1000) i";
    scenario.source.psql("shop", make).unwrap();
    let _migrate = scenario.migrate(&["--cutover", "manual"]);
    scenario.wait_for_phase(&["ready"]);
    let coordinator = scenario.run.processes("skein-coordinator")[0];
    let before = peak_kb(coordinator);
    let write = format!(
        "begin;
         insert into big select i, repeat(md5(i::text), 3) from generate_series(1001, {ROWS}) i;
         update big set v = 'changed' where id % 10 = 0;
         commit"
    );
    scenario.source.psql("shop", &write).unwrap();
    let streamed = "select stream_txns > 0 from pg_stat_replication_slots";
    let question = "select count(*), count(*) filter (where v = 'changed'), sum(id) from big";
    let wanted = scenario.source.psql("shop", question).unwrap();
    let begun = std::time::Instant::now();
    while scenario.target.psql("shop", question).unwrap() != wanted {
        assert!(begun.elapsed() < Duration::from_secs(180), "{}", scenario.run.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(scenario.source.psql("shop", streamed).unwrap().trim(), "t", "it came whole");
    let peak = peak_kb(coordinator);
    eprintln!("peak {peak} kB, {before} kB before, {} s", begun.elapsed().as_secs());
    assert!(peak < MEMORY_KB, "{peak} kB, {before} kB before");
    assert_eq!(scenario.run.processes("skein-coordinator"), [coordinator], "it was started anew");
    let done = scenario.skein(&["cutover", NAME]);
    assert_eq!(done.code(), Some(0), "{}{}", done.stdout, done.stderr);
    assert!(scenario.compare(&loadtest::check::Scope::default()).is_equal());
}

/// Bytes that are no UTF-8 in a database that does not know of encodings: a walsender that is asked
/// for UTF-8 ends the stream at them, a lane that speaks it is refused.
#[test]
fn bytes_of_no_known_encoding_arrive_by_copy_and_by_stream() {
    let scenario = Scenario::between(Postgres::builder(), Postgres::builder()).unwrap();
    for server in [&scenario.source, &scenario.target] {
        server.psql("postgres", "drop database shop").unwrap();
        let make = "create database shop encoding 'SQL_ASCII' template template0 locale 'C'";
        server.psql("postgres", make).unwrap();
    }
    let source = |statements: &str| scenario.source.psql("shop", statements).unwrap();
    source(
        r"create table t (id text primary key, v text);
          create table f (v text); alter table f replica identity full;
          create unlogged table u (v text); insert into u values (E'\xe9');
          insert into t select E'k\xe9' || i, E'\xff' from generate_series(1, 100) i;
          insert into f select E'\xe9' || i from generate_series(1, 100) i",
    );
    let _migrate = scenario.migrate(&["--cutover", "manual"]);
    scenario.wait_for_phase(&["ready"]);
    source(
        r"insert into t select E'l\xe9' || i, E'\xfe' from generate_series(1, 100) i;
          update t set v = E'\xe4\xf6' where id ~ '3$'; delete from t where id = E'k\xe99';
          update f set v = E'\xdf' where v = E'\xe98'; delete from f where v = E'\xe97'",
    );
    let done = scenario.skein(&["cutover", NAME]);
    assert_eq!(done.code(), Some(0), "{}{}\n{}", done.stdout, done.stderr, scenario.run.logs());
    let digest = "select (select md5(string_agg(id || v, ',' order by id)) from t),
        (select md5(string_agg(v, ',' order by v)) from f), (select md5(v) from u)";
    assert_eq!(scenario.target.psql("shop", digest).unwrap(), source(digest));
}
