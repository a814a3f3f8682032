//! The workload and the comparison, without Skein: they must see what they are there to see.

use super::wait_for;
use loadtest::{
    check::{Scope, compare},
    cluster::postgres::{Postgres, Stop},
    workload::{self, AtFence, Options, mixed::Scale},
};
use std::time::Duration;

/// A copy of database `a` named `b`, made by pg_dump: the comparison's own yardstick.
fn copy(server: &Postgres) {
    server.psql("postgres", "create database b").unwrap();
    let dump = server.client_program("pg_dump", "a").output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    server.psql("b", &String::from_utf8_lossy(&dump.stdout)).unwrap();
}

#[tokio::test]
async fn every_kind_of_difference_is_seen() {
    let server = Postgres::builder().start().unwrap();
    server.psql("postgres", "create database a").unwrap();
    workload::prepare(&server.conninfo("a"), Scale::default()).await.unwrap();
    server.psql("a", "select lo_from_bytea(7, 'x')").unwrap();
    copy(&server);
    let (a, b) = (server.conninfo("a"), server.conninfo("b"));
    let equal = compare(&a, &b, &Scope::default()).await.unwrap();
    assert!(equal.is_equal(), "{equal}");
    assert!(equal.row_count > 20_000, "{equal}");

    for (statement, object) in [
        ("update mixed.heap set price = 1.0 where ctid = '(0,2)'", "table \"mixed\".\"heap\""),
        ("delete from mixed.small where id = 7", "table \"mixed\".\"small\""),
        ("insert into mixed.heap select * from mixed.heap limit 1", "table \"mixed\".\"heap\""),
        ("update mixed.wide set ratio = 0 where ratio = '-0'", "table \"mixed\".\"wide\""),
        ("select nextval('mixed.wide_id_seq')", "sequence \"mixed\".\"wide_id_seq\""),
        ("select lo_put(7, 0, 'y')", "large objects"),
        ("create table mixed.extra ()", "table \"mixed\".\"extra\""),
    ] {
        server.psql("b", statement).unwrap();
        let found = compare(&a, &b, &Scope::default()).await.unwrap();
        assert!(
            found.differences.iter().any(|difference| difference.object == object),
            "{statement}: {found}"
        );
        server.psql("postgres", "drop database b with (force)").unwrap();
        copy(&server);
    }
}

#[tokio::test]
async fn clients_survive_a_crash_and_stop_at_a_fence_with_every_commit_accounted_for() {
    let mut server = Postgres::builder().start().unwrap();
    let conninfo = server.conninfo("postgres");
    workload::prepare(&conninfo, Scale::default()).await.unwrap();
    let options = Options { at_fence: AtFence::Stop, pause: Duration::ZERO, ..Options::default() };
    let running = workload::start(&conninfo, &options).unwrap();
    wait_for("clients work", || running.transaction_count() > 200);
    server.stop(Stop::Immediate).unwrap();
    server.start_again().unwrap();
    let before = running.transaction_count();
    wait_for("clients go on after a crash", || running.transaction_count() > before + 200);
    server
        .psql(
            "postgres",
            "alter database postgres set default_transaction_read_only = on; \
             select pg_terminate_backend(pid) from pg_stat_activity \
             where application_name like 'skein/loadtest/%'",
        )
        .unwrap();
    let mut outcome =
        running.stopped_by_fence(Duration::from_secs(30)).expect("clients met the fence");
    assert_eq!(outcome.failures, Vec::<String>::new());
    assert_eq!(outcome.fenced_count, 3);
    assert_eq!(outcome.check(&conninfo).await.unwrap(), Vec::<String>::new());

    // The check itself: a lost, a doubled and an invented commit.
    outcome.acknowledged.insert((99, 1));
    let real = *outcome.acknowledged.iter().find(|commit| commit.0 == 0).unwrap();
    outcome.acknowledged.remove(&real);
    let wrong = outcome.check(&conninfo).await.unwrap().join("; ");
    assert!(wrong.contains("1 commits of the ledger were acknowledged and are lost"), "{wrong}");
    assert!(wrong.contains("1 commits of the ledger are there and nobody made them"), "{wrong}");
}
