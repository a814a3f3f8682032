//! What the target refuses, and processes that are killed.

use super::fixture::{EVERY_OBJECT, Pair, differences, pair};
use coordinator::schema::{Error, Refused, Schema, Stage};
use pg::sql;
use proto::{status::Classify as _, v1::Filter};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refused(error: Error) -> Vec<Refused> {
    match error {
        Error::Refused { refused, complete: true, .. } => refused,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_refused_object_is_named_before_a_row_is_copied() {
    let source = "create table t (id int primary key); create table u (id int references t);
        create function f() returns int language sql as 'select 1';
        create view v as select f() as x; create index i on t (id); create role nobody_there;
        create function g() returns trigger language plpgsql as 'begin return new; end';
        create trigger fires before insert on u for each row execute function g();
        create table owned (a int); alter table owned owner to nobody_there";
    let pair = pair(source, Filter::default()).await;
    // In the way: a function now, an index later.
    pair.target
        .psql("app", "create function f() returns text language sql as $$select ''$$;")
        .unwrap();
    let archive = pair.archive().await;
    let error = pair.schema.restore(Stage::PreData, &archive).await.unwrap_err();
    assert_eq!(error.reason(), "SCHEMA_REFUSED");
    let hint = error.hint();
    assert!(hint.contains("missing roles") && hint.contains("Empty the target"), "{hint}");
    let found = refused(error);
    let objects: Vec<_> = found.iter().map(|one| one.object.as_str()).collect();
    assert_eq!(objects, ["FUNCTION public.f()", "TABLE public.owned"]);
    assert_eq!(found[0].dependents, ["VIEW public.v"]);
    assert_eq!(
        pair.target
            .psql("app", "select count(*) from pg_tables where schemaname = 'public'")
            .unwrap(),
        "0"
    );

    pair.target
        .psql(
            "app",
            "drop function f(); create role nobody_there; create materialized view i as select 1",
        )
        .unwrap();
    // The index comes hours later, and is refused now.
    let error = pair.schema.restore(Stage::PreData, &archive).await.unwrap_err();
    let objects: Vec<_> = refused(error).iter().map(|one| one.object.clone()).collect();
    assert_eq!(objects, ["INDEX public.i"]);
    pair.target.psql("app", "drop materialized view i").unwrap();
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    assert_eq!(
        pair.target.psql("app", "select count(*) from pg_trigger where not tgisinternal").unwrap(),
        "0"
    );
}

#[tokio::test]
async fn an_object_left_out_is_said_with_what_needs_it() {
    let source = "create table t (id int primary key); create function f() returns int
        language sql as 'select 1'; create view v as select f() as x";
    let filter =
        Filter { exclude_objects: vec!["FUNCTION public.f()".into()], ..Filter::default() };
    let pair = pair(source, filter).await;
    pair.schema.dump(&pair.snapshot, 1).await.unwrap();
    let (archive, not_moved) = pair.schema.archive().await.unwrap();
    assert_eq!(
        not_moved,
        [
            "FUNCTION public.f(): left out",
            "VIEW public.v: left out, since it needs FUNCTION public.f()"
        ]
    );
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
}

#[tokio::test]
async fn a_filter_may_be_narrowed_between_two_runs_but_not_widened() {
    let source = "create function f() returns int language sql as 'select 1';
        create table t (id int primary key, a int default f()); create function a() returns int
        language sql as 'select 1'; create index i on t (f(), id)";
    let source = source.replace("int language", "int immutable language");
    let mut pair = pair(&source, Filter::default()).await;
    pair.target.psql("app", "create materialized view i as select 1").unwrap();
    let archive = pair.archive().await;
    // The index is refused when all else stands.
    pair.schema.restore(Stage::PreData, &archive).await.unwrap_err();
    let leave_out = |object: &str| {
        let exclude_objects = vec!["FUNCTION public.a()".to_owned(), object.to_owned()];
        Some(Filter { exclude_objects, ..Filter::default() })
    };
    pair.schema.context.spec.filter = leave_out("INDEX public.i");
    let (archive, _) = pair.schema.archive().await.unwrap();
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();

    let other = super::fixture::pair(&source, Filter::default()).await;
    let mut schema = other.schema.clone();
    schema.dump(&other.snapshot, 1).await.unwrap();
    schema.context.spec.filter = leave_out("INDEX public.i");
    let (narrow, _) = schema.archive().await.unwrap();
    schema.restore(Stage::PreData, &narrow).await.unwrap();
    let (wide, _) = other.schema.archive().await.unwrap();
    let error = schema.restore(Stage::PreData, &wide).await.unwrap_err();
    assert_eq!(error.reason(), "SCHEMA_FILTER_WIDENED");
}

#[tokio::test]
async fn a_newer_epoch_stops_the_restore() {
    let pair = pair("create table t (id int primary key)", Filter::default()).await;
    let archive = pair.archive().await;
    pair.target.psql("app", "update skein.migration set epoch = 2").unwrap();
    let error = pair.schema.restore(Stage::PreData, &archive).await.unwrap_err();
    assert!(matches!(error, Error::Fenced), "{error:?}");
    assert_eq!(pair.target.psql("app", "select to_regclass('public.t') is null").unwrap(), "t");
}

/// What a killed process runs: this binary again, with the pair's places in its environment.
const VICTIM: &str = "SKEIN_TEST_SCHEMA_VICTIM";

fn victim(pair: &Pair, action: &str) -> std::process::Child {
    let context = &pair.schema.context;
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "schema::fault::the_victim_of_a_kill"])
        .env(VICTIM, action)
        .env("VICTIM_SOURCE", pair.source.conninfo("app"))
        .env("VICTIM_TARGET", pair.target.conninfo("app"))
        .env("VICTIM_DIR", &context.dir)
        .env("VICTIM_SNAPSHOT", &pair.snapshot)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test of its own: nothing happens unless another one started it.
#[tokio::test(flavor = "multi_thread")]
async fn the_victim_of_a_kill() {
    let Ok(action) = std::env::var(VICTIM) else { return };
    let place = |name: &str| std::env::var(name).unwrap();
    let context = super::fixture::context(
        &place("VICTIM_SOURCE"),
        &place("VICTIM_TARGET"),
        place("VICTIM_DIR").into(),
        Filter::default(),
        (150_000, 150_000),
    );
    let schema = Schema::new(context);
    if action == "dump" {
        schema.dump(&place("VICTIM_SNAPSHOT"), 1).await.unwrap();
    } else {
        let (archive, _) = schema.archive().await.unwrap();
        schema.restore(Stage::PreData, &archive).await.unwrap();
    }
}

#[tokio::test]
async fn a_restore_killed_half_way_goes_on_and_ends_the_same() {
    let many = "do $$ begin for i in 1..500 loop
        execute format('create table app.many_%s (id int primary key)', i); end loop; end $$;";
    let pair = pair(&format!("{EVERY_OBJECT}\n{many}"), Filter::default()).await;
    pair.schema.roles().await.unwrap();
    let archive = pair.archive().await;
    // The second batch comes to a stand at one of its tables.
    let second = archive.stage(Stage::PreData).skip(250).find(|e| e.kind == "TABLE").unwrap();
    pair.target
        .psql(
            "app",
            &format!(
                "create function public.stand() returns event_trigger language plpgsql as $$ begin
                   if exists (select from pg_event_trigger_ddl_commands()
                              where object_identity = 'app.{}') then
                     perform pg_advisory_lock(1); end if; end $$;
                 create event trigger stand on ddl_command_end execute function public.stand()",
                second.tag
            ),
        )
        .unwrap();
    let blocker = pair.schema.context.target_session("blocker", 0).await.unwrap();
    blocker.batch(&sql!("select pg_advisory_lock(1)")).await.unwrap();
    let mut child = victim(&pair, "restore");
    until("a restore in its second batch", async || waits(&pair) == 1).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(done(&pair), 200);
    drop(blocker);
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    assert_eq!(done(&pair), archive.stage(Stage::PreData).count());
    pair.target.psql("app", "drop event trigger stand; drop function stand()").unwrap();
    let (source, target) = pair.dumps("--section=pre-data");
    let mut differences = differences(&source, &target);
    // Views over keys stand as pg_dump's dummies until the keys are there.
    differences.retain(|line| !line.contains("NULL::") && !line.ends_with(" SELECT"));
    assert_eq!(differences, Vec::<String>::new());
}

fn done(pair: &Pair) -> usize {
    let detail = "select detail->>'done' from skein.step where step = 'schema/pre_data'";
    pair.target.psql("app", detail).unwrap().parse().unwrap_or(0)
}

fn waits(pair: &Pair) -> usize {
    let waiting = "select count(*) from pg_stat_activity
        where application_name like 'skein/m/1/schema/%' and wait_event_type = 'Lock'";
    pair.target.psql("app", waiting).unwrap().parse().unwrap()
}

#[tokio::test]
async fn pg_dump_dies_with_the_process_that_started_it() {
    let pair = pair("create table t (id int primary key)", Filter::default()).await;
    let context = &pair.schema.context;
    let blocker = context.source_session("blocker", 0).await.unwrap();
    blocker
        .batch(&sql!("begin read write; lock table public.t in access exclusive mode"))
        .await
        .unwrap();
    let mut child = victim(&pair, "dump");
    let dumps = || {
        let text = context.dir.display().to_string();
        let all = std::process::Command::new("ps").args(["-eo", "args"]).output().unwrap();
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        all.lines().filter(|line| line.contains("pg_dump") && line.contains(&text)).count()
    };
    until("a pg_dump", async || dumps() == 1).await;
    let killed = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of pg_dump", async || dumps() == 0).await;
    // Before its own lock timeout would have ended it.
    assert!(killed.elapsed() < Duration::from_secs(2));
    assert!(pair.schema.archive().await.is_err(), "a torn archive counts for nothing");
    blocker.batch(&sql!("rollback")).await.unwrap();
    pair.archive().await;
}

#[tokio::test]
async fn nobody_queues_behind_the_dump_for_long() {
    let pair = pair("create table t (id int primary key)", Filter::default()).await;
    let blocker = pair.schema.context.source_session("blocker", 0).await.unwrap();
    blocker
        .batch(&sql!("begin read write; lock table public.t in access exclusive mode"))
        .await
        .unwrap();
    let begun = Instant::now();
    let error = pair.schema.dump(&pair.snapshot, 1).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(error.class(), proto::status::ErrorClass::Transient, "{error:?}");
}

#[tokio::test]
async fn a_table_dropped_since_the_snapshot_asks_for_a_new_one() {
    let pair =
        pair("create table t (id int primary key); create table u (a int)", Filter::default())
            .await;
    pair.source.psql("app", "drop table u").unwrap();
    let error = pair.schema.dump(&pair.snapshot, 1).await.unwrap_err();
    assert_eq!(error.reason(), "SNAPSHOT_OUTDATED", "{error:?}");
    let error = pair.schema.dump("00000009-0000001B-1", 1).await.unwrap_err();
    assert_eq!(error.class(), proto::status::ErrorClass::Transient, "{error:?}");
    let holder = pair.schema.context.source_session("holder", 1).await.unwrap();
    holder.batch(&sql!("begin isolation level repeatable read read only")).await.unwrap();
    let row = holder.query_one(&sql!("select pg_export_snapshot()"), &[]).await.unwrap();
    pair.schema.dump(row.get(0), 2).await.unwrap();
    // The archive is kept for its snapshot, and made anew for another.
    assert_eq!(pair.schema.dump("gone", 2).await.unwrap().snapshot_epoch, 2);
    assert!(pair.schema.dump("gone", 3).await.is_err());
}

#[tokio::test]
async fn a_forerunner_that_was_committing_is_waited_for() {
    let pair = pair("create role someone", Filter::default()).await;
    let forerunner = pair.schema.context.target_session("forerunner", 0).await.unwrap();
    let mark = "begin; insert into skein.step (step, detail) values ('schema/roles', '[\"said\"]')";
    forerunner.batch(&pg::Sql::trusted(mark)).await.unwrap();
    let commits = async {
        until("a restore that waits", async || waits(&pair) == 1).await;
        forerunner.batch(&sql!("commit")).await.unwrap();
    };
    let (notes, ()) = tokio::join!(pair.schema.roles(), commits);
    assert_eq!(notes.unwrap(), ["said"]);
    let made = "select count(*) from pg_roles where rolname = 'someone'";
    assert_eq!(pair.on_target(made), "0");
}

#[tokio::test]
async fn an_object_refused_by_code_of_the_target_is_named_not_tried_for_ever() {
    let pair = pair("create table t (id int primary key)", Filter::default()).await;
    pair.target
        .psql(
            "app",
            "create function no() returns event_trigger language plpgsql
               as $$ begin raise exception 'not here'; end $$;
             create event trigger no on ddl_command_start when tag in ('CREATE TABLE')
               execute function no()",
        )
        .unwrap();
    let archive = pair.archive().await;
    let found = refused(pair.schema.restore(Stage::PreData, &archive).await.unwrap_err());
    let told: Vec<_> =
        found.iter().map(|one| (one.object.as_str(), one.sqlstate.as_str())).collect();
    assert_eq!(told, [("TABLE public.t", "P0001")]);
}

#[tokio::test]
async fn a_target_with_few_lock_slots_gets_smaller_batches() {
    let many = "do $$ begin for i in 1..150 loop execute format('create table t%s (id int primary
        key, a serial, b text unique)', i); end loop; end $$";
    let source = super::fixture::source(15, many).unwrap();
    let target = loadtest::cluster::postgres::Postgres::builder()
        .setting("max_locks_per_transaction", "10")
        .setting("max_connections", "20")
        .setting("max_wal_senders", "2")
        .setting("max_prepared_transactions", "0")
        .start()
        .unwrap();
    let pair = super::fixture::pair_of(source, target, Filter::default()).await;
    let archive = pair.archive().await;
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    assert!(pair.target.log().contains("out of shared memory"), "the test does not test");
    assert_eq!(done(&pair), archive.stage(Stage::PreData).count());
}
