//! The two publications: completed when half made, never taken from somebody else.

use crate::stand::{Stand, each_version, until};
use coordinator::source::{self, publication};
use loadtest::cluster::postgres::Postgres;
use proto::v1::IdentityChoice;

const MEMBERS: &str = "select p.pubname, c.relname from pg_publication_rel r
   join pg_publication p on p.oid = r.prpubid join pg_class c on c.oid = r.prrelid order by 1, 2";

#[tokio::test]
async fn a_half_made_publication_is_completed_and_cleared_of_what_does_not_belong() {
    for stand in each_version(Postgres::builder) {
        stand.psql(
            "create table a (id int primary key); create table b (id int primary key);
             create table keyless (id int); create table stray (id int primary key);
             create publication skein_m_full for table only a, only stray;",
        );
        let (_, mut decisions, _) = stand.decided(IdentityChoice::AppendOnly).await;
        decisions.retain(|decision| decision.table.name != "stray");
        let session = stand.session("provision").await;
        for _ in 0..2 {
            publication::create(&session, &stand.context, &decisions).await.unwrap();
            assert_eq!(
                stand.psql(MEMBERS),
                "skein_m_append|keyless\nskein_m_full|a\nskein_m_full|b"
            );
        }
        assert!(publication::exist(&session, &stand.context).await.unwrap());
        stand.psql("create table new (id int primary key)");
        let (_, decisions, _) = stand.decided(IdentityChoice::AppendOnly).await;
        let new: Vec<_> =
            decisions.into_iter().filter(|decision| decision.table.name == "new").collect();
        for _ in 0..2 {
            publication::add(&session, &stand.context, &new).await.unwrap();
        }
        assert!(stand.psql(MEMBERS).ends_with("skein_m_full|new"));
        for _ in 0..2 {
            publication::drop(&session, &stand.context).await.unwrap();
        }
        assert_eq!(stand.psql("select count(*) from pg_publication"), "0");
    }
}

#[tokio::test]
async fn a_publication_of_somebody_else_is_refused() {
    let stand = Stand::of(Postgres::builder().start().unwrap());
    stand.psql("create publication skein_m_full for all tables");
    let session = stand.session("provision").await;
    let error = publication::create(&session, &stand.context, &[]).await.unwrap_err();
    assert!(matches!(error, source::Error::ForeignPublication { .. }));
}

#[tokio::test]
async fn a_name_with_quotes_dots_and_new_lines_is_published() {
    let stand = Stand::of(Postgres::builder().start().unwrap());
    stand
        .psql("create schema \"S.\"\"x\"; create table \"S.\"\"x\".\"a\nb'\" (id int primary key)");
    let (_, decisions, _) = stand.decided(IdentityChoice::Unspecified).await;
    let session = stand.session("provision").await;
    publication::create(&session, &stand.context, &decisions).await.unwrap();
    assert_eq!(stand.psql("select count(*) from pg_publication_rel"), "1");
}

#[tokio::test]
async fn one_locked_table_does_not_keep_the_others_out_of_the_publication() {
    let stand = Stand::of(Postgres::builder().start().unwrap());
    stand.psql(
        "create table a (id int primary key); create table b (id int primary key);
                create table c (id int primary key); create table d (id int primary key)",
    );
    let (_, decisions, _) = stand.decided(IdentityChoice::Unspecified).await;
    let stranger = stand.stranger().await;
    // as VACUUM and CREATE INDEX CONCURRENTLY do
    stranger.batch(&"begin; lock table b in share update exclusive mode".into()).await.unwrap();
    let session = stand.session("provision").await;
    let watcher = stand.stranger().await;
    let (created, ()) =
        tokio::join!(publication::create(&session, &stand.context, &decisions), async {
            until("three members", async || {
                let row =
                    watcher.query_one(&"select count(*) from pg_publication_rel".into(), &[]).await;
                row.unwrap().get::<_, i64>(0) == 3
            })
            .await;
            stranger.batch(&"commit".into()).await.unwrap();
        });
    created.unwrap();
    assert_eq!(stand.psql("select count(*) from pg_publication_rel"), "4");
}
