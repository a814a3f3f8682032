//! Schema `skein` on the target: what must commit with the rows it speaks of.
//!
//! ```text
//! skein.migration  one row: id, epoch (the fence of every write), slot, spool, cutover state
//! skein.relation   a row per source leaf table: OID, filenode, snapshot epoch, consistent point
//! skein.task       the plan: a row per chunk or build, its fencing token, its finished mark
//! skein.lane       a row per apply lane: the position it has committed
//! skein.step       a mark per finished provisioning step
//! ```
//! Promise: a finished mark, a lane's position and a step's mark are in the same transaction as
//! the rows or objects they speak of; every such transaction first takes its fence row
//! (`fence` here, the task's row in a worker). Epochs and tokens are issued here, so that a lost
//! state store cannot make them go back.

use pg::{Result, Session, Sql, sql};

/// Version of this schema. Newer than ours is refused; older is brought forward.
pub const SCHEMA_VERSION: i32 = 1;

/// Creates the schema; safe to repeat.
pub fn ddl() -> Sql {
    sql!(
        "create schema if not exists skein;
create table if not exists skein.migration (
  one boolean primary key default true check (one),
  schema_version int not null,
  migration_id text not null,
  name text not null,
  epoch bigint not null default 0,
  spec jsonb not null,
  record jsonb,
  slot text,
  spool_id text,
  source_system_id text,
  source_timeline int,
  source_database text,
  cutover_attempt int not null default 0,
  cutover_state text not null default 'none'
    check (cutover_state in ('none', 'fenced', 'lifting', 'lifted', 'opened')),
  cutover_epoch bigint,
  cutover_deadline timestamptz,
  end_position pg_lsn
);
create sequence if not exists skein.token;
create table if not exists skein.relation (
  relid oid primary key,
  schema_name text not null,
  table_name text not null,
  filenode oid not null,
  snapshot_epoch int not null,
  consistent_point pg_lsn not null,
  plan jsonb not null,
  copied_at timestamptz,
  built_at timestamptz
);
create table if not exists skein.task (
  task_id bigint primary key,
  kind text not null check (kind in ('copy', 'build', 'refresh')),
  relid oid,
  snapshot_epoch int not null,
  stage int not null,
  size_bytes bigint not null,
  plan jsonb not null,
  token bigint not null default 0,
  worker text,
  finished_at timestamptz,
  rows bigint,
  bytes bigint,
  failures int not null default 0
);
create index if not exists task_open on skein.task (stage, size_bytes desc)
  where finished_at is null;
create index if not exists task_relid on skein.task (relid);
create table if not exists skein.lane (
  lane int primary key,
  epoch bigint not null,
  end_lsn pg_lsn not null,
  routing jsonb not null
);
create table if not exists skein.step (
  step text primary key,
  detail jsonb,
  finished_at timestamptz not null default now()
);"
    )
}

/// First statement of every write of the coordinator on the target: zero rows mean that a newer
/// epoch acts, and this one must stop.
pub fn fence(epoch: u64) -> Sql {
    sql!("select 1 from skein.migration where epoch = {} for share", epoch)
}

/// Runs `statements` in one transaction behind the fence. `Ok(false)`: fenced, rolled back.
///
/// # Errors
/// What the server refused; the transaction is rolled back.
pub async fn fenced(session: &Session, epoch: u64, statements: &Sql) -> Result<bool> {
    session.batch(&sql!("begin")).await?;
    let done = async {
        if session.query_opt(&fence(epoch), &[]).await?.is_none() {
            return Ok(false);
        }
        session.batch(statements).await?;
        session.batch(&sql!("commit")).await?;
        Ok(true)
    }
    .await;
    if !matches!(done, Ok(true)) && !session.is_closed() {
        session.batch(&sql!("rollback")).await?;
    }
    done
}
