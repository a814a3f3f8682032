//! What the stream does not say: who waits for us, and which tables changed.

use crate::stand::{each_version, until};
use coordinator::{
    filter::Filter,
    source::{
        identity::set_identities,
        publication,
        watch::{Change, blocked_by_us, known, published_changes},
    },
};
use loadtest::cluster::postgres::Postgres;
use proto::v1::IdentityChoice;
use std::time::Duration;

#[tokio::test]
async fn an_alter_table_behind_our_chunk_is_seen_with_its_table() {
    for stand in each_version(Postgres::builder) {
        stand.psql("create table t (id int)");
        let chunk = stand.session("copy").await;
        chunk.batch(&"begin; lock table public.t in access share mode".into()).await.unwrap();
        let session = stand.session("watch").await;
        assert_eq!(blocked_by_us(&session, "skein/m/").await.unwrap(), []);
        let application = stand.stranger().await;
        let alter_sql = "alter table t add v int".into();
        let alter = application.batch(&alter_sql);
        let watched = async {
            until("the blocked request", async || {
                !blocked_by_us(&session, "skein/m/").await.unwrap().is_empty()
            })
            .await;
            let blocked = blocked_by_us(&session, "skein/m/").await.unwrap();
            assert_eq!(blocked.len(), 1);
            assert_eq!(blocked[0].our_pid, chunk.backend_pid());
            assert_eq!(blocked[0].our_application, "skein/m/1/copy/1");
            assert_eq!(blocked[0].waiting_pid, application.backend_pid());
            assert_eq!(blocked[0].mode, "AccessExclusiveLock");
            assert_eq!(blocked[0].relation.as_ref().unwrap().1, "public.t");
            assert_eq!(blocked_by_us(&session, "skein/other/").await.unwrap(), []);
            chunk.batch(&"commit".into()).await.unwrap();
        };
        let (altered, ()) = tokio::join!(alter, watched);
        altered.unwrap();
    }
}

#[tokio::test]
async fn every_change_of_the_published_tables_is_named() {
    for stand in each_version(Postgres::builder) {
        stand.psql(
            "create table gone (id int primary key);
             create table renamed (id int primary key);
             create table swapped (id int primary key);
             create table other (id int primary key);
             create table unpublished (id int primary key);
             create table key_lost (id int primary key);
             create table append (id int);
             create table parent (id int primary key);
             create table root (id int primary key) partition by range (id);
             create table detached partition of root for values from (0) to (10);
             create table stays partition of root for values from (10) to (20);
             create table attached (id int primary key);",
        );
        let (survey, decisions, originals) = stand.decided(IdentityChoice::AppendOnly).await;
        let session = stand.session("watch").await;
        set_identities(&session, &originals, Duration::ZERO).await.unwrap();
        publication::create(&session, &stand.context, &decisions).await.unwrap();
        let known = known(&survey, &decisions);
        let filter = Filter::default();
        let changes = || published_changes(&session, &stand.context, &filter, &known);
        assert_eq!(changes().await.unwrap(), []);
        stand.psql(
            "drop table gone;
             alter table renamed rename to renamed_now;
             alter table swapped rename to swapped_old; create table swapped (id int primary key);
             alter publication skein_m_full drop table unpublished;
             alter table key_lost drop constraint key_lost_pkey;
             alter table root detach partition detached;
             alter table root attach partition attached for values from (20) to (30);
             create table new_leaf partition of root for values from (30) to (40);
             create table new_child () inherits (parent);
             create table new_plain (id int);
             create unlogged table new_unlogged (id int);",
        );
        let mut found: Vec<String> = changes()
            .await
            .unwrap()
            .iter()
            .map(|change| match change {
                Change::New { table, root, inherits, .. } => {
                    format!("new {} {} {}", table.name, root.is_some(), inherits.len())
                }
                Change::Dropped { table, .. } => format!("dropped {}", table.name),
                Change::Swapped { table, .. } => format!("swapped {}", table.name),
                Change::Renamed { table, .. } => format!("renamed {}", table.name),
                Change::Detached { table, .. } => format!("detached {}", table.name),
                Change::Attached { table, .. } => format!("attached {}", table.name),
                Change::Unpublished { table, .. } => format!("unpublished {}", table.name),
                Change::IdentityLost { table, .. } => format!("identity lost {}", table.name),
            })
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "attached attached",
                "detached detached",
                "dropped gone",
                "identity lost key_lost",
                "new new_child false 1",
                "new new_leaf true 0",
                "new new_plain false 0",
                "renamed renamed_now",
                "swapped swapped",
                "unpublished unpublished",
            ]
        );
    }
}
