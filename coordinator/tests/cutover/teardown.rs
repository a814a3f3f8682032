//! Teardown leaves nothing, and touches nothing of others.

use super::{Outcome, Script, World, request};
use coordinator::migration::{
    cutover::fence,
    teardown::{self, Scope},
};
use pg::{
    SessionName, sql,
    walsender::{SlotFailover, SlotLifetime},
};

const TABLES: &str = "
    create table keyed (id int primary key);
    create table bare (a int);
    create table marked (a int not null);
    create unique index marked_a on marked (a);
    alter table marked replica identity using index marked_a;
    alter table bare replica identity full;
    alter table marked replica identity full;
    create publication skein_m_full for table only keyed, only bare, only marked;
    create publication skein_m_append with (publish = 'insert, truncate');
    select pg_create_logical_replication_slot('skein_m', 'pgoutput');
    create publication skein_m_b_full for table keyed;
    select pg_create_logical_replication_slot('skein_m_b', 'pgoutput');
    select pg_create_logical_replication_slot('skein_m_7', 'pgoutput');
";

async fn provisioned() -> World {
    let world = World::new().await;
    world.server.psql("src", TABLES).unwrap();
    let originals = world
        .server
        .psql(
            "src",
            "select json_agg(json_build_object('oid', oid::bigint,
                    'table', json_build_object('schema', 'public', 'name', relname),
                    'setting', case relname when 'bare' then 'default' else 'index' end,
                    'index', case relname when 'marked' then 'marked_a' end))
               from pg_class where relname in ('bare', 'marked')",
        )
        .unwrap()
        .replace('\n', "");
    world
        .server
        .psql(
            "tgt",
            &format!(
                "insert into skein.step (step, detail)
                 values ('source/identity_originals', '{originals}')"
            ),
        )
        .unwrap();
    world
}

/// What is on both servers beyond the applications' own, once teardown's sessions are gone.
fn left(world: &World) -> String {
    let gone = "select count(*) from pg_stat_activity where application_name like '%/teardown/%'";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while world.server.psql("postgres", gone).unwrap() != "0" {
        assert!(std::time::Instant::now() < deadline);
    }
    let source = world
        .server
        .psql(
            "src",
            "select 'slot ' || slot_name from pg_replication_slots
             union all select 'publication ' || pubname from pg_publication
             union all select 'identity ' || relname || ' ' || relreplident::text from pg_class
                        where relname in ('keyed', 'bare', 'marked')
             union all select 'session ' || application_name from pg_stat_activity
                        where application_name like 'skein/m/%'
             union all select 'setting ' || setconfig::text from pg_db_role_setting
             order by 1",
        )
        .unwrap();
    let target = world
        .server
        .psql("tgt", "select 'schema ' || nspname from pg_namespace where nspname = 'skein'")
        .unwrap();
    format!("{source}\n{target}").trim().to_owned()
}

const OTHERS: &str = "identity bare d\nidentity keyed d\nidentity marked i\n\
                      publication skein_m_b_full\nslot skein_m_7\nslot skein_m_b";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_abort_leaves_nothing_on_the_source_and_a_cleanup_nothing_at_all() {
    let world = provisioned().await;
    let holder = world.context.source_session("holder", 1).await.unwrap();
    let worker = world.context.target_session("copy", 1).await.unwrap();
    let name = SessionName::new("m", 1, "walsender", 0);
    let mut walsender = pg::Walsender::connect(&world.context.source, &name, "UTF8").await.unwrap();
    walsender.create_slot("skein_m_2", SlotLifetime::Temporary, SlotFailover::Off).await.unwrap();
    let source = world.source().await;
    let before = fence::read_before(&source, true).await.unwrap();
    let target = world.target().await;
    let soon = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    coordinator::migration::cutover::attempt::begin(
        &target,
        1,
        1,
        std::time::Duration::from_secs(60),
        &before,
    )
    .await
    .unwrap();
    fence::raise(&source, &world.context, &before, soon).await.unwrap();
    drop((source, target));

    let plan = teardown::plan(&world.context, Scope::Cleanup).await.unwrap();
    for line in [
        "on the source: lift the fence",
        "on the source: end session skein/m/1/holder/1",
        "on the target: end session skein/m/1/copy/1",
        "on the source: drop replication slot \"skein_m\"",
        "on the source: drop replication slot \"skein_m_2\"",
        "on the source: drop publication \"skein_m_append\"",
        "on the source: restore the replica identity of \"public\".\"bare\"",
        "on the target: drop schema skein",
    ] {
        assert!(plan.iter().any(|one| one == line), "{line} is not in {plan:#?}");
    }
    assert!(!plan.iter().any(|one| one.contains("skein_m_b") || one.contains("skein_m_7")));

    teardown::run(&world.context, Scope::Abort).await.unwrap();
    assert_eq!(left(&world), format!("{OTHERS}\nschema skein"));
    assert!(holder.batch(&sql!("select 1")).await.is_err());
    assert!(worker.batch(&sql!("select 1")).await.is_err());
    assert_eq!(world.state(), "1 lifted");
    teardown::run(&world.context, Scope::Abort).await.unwrap();
    teardown::run(&world.context, Scope::Cleanup).await.unwrap();
    assert_eq!(left(&world), OTHERS);
    teardown::run(&world.context, Scope::Cleanup).await.unwrap();
    let plan = teardown::plan(&world.context, Scope::Cleanup).await.unwrap();
    assert_eq!(plan, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cleanup_after_opening_leaves_the_fence_and_says_how_to_undo_it() {
    let world = provisioned().await;
    let outcome = world.cut_over(request(1), Script::default()).await;
    assert!(matches!(outcome, Outcome::Opened(_)), "{outcome:?}");
    let torn = teardown::run(&world.context, Scope::Cleanup).await.unwrap();
    let notice = torn.notices.join("\n");
    assert!(notice.contains("alter database \"src\" reset default_transaction_read_only;"));
    assert_eq!(
        left(&world),
        OTHERS.replace(
            "slot skein_m_7",
            "setting {default_transaction_read_only=on}\nslot skein_m_7"
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stale_coordinator_does_not_drop_the_schema() {
    let mut world = provisioned().await;
    let stale = world.context.clone();
    world.take_over();
    let error = teardown::run(&stale, Scope::Cleanup).await.unwrap_err();
    assert!(matches!(error, teardown::Error::Superseded { epoch: 1 }), "{error}");
    assert!(left(&world).contains("schema skein"));
}
