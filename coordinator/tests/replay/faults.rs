//! What goes wrong: lost connections, crashes, changes that the target cannot take.

use super::world::World;
use loadtest::cluster::{
    postgres::{Postgres, Stop},
    proxy::Proxy,
};

#[tokio::test]
async fn a_batch_whose_commit_was_not_answered_is_not_applied_twice() {
    // No key: a batch applied twice would stand there twice.
    let mut world = World::new("create table t (id int, v text)").await;
    let proxy = Proxy::start(world.target_at().port()).unwrap();
    world.target_port = Some(proxy.port());
    world.lanes = 1;
    let mut running = world.start(None);
    running.until(|status| status.applied_lsn.is_some()).await;
    // COMMIT itself takes a while, and the client does not live to hear of it.
    world.on_target(
        "create function wait() returns trigger language plpgsql as $$
           begin
             if exists (select from public.t where id = 1)
               and not exists (select from public.t where id = 3)
             then perform pg_sleep(0.6); end if;
             return null;
           end $$;
         create constraint trigger wait after update on skein.lane deferrable initially deferred
           for each row execute function wait();
         alter table skein.lane enable always trigger wait",
    );
    world.write("insert into t values (1, 'once'), (2, 'twice')").await;
    world.capture().await;
    waits(&world, "PgSleep").await;
    proxy.reset();
    world.write("insert into t values (3, 'after')").await;
    let end = world.capture().await;
    running.end.send(Some(end)).unwrap();
    running.until(|status| status.drained).await;
    running.stop().await.unwrap();
    world.assert_equal();
}

/// Until a session of replay waits for this event.
async fn waits(world: &World, event: &str) {
    let question = format!(
        "select count(*) from pg_stat_activity where application_name like 'skein/x/%/apply/%' and wait_event = '{event}'"
    );
    for _ in 0..600 {
        if world.on_target(&question).trim() != "0" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("no session waits for {event}");
}

#[tokio::test]
async fn connections_that_break_again_and_again_lose_nothing() {
    let mut world =
        World::new("create table t (id int primary key, v int); create table n (id int, v text)")
            .await;
    let proxy = Proxy::start(world.target_at().port()).unwrap();
    world.target_port = Some(proxy.port());
    let mut running = world.start(None);
    for round in 0..12 {
        for i in 0..30 {
            let id = round * 30 + i;
            world
                .write(&format!(
                    "insert into t values ({id}, 0); insert into n values ({id}, 'n'); update t set v = v + 1 where id % 7 = {i} % 7"
                ))
                .await;
        }
        world.capture().await;
        proxy.reset();
    }
    let end = world.capture().await;
    running.end.send(Some(end)).unwrap();
    running.until(|status| status.drained).await;
    running.stop().await.unwrap();
    world.assert_equal();
}

#[tokio::test]
async fn a_target_that_crashes_in_mid_replay_ends_equal() {
    // Real fsync, and asynchronous commits that a crash takes back.
    let target = Postgres::builder().durable().setting("wal_writer_delay", "10s").start().unwrap();
    let tables = "create table t (id int primary key, v int); create table n (id int, v text)";
    let mut world = World::build(tables, tables, Some(target)).await;
    for round in 0..3 {
        for id in round * 200..round * 200 + 200 {
            world
                .write(&format!("insert into t values ({id}, 0); insert into n values ({id}, 'n')"))
                .await;
        }
        world.write("update t set v = v + 1").await;
        let end = world.capture().await;
        let mut running = world.start(None);
        running.until(|status| status.applied_lsn.is_some()).await;
        // Everything is committed, not everything is flushed.
        shows(&world, &format!("select count(*) = {} from n", (round + 1) * 200)).await;
        shows(&world, "select count(distinct end_lsn) = 1 from skein.lane").await;
        // Time to say too much: the watermark looks every 50 ms.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let target = world.target_server.as_mut().unwrap();
        target.stop(Stop::Immediate).unwrap();
        let told = running.handle.status.borrow().applied_lsn;
        target.start_again().unwrap();
        let lowest = world.on_target("select min(end_lsn) from skein.lane");
        assert!(told <= Some(lowest.trim().parse().unwrap()), "told {told:?}, has {lowest}");
        running.end.send(Some(end)).unwrap();
        running.until(|status| status.drained).await;
        running.stop().await.unwrap();
        world.assert_equal();
    }
}

async fn shows(world: &World, question: &str) {
    for _ in 0..1000 {
        if world.on_target(question).trim() == "t" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never true: {question}");
}

#[tokio::test]
async fn a_replay_that_is_stopped_anywhere_goes_on_from_there() {
    let world =
        World::new("create table t (id int primary key, v int); create table n (id int)").await;
    for id in 0..300 {
        world
            .write(&format!("insert into t values ({id}, 0); insert into n values ({id}); update t set v = v + 1 where id > {id} - 5"))
            .await;
        if id % 40 == 7 {
            world.write(&format!("update t set id = -id where id = {id}")).await;
        }
    }
    let end = world.capture().await;
    for millis in 1..15 {
        let running = world.start(Some(end));
        tokio::time::sleep(std::time::Duration::from_millis(millis * 3)).await;
        running.stop().await.unwrap();
    }
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_column_added_on_the_source_stops_replay_until_the_target_has_it() {
    let world =
        World::new("create table t (id int primary key); create table u (id int primary key)")
            .await;
    world.write("insert into t values (1); insert into u values (1)").await;
    world.write("alter table t add v text").await;
    world.write("insert into u values (2)").await;
    world.write("insert into t values (2, 'secret')").await;
    world.write("insert into u values (3)").await;
    let fault = world.fault().await;
    assert_eq!(fault.reason, "SCHEMA_CHANGED");
    assert!(fault.primary.contains("\"t\"") && fault.primary.contains("\"v\""), "{fault:?}");
    assert!(fault.hint.contains("skein resume"));
    world.on_target("alter table t add v text");
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_changed_scale_or_a_dropped_column_stops_replay() {
    for change in [
        "alter table t alter n type numeric(10, 4)",
        "alter table t drop v",
        "alter table t alter v type bigint",
    ] {
        let world =
            World::new("create table t (id int primary key, n numeric(10, 2), v int)").await;
        world.write("insert into t values (1, 1.11, 1)").await;
        world.write(change).await;
        world.write("insert into t values (2, 1.1111)").await;
        assert_eq!(world.fault().await.reason, "SCHEMA_CHANGED", "{change}");
        world.on_target(change);
        world.catch_up().await;
        world.assert_equal();
    }
}

#[tokio::test]
async fn a_missing_row_is_a_fault_that_names_the_table() {
    for (rows, change) in [
        (1, "update t set v = 'x'"),
        (1, "delete from t"),
        (100, "update t set v = 'x'"),
        (100, "delete from t"),
    ] {
        let world = World::new("create table t (id int primary key, v text)").await;
        world.write(&format!("insert into t select i from generate_series(1, {rows}) i")).await;
        world.catch_up().await;
        world.on_target("delete from t where id = 1");
        world.write(change).await;
        let fault = world.fault().await;
        assert_eq!(fault.reason, "ROWS_DIFFER");
        assert!(fault.primary.contains("\"public\".\"t\""), "{fault:?}");
        world.on_target("insert into t values (1)");
        world.catch_up().await;
        world.assert_equal();
    }
}

#[tokio::test]
async fn a_refused_value_names_table_and_constraint_and_no_value() {
    for rows in [1, 100] {
        let world = World::new("create table t (id int primary key, v text)").await;
        world.on_target("alter table t add constraint no_secret check (v <> 'hunter2'); create unique index on t (v)");
        world
            .write(&format!("insert into t select i, 'v' || i from generate_series(2, {rows}) i"))
            .await;
        world.write("insert into t values (1, 'hunter2')").await;
        let fault = world.fault().await;
        assert_eq!(fault.reason, "CHANGE_REFUSED");
        let text = format!("{fault:?}");
        assert!(
            text.contains("\\\"t\\\"") && text.contains("no_secret") && text.contains("23514"),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
        world.on_target("alter table t drop constraint no_secret");
        world.catch_up().await;
        world.assert_equal();
    }
}

/// It was tried again for ever, with the row in the log each time.
#[tokio::test]
async fn what_a_function_of_the_target_raises_stops_replay_and_tells_no_value() {
    for sqlstate in ["P0001", "22023"] {
        let checked = format!(
            "create function f(v text) returns bool language plpgsql as $$ begin
               if v like 'secret%' then
                 raise exception 'what is % doing here', v using errcode = '{sqlstate}', hint = v;
               end if;
               return true; end $$;
             create table t (id int primary key, v text check (f(v)))"
        );
        let world =
            World::with_target("create table t (id int primary key, v text)", &checked).await;
        world.write("insert into t values (1, 'secret 4711')").await;
        let fault = world.fault().await;
        assert_eq!(fault.reason, "CHANGE_REFUSED");
        assert!(fault.primary.contains("could not insert in table"), "{fault:?}");
        assert!(!format!("{fault:?}").contains("4711"), "{fault:?}");
    }
}

#[tokio::test]
async fn a_large_transaction_that_fails_names_its_change() {
    let world = World::new("create table t (id int primary key, v int)").await;
    world.on_target("alter table t add constraint small check (v < 50000)");
    world.write("insert into t select i, i from generate_series(1, 60000) i").await;
    let fault = world.fault().await;
    assert_eq!(fault.reason, "CHANGE_REFUSED");
    assert!(fault.detail.contains("small"), "{fault:?}");
    assert_eq!(world.on_target("select count(*) from t").trim(), "0");
}

#[tokio::test]
async fn a_table_outside_of_the_plan_stops_replay_by_name() {
    let world = World::new("create table t (id int primary key)").await;
    world.write("create table \"New\" (id int primary key); insert into \"New\" values (1)").await;
    let fault = world.fault().await;
    assert_eq!(fault.reason, "UNKNOWN_RELATION");
    assert!(fault.detail.contains("\"New\""), "{fault:?}");
}

#[tokio::test]
async fn without_the_right_to_the_replica_role_replay_goes_on() {
    let mut world = World::new("create table t (id int primary key, v text)").await;
    world.on_target(
        "create role plain login; alter schema skein owner to plain; alter table t owner to plain;
         grant all on all tables in schema skein to plain; grant temporary on database target to plain",
    );
    world.target_role = Some("plain".to_owned());
    world.write("insert into t select i, i from generate_series(1, 100) i").await;
    world.write("update t set v = v || '!'; delete from t where id < 50").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_schema_change_inside_of_a_large_transaction_stops_replay_and_nothing_of_it_stays() {
    let world = World::new("create table t (id int primary key)").await;
    world.write("insert into t values (0)").await;
    world
        .write(
            "begin; insert into t select generate_series(1, 50000); alter table t add v text;
             insert into t values (-1, 'v'); commit",
        )
        .await;
    assert_eq!(world.fault().await.reason, "SCHEMA_CHANGED");
    assert_eq!(world.on_target("select count(*) from t").trim(), "1");
    world.on_target("alter table t add v text");
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn foreign_keys_and_triggers_of_the_target_do_not_fire() {
    let tables = "create table parent (id int primary key, v text);
        create table child (id int primary key, parent int references parent);
        create table log (id int)";
    let world = World::new(tables).await;
    world.on_target(
        "create function note() returns trigger language plpgsql as $$
           begin insert into public.log values (1); return new; end $$;
         create trigger note before insert or update or delete on parent
           for each row execute function note()",
    );
    world.write("insert into parent select generate_series(1, 100)").await;
    world.write("insert into child select i, i from generate_series(1, 100) i").await;
    world.write("delete from child where id = 7; delete from parent where id = 7").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_trigger_that_would_fire_is_told_before_anything_is_applied() {
    for state in ["always", "replica"] {
        let world = World::new("create table t (id int primary key)").await;
        world.on_target(&format!(
            "create function note() returns trigger language plpgsql as 'begin return new; end';
             create trigger note before insert on t for each row execute function note();
             alter table t enable {state} trigger note"
        ));
        let mut running = world.start(None);
        let error = running.ended().await.unwrap_err();
        let report = proto::status::Classify::report(&error);
        assert_eq!(report.reason, "TRIGGER_FIRES");
        assert!(report.primary.contains("\"note\""), "{report:?}");
    }
}
