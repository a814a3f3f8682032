//! What the fence lets through: nothing behind the end position.

use super::{World, request};
use coordinator::migration::cutover::{Error, attempt, fence};
use pg::{PgLsn, sql};
use proto::status::Classify as _;
use std::time::Duration;
use tokio::{task::JoinSet, time::Instant};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Writes one row a transaction until it is refused for good; counts what was acknowledged.
async fn write(world: &World, client: i32, asynchronous: bool) -> i64 {
    let mut acknowledged = 0;
    let mut refused = 0;
    let started = Instant::now();
    while refused < 5 {
        assert!(started.elapsed() < Duration::from_secs(60), "never fenced");
        let Ok(session) = world.application("").await else { continue };
        if asynchronous && session.batch(&sql!("set synchronous_commit = off")).await.is_err() {
            continue;
        }
        loop {
            let n = acknowledged + 1;
            let statement = sql!("insert into public.ledger values ({}, {})", client, n);
            match session.batch(&statement).await {
                Ok(()) => acknowledged = n,
                Err(error) if error.sqlstate() == Some("25006") => {
                    refused += 1;
                    break;
                }
                Err(_) => break,
            }
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_commit_is_before_the_end_position_and_none_after() {
    let world = std::sync::Arc::new(World::new().await);
    world
        .server
        .psql(
            "src",
            "create table ledger (client int, n bigint, primary key (client, n));
             create publication p for table ledger;
             select pg_create_logical_replication_slot('s', 'pgoutput')",
        )
        .unwrap();
    let mut clients = JoinSet::new();
    for client in 0..6 {
        let world = std::sync::Arc::clone(&world);
        clients.spawn(async move { write(&world, client, client % 2 == 0).await });
    }
    let source = world.source().await;
    let rows = sql!("select count(*) from public.ledger");
    let deadline = soon();
    while source.query_one(&rows, &[]).await.unwrap().get::<_, i64>(0) < 500 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = fence::read_before(&source, true).await.unwrap();
    fence::raise(&source, &world.context, &before, soon()).await.unwrap();
    let end = fence::mark_end(&source, 1).await.unwrap();
    let acknowledged: i64 = clients.join_all().await.iter().sum();
    assert!(fence::stands(&source).await.unwrap());

    let messages = sql!(
        "with message as (
           select lsn, xid, chr(get_byte(data, 0)) as kind
             from pg_logical_slot_get_binary_changes('s', null, null,
                    'proto_version', '1', 'publication_names', 'p')),
         tx as (select xid, max(lsn) filter (where kind = 'C') as end_lsn,
                       count(*) filter (where kind = 'I') as rows from message group by xid)
         select coalesce(sum(rows) filter (where end_lsn <= $1), 0)::int8,
                coalesce(sum(rows) filter (where end_lsn > $1), 0)::int8 from tx"
    );
    let row = source.query_one(&messages, &[&end]).await.unwrap();
    let (inside, outside): (i64, i64) = (row.get(0), row.get(1));
    let kept: i64 = source.query_one(&rows, &[]).await.unwrap().get(0);
    assert_eq!((inside, outside), (kept, 0));
    // A commit whose answer was lost may be kept too; one that was acknowledged must be.
    assert!(kept >= acknowledged && kept <= acknowledged + 6, "{kept} of {acknowledged}");
    for client in 0..6 {
        let hole = sql!("select count(*) = max(n) from public.ledger where client = {}", client);
        assert!(source.query_one(&hole, &[]).await.unwrap().get::<_, bool>(0));
    }
}

#[tokio::test]
async fn a_session_that_sets_the_fence_off_is_ended() {
    let world = World::new().await;
    world.server.psql("src", "create table t (a int)").unwrap();
    let stubborn = world.application("").await.unwrap();
    stubborn.batch(&sql!("set default_transaction_read_only = off")).await.unwrap();
    let open = world.application("").await.unwrap();
    open.batch(&sql!("begin; insert into public.t values (1)")).await.unwrap();
    let source = world.source().await;
    let before = fence::read_before(&source, true).await.unwrap();
    fence::raise(&source, &world.context, &before, soon()).await.unwrap();
    for session in [stubborn, open] {
        assert!(session.batch(&sql!("insert into public.t values (2)")).await.is_err());
    }
    let fresh = world.application("").await.unwrap();
    let error = fresh.batch(&sql!("insert into public.t values (3)")).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("25006"));
    assert_eq!(world.server.psql("src", "select count(*) from t").unwrap(), "0");
}

/// Between reading its settings and showing in pg_stat_activity a session sleeps here for two
/// seconds (post_auth_delay): without a look at pg_locks it would write behind the fence.
#[tokio::test]
async fn a_session_that_was_starting_while_the_fence_fell_does_not_slip_through() {
    let world = World::new().await;
    world.server.psql("src", "create table t (a int)").unwrap();
    let slow = world.application("options='-c post_auth_delay=2'");
    let fence = async {
        let source = world.source().await;
        let before = fence::read_before(&source, true).await.unwrap();
        let starting = sql!(
            "select 1 from pg_locks where locktype = 'object' and mode = 'RowExclusiveLock'
                and classid = 'pg_database'::regclass"
        );
        let deadline = soon();
        while source.query_opt(&starting, &[]).await.unwrap().is_none() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // it holds the lock now, and reads its settings within a moment
        tokio::time::sleep(Duration::from_millis(300)).await;
        fence::raise(&source, &world.context, &before, soon()).await.unwrap();
        fence::mark_end(&source, 1).await.unwrap()
    };
    let (slow, _end): (_, PgLsn) = tokio::join!(slow, fence);
    // Whether it was let in before it was ended or not: it writes nothing any more.
    if let Ok(session) = slow {
        assert!(session.batch(&sql!("insert into public.t values (1)")).await.is_err());
    }
    assert_eq!(world.server.psql("src", "select count(*) from t").unwrap(), "0");
}

/// The insert position stands behind the header of the next page when a record ends with its
/// page; the flush position, which is all that a walsender sends, does not. An end position read
/// there would never be reached while the source is idle. One commit in a thousand ends so.
#[tokio::test]
async fn the_end_position_is_one_that_a_walsender_reaches_on_an_idle_source() {
    let world =
        World::with(loadtest::cluster::postgres::Postgres::builder().setting("autovacuum", "off"))
            .await;
    let source = world.source().await;
    let positions = sql!("select pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()");
    let mut seen_apart = false;
    for attempt in 1..=6000 {
        let end = fence::mark_end(&source, attempt).await.unwrap();
        let row = source.query_one(&positions, &[]).await.unwrap();
        let (inserted, flushed): (PgLsn, PgLsn) = (row.get(0), row.get(1));
        assert!(end <= flushed);
        if inserted > flushed && end == flushed {
            seen_apart = true;
            break;
        }
    }
    assert!(seen_apart, "no commit ended with its page");
}

#[tokio::test]
async fn settings_of_roles_and_subscriptions_come_back_exactly() {
    let world = World::new().await;
    world
        .server
        .psql(
            "src",
            "create role \"Odd \"\"one\" login superuser; create role everywhere login superuser;
             create role fine login superuser;
             alter role \"Odd \"\"one\" in database src set default_transaction_read_only = off;
             alter role everywhere set default_transaction_read_only = off;
             alter role fine in database src set default_transaction_read_only = on;
             alter role fine in database src set work_mem = '5MB';
             alter database src set work_mem = '6MB';
             create subscription \"Sub\" connection 'host=/nowhere' publication p
               with (connect = false);
             alter subscription \"Sub\" enable;
             create subscription off connection 'host=/nowhere' publication p
               with (connect = false)",
        )
        .unwrap();
    let settings = world.settings();
    let source = world.source().await;
    let before = fence::read_before(&source, true).await.unwrap();
    assert_eq!(before.subscriptions, ["Sub"]);
    assert_eq!(before.roles.len(), 2);
    fence::raise(&source, &world.context, &before, soon()).await.unwrap();
    fence::raise(&source, &world.context, &before, soon()).await.unwrap();
    for role in ["'Odd \"one'", "everywhere", "fine"] {
        let session = world.application(&format!("user={role}")).await.unwrap();
        let shown = sql!("select current_setting('transaction_read_only')");
        let shown: String = session.query_one(&shown, &[]).await.unwrap().get(0);
        assert_eq!(shown, "on", "{role}");
    }
    let sessions = sql!("select count(*) from pg_stat_subscription where pid is not null");
    assert_eq!(source.query_one(&sessions, &[]).await.unwrap().get::<_, i64>(0), 0);

    // A session that began behind the fence would stay read-only: it is ended by lifting.
    let behind = world.application("").await.unwrap();
    fence::lower(&source, &world.context, &before, soon()).await.unwrap();
    fence::lower(&source, &world.context, &before, soon()).await.unwrap();
    assert_eq!(world.settings(), settings);
    assert!(behind.batch(&sql!("select 1")).await.is_err());

    // The same by hand, from the text alone.
    fence::raise(&source, &world.context, &before, soon()).await.unwrap();
    world.server.psql("src", &fence::lift_sql("src", &before)).unwrap();
    assert_eq!(world.settings(), settings);
}

#[tokio::test]
async fn a_prepared_transaction_is_named_before_anything_is_set() {
    let world = World::new().await;
    world
        .server
        .psql(
            "src",
            "create table t (a int); begin; insert into t values (1); prepare transaction 'it''s'",
        )
        .unwrap();
    let settings = world.settings();
    let outcome = world.cut_over(request(1), super::Script::default()).await;
    let super::Outcome::NotOpened { cause } = outcome else { panic!("{outcome:?}") };
    assert_eq!(cause.reason, "PREPARED_TRANSACTION_PENDING");
    assert!(cause.hint.contains("rollback prepared 'it''s';"), "{}", cause.hint);
    assert_eq!((world.settings(), world.state()), (settings, "0 none".to_owned()));

    // Prepared after the check: found behind the fence.
    let source = world.source().await;
    let before = fence::read_before(&source, true).await.unwrap();
    let error = fence::raise(&source, &world.context, &before, soon()).await.unwrap_err();
    assert!(matches!(error, Error::PreparedTransaction { .. }), "{error}");
}

#[tokio::test]
async fn what_we_may_not_do_is_said_with_the_statement_before_anything_is_set() {
    let mut world = World::new().await;
    world
        .server
        .psql(
            "src",
            "create role mover login; create role boss login superuser;
             alter role boss set default_transaction_read_only = off;
             grant pg_monitor to mover",
        )
        .unwrap();
    world.context.source = world.context.source.with_user("mover", None);
    let boss = world.application("user=boss").await.unwrap();
    let source = world.source().await;
    let settings = world.settings();
    let plan = fence::plan(&source, &world.context, true).await.unwrap();
    let statements: Vec<&str> = plan.missing.iter().map(|one| one.statement.as_str()).collect();
    let end = format!("select pg_terminate_backend({});", boss.backend_pid());
    assert_eq!(
        statements,
        [
            "alter database \"src\" owner to \"mover\";",
            "grant pg_signal_backend to \"mover\";",
            "alter role \"boss\" in database \"src\" set default_transaction_read_only = on;",
            end.as_str(),
        ]
    );
    let error = Error::NotPermitted { missing: plan.missing.clone() };
    assert!(error.report().hint.contains("pg_signal_backend"));
    assert_eq!(world.settings(), settings);

    // Given all of it, a role without superuser fences.
    drop(boss);
    world.server.psql("postgres", &statements[..3].join("\n")).unwrap();
    let before = fence::read_before(&source, true).await.unwrap();
    let ordinary = world.server.psql("src", "create role ordinary login").map(|_| ());
    ordinary.unwrap();
    let victim = world.application("user=ordinary").await.unwrap();
    fence::raise(&source, &world.context, &before, soon()).await.unwrap();
    assert!(victim.batch(&sql!("select 1")).await.is_err());
    assert!(attempt::read(&world.target().await).await.is_ok());
}
