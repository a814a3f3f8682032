//! Writes the plan, and writes it anew for relations that need a new consistent point.
//!
//! Promise: an emptied relation, its new tasks and its new consistent point are one target
//! transaction, behind the fence, after the sessions of its old tasks were ended (rules, part 2).

use super::{connect::refused, context::Context};
use crate::{
    plan::{COPY_STAGE, Leaf, REFRESH_STAGE, Task, Work, chunk},
    source::holder::like_escaped,
    store::record::Snapshot,
    target,
};
use pg::{Session, Sql, TableName, sql, sql::Literal};
use proto::status::{ErrorClass, Report};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// Size of a chunk when the spec says nothing: a minute or so at 4 MB/s, a second or two on one
/// machine; small enough that handing one back costs little.
pub const DEFAULT_CHUNK_BYTES: u64 = 256 << 20;

/// Tasks written in one statement.
const TASKS_PER_STATEMENT: usize = 1000;

/// Relations emptied in one transaction: each takes a few of the target's lock slots, of which
/// a server with its defaults has 6,400 (64 for each of 100 connections).
const RELATIONS_PER_TRANSACTION: usize = 500;

fn failed(error: &pg::Error) -> Report {
    refused("write the plan to the target", error)
}

/// Copy tasks of a leaf.
pub fn copy_tasks(context: &Context, leaf: &Leaf, snapshot_epoch: u32) -> Vec<Task> {
    let chunk_bytes = match context.spec.copy.as_ref().map_or(0, |copy| copy.chunk_bytes) {
        0 => DEFAULT_CHUNK_BYTES,
        bytes => bytes,
    };
    // TID range scans exist from 14 on (release notes, E.7.3.1.2); a condition may need an index.
    let ranges = context.source_version >= 140_000 && leaf.condition.is_none();
    chunk::split(leaf.blocks, chunk_bytes, ranges)
        .into_iter()
        .map(|chunk| Task {
            task_id: 0,
            relid: leaf.relid,
            snapshot_epoch,
            stage: COPY_STAGE,
            size_bytes: chunk.bytes,
            work: Work::Copy(chunk),
        })
        .collect()
}

/// A build or refresh task.
pub fn build_task(relid: u32, stage: i32, object: String, statements: Vec<String>) -> Task {
    let work = if stage >= REFRESH_STAGE {
        Work::Refresh { object, statements }
    } else {
        Work::Build { object, statements }
    };
    Task { task_id: 0, relid, snapshot_epoch: 0, stage, size_bytes: 0, work }
}

/// Writes the whole plan, once: a second call finds the mark `plan` and does nothing.
///
/// # Errors
/// What the target refused, or that a newer coordinator acts.
pub async fn write_plan(
    context: &Context,
    session: &Session,
    leaves: &[Leaf],
    (tasks, snapshot): (&[Task], &Snapshot),
) -> Result<(), Report> {
    let marked = session
        .query_opt(&sql!("select 1 from skein.step where step = 'plan'"), &[])
        .await
        .map_err(|error| failed(&error))?;
    if marked.is_some() {
        return Ok(());
    }
    let mut statements = sql!("delete from skein.task; delete from skein.relation;");
    for leaf in leaves {
        statements.push(insert_relation(leaf, snapshot));
    }
    push_tasks(&mut statements, tasks);
    statements.push("insert into skein.step (step) values ('plan');");
    fenced(context, session, &statements).await
}

/// Empties `leaves` on the target and gives them new tasks under `snapshot`. Of leaves that
/// share a root (`through_root`) all must be there. Killed between two transactions, those that
/// are not done yet have tasks under their old snapshot, which is lost or left.
///
/// # Errors
/// As [`write_plan`]; or old sessions that do not go.
pub async fn begin_again(
    context: &Context,
    session: &Session,
    leaves: &[Leaf],
    snapshot: &Snapshot,
) -> Result<(), Report> {
    end_copies(context, session, &relids_of(leaves)).await?;
    // Whole roots first, and each with all of its leaves: a root emptied later would take the
    // rows of a leaf that was copied meanwhile.
    let (through_root, own): (Vec<&Leaf>, Vec<&Leaf>) =
        leaves.iter().partition(|leaf| leaf.through_root);
    if !through_root.is_empty() {
        empty(context, session, &through_root, snapshot).await?;
    }
    for batch in own.chunks(RELATIONS_PER_TRANSACTION) {
        empty(context, session, batch, snapshot).await?;
    }
    Ok(())
}

fn relids_of(leaves: &[Leaf]) -> Vec<u32> {
    leaves.iter().map(|leaf| leaf.relid).collect()
}

/// Some of [`begin_again`], in one transaction.
async fn empty(
    context: &Context,
    session: &Session,
    leaves: &[&Leaf],
    snapshot: &Snapshot,
) -> Result<(), Report> {
    let mut statements = Sql::from("");
    let roots: BTreeSet<&TableName> =
        leaves.iter().filter(|leaf| leaf.through_root).map(|leaf| &leaf.target).collect();
    for root in roots {
        statements.push(sql!("truncate {};", root));
    }
    for leaf in leaves {
        statements.push(emptied(context, leaf, snapshot));
    }
    fenced(context, session, &statements).await
}

/// A leaf's new consistent point and tasks, its own table emptied.
pub fn emptied(context: &Context, leaf: &Leaf, snapshot: &Snapshot) -> Sql {
    let mut statements = Sql::from("");
    if !leaf.through_root {
        statements.push(sql!("truncate only {};", leaf.target));
    }
    statements.push(sql!(
        "delete from skein.task where relid = {} and kind = 'copy';
delete from skein.relation where relid = {};",
        leaf.relid,
        leaf.relid
    ));
    statements.push(insert_relation(leaf, snapshot));
    push_tasks(&mut statements, &copy_tasks(context, leaf, snapshot.epoch));
    statements
}

async fn fenced(context: &Context, session: &Session, statements: &Sql) -> Result<(), Report> {
    match target::fenced(session, context.epoch, statements).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(fenced_out()),
        Err(error) => Err(failed(&error)),
    }
}

/// A newer coordinator acts.
pub fn fenced_out() -> Report {
    Report::definite("FENCED", "a newer coordinator acts on this migration")
        .with_class(ErrorClass::Fenced)
}

fn insert_relation(leaf: &Leaf, snapshot: &Snapshot) -> Sql {
    let plan = serde_json::to_string(leaf).unwrap_or_default();
    sql!(
        "insert into skein.relation
 (relid, schema_name, table_name, filenode, snapshot_epoch, consistent_point, plan)
 values ({}, {}, {}, {}, {}, {}, {}::jsonb);",
        leaf.relid,
        Literal(&leaf.source.schema),
        Literal(&leaf.source.name),
        leaf.filenode,
        snapshot.epoch,
        snapshot.consistent_point,
        Literal(&plan)
    )
}

fn push_tasks(statements: &mut Sql, tasks: &[Task]) {
    for batch in tasks.chunks(TASKS_PER_STATEMENT) {
        statements.push(
            "insert into skein.task (task_id, kind, relid, snapshot_epoch, stage, size_bytes, plan)
select coalesce((select max(task_id) from skein.task), 0) + row_number() over (), v.* from (values ",
        );
        for (i, task) in batch.iter().enumerate() {
            if i > 0 {
                statements.push(", ");
            }
            let plan = serde_json::to_string(&task.work).unwrap_or_default();
            statements.push(sql!(
                "({}, {}::oid, {}, {}, {}::bigint, {}::jsonb)",
                Literal(task.work.kind()),
                task.relid,
                task.snapshot_epoch,
                task.stage,
                task.size_bytes,
                Literal(&plan)
            ));
        }
        statements.push(") v;");
    }
}

/// Ends the target sessions that copy into `leaves` and waits until they are gone.
///
/// # Errors
/// As [`begin_again`].
pub async fn end_copies(
    context: &Context,
    session: &Session,
    relids: &[u32],
) -> Result<(), Report> {
    let name = format!("skein/{}/%/copy/%", like_escaped(&context.name));
    let started = Instant::now();
    // First no token of theirs is good any more, then the sessions go: none begins anew between.
    let statements = sql!(
        "update skein.task set token = nextval('skein.token'), worker = null
 where kind = 'copy' and finished_at is null and relid in ({})",
        Sql::join(relids.iter(), ", ")
    );
    if relids.is_empty() {
        return Ok(());
    }
    loop {
        let ended = session
            .query(
                &sql!(
                    "select pg_catalog.pg_terminate_backend(a.pid)
  from pg_catalog.pg_stat_activity a
  join skein.task t
    on a.application_name like $1
   and split_part(split_part(a.application_name, '/', 5), '.', 1) = t.task_id::text
 where t.relid = any($2) and a.datname = current_database()"
                ),
                &[&name, &relids],
            )
            .await
            .map_err(|error| failed(&error))?;
        if ended.is_empty() {
            break;
        }
        if started.elapsed() > Duration::from_secs(30) {
            return Err(Report::definite(
                "STALE_SESSION",
                "copies under an old snapshot do not end",
            )
            .with_class(ErrorClass::Transient));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fenced(context, session, &statements).await
}
