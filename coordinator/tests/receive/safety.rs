//! Where the stream does not join the spool it is not begun.

use super::rig::{DATABASE, Replica, Rig, Running, SLOT, eventually, files, streaming};
use coordinator::replay::receive::{Error, Retain};
use loadtest::cluster::postgres::Postgres;
use pg::{
    Conninfo, SessionName, Walsender,
    walsender::{PgoutputOptions, SlotFailover, SlotLifetime},
};
use proto::status::{Classify as _, ErrorClass};
use std::fs::File;

async fn assert_lost(mut running: Running, why: &str) {
    let error = running.ended().await;
    assert!(matches!(error, Error::ChangesLost { .. }), "{error}");
    assert_eq!((error.class(), error.reason()), (ErrorClass::Definite, "CHANGES_LOST"));
    assert!(error.to_string().contains(why), "{error}");
    assert!(!error.hint().is_empty());
    let fault = running.state.borrow().fault.clone().unwrap();
    assert_eq!(fault.reason, "CHANGES_LOST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_advanced_behind_our_back_is_a_fault() {
    let rig = Rig::new(Postgres::builder()).await;
    let mut running = rig.start();
    running.until_streaming().await;
    running.stop().await;
    rig.server
        .psql(
            DATABASE,
            &format!(
                "insert into t values (1, 'lost'); \
                 select pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())"
            ),
        )
        .unwrap();
    assert_lost(rig.start(), "was confirmed up to").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_gone_or_anothers_is_a_fault() {
    let rig = Rig::new(Postgres::builder()).await;
    rig.server.psql(DATABASE, &format!("select pg_drop_replication_slot('{SLOT}')")).unwrap();
    assert_lost(rig.start(), "does not exist").await;
    let made = format!("select pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
    if rig.server.psql(DATABASE, &made).is_ok() {
        assert_lost(rig.start(), "test_decoding").await;
    }
    // Its own template, and so its own identifier.
    let other = Postgres::builder().initdb("--no-locale").start().unwrap();
    let made = format!("select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    other.psql(DATABASE, &made).unwrap();
    assert_lost(rig.start_at(&other.conninfo(DATABASE)), "system identifier").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_above_what_was_confirmed_is_received_again() {
    let mut rig = Rig::new(streaming()).await;
    // Nothing is confirmed, so the source still has everything.
    rig.retain = Retain::Source;
    let mut running = rig.start();
    running.until_streaming().await;
    for i in 0..20 {
        rig.server.psql(DATABASE, &format!("insert into t values ({i}, 'a')")).unwrap();
        running.until_spooled(rig.end()).await;
    }
    running.stop().await;
    let segment = files(&rig.spool_dir(), "seg").pop().unwrap();
    let bytes = std::fs::metadata(&segment).unwrap().len();
    File::options().write(true).open(&segment).unwrap().set_len(bytes / 2).unwrap();
    let running = rig.start();
    let mut replica = Replica::new();
    rig.assert_equal(&running, &mut replica).await;
    assert_eq!(replica.rows.len(), 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_below_what_was_confirmed_is_a_fault() {
    let rig = Rig::new(streaming()).await;
    let mut running = rig.start();
    running.until_streaming().await;
    for i in 0..5 {
        rig.server.psql(DATABASE, &format!("insert into t values ({i}, 'a')")).unwrap();
    }
    let end = rig.end();
    running.until("confirmed", |seen| seen.confirmed_flush_lsn >= end).await;
    running.stop().await;
    let segment = files(&rig.spool_dir(), "seg").pop().unwrap();
    let bytes = std::fs::metadata(&segment).unwrap().len();
    File::options().write(true).open(&segment).unwrap().set_len(bytes / 2).unwrap();
    assert_lost(rig.start(), "the spool holds up to").await;
    // The evidence is not cut away.
    assert_eq!(std::fs::metadata(&segment).unwrap().len(), bytes / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_retain_source_nothing_is_confirmed_before_it_is_applied() {
    let mut rig = Rig::new(Postgres::builder()).await;
    rig.retain = Retain::Source;
    let mut running = rig.start();
    running.until_streaming().await;
    rig.server.psql(DATABASE, "insert into t values (1, 'a')").unwrap();
    let end = rig.end();
    running.until_spooled(end).await;
    assert_eq!(running.state.borrow().confirmed_flush_lsn, rig.consistent_point);
    running.applied.send_replace(end);
    rig.server.psql(DATABASE, "insert into t values (2, 'b')").unwrap();
    running.until("confirmed", |seen| seen.confirmed_flush_lsn == end).await;
    running.stop().await;
}

/// Takes the slot as `name`, for as long as the stream lives.
async fn occupy(rig: &Rig, name: SessionName) -> pg::walsender::ReplicationStream {
    let conninfo = Conninfo::parse(&rig.server.conninfo(DATABASE)).unwrap();
    let walsender = Walsender::connect(&conninfo, &name, "UTF8").await.unwrap();
    let options = PgoutputOptions::new(["p"]);
    walsender.start_replication(SLOT, rig.consistent_point, &options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_session_of_ours_is_ended_another_is_waited_for() {
    let rig = Rig::new(Postgres::builder()).await;
    let older = occupy(&rig, SessionName::new("m", 6, "receive", 0)).await;
    let mut running = rig.start();
    running.until_streaming().await;
    assert_ne!(rig.walsender_pid(), Some(older.backend_pid()));
    running.stop().await;
    eventually("slot is free", || rig.walsender_pid().is_none()).await;

    for other in [SessionName::new("m", 8, "receive", 0), SessionName::of_role("else")] {
        let other = occupy(&rig, other).await;
        let mut running = rig.start();
        running
            .until("the other is named", |seen| {
                seen.fault.as_ref().is_some_and(|fault| {
                    fault.reason == "SLOT_IN_USE" && fault.class == ErrorClass::Transient
                })
            })
            .await;
        assert_eq!(rig.walsender_pid(), Some(other.backend_pid()));
        drop(other);
        running.until_streaming().await;
        running.stop().await;
        eventually("slot is free", || rig.walsender_pid().is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_printed_alike_whatever_the_database_says() {
    let rig = Rig::new(streaming()).await;
    rig.server
        .psql(
            DATABASE,
            "alter database postgres set datestyle = 'SQL, DMY';
             alter database postgres set intervalstyle = 'iso_8601';
             alter database postgres set bytea_output = 'escape';
             alter database postgres set extra_float_digits = 0;
             alter database postgres set timezone = 'Asia/Tokyo';
             alter database postgres set search_path = 'x';
             alter database postgres set statement_timeout = '1s';
             create table values_of (d date, i interval, b bytea, f float8, z timestamptz,
                                     c regclass);
             alter table values_of replica identity full;
             alter publication p add table values_of",
        )
        .unwrap();
    let mut running = rig.start();
    running.until_streaming().await;
    rig.server
        .psql(
            DATABASE,
            "set timezone = 'UTC'; insert into public.values_of values
             ('2024-02-01', '1 day 2 hours', '\\x00ff', 0.1::float8 + 0.2, '2024-02-01 00:00Z',
              'public.t')",
        )
        .unwrap();
    let end = rig.end();
    let mut reader = running.spool.reader(rig.consistent_point);
    let values = loop {
        use coordinator::replay::spool::Item;
        use pg::pgoutput::{Message, Value, decode};
        let Item::Change(bytes) = reader.next().await.unwrap() else { continue };
        let Ok(Message::Insert(insert)) = decode(&bytes, false) else { continue };
        let text = |value: &Value| match value {
            Value::Text(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        break insert.new.iter().map(text).collect::<Vec<_>>();
    };
    let expected = [
        "2024-02-01",
        "1 day 02:00:00",
        "\\x00ff",
        "0.30000000000000004",
        "2024-02-01 00:00:00+00",
        "public.t",
    ];
    assert_eq!(values, expected);
    running.until_spooled(end).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_on_17_follows_to_a_standby_when_asked() {
    let Some(server) = Postgres::builder().major(17).start_or_skip().unwrap() else { return };
    let mut walsender = super::rig::walsender(&server).await;
    for (name, failover) in [("with", SlotFailover::On), ("without", SlotFailover::Off)] {
        let made = walsender.create_slot(name, SlotLifetime::Permanent, failover).await;
        assert_eq!(made.unwrap().name, name);
    }
    let failover = "select slot_name, failover from pg_replication_slots order by 1";
    assert_eq!(server.psql(DATABASE, failover).unwrap(), "with|t\nwithout|f");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_slot_exports_a_snapshot_that_lives_until_the_next_command() {
    let rig = Rig::new(Postgres::builder()).await;
    let mut walsender = super::rig::walsender(&rig.server).await;
    let slot =
        walsender.create_slot("other", SlotLifetime::Temporary, SlotFailover::Off).await.unwrap();
    let import = format!(
        "begin isolation level repeatable read; set transaction snapshot '{}'; commit",
        slot.snapshot
    );
    rig.server.psql(DATABASE, &import).unwrap();
    let system = walsender.identify_system().await.unwrap();
    assert_eq!(system.database, DATABASE);
    assert!(rig.server.psql(DATABASE, &import).is_err());
    // A refusal leaves the connection in use.
    let again = walsender.create_slot("other", SlotLifetime::Temporary, SlotFailover::Off).await;
    assert_eq!(again.unwrap_err().sqlstate(), Some("42710"));
    assert_eq!(walsender.slot("none").await.unwrap(), None);
    drop(walsender);
    eventually("the temporary slot is gone", || {
        let count = "select count(*) from pg_replication_slots where slot_name = 'other'";
        rig.server.psql(DATABASE, count).unwrap() == "0"
    })
    .await;
}
