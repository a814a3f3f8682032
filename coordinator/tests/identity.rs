//! Nothing that worked on the source before fails because of a publication of ours.

use crate::stand::{DEADLINE, Stand, each_version, until};
use coordinator::source::{
    self,
    identity::{Cause, Identity, Originals, Publish, restore_identities, set_identities},
    publication,
};
use loadtest::cluster::postgres::Postgres;
use proto::v1::IdentityChoice;
use std::time::{Duration, Instant};

/// Tables of every kind that a publication can break.
const TABLES: &str = r#"
create table plain (id int primary key, v int);
create table "Odd.Name" ("I d" int primary key, v int);
create table late_key (id int primary key deferrable initially deferred, v int);
create table keyless (id int, v int);
create table nothing (id int primary key, v int);
alter table nothing replica identity nothing;
create table dropped (id int primary key, u int not null unique, v int);
alter table dropped replica identity using index dropped_u_key;
alter table dropped drop constraint dropped_u_key, alter u drop not null;
create table using_index (id int, u int not null unique, v int);
alter table using_index replica identity using index using_index_u_key;
create table full_set (id int, v int);
alter table full_set replica identity full;
create table parent (id int primary key, v int);
create table child () inherits (parent);
create table keyed_root (id int primary key, v int) partition by range (id);
create table keyed_leaf partition of keyed_root for values from (0) to (100);
create table keyless_root (id int, v int) partition by range (id);
create table keyless_leaf partition of keyless_root for values from (0) to (100);
create table mixed_root (id int, v int) partition by range (id);
create table mixed_sub partition of mixed_root for values from (0) to (100)
  partition by range (id);
create table mixed_leaf partition of mixed_sub for values from (0) to (50);
alter table mixed_leaf add primary key (id);
create table silenced_root (id int primary key, v int) partition by range (id);
create table silenced_leaf partition of silenced_root for values from (0) to (100);
alter table silenced_leaf replica identity nothing;
create table generated (id int, g int generated always as (id * 2) stored, v int,
  primary key (id, g));
create unlogged table unlogged (id int, v int);
"#;

const EACH: &[&str] = &[
    "plain",
    "late_key",
    "keyless",
    "nothing",
    "dropped",
    "full_set",
    "parent",
    "child",
    "keyed_root",
    "keyed_leaf",
    "keyless_root",
    "keyless_leaf",
    "mixed_root",
    "mixed_leaf",
    "silenced_root",
    "silenced_leaf",
    "generated",
    "unlogged",
];

/// Tables made after the publications.
const LATER: &str = "
create table later_keyless (id int, v int);
create table later_child () inherits (parent);
create table later_keyed partition of keyed_root for values from (100) to (200);
create table later_keyless_leaf partition of keyless_root for values from (100) to (200);
create table later_mixed partition of mixed_sub for values from (50) to (100);
create table later_silenced partition of silenced_root for values from (100) to (200);
";

fn write_everywhere(stand: &Stand) {
    for table in EACH {
        stand.psql(&format!(
            "insert into {table} (id, v) select 1, 1 where not exists (select from {table});
             update {table} set v = v + 1; delete from {table} where v > 99"
        ));
    }
    stand.psql(
        r#"update "Odd.Name" set v = 2; update using_index set v = 1; delete from using_index"#,
    );
}

fn identity_of(survey: &source::identity::Survey, name: &str) -> Identity {
    let table = survey.tables.iter().find(|table| table.table.name == name);
    table.unwrap_or_else(|| panic!("no table {name}")).identity.clone()
}

#[tokio::test]
async fn the_survey_names_what_the_server_uses() {
    for stand in each_version(Postgres::builder) {
        stand.psql(TABLES);
        let survey = stand.survey().await;
        let none = |name: &str| match identity_of(&survey, name) {
            Identity::None(cause) => cause,
            other => panic!("{name} has {other:?}"),
        };
        assert_eq!(none("late_key"), Cause::DeferrablePrimaryKey("late_key_pkey".into()));
        assert_eq!(none("keyless"), Cause::NoPrimaryKey);
        assert_eq!(none("nothing"), Cause::SetToNothing);
        assert_eq!(none("dropped"), Cause::IndexGone);
        assert_eq!(none("child"), Cause::NoPrimaryKey);
        assert_eq!(none("silenced_leaf"), Cause::SetToNothing);
        assert_eq!(none("generated"), Cause::GeneratedKey(vec!["g".into()]));
        assert_eq!(identity_of(&survey, "full_set"), Identity::Full);
        for name in ["plain", "Odd.Name", "using_index", "parent", "keyed_leaf", "mixed_leaf"] {
            assert!(matches!(identity_of(&survey, name), Identity::Index { .. }), "{name}");
        }
        let leaf = survey.tables.iter().find(|t| t.table.name == "mixed_leaf").unwrap();
        let root = survey.table(leaf.root.unwrap()).unwrap();
        assert_eq!(root.table.name, "mixed_root");
        let child = survey.tables.iter().find(|t| t.table.name == "child").unwrap();
        assert_eq!(child.inherits.len(), 1);
    }
}

#[tokio::test]
async fn a_publication_without_these_rules_breaks_update_on_the_source() {
    let stand = Stand::of(Postgres::builder().start().unwrap());
    stand.psql(TABLES);
    for table in ["late_key", "keyless", "nothing", "dropped", "child", "silenced_leaf"] {
        stand.psql(&format!("create publication naive for table only {table}"));
        let update = format!("insert into {table} (id, v) values (5, 5); update {table} set v = 9");
        let error = stand.server.psql("postgres", &update).unwrap_err().to_string();
        assert!(error.contains("does not have a replica identity"), "{table}: {error}");
        stand.psql("drop publication naive");
    }
}

#[tokio::test]
async fn update_and_delete_work_on_every_table_once_published() {
    for choice in [IdentityChoice::Full, IdentityChoice::AppendOnly] {
        for stand in each_version(Postgres::builder) {
            stand.psql(TABLES);
            write_everywhere(&stand);
            let (_, decisions, originals) = stand.decided(choice).await;
            let session = stand.session("provision").await;
            set_identities(&session, &originals, DEADLINE).await.unwrap();
            publication::create(&session, &stand.context, &decisions).await.unwrap();
            write_everywhere(&stand);
            stand.psql(LATER);
            write_everywhere(&stand);
            for table in ["keyed_root", "keyless_root", "mixed_root", "silenced_root"] {
                stand.psql(&format!(
                    "insert into {table} (id, v) values (60, 1); update {table} set v = 2"
                ));
            }
            for table in ["later_keyless", "later_child"] {
                stand.psql(&format!("insert into {table} values (1, 1); update {table} set v = 2"));
            }
            stand.psql(
                "insert into keyless_root values (150, 1); update keyless_root set v = 3;
                 insert into silenced_root values (150, 1); update silenced_root set v = 3;
                 insert into keyed_root values (150, 1); update keyed_root set v = 3;",
            );
            publication::drop(&session, &stand.context).await.unwrap();
            let left = stand.psql("select count(*) from pg_publication");
            assert_eq!(left, "0");
        }
    }
}

#[tokio::test]
async fn keyless_tables_are_appended_and_roots_stand_where_their_leaves_allow() {
    let stand = Stand::of(Postgres::builder().start().unwrap());
    stand.psql(TABLES);
    let (_, decisions, originals) = stand.decided(IdentityChoice::AppendOnly).await;
    assert_eq!(originals, Originals::default());
    let publish = |name: &str| {
        decisions.iter().find(|decision| decision.table.name == name).map(|one| one.publish)
    };
    assert_eq!(publish("keyless"), Some(Publish::AppendOnly));
    assert_eq!(publish("plain"), Some(Publish::Full));
    assert_eq!(publish("keyed_root"), Some(Publish::Full));
    assert_eq!(publish("mixed_root"), Some(Publish::AppendOnly));
    assert_eq!(publish("mixed_leaf"), Some(Publish::Full));
    assert_eq!(publish("silenced_root"), Some(Publish::AppendOnly));
    assert_eq!(publish("unlogged"), None);
    let session = stand.session("provision").await;
    publication::create(&session, &stand.context, &decisions).await.unwrap();
    let actions = stand.psql(
        "select pubname, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
           from pg_publication order by 1",
    );
    assert_eq!(actions, "skein_m_append|t|f|f|t|f\nskein_m_full|t|t|t|t|f");
}

#[tokio::test]
async fn identities_are_put_back_at_teardown() {
    for stand in each_version(Postgres::builder) {
        stand.psql(TABLES);
        // a marked index that cannot serve, to be put back by name
        stand.psql(
            "create table marked (a int not null unique, g int generated always as (1) stored,
                                  id int primary key, v int);
             alter table marked add unique (a, g);
             alter table marked alter g set not null;
             alter table marked replica identity using index marked_a_g_key;
             alter table marked drop constraint marked_a_key;",
        );
        let settings = "select relname, relreplident from pg_class
                         where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace
                         order by 1";
        let before = stand.psql(settings);
        let (_, _, originals) = stand.decided(IdentityChoice::Full).await;
        let session = stand.session("provision").await;
        set_identities(&session, &originals, DEADLINE).await.unwrap();
        assert!(stand.psql(settings).contains("marked|f"));
        assert!(stand.psql(settings).contains("late_key|f"));
        // killed and begun anew: the survey now sees our FULL, the record does not forget
        let (_, _, again) = stand.decided(IdentityChoice::Full).await;
        assert_eq!(again, Originals::default());
        let originals = originals.merged_with(again);
        let json = serde_json::to_string(&originals).unwrap();
        let originals: Originals = serde_json::from_str(&json).unwrap();
        // somebody chose another setting meanwhile: it stays
        stand.psql("alter table keyless replica identity nothing; drop table nothing");
        let notices = restore_identities(&session, &originals, DEADLINE).await.unwrap();
        assert_eq!(notices, Vec::<String>::new());
        restore_identities(&session, &originals, DEADLINE).await.unwrap();
        // an index that was gone before means the same as nothing
        let expected = before
            .replace("keyless|d", "keyless|n")
            .replace("nothing|n\n", "")
            .replace("dropped|i", "dropped|n");
        assert_eq!(stand.psql(settings), expected);
    }
}

#[tokio::test]
async fn a_held_lock_is_waited_for_without_keeping_others_out() {
    let stand = Stand::of(Postgres::builder().start().unwrap());
    stand.psql("create table keyless (id int, v int)");
    let (_, _, originals) = stand.decided(IdentityChoice::Full).await;
    let stranger = stand.stranger().await;
    stranger.batch(&"begin; insert into keyless values (1, 1)".into()).await.unwrap();
    let session = stand.session("provision").await;
    let deadline = Duration::from_secs(1);
    let error = set_identities(&session, &originals, deadline).await.unwrap_err();
    assert!(matches!(&error, source::Error::Locked { blockers, .. } if blockers.len() == 1));
    let (setting, ()) = tokio::join!(set_identities(&session, &originals, DEADLINE), async {
        let watcher = stand.stranger().await;
        until("our lock request", async || {
            let waiting = "select 1 from pg_locks where not granted";
            watcher.query_opt(&waiting.into(), &[]).await.unwrap().is_some()
        })
        .await;
        // queued behind our request: let through as soon as it gives up
        let other = stand.stranger().await;
        let begun = Instant::now();
        other.query(&"select * from keyless".into(), &[]).await.unwrap();
        // without the lock timeout it would wait for the stranger, who commits only below
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        stranger.batch(&"commit".into()).await.unwrap();
    });
    setting.unwrap();
    assert_eq!(stand.psql("select relreplident from pg_class where relname = 'keyless'"), "f");
}

#[tokio::test]
async fn more_tables_than_lock_slots_are_surveyed_published_and_dropped_in_seconds() {
    let small = Postgres::builder()
        .setting("max_locks_per_transaction", "10")
        .setting("max_connections", "20")
        .setting("max_prepared_transactions", "0");
    let stand = Stand::of(small.start().unwrap());
    stand.psql(
        "do $$ begin for i in 1..4000 loop
           execute format('create table t%s (id int primary key)', i);
           if i % 100 = 0 then commit; end if;
         end loop; end $$",
    );
    let begun = Instant::now();
    let (_, decisions, _) = stand.decided(IdentityChoice::Unspecified).await;
    assert_eq!(decisions.len(), 4000);
    let session = stand.session("provision").await;
    publication::create(&session, &stand.context, &decisions).await.unwrap();
    assert_eq!(stand.psql("select count(*) from pg_publication_rel"), "4000");
    let at_once = stand.server.psql("postgres", "drop publication skein_m_full");
    assert!(at_once.unwrap_err().to_string().contains("out of shared memory"));
    publication::drop(&session, &stand.context).await.unwrap();
    assert_eq!(stand.psql("select count(*) from pg_publication"), "0");
    // far above what was measured (0.5 s), far below a query per table over a network
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
