//! Lanes, positions, barriers, the end position.

use super::world::World;
use coordinator::replay::Error;
use proto::v1::ApplyOrder;

#[tokio::test]
async fn idle_lanes_move_with_the_others() {
    let world = World::new("create table t (id int primary key)").await;
    world.write("insert into t values (1)").await;
    world.catch_up().await;
    let positions = "select count(distinct end_lsn), count(*) from skein.lane";
    assert_eq!(world.on_target(positions).trim(), "1|4");
    world.assert_equal();
}

#[tokio::test]
async fn a_relation_skips_what_its_copy_holds() {
    let mut world = World::new("create table a (id int); create table b (id int)").await;
    world.write("insert into a values (1); insert into b values (1)").await;
    world.on_target("insert into b values (1)");
    world.capture().await;
    // Exactly the end of the transaction that the copy holds.
    let point = world.last_end();
    for plan in world.plans.iter_mut().filter(|plan| plan.source.name == "b") {
        plan.consistent_point = point;
    }
    world.write("insert into a values (2); insert into b values (2)").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn nothing_after_the_end_position_is_applied_until_the_fence_is_lifted() {
    let world = World::new("create table t (id int primary key)").await;
    world.write("insert into t values (1)").await;
    let end = world.capture().await;
    world.write("insert into t values (2); insert into t values (3)").await;
    world.capture().await;
    let mut running = world.start(Some(end));
    let status = running.until(|status| status.drained && !status.late_writes.is_empty()).await;
    assert_eq!(status.late_writes[0].1, 2);
    assert_eq!(status.applied_lsn, Some(end));
    assert_eq!(world.on_target("select id from t").trim(), "1");

    running.end.send(None).unwrap();
    running.until(|status| status.applied_lsn > Some(end)).await;
    let end = world.capture().await;
    running.end.send(Some(end)).unwrap();
    let status = running.until(|status| status.drained).await;
    assert!(status.late_writes.is_empty());
    running.stop().await.unwrap();
    world.assert_equal();
}

#[tokio::test]
async fn an_end_position_that_was_reached_before_it_was_set_is_drained() {
    let world = World::new("create table t (id int primary key)").await;
    world.write("insert into t values (1)").await;
    let end = world.capture().await;
    let mut running = world.start(None);
    running.until(|status| status.applied_lsn >= Some(end)).await;
    running.end.send(Some(end)).unwrap();
    running.until(|status| status.drained).await;
    running.stop().await.unwrap();
    world.assert_equal();
}

#[tokio::test]
async fn a_pause_holds_back_what_comes_and_a_resume_lets_it_go() {
    let world = World::new("create table t (id int primary key)").await;
    let mut running = world.start(None);
    running.until(|status| status.applied_lsn.is_some()).await;
    running.paused.send(true).unwrap();
    world.write("insert into t values (1)").await;
    let end = world.capture().await;
    running.end.send(Some(end)).unwrap();
    assert_eq!(world.on_target("select count(*) from t").trim(), "0");
    running.paused.send(false).unwrap();
    running.until(|status| status.drained).await;
    running.stop().await.unwrap();
    world.assert_equal();
}

#[tokio::test]
async fn lanes_change_only_where_all_positions_are_equal() {
    let mut world = World::new("create table t (id int primary key)").await;
    world.write("insert into t select generate_series(1, 50)").await;
    world.catch_up().await;
    world.write("insert into t select generate_series(51, 100)").await;
    // As a crash leaves it: one lane is ahead.
    world.capture().await;
    let ahead = world.last_end();
    world.write("insert into t select generate_series(101, 150)").await;
    let end = world.capture().await;
    world.lanes = 2;
    world.on_target(&format!("update skein.lane set end_lsn = '{ahead}' where lane = 0"));
    let mut running = world.start(Some(end));
    running.until(|status| status.drained).await;
    running.stop().await.unwrap();
    assert_eq!(world.on_target("select count(*) from skein.lane").trim(), "4");
    let first: i32 = world
        .on_target("select count(*) from t where id between 51 and 100")
        .trim()
        .parse()
        .unwrap();
    assert!((1..50).contains(&first), "lane 0 repeated what it had, or others did not: {first}");
    assert_eq!(world.on_target("select count(*) from t where id > 100").trim(), "50");

    world.catch_up().await;
    assert_eq!(world.on_target("select count(*) from skein.lane").trim(), "2");
}

#[tokio::test]
async fn only_tables_whose_key_is_compared_by_bytes_and_alone_are_spread_by_key() {
    let tables = "
        create collation anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create type mood as enum ('a', 'b'); create domain d as uuid;
        create table by_int (id int primary key, v text);
        create table by_many (a mood, b text, c timestamptz, d bytea, e d, primary key (a, b, c, d, e));
        create table by_numeric (id numeric primary key);
        create table by_float (id float8 primary key);
        create table by_jsonb (id jsonb primary key);
        create table by_collation (id text collate anycase primary key);
        create table by_char (id char(4) primary key);
        create table second_unique (id int primary key, u int unique);
        create table partial_unique (id int primary key, u int);
        create unique index on partial_unique (u) where u > 0;
        create table expression_unique (id int primary key, u text);
        create unique index on expression_unique (lower(u));
        create table exclusion (id int primary key, r int4range, exclude using gist (r with &&));
        create table no_key (id int)";
    let world = World::new(tables).await;
    let mut running = world.start(None);
    running.until(|status| status.applied_lsn.is_some()).await;
    running.stop().await.unwrap();
    let by_key = world.on_target(
        "select string_agg(key, ' ' order by key) from skein.lane, jsonb_object_keys(routing->'by_key') key where lane = 0",
    );
    assert_eq!(by_key.trim(), r#""public"."by_int" "public"."by_many""#);
}

#[tokio::test]
async fn commit_order_keeps_one_lane() {
    let mut world = World::new("create table t (id int primary key)").await;
    world.order = ApplyOrder::Commit;
    world.write("insert into t select generate_series(1, 50)").await;
    world.catch_up().await;
    world.assert_equal();
    assert_eq!(world.on_target("select count(*) from skein.lane").trim(), "1");
}

#[tokio::test]
async fn a_newer_epoch_stops_the_older_replay() {
    let world = World::new("create table t (id int primary key)").await;
    let mut running = world.start(None);
    running.until(|status| status.applied_lsn.is_some()).await;
    world.on_target("update skein.migration set epoch = 2; update skein.lane set epoch = 2");
    world.write("insert into t values (1)").await;
    world.capture().await;
    assert!(matches!(running.ended().await, Err(Error::Fenced { epoch: 1 })));
    assert_eq!(world.on_target("select count(*) from t").trim(), "0");
    // And it does not come back.
    let mut again = world.start(None);
    assert!(matches!(again.ended().await, Err(Error::Fenced { epoch: 1 })));
}

#[tokio::test]
async fn a_transaction_of_200_000_rows_goes_piece_by_piece() {
    let tables = "create table t (id int primary key, v text); create table u (id int, v int)";
    let world = World::new(tables).await;
    world
        .write(
            "begin; insert into t select i, 'value ' || i from generate_series(1, 200000) i;
             insert into u values (1, 1);
             update t set v = v || '!' where id % 4 = 0;
             update t set id = -id where id % 1000 = 0;
             delete from t where id % 10 = 1;
             truncate u; insert into u values (2, 2); commit",
        )
        .await;
    world.write("update t set v = 'after' where id < 10; insert into u values (3, 3)").await;
    let status = world.catch_up().await;
    world.assert_equal();
    assert_eq!(status.transactions, 2);
}

#[tokio::test]
async fn a_batch_from_another_position_than_the_lane_has_is_not_applied() {
    // No key: what is applied twice would stand there twice.
    let world = World::new("create table t (id int)").await;
    let mut running = world.start(None);
    running.until(|status| status.applied_lsn.is_some()).await;
    running.paused.send(true).unwrap();
    world.write("insert into t values (1)").await;
    let end = world.capture().await;
    // As if a COMMIT of ours had arrived that we did not hear of.
    world.on_target(&format!("insert into t values (1); update skein.lane set end_lsn = '{end}'"));
    running.paused.send(false).unwrap();
    world.write("insert into t values (2)").await;
    let end = world.capture().await;
    running.end.send(Some(end)).unwrap();
    running.until(|status| status.drained).await;
    running.stop().await.unwrap();
    world.assert_equal();
}
