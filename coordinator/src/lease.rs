//! Who works on which task.
//!
//! ```text
//!            grant (token from the target)          complete (mark is in the target)
//!   ready ---------------------------------> held ---------------------------------> finished
//!     ^                                        |
//!     +--- released, or expired: old sessions ended and seen gone first
//! ```
//! A lease gives liveness only: what keeps a task from being committed twice is its token in the
//! target's row, issued by the statement that grants it. So a lease needs no record of its own:
//! the row has token and worker, and a new leader takes every row with a token for held until one
//! lease time has passed without its worker.
//!
//! Not here: what a task does (worker), which task comes first (`plan::order`).

pub mod complete;
mod error;
pub mod expire;
pub mod grant;
pub mod renew;

pub use error::Error;

use crate::{
    migration::context::Context,
    plan::{Leaf, Task, Work, order::Queue},
};
use pg::{Session, sql};
use proto::status::Report;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// A worker that was not heard of for this long loses its leases. Heartbeats come every
/// second: room for two dozen lost ones, short against a chunk of minutes.
pub const LEASE_TIME: Duration = Duration::from_secs(30);

/// Attempts at a task that fail for transient reasons before a person is asked.
const MAX_ATTEMPTS: u32 = 8;

/// A task in somebody's hands.
#[derive(Clone, Debug)]
pub struct Lease {
    pub token: u64,
    pub worker: String,
    pub granted_at: Instant,
    pub renewed_at: Instant,
    /// COPY bytes so far, as the worker reported.
    pub bytes: u64,
    /// Asked to be handed back.
    pub revoked: bool,
}

/// What the workers found that the workflow must act on.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// The relation's file changed: it needs a new consistent point.
    Rewritten { relid: u32 },
    /// The relation's name means another one, or none.
    Replaced(Report),
    /// No recorded snapshot name can be imported any more.
    SnapshotLost { snapshot_epoch: u32 },
    /// A person has to change something.
    Fault(Report),
}

/// Totals since the plan was loaded.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub tasks_total: u64,
    pub tasks_done: u64,
    pub builds_total: u64,
    pub builds_done: u64,
    pub bytes_total: u64,
    pub bytes_done: u64,
    pub rows_done: u64,
    pub copied_bytes: u64,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    leaves: HashMap<u32, Arc<Leaf>>,
    held: HashMap<u64, Lease>,
    /// Taken out of the queue, not held yet.
    reserved: HashSet<u64>,
    /// Tasks that failed: not before this time, and how often so far.
    waiting: HashMap<u64, (Instant, u32)>,
    /// Tasks that are not granted until a person resumes.
    stopped: HashSet<u64>,
    /// Names by which each snapshot epoch can be imported now.
    snapshots: HashMap<u32, Vec<String>>,
    totals: Totals,
    findings: Vec<Finding>,
    /// Why a task was given back for which it is tried again, and when.
    trouble: Option<(Instant, String)>,
    open: bool,
}

/// A row of [`Leases::reload`].
fn task_of(row: &tokio_postgres::Row, task_id: u64, work: Work) -> Task {
    Task {
        task_id,
        relid: row.get(1),
        snapshot_epoch: u32::try_from(row.get::<_, i32>(2)).unwrap_or(0),
        stage: row.get(3),
        size_bytes: u64::try_from(row.get::<_, i64>(4)).unwrap_or(0),
        work,
    }
}

impl State {
    /// Notes a finding once, until somebody takes it: nobody does while the migration is held.
    fn find(&mut self, finding: Finding) {
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }
}

/// Leases of one migration. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leases {
    context: Context,
    state: Arc<Mutex<State>>,
    /// The leader's session on the target for tokens and marks.
    session: Arc<tokio::sync::Mutex<Option<Session>>>,
    /// Ticks at each change, for those who wait.
    changed: watch::Sender<u64>,
}

impl Leases {
    /// Reads the plan from the target.
    ///
    /// # Errors
    /// When the target cannot be read.
    pub async fn load(context: Context) -> Result<Self, Error> {
        let max_open = context.spec.copy.as_ref().map_or(0, |copy| copy.max_open_tables);
        let queue = Queue::new(if max_open == 0 { 4 } else { max_open as usize });
        let leases = Self {
            context,
            state: Arc::new(Mutex::new(State {
                queue,
                leaves: HashMap::new(),
                held: HashMap::new(),
                reserved: HashSet::new(),
                waiting: HashMap::new(),
                stopped: HashSet::new(),
                snapshots: HashMap::new(),
                totals: Totals::default(),
                findings: Vec::new(),
                trouble: None,
                open: false,
            })),
            session: Arc::default(),
            changed: watch::channel(0).0,
        };
        leases.reload().await?;
        Ok(leases)
    }

    /// Reads the plan again: after tasks were added or replaced.
    ///
    /// # Errors
    /// When the target cannot be read.
    pub async fn reload(&self) -> Result<(), Error> {
        let mut slot = self.session().await?;
        let session = slot.as_mut().ok_or(Error::Fenced)?;
        let relations = session
            .query(&sql!("select relid, plan::text from skein.relation"), &[])
            .await
            .map_err(Error::Plan)?;
        let tasks = session
            .query(
                &sql!(
                    "select task_id, coalesce(relid, 0::oid), snapshot_epoch, stage, size_bytes,
       plan::text, token, worker, finished_at is not null, coalesce(rows, 0), coalesce(bytes, 0)
  from skein.task order by task_id"
                ),
                &[],
            )
            .await
            .map_err(Error::Plan)?;
        let mut leaves = HashMap::new();
        for row in relations {
            let relid: u32 = row.get(0);
            let leaf: Leaf = serde_json::from_str(row.get(1))
                .map_err(|source| Error::Unreadable { task_id: 0, source })?;
            leaves.insert(relid, Arc::new(leaf));
        }
        let mut state = self.state();
        let previous = std::mem::take(&mut state.held);
        let max_open = self.context.spec.copy.as_ref().map_or(0, |copy| copy.max_open_tables);
        let refresh = state.queue.allows_refresh();
        state.queue = Queue::new(if max_open == 0 { 4 } else { max_open as usize });
        if refresh {
            state.queue.allow_refresh();
        }
        state.totals = Totals::default();
        state.leaves = leaves;
        let now = Instant::now();
        for row in tasks {
            let task_id = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
            let work: Work = serde_json::from_str(row.get(5))
                .map_err(|source| Error::Unreadable { task_id, source })?;
            let task = task_of(&row, task_id, work);
            let is_copy = matches!(task.work, Work::Copy(_));
            state.totals.tasks_total += 1;
            state.totals.builds_total += u64::from(!is_copy);
            state.totals.bytes_total += task.size_bytes;
            if row.get::<_, bool>(8) {
                state.totals.tasks_done += 1;
                state.totals.builds_done += u64::from(!is_copy);
                state.totals.bytes_done += task.size_bytes;
                state.totals.rows_done += u64::try_from(row.get::<_, i64>(9)).unwrap_or(0);
                state.totals.copied_bytes += u64::try_from(row.get::<_, i64>(10)).unwrap_or(0);
                // The relation's size counts finished chunks too.
                state.queue.insert(task.clone());
                state.queue.remove(task_id);
                continue;
            }
            state.queue.insert(task);
            let token = u64::try_from(row.get::<_, i64>(6)).unwrap_or(0);
            if let (true, Some(worker)) = (token > 0, row.get::<_, Option<String>>(7)) {
                let lease = previous.get(&task_id).filter(|lease| lease.token == token).cloned();
                let lease = lease.unwrap_or(Lease {
                    token,
                    worker,
                    granted_at: now,
                    renewed_at: now,
                    bytes: 0,
                    revoked: false,
                });
                state.held.insert(task_id, lease);
                state.queue.granted(task_id);
            }
            // A grant on its way, which asks the target whether its task is still this one.
            if state.reserved.contains(&task_id) {
                state.queue.granted(task_id);
            }
        }
        drop(state);
        self.tick();
        Ok(())
    }

    /// Lets tasks be granted, under these snapshot names by snapshot epoch.
    pub fn open(&self, snapshots: HashMap<u32, Vec<String>>) {
        let mut state = self.state();
        state.open = true;
        state.snapshots = snapshots;
        drop(state);
        self.tick();
    }

    /// Nothing more is granted; what runs is asked back with `revoke_running`.
    pub fn close(&self) {
        self.state().open = false;
        self.tick();
    }

    /// Lets tasks that stopped at a fault be granted again.
    pub fn forgive(&self) {
        let mut state = self.state();
        state.stopped.clear();
        state.waiting.clear();
        state.trouble = None;
        state.findings.retain(|finding| !matches!(finding, Finding::Fault(_)));
        drop(state);
        self.tick();
    }

    /// Lets refreshes of materialised views run.
    pub fn allow_refresh(&self) {
        self.state().queue.allow_refresh();
        self.tick();
    }

    /// Asks every running task back.
    pub fn revoke_running(&self) {
        for lease in self.state().held.values_mut() {
            lease.revoked = true;
        }
    }

    /// Asks one task back: a session of the application waits for its lock.
    pub fn revoke(&self, task_id: u64) {
        if let Some(lease) = self.state().held.get_mut(&task_id) {
            lease.revoked = true;
        }
    }

    /// What the workers found since the last call.
    pub fn take_findings(&self) -> Vec<Finding> {
        std::mem::take(&mut self.state().findings)
    }

    /// Tasks of `stage` and below that are not finished.
    pub fn unfinished_through(&self, stage: i32) -> usize {
        self.state().queue.unfinished_through(stage)
    }

    /// Relations whose copy is not finished, with the snapshot epoch of their tasks.
    pub fn unfinished_relations(&self) -> HashMap<u32, u32> {
        let state = self.state();
        let copies = state.queue.iter().filter(|task| matches!(task.work, Work::Copy(_)));
        copies.map(|task| (task.relid, task.snapshot_epoch)).collect()
    }

    pub fn leaves(&self) -> Vec<Arc<Leaf>> {
        self.state().leaves.values().cloned().collect()
    }

    pub fn totals(&self) -> Totals {
        self.state().totals.clone()
    }

    pub fn bytes_at_risk(&self) -> u64 {
        self.state().queue.bytes_at_risk()
    }

    /// Tables, and those of which every task is finished.
    pub fn table_counts(&self) -> (u64, u64) {
        let state = self.state();
        let busy: HashSet<u32> = state.queue.iter().map(|task| task.relid).collect();
        let done = state.leaves.keys().filter(|relid| !busy.contains(relid)).count();
        (state.leaves.len() as u64, done as u64)
    }

    /// The running tasks: id, kind, object, worker, bytes, seconds.
    pub fn running(&self) -> Vec<proto::v1::TaskProgress> {
        let state = self.state();
        let mut running: Vec<_> = state
            .held
            .iter()
            .filter_map(|(task_id, lease)| {
                let task = state.queue.get(*task_id)?;
                let object = match &task.work {
                    Work::Copy(_) => state.leaves.get(&task.relid)?.source.to_string(),
                    Work::Build { object, .. } | Work::Refresh { object, .. } => object.clone(),
                };
                Some(proto::v1::TaskProgress {
                    task_id: *task_id,
                    kind: task.work.kind().to_owned(),
                    object,
                    worker: lease.worker.clone(),
                    bytes: lease.bytes,
                    seconds: lease.granted_at.elapsed().as_secs(),
                })
            })
            .collect();
        running.sort_by_key(|task| task.task_id);
        running
    }

    /// Term of the coordinator that grants.
    pub fn epoch(&self) -> u64 {
        self.context.epoch
    }

    /// Ticks at each change of a task.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn tick(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leader's session, connected again where it was lost.
    async fn session(&self) -> Result<tokio::sync::MutexGuard<'_, Option<Session>>, Error> {
        let mut slot = self.session.lock().await;
        if slot.as_ref().is_none_or(Session::is_closed) {
            let session = self.context.target_session("lease", 0).await.map_err(Error::Plan)?;
            *slot = Some(session);
        }
        Ok(slot)
    }
}
