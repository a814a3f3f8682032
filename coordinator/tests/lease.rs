//! Grants against a real target: dropped on the way, of a plan that was replaced meanwhile.

use crate::cutover::World;
use coordinator::{
    lease::{Error, Leases},
    plan::{Leaf, REFRESH_STAGE},
};
use pg::{Sql, TableName, sql, sql::Literal};
use std::{collections::HashMap, time::Duration};

const RELID: u32 = 16_400;

fn leaf() -> Leaf {
    let table = TableName::new("public", "t");
    Leaf {
        relid: RELID,
        source: table.clone(),
        target: table,
        filenode: 1,
        blocks: 1,
        columns: vec!["a".into()],
        types: vec!["integer".into()],
        binary: true,
        unlogged: false,
        through_root: false,
        partition_constraint: None,
        root: None,
        condition: None,
        append_only: false,
    }
}

/// One table of one chunk, under `snapshot_epoch`.
fn plan(snapshot_epoch: u32) -> Sql {
    let plan = serde_json::to_string(&leaf()).unwrap();
    sql!(
        "delete from skein.task; delete from skein.relation;
insert into skein.relation values ({}, 'public', 't', 1, {}, '0/1', {}::jsonb);
insert into skein.task (task_id, kind, relid, snapshot_epoch, stage, size_bytes, plan)
 values (1, 'copy', {}, {}, 0, 8192,
         {}::jsonb)",
        RELID,
        snapshot_epoch,
        Literal(&plan),
        RELID,
        snapshot_epoch,
        Literal(r#"{"kind": "copy", "first_block": 0, "end_block": null, "bytes": 8192}"#)
    )
}

fn names() -> HashMap<u32, Vec<String>> {
    [1, 2].map(|epoch| (epoch, vec!["00000003-00000001-1".to_owned()])).into()
}

async fn loaded(world: &World) -> Leases {
    world.target().await.batch(&plan(1)).await.unwrap();
    let leases = Leases::load(world.context.clone()).await.unwrap();
    leases.open(names());
    leases
}

#[tokio::test]
async fn a_task_whose_grant_is_dropped_with_its_caller_is_granted_to_the_next() {
    let world = World::new().await;
    let leases = loaded(&world).await;
    let other = world.target().await;
    other.batch(&sql!("begin; select from skein.task for update")).await.unwrap();
    // A worker that is killed while it asks: its connection ends, and with it the call.
    let asked = tokio::time::timeout(Duration::from_millis(500), leases.grant("killed")).await;
    assert!(asked.is_err(), "granted behind a lock");
    other.batch(&sql!("rollback")).await.unwrap();
    let task = leases.grant("next").await.unwrap().expect("the task is ready again");
    assert_eq!(task.task_id, 1);
    let open = world.server.psql(
        "tgt",
        "select count(*) from pg_stat_activity where application_name like '%/lease/%' \
         and state like 'idle in transaction%'",
    );
    assert_eq!(open.unwrap(), "0", "a grant left its transaction open");
}

#[tokio::test]
async fn a_task_that_was_replaced_is_neither_granted_nor_taken_for_finished() {
    let world = World::new().await;
    let leases = loaded(&world).await;
    // Emptied and planned anew, and whoever did it was stopped before the plan was read again.
    world.target().await.batch(&plan(2)).await.unwrap();
    let granted = leases.grant("w").await;
    assert!(matches!(granted, Err(Error::Replaced { task_id: 1 })), "{granted:?}");
    assert_eq!(leases.unfinished_through(0), 1);
    leases.reload().await.unwrap();
    leases.open(names());
    let task = leases.grant("w").await.unwrap().expect("the new one");
    assert_eq!(task.snapshot_epoch, 2);
}

#[tokio::test]
async fn a_task_that_finished_unheard_is_done() {
    let world = World::new().await;
    let leases = loaded(&world).await;
    let done = sql!("update skein.task set finished_at = now(), token = 9, worker = 'w'");
    world.target().await.batch(&done).await.unwrap();
    assert!(leases.grant("w").await.unwrap().is_none());
    assert_eq!(leases.unfinished_through(0), 0);
    let row = world.server.psql("tgt", "select token, worker from skein.task").unwrap();
    assert_eq!(row, "9|w");
}

#[tokio::test]
async fn refreshes_go_on_after_the_plan_was_read_again() {
    let world = World::new().await;
    let target = world.target().await;
    target
        .batch(&sql!(
            "insert into skein.task (task_id, kind, snapshot_epoch, stage, size_bytes, plan)
 values (1, 'refresh', 0, {}, 0,
         {}::jsonb)",
            REFRESH_STAGE,
            Literal(r#"{"kind": "refresh", "object": "v", "statements": []}"#)
        ))
        .await
        .unwrap();
    let leases = Leases::load(world.context.clone()).await.unwrap();
    leases.open(HashMap::new());
    leases.allow_refresh();
    leases.reload().await.unwrap();
    assert!(leases.grant("w").await.unwrap().is_some(), "the refresh waits for ever");
}
