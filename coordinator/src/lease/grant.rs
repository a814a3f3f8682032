//! The next task for a worker, with a fencing token of the target.

use super::{Error, Lease, Leases};
use crate::{
    plan::{Leaf, Task, Work},
    source::holder::like_escaped,
    target,
};
use pg::{Session, sql};
use proto::v1;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long an ended session may take to be gone: a killed COPY was gone in 0.1 s, a cut peer's
/// in up to 10.6 s.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What the target said to a grant.
enum Issued {
    Token(u64),
    Finished,
    /// The plan in memory is not the target's any more: nothing is granted until it is read.
    Replaced,
}

/// A task between the queue and its lease. Unless it is held by then, it is ready again.
struct Reserved<'a> {
    leases: &'a Leases,
    task_id: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.leases.state();
        state.reserved.remove(&self.task_id);
        if !state.held.contains_key(&self.task_id) {
            state.queue.returned(self.task_id);
        }
    }
}

impl Leases {
    /// Grants the next ready task to `worker`, or nothing.
    ///
    /// # Errors
    /// When the target cannot be reached, or fences us. The task is ready again then.
    pub async fn grant(&self, worker: &str) -> Result<Option<v1::Task>, Error> {
        let Some((task, leaf, snapshots)) = self.reserve() else { return Ok(None) };
        let task_id = task.task_id;
        // The caller may be dropped at any await, with the connection of a killed worker.
        let reserved = Reserved { leases: self, task_id };
        match self.issue(&task, worker).await? {
            Issued::Token(token) => {
                let now = Instant::now();
                let lease = Lease {
                    token,
                    worker: worker.to_owned(),
                    granted_at: now,
                    renewed_at: now,
                    bytes: 0,
                    revoked: false,
                };
                self.state().held.insert(task_id, lease);
                drop(reserved);
                Ok(Some(self.wire(&task, leaf.as_deref(), snapshots, token)))
            }
            // A completion whose report was lost.
            Issued::Finished => {
                self.finish(task_id, None);
                Ok(None)
            }
            Issued::Replaced => {
                self.close();
                Err(Error::Replaced { task_id })
            }
        }
    }

    /// Takes the next ready task out of the queue, so that no other call grants it.
    fn reserve(&self) -> Option<(Task, Option<Arc<Leaf>>, Vec<String>)> {
        let mut state = self.state();
        if !state.open {
            return None;
        }
        let now = Instant::now();
        let held_back: Vec<u64> = state
            .waiting
            .iter()
            .filter(|(_, (not_before, _))| *not_before > now)
            .map(|(task_id, _)| *task_id)
            .chain(state.stopped.iter().copied())
            .collect();
        // Held back ones are taken for granted while we choose.
        for task_id in &held_back {
            state.queue.granted(*task_id);
        }
        let next = state.queue.next();
        for task_id in &held_back {
            if !state.held.contains_key(task_id) {
                state.queue.returned(*task_id);
            }
        }
        let task = state.queue.get(next?)?.clone();
        let snapshots = state.snapshots.get(&task.snapshot_epoch).cloned().unwrap_or_default();
        if matches!(task.work, Work::Copy(_)) && snapshots.is_empty() {
            return None;
        }
        let leaf = state.leaves.get(&task.relid).cloned();
        if leaf.is_none() && matches!(task.work, Work::Copy(_)) {
            // A copy without its relation: the plan is being replaced, and read again soon.
            return None;
        }
        state.queue.granted(task.task_id);
        state.reserved.insert(task.task_id);
        Some((task, leaf, snapshots))
    }

    /// A new token for the task, if the target still has it as we know it: a row of another
    /// snapshot epoch is another task, even under the same id.
    async fn issue(&self, task: &Task, worker: &str) -> Result<Issued, Error> {
        let task_id = task.task_id;
        let refused = |source| Error::Target { task_id, source };
        let mut slot = self.session().await?;
        // Put back when the transaction is over: dropped in its midst, it ends with its session.
        let session = slot.take().ok_or(Error::Fenced)?;
        end_stale_sessions(&session, &self.context.name, task_id).await?;
        session.batch(&sql!("begin")).await.map_err(refused)?;
        let issued = async {
            let fence = session.query_opt(&target::fence(self.context.epoch), &[]).await?;
            if fence.is_none() {
                return Ok(None);
            }
            let id = i64::try_from(task_id).unwrap_or(i64::MAX);
            let epoch = i32::try_from(task.snapshot_epoch).unwrap_or(i32::MAX);
            let row = session
                .query_opt(
                    &sql!(
                        "update skein.task
    set token = case when finished_at is null then nextval('skein.token') else token end,
        worker = case when finished_at is null then $2 else worker end
 where task_id = $1 and snapshot_epoch = $3 returning token, finished_at is not null"
                    ),
                    &[&id, &worker, &epoch],
                )
                .await?;
            session.batch(&sql!("commit")).await?;
            Ok(Some(match row {
                None => Issued::Replaced,
                Some(row) if row.get(1) => Issued::Finished,
                Some(row) => Issued::Token(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)),
            }))
        }
        .await;
        let issued = issued.map_err(refused)?;
        if issued.is_none() {
            session.batch(&sql!("rollback")).await.map_err(refused)?;
        }
        *slot = Some(session);
        issued.ok_or(Error::Fenced)
    }

    fn wire(
        &self,
        task: &Task,
        leaf: Option<&Leaf>,
        snapshots: Vec<String>,
        token: u64,
    ) -> v1::Task {
        let work = match (&task.work, leaf) {
            (Work::Copy(_), None) => None,
            (Work::Copy(chunk), Some(leaf)) => Some(v1::task::Work::Copy(v1::CopyWork {
                source_table: Some(wire_name(&leaf.source)),
                target_table: Some(wire_name(&leaf.target)),
                source_oid: leaf.relid,
                filenode: leaf.filenode,
                columns: leaf.columns.clone(),
                binary: leaf.binary,
                first_block: chunk.first_block,
                end_block: chunk.end_block,
                snapshots,
                condition: leaf.condition.clone().unwrap_or_default(),
                estimated_bytes: chunk.bytes,
                target_root: leaf.through_root.then(|| wire_name(&leaf.target)),
            })),
            (Work::Build { object, statements } | Work::Refresh { object, statements }, _) => {
                Some(v1::task::Work::Build(v1::BuildWork {
                    object: object.clone(),
                    statements: statements.clone(),
                }))
            }
        };
        v1::Task {
            migration: self.context.name.clone(),
            task_id: task.task_id,
            fencing_token: token,
            epoch: self.context.epoch,
            snapshot_epoch: task.snapshot_epoch,
            source: Some(v1::Endpoint {
                conninfo: self.context.source.expose().to_owned(),
                server_version: self.context.source_version,
            }),
            target: Some(v1::Endpoint {
                conninfo: self.context.target.expose().to_owned(),
                server_version: self.context.target_version,
            }),
            client_encoding: self.context.source_encoding.clone(),
            work,
        }
    }
}

/// A table's name on the wire.
pub fn wire_name(table: &pg::TableName) -> v1::TableName {
    v1::TableName { schema: table.schema.clone(), name: table.name.clone() }
}

/// Ends target sessions that work on `task_id` under an older token, and waits until they are
/// gone: a stale one may hold locks that block its successor.
async fn end_stale_sessions(session: &Session, migration: &str, task_id: u64) -> Result<(), Error> {
    let refused = |source| Error::Target { task_id, source };
    let name = format!("skein/{}/%/%/{task_id}.%", like_escaped(migration));
    let started = Instant::now();
    loop {
        let ended = session
            .query(
                &sql!(
                    "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
 where application_name like $1 and datname = current_database() and pid <> pg_backend_pid()"
                ),
                &[&name],
            )
            .await
            .map_err(refused)?;
        if ended.is_empty() {
            return Ok(());
        }
        if started.elapsed() > GONE_WITHIN {
            return Err(Error::StaleSession { task_id, seconds: GONE_WITHIN.as_secs() });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
