//! The worker's life: slots that lease, work and report; a heartbeat; holders; the end.
//!
//! ```text
//! slot: LeaseTask -> stage (ended by fence, revoke, drain) -> commit (by nothing) -> Complete
//!                      \------------- failed -----------------------------------> Release
//! ```
//! Promise: a completion or release is repeated until acknowledged; told to stop, running tasks
//! get the drain timeout to finish, are then rolled back and handed back.

use crate::{
    backoff::Backoff,
    build,
    client::Client,
    config::{Address, Config},
    copy::{self, fence},
    error::{Error, Result},
    failpoint, heartbeat,
    holder::Holders,
    lease::{Ending, Key, Lease, Leases},
    meter::Meters,
    rate::Rate,
    sessions::Sessions,
    task::{Task, Work},
    verify,
};
use futures::FutureExt as _;
use pg::Session;
use proto::{
    status::{Classify as _, ErrorClass, Report},
    v1,
};
use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

/// Why the worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Drained,
    /// No coordinator answered for the orphan timeout.
    Orphaned,
}

/// After the drain timeout: how long releases may take to be acknowledged.
const REPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause after an answer without a task, in case the coordinator does not wait.
const ASK_PAUSE: Duration = Duration::from_millis(50);

/// What all parts of a worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) leases: Leases,
    pub(crate) holders: Holders,
    pub(crate) rate: Rate,
    meters: Meters,
    /// The coordinator wants no new task to be taken.
    pub(crate) draining: watch::Sender<bool>,
    pub(crate) slots: u32,
    pub(crate) orphan_timeout: Duration,
}

/// What a task came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    Copied { rows: u64, bytes: u64 },
    Built,
    Verified { source: verify::Digest, target: verify::Digest, differences: Vec<String> },
}

/// A task whose work is done.
#[derive(Debug)]
pub(crate) enum Staged {
    /// Nothing is left to commit.
    Finished(Outcome),
    /// Effect and mark are in this session's transaction.
    Open { target: Box<Session>, outcome: Outcome },
}

/// Works until `stop` is cancelled or nobody coordinates.
///
/// # Errors
/// When the coordinator's address cannot be one.
pub async fn run(config: Config, stop: CancellationToken) -> Result<End, tonic::transport::Error> {
    let shared = Arc::new(Shared {
        client: Client::new(&config.coordinators, &config.credentials, &config.id)?,
        leases: Leases::default(),
        holders: Holders::new(&config.id),
        rate: Rate::unlimited(),
        meters: Meters::new(),
        draining: watch::Sender::new(false),
        slots: config.slots.get(),
        orphan_timeout: config.orphan_timeout,
    });
    let coordinators: Vec<String> = config.coordinators.iter().map(Address::to_string).collect();
    info!(
        worker = config.id,
        coordinators = coordinators.join(","),
        slots = shared.slots,
        "started"
    );
    // First nothing new is taken, then reporting is given up.
    let (closing, giving_up) = (CancellationToken::new(), CancellationToken::new());
    let mut slots = JoinSet::new();
    for _ in 0..shared.slots {
        slots.spawn(slot(Arc::clone(&shared), closing.clone(), giving_up.clone()));
    }
    let background = async {
        tokio::select! {
            heartbeat::Orphaned = heartbeat::run(&shared) => {}
            () = shared.holders.run() => {}
        }
    };
    tokio::pin!(background);
    let end = tokio::select! { biased;
        () = stop.cancelled() => End::Drained,
        () = &mut background => End::Orphaned,
    };
    info!(?end, "stopping: running tasks may finish");
    closing.cancel();
    let finish = finish(&shared, slots, config.drain_timeout, giving_up);
    match end {
        // Leases are renewed and snapshots held to the last.
        End::Drained => tokio::select! { () = finish => {}, () = background => {} },
        End::Orphaned => finish.await,
    }
    info!("stopped");
    Ok(end)
}

/// Waits for the slots: the drain timeout, then without their tasks, then without reports.
async fn finish(
    shared: &Shared,
    mut slots: JoinSet<()>,
    drain_timeout: Duration,
    giving_up: CancellationToken,
) {
    if tokio::time::timeout(drain_timeout, join(&mut slots)).await.is_ok() {
        return;
    }
    shared.leases.end_all(Ending::Drained);
    if tokio::time::timeout(REPORT_TIMEOUT, join(&mut slots)).await.is_ok() {
        return;
    }
    giving_up.cancel();
    if tokio::time::timeout(REPORT_TIMEOUT, join(&mut slots)).await.is_err() {
        slots.shutdown().await;
    }
}

async fn join(slots: &mut JoinSet<()>) {
    while let Some(ended) = slots.join_next().await {
        if let Err(error) = ended {
            error!(%error, "a slot ended by itself");
        }
    }
}

/// One task after another.
async fn slot(shared: Arc<Shared>, closing: CancellationToken, giving_up: CancellationToken) {
    let mut sessions = Sessions::default();
    let mut backoff = Backoff::new();
    loop {
        let leased = tokio::select! { biased;
            () = closing.cancelled() => return,
            leased = next_task(&shared) => leased,
        };
        match leased {
            Ok(Some(task)) => {
                backoff.reset();
                let report = attend(&shared, &mut sessions, task);
                tokio::select! { biased;
                    () = report => {}
                    () = giving_up.cancelled() => return,
                }
            }
            Ok(None) => {
                sessions.clear();
                backoff.reset();
                tokio::time::sleep(ASK_PAUSE).await;
            }
            // Said by the heartbeat, which asks as often.
            Err(report) => {
                debug!(error = %report, "no task could be leased");
                sessions.clear();
                backoff.pause().await;
            }
        }
    }
}

/// Leases the next task, once the coordinator wants tasks to be taken.
async fn next_task(shared: &Shared) -> Result<Option<v1::Task>, Report> {
    let mut draining = shared.draining.subscribe();
    if draining.wait_for(|draining| !draining).await.is_err() {
        return Ok(None);
    }
    shared.client.lease_task().await
}

/// Works on a task and reports how it went.
async fn attend(shared: &Shared, sessions: &mut Sessions, task: v1::Task) {
    let key =
        Key { migration: task.migration.clone(), task: task.task_id, token: task.fencing_token };
    let span = info_span!("task", migration = key.migration, task = key.task, token = key.token);
    async {
        let lease = shared.leases.hold(key);
        let begun = Instant::now();
        let kind = kind_of(&task);
        let worked = AssertUnwindSafe(work(shared, sessions, task, &lease)).catch_unwind().await;
        match worked.unwrap_or(Err(Error::Panicked)) {
            Ok(outcome) => {
                sessions.task_ended();
                shared.meters.finished(&lease.key.migration, kind, &outcome, begun.elapsed());
                complete(shared, &lease.key, &outcome).await;
            }
            Err(error) => {
                // What the task had begun is rolled back by closing its sessions.
                if matches!(error, Error::Ended(_)) {
                    sessions.abandon().await;
                }
                sessions.clear();
                shared.meters.returned(&lease.key.migration, kind);
                release(shared, &lease.key, &error).await;
            }
        }
    }
    .instrument(span)
    .await;
}

/// Does the work; interruptible up to the commit, not in it.
async fn work(
    shared: &Shared,
    sessions: &mut Sessions,
    task: v1::Task,
    lease: &Lease,
) -> Result<Outcome> {
    let task = Task::try_from(task)?;
    let staged = tokio::select! { biased;
        ending = lease.ended() => return Err(Error::Ended(ending)),
        staged = stage(shared, sessions, &task, lease) => staged?,
    };
    let outcome = match staged {
        Staged::Finished(outcome) => outcome,
        Staged::Open { target, outcome } => {
            failpoint::reach(failpoint::BEFORE_COMMIT).await?;
            fence::commit(&target, &task).await?;
            if !target.is_closed() {
                sessions.keep_write(&task, *target);
            }
            outcome
        }
    };
    failpoint::reach(failpoint::BEFORE_COMPLETE).await?;
    Ok(outcome)
}

async fn stage(
    shared: &Shared,
    sessions: &mut Sessions,
    task: &Task,
    lease: &Lease,
) -> Result<Staged> {
    match &task.work {
        Work::Copy(work) => copy::stage(shared, sessions, task, work, lease).await,
        Work::Build(work) => build::stage(sessions, task, work).await,
        Work::Verify(work) => verify::stage(task, work).await,
    }
}

/// Says that the mark is committed, until it is heard.
async fn complete(shared: &Shared, key: &Key, outcome: &Outcome) {
    let request = v1::CompleteTaskRequest {
        worker_id: String::new(),
        migration: key.migration.clone(),
        task_id: key.task,
        fencing_token: key.token,
        result: Some(outcome.into()),
    };
    until_heard("completion", || shared.client.complete(request.clone())).await;
    info!(outcome = outcome.name(), "task done");
}

/// Gives the task back, until it is heard.
async fn release(shared: &Shared, key: &Key, error: &Error) {
    let report = error.report();
    let cause = error.cause();
    if cause == v1::ReleaseCause::HandedBack {
        info!(reason = report.reason, "task handed back");
    } else {
        warn!(
            reason = report.reason, class = ?report.class, error = report.primary,
            detail = report.detail, "task given back"
        );
    }
    let request = v1::ReleaseTaskRequest {
        worker_id: String::new(),
        migration: key.migration.clone(),
        task_id: key.task,
        fencing_token: key.token,
        cause: cause.into(),
        error: Some(report.into()),
    };
    until_heard("release", || shared.client.release(request.clone())).await;
}

/// Repeats a call until it is acknowledged, or refused in a way that repeating cannot change.
async fn until_heard<F>(what: &'static str, mut call: impl FnMut() -> F)
where
    F: Future<Output = Result<(), Report>>,
{
    let mut backoff = Backoff::new();
    loop {
        match call().await {
            Ok(()) => return,
            Err(report) if report.class == ErrorClass::Transient => backoff.pause().await,
            Err(report) => {
                warn!(what, reason = report.reason, error = %report, "the coordinator refused it");
                return;
            }
        }
    }
}

/// Word for logs and metrics.
fn kind_of(task: &v1::Task) -> &'static str {
    match task.work {
        Some(v1::task::Work::Copy(_)) => "copy",
        Some(v1::task::Work::Build(_)) => "build",
        Some(v1::task::Work::Verify(_)) => "verify",
        None => "none",
    }
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Copied { .. } => "copied",
            Self::Built => "built",
            Self::Verified { .. } => "verified",
        }
    }
}

impl From<&Outcome> for v1::complete_task_request::Result {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Copied { rows, bytes } => {
                Self::Copy(v1::CopyResult { rows: *rows, bytes: *bytes })
            }
            Outcome::Built => Self::Build(v1::BuildResult {}),
            Outcome::Verified { source, target, differences } => Self::Verify(v1::VerifyResult {
                source_rows: source.rows,
                target_rows: target.rows,
                source_digest: source.to_bytes(),
                target_digest: target.to_bytes(),
                differences: differences.clone(),
            }),
        }
    }
}
