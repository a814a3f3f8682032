//! The plan's file of a table is the one that the snapshot shows.

use coordinator::{filter::Filter, source::catalog};
use loadtest::cluster::postgres::Postgres;
use pg::sql;

/// Shown by a run under load: TRUNCATE after the snapshot and before the plan. The plan had the
/// new file, so no chunk was refused; the snapshot read no row of it, and the first replayed
/// UPDATE of an old row met none.
#[tokio::test]
async fn a_rewrite_between_snapshot_and_plan_shows_as_another_file() {
    let server = Postgres::builder().start().unwrap();
    server.psql("postgres", "create table t (id int); insert into t values (1)").unwrap();
    let session = server.client("postgres").await.unwrap();
    let begin = sql!("begin isolation level repeatable read; select 1;");
    session.batch(&begin).await.unwrap();
    server.psql("postgres", "truncate t; insert into t values (2)").unwrap();

    let leaves = catalog::leaves(&session, &Filter::default()).await.unwrap();
    let now = catalog::filenodes(&session, &[leaves[0].relid]).await.unwrap();
    assert_ne!(now[&leaves[0].relid], leaves[0].filenode);
    let alone = catalog::leaf(&session, leaves[0].relid, "").await.unwrap().unwrap();
    assert_eq!(alone.filenode, leaves[0].filenode);
}
