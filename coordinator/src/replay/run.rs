//! Replay as a component: passes over the spool until told to stop.
//!
//! ```text
//! positions (target) -> reader -> dispatch -> lanes -> watermark -> status, release
//!      ^                                         |
//!      +--- transient: again from the positions -+--- definite: fault, Err
//! ```
//! Promise: whatever is lost (session, server, process), the next pass begins at the positions that
//! the target holds; nothing is applied twice and nothing is left out. Cancelled at any point, no
//! transaction is half done.

use super::{
    apply::Applier,
    dispatch::{Dispatcher, Outcome, Parts},
    error::{Error, Result},
    feed::read_ahead,
    lane::{Committed, Lane},
    lanes::Lanes,
    position::{self, Positions},
    relation::RelationPlan,
    route::Routing,
    spool::Spool,
    table,
    transaction::Decoder,
    trigger,
    watermark::{self, Watermark},
};
use crate::migration::context::Context;
use pg::{PgLsn, Session, Settings, TableName, sql};
use proto::{
    status::{Classify, ErrorClass, Report},
    v1::ApplyOrder,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Pauses between two passes after a transient failure: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How long the parts of a failed pass may take to say why, before the first word counts.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Replays one migration's changes.
#[derive(Debug)]
pub struct Replay {
    inputs: Inputs,
    status: watch::Sender<ReplayStatus>,
}

/// What others see of it.
#[derive(Clone, Debug)]
pub struct ReplayHandle {
    pub status: watch::Receiver<ReplayStatus>,
}

/// How far replay is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayStatus {
    /// Watermark: every transaction with `end_lsn <=` it is committed and flushed on the target.
    /// None until the positions were read.
    pub applied_lsn: Option<PgLsn>,
    /// Since this replay was started.
    pub transactions: u64,
    pub changes: u64,
    /// Commit time on the source of the latest applied transaction, microseconds since 2000.
    pub last_commit_time_us: i64,
    /// Every lane is at or past the end position, flushed.
    pub drained: bool,
    /// Changes after the end position, by table of the source.
    pub late_writes: Vec<(TableName, u64)>,
    /// What stopped replay, or what it is trying again.
    pub fault: Option<Report>,
}

/// What [`Replay::new`] takes.
#[derive(Debug)]
pub struct Inputs {
    pub context: Context,
    pub spool: Spool,
    pub relations: Vec<RelationPlan>,
    /// Consistent point of the main slot: where lanes begin.
    pub start: PgLsn,
    /// Apply lanes; one where `order` is by commit.
    pub lanes: u16,
    pub order: ApplyOrder,
    pub end_position: watch::Receiver<Option<PgLsn>>,
    pub paused: watch::Receiver<bool>,
}

impl Replay {
    pub fn new(inputs: Inputs) -> (Self, ReplayHandle) {
        let (status, seen) = watch::channel(ReplayStatus::default());
        (Self { inputs, status }, ReplayHandle { status: seen })
    }

    /// Replays until cancelled.
    ///
    /// # Errors
    /// A definite fault (also in the status): run anew after `resume`. [`Error::Fenced`] when a
    /// newer coordinator acts.
    pub async fn run(self, token: CancellationToken) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        let mut one_by_one_until = None;
        loop {
            let applied_before = self.status.borrow().applied_lsn;
            // 1 stop   2 a pass
            let passed = tokio::select! { biased;
                () = token.cancelled() => return Ok(()),
                passed = self.pass(one_by_one_until) => passed,
            };
            let error = match passed {
                Ok(Outcome::EndMoved) => continue,
                Err(Error::Bulk { end_lsn, source }) => {
                    tracing::info!(%end_lsn, error = %source, "transaction tried one by one");
                    one_by_one_until = Some(end_lsn);
                    continue;
                }
                Err(error) => error,
            };
            let report = error.report();
            match report.class {
                ErrorClass::Transient | ErrorClass::Conflict => {}
                ErrorClass::Fenced | ErrorClass::Definite | ErrorClass::Bug => {
                    self.settle().await;
                    self.status.send_modify(|status| status.fault = Some(report));
                    return Err(error);
                }
            }
            tracing::warn!(error = %report, detail = %report.detail, "replay begins again");
            self.status.send_modify(|status| status.fault = Some(report));
            if self.status.borrow().applied_lsn > applied_before {
                pause = FIRST_PAUSE;
            }
            tokio::select! { biased;
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// From the positions in the target until something ends it. Everything it started ends with it.
    async fn pass(&self, one_by_one_until: Option<PgLsn>) -> Result<Outcome> {
        let inputs = &self.inputs;
        let session = self.session("positions", 0, true).await?;
        let names: BTreeSet<TableName> =
            inputs.relations.iter().map(|plan| plan.target.clone()).collect();
        let names: Vec<TableName> = names.into_iter().collect();
        let tables = table::read(&session, &names)
            .await
            .map_err(Error::target("read the target's tables"))?;
        // After the end position nothing is applied, and cutover enables what fires.
        if inputs.end_position.borrow().is_none() {
            trigger::check(&session, &names).await?;
        }
        let lanes = if inputs.order == ApplyOrder::Commit { 1 } else { inputs.lanes };
        let wanted = Routing::of(lanes, tables.values().map(|table| &**table));
        let epoch = inputs.context.epoch;
        let Positions { lanes: positions, routing } =
            position::take(&session, epoch, inputs.start, &wanted).await?;

        let mut tasks: JoinSet<Result<Outcome>> = JoinSet::new();
        let (committed, commits) = mpsc::channel(64);
        let mut work = Vec::new();
        for lane in 0..positions.len() {
            let (sender, receiver) = mpsc::channel(1);
            let applier = Applier::new(self.session("apply", lane, false).await?).await?;
            let lane = Lane { lane, epoch, applier, work: receiver, committed: committed.clone() };
            tasks.spawn(async move { lane.run().await.and(Err(Error::Lost("lane"))) });
            work.push(sender);
        }
        drop(committed);

        let after = positions.iter().copied().min().unwrap_or(inputs.start);
        let reader = inputs.spool.reader(after);
        let (chunk_sender, chunks) = mpsc::channel(2);
        tasks.spawn(async move {
            read_ahead(reader, chunk_sender).await.and(Err(Error::Lost("reader")))
        });

        let (late, mut late_writes) = watch::channel(BTreeMap::new());
        let follow =
            watermark::follow(session, Watermark::new(positions.clone()), commits, self.mover());
        tasks.spawn(async move { follow.await.and(Err(Error::Lost("watermark"))) });
        let dispatcher = Dispatcher::new(Parts {
            decoder: Decoder::new(&inputs.relations, tables, routing.clone()),
            lanes: Lanes::new(routing, work, positions, one_by_one_until),
            end_position: inputs.end_position.clone(),
            paused: inputs.paused.clone(),
            late,
        });
        tasks.spawn(dispatcher.run(chunks));
        self.status.send_modify(|status| status.late_writes.clear());
        let mut end_position = inputs.end_position.clone();
        loop {
            // 1 a part ended   2 late writes   3 another end
            tokio::select! { biased;
                Some(ended) = tasks.join_next() => {
                    return first_word(ended.unwrap_or(Err(Error::Lost("task"))), &mut tasks).await;
                }
                Ok(()) = late_writes.changed() => {
                    let late = late_writes.borrow_and_update().clone();
                    self.status.send_modify(|status| {
                        status.late_writes = late.into_iter().collect();
                    });
                }
                Ok(()) = end_position.changed() => {
                    let end = *end_position.borrow_and_update();
                    self.status.send_modify(|status| status.drained = is_drained(status, end));
                }
            }
        }
    }

    /// Makes what is committed durable: a person may now mend the target for the change that
    /// comes next, and it must not fall back behind it. Where the target is gone there is nothing
    /// to be done.
    async fn settle(&self) {
        let settled = async {
            let session = self.session("positions", 0, true).await?;
            position::settle(&session).await
        };
        if let Err(error) = settled.await {
            tracing::debug!(%error, "positions were not settled");
        }
    }

    /// Carries the watermark into status and spool.
    fn mover(&self) -> impl Fn(PgLsn, &[Committed]) + Send + use<> {
        let status = self.status.clone();
        let spool = self.inputs.spool.clone();
        let end_position = self.inputs.end_position.clone();
        move |applied_lsn, counted| {
            let end = *end_position.borrow();
            status.send_modify(|status| {
                status.applied_lsn = Some(applied_lsn);
                for committed in counted {
                    status.transactions += committed.transactions;
                    status.changes += committed.changes;
                    status.last_commit_time_us =
                        status.last_commit_time_us.max(committed.commit_time_us);
                }
                // The target answers again.
                status.fault = None;
                status.drained = is_drained(status, end);
            });
            spool.release(applied_lsn);
        }
    }

    async fn session(&self, role: &str, id: usize, synchronous_commit: bool) -> Result<Session> {
        let context = &self.inputs.context;
        let mut settings = Settings::write(context.session_name(role, id))
            .encoding(crate::migration::context::UTF_8);
        settings.synchronous_commit = synchronous_commit;
        settings.replica_role = true;
        let connected = match Session::connect(&context.target, &settings).await {
            // Without the right: foreign keys and triggers are added at cutover anyway.
            Err(error) if error.sqlstate() == Some("42501") => {
                settings.replica_role = false;
                Session::connect(&context.target, &settings).await
            }
            connected => connected,
        };
        let session = connected.map_err(Error::target("open a session"))?;
        if context.is_without_encoding() {
            // Bytes pass into a target of the same kind, and are checked by any other.
            let as_server = sql!(
                "select set_config('client_encoding', current_setting('server_encoding'), false)"
            );
            session.batch(&as_server).await.map_err(Error::target("set the encoding"))?;
        }
        Ok(session)
    }
}

fn is_drained(status: &ReplayStatus, end: Option<PgLsn>) -> bool {
    end.is_some_and(|end| status.applied_lsn.is_some_and(|applied| applied >= end))
}

/// Of the parts that end together, the one that knows why.
async fn first_word(
    first: Result<Outcome>,
    tasks: &mut JoinSet<Result<Outcome>>,
) -> Result<Outcome> {
    let mut word = first;
    let deadline = tokio::time::Instant::now() + LAST_WORDS;
    while matches!(word, Err(Error::Lost(_))) {
        match tokio::time::timeout_at(deadline, tasks.join_next()).await {
            Ok(Some(Ok(Err(Error::Lost(_))))) => {}
            Ok(Some(Ok(other))) => word = other,
            Ok(Some(Err(_)) | None) | Err(_) => break,
        }
    }
    word
}
