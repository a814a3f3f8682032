//! The stream's parts: receiver into spool, and replay from it.
//!
//! ```text
//! source --Receiver--> Spool --Replay--> target
//!             ^          |        |
//!             |       release <-- applied_lsn
//!             +-- confirms what is durable in the spool
//! ```
//! Promise: a part that ends is started again, a fault of it stops the step that runs, and the
//! receiver goes on whatever replay does.

use super::{connect::refused, context::Context, flow::Flow, shared::Shared};
use crate::{
    clock,
    plan::Leaf,
    replay::{
        receive::{self, Receiver, ReceiverHandle},
        relation::RelationPlan,
        run::{Inputs, Replay, ReplayHandle, ReplayStatus},
        spool::{self, Spool},
    },
};
use pg::{PgLsn, sql, walsender::PgoutputOptions};
use proto::{
    status::{Classify as _, ErrorClass, Report},
    v1,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Apply lanes when the spec says nothing.
const DEFAULT_LANES: u16 = 4;

/// See the module.
#[derive(Debug)]
pub struct Stream {
    pub spool: Spool,
    receiver: ReceiverHandle,
    replay: Option<ReplayHandle>,
    /// Transactions and changes of replays that ended before this one.
    earlier: (u64, u64),
    /// The watermark, for the receiver.
    applied: watch::Sender<PgLsn>,
    end_position: watch::Sender<Option<PgLsn>>,
    paused: watch::Sender<bool>,
    receiving: JoinSet<Result<(), Report>>,
    replaying: JoinSet<Result<(), Report>>,
    token: CancellationToken,
    replay_token: CancellationToken,
}

impl Stream {
    /// Opens the spool and starts receiving into it.
    fn start(context: &Context, spool: Spool) -> Self {
        let token = CancellationToken::new();
        let config = receive::Config {
            source: context.source.clone(),
            name: context.session_name("receive", 0),
            client_encoding: context.stream_encoding().to_owned(),
            options: PgoutputOptions::new([
                context.full_publication(),
                context.append_publication(),
            ]),
            retain: receive::Retain::Spool,
        };
        let applied = watch::channel(spool.identity().consistent_point).0;
        let (receiver, handle) = Receiver::new(config, spool.clone(), applied.subscribe());
        let mut receiving = JoinSet::new();
        let stop = token.child_token();
        receiving.spawn(async move { receiver.run(stop).await.map_err(|error| error.report()) });
        let replay_token = token.child_token();
        Self {
            spool,
            receiver: handle,
            replay: None,
            earlier: (0, 0),
            applied,
            end_position: watch::channel(None).0,
            paused: watch::channel(false).0,
            receiving,
            replaying: JoinSet::new(),
            token,
            replay_token,
        }
    }

    /// Starts replay, if it does not run.
    fn replay(&mut self, context: &Context, relations: Vec<RelationPlan>) {
        if self.replay.is_some() {
            return;
        }
        let options = context.spec.replay.unwrap_or_default();
        let lanes = u16::try_from(options.lanes).unwrap_or(DEFAULT_LANES);
        let inputs = Inputs {
            context: context.clone(),
            spool: self.spool.clone(),
            relations,
            start: self.spool.identity().consistent_point,
            lanes: if lanes == 0 { DEFAULT_LANES } else { lanes },
            order: options.order(),
            end_position: self.end_position.subscribe(),
            paused: self.paused.subscribe(),
        };
        let (replay, handle) = Replay::new(inputs);
        self.replay_token = self.token.child_token();
        let stop = self.replay_token.clone();
        self.replaying.spawn(async move { replay.run(stop).await.map_err(|error| error.report()) });
        self.replay = Some(handle);
    }

    /// Holds replay, or lets it go on. Receiving goes on either way.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Nothing after `end` is applied. None: everything is.
    pub fn set_end_position(&self, end: Option<PgLsn>) {
        self.end_position.send_replace(end);
    }

    /// Where the end position is set from elsewhere.
    pub fn end_position(&self) -> watch::Sender<Option<PgLsn>> {
        self.end_position.clone()
    }

    /// How far replay is, while it runs.
    pub fn status(&self) -> Option<watch::Receiver<ReplayStatus>> {
        self.replay.as_ref().map(|handle| handle.status.clone())
    }

    /// Ends replay; the next step starts it where it was.
    pub async fn stop_replay(&mut self) {
        self.replay_token.cancel();
        while self.replaying.join_next().await.is_some() {}
        self.end_replay();
    }

    /// Forgets a replay that ended, but for what it counted.
    fn end_replay(&mut self) {
        if let Some(handle) = self.replay.take() {
            let status = handle.status.borrow();
            self.earlier.0 += status.transactions;
            self.earlier.1 += status.changes;
        }
    }

    /// A replay that ended at a fault is started anew by the next step.
    pub fn forget_fault(&mut self) {
        while self.replaying.try_join_next().is_some() {}
        if self.replaying.is_empty() {
            self.end_replay();
        }
    }

    /// Carries positions and counts into the view; the fault of a part is an error.
    ///
    /// # Errors
    /// What stopped receiver or replay.
    pub fn check(&mut self, shared: &Shared) -> Result<(), Report> {
        let received = self.receiver.state.borrow().clone();
        let applied = self.status().map(|status| status.borrow().clone());
        let trouble = |fault: Option<&Report>| {
            fault.map(|fault| format!("{}: {}", fault.primary, fault.detail)).unwrap_or_default()
        };
        if let Some(lsn) = applied.as_ref().and_then(|applied| applied.applied_lsn) {
            self.applied.send_if_modified(|known| std::mem::replace(known, lsn) != lsn);
        }
        shared.change_stream(|view| {
            view.receive_trouble = trouble(received.fault.as_ref());
            view.replay_trouble =
                trouble(applied.as_ref().and_then(|applied| applied.fault.as_ref()));
            view.space = *self.spool.space().borrow();
            view.received_lsn = received.received_lsn.into();
            view.confirmed_flush_lsn = received.confirmed_flush_lsn.into();
            view.spooled_lsn = self.spool.spooled_lsn().into();
            view.spool_bytes = self.spool.bytes();
            view.end_lsn = self.end_position.borrow().map_or(0, u64::from);
            if let Some(applied) = &applied {
                if let Some(lsn) = applied.applied_lsn {
                    view.applied_lsn = lsn.into();
                }
                view.transactions = self.earlier.0 + applied.transactions;
                view.changes = self.earlier.1 + applied.changes;
                view.lag_s =
                    clock::lag_s(applied.last_commit_time_us, view.source_lsn > view.applied_lsn);
                view.late_writes = applied
                    .late_writes
                    .iter()
                    .map(|(table, changes)| v1::LateWrite {
                        table: table.to_string(),
                        changes: *changes,
                    })
                    .collect();
            }
        });
        while let Some(ended) = self.replaying.try_join_next() {
            self.end_replay();
            ended.unwrap_or_else(|error| Err(crashed("replay", &error)))?;
        }
        while let Some(ended) = self.receiving.try_join_next() {
            ended.unwrap_or_else(|error| Err(crashed("receiver", &error)))?;
        }
        if self.receiving.is_empty() {
            return Err(Report::definite("RECEIVER_ENDED", "receiver ended")
                .with_class(ErrorClass::Transient));
        }
        Ok(())
    }

    /// Ends receiver and replay; the spool stays.
    pub async fn stop(mut self) {
        self.token.cancel();
        while self.replaying.join_next().await.is_some() {}
        while self.receiving.join_next().await.is_some() {}
    }

    fn is_running(&self) -> bool {
        !self.receiving.is_empty()
    }
}

fn crashed(part: &str, error: &tokio::task::JoinError) -> Report {
    Report::definite("CRASHED", format!("{part} ended unexpectedly"))
        .with_class(ErrorClass::Bug)
        .with_detail(format!("{error}."))
}

/// Reason of a leader that has not the spool.
const SPOOL_ELSEWHERE: &str = "SPOOL_ELSEWHERE";

/// Confirmations rest on another coordinator's spool: to receive without it would lose what only
/// it holds (rules, part 4). The source keeps its WAL meanwhile.
fn elsewhere(spool_id: &str) -> Report {
    Report::definite(SPOOL_ELSEWHERE, "changes wait for the coordinator that holds the spool")
        .with_class(ErrorClass::Transient)
        .with_detail(format!(
            "Spool {spool_id} is not in this coordinator's directory; the source keeps its WAL."
        ))
        .with_hint("Start the coordinator that has it, then stop this one: it takes over.")
}

impl Flow {
    /// The same, but a spool that is elsewhere is said and not waited for: rows are copied
    /// without the stream.
    pub(super) async fn receive_or_wait(&mut self, context: &Context) -> Result<(), Report> {
        match self.ensure_receiving(context).await {
            Err(report) if report.reason == SPOOL_ELSEWHERE => {
                let line = format!("{report}. {}", report.detail);
                if self.shared().stream().receive_trouble != line {
                    tracing::warn!(detail = %report.detail, "{report}");
                }
                self.shared().change_stream(|view| view.receive_trouble = line);
                Ok(())
            }
            ended => ended,
        }
    }

    /// The receiver runs into the spool that the record names.
    pub(super) async fn ensure_receiving(&mut self, context: &Context) -> Result<(), Report> {
        if self.stream.as_ref().is_some_and(Stream::is_running) {
            return Ok(());
        }
        if let Some(stream) = self.stream.take() {
            stream.stop().await;
        }
        let recorded = self.record().stream.as_ref().map(|stream| stream.spool_id.clone());
        let opened = Spool::open(&self.spool_dir(), super::provision::limit_of(context));
        let is_ours = opened
            .as_ref()
            .is_ok_and(|spool| recorded.as_deref() == Some(spool.identity().spool_id.as_str()));
        let is_elsewhere = match &opened {
            Ok(_) => !is_ours,
            Err(error) => matches!(error, spool::Error::Missing { .. }),
        };
        if is_elsewhere
            && self.fleet.has_several()
            && let Some(spool_id) = &recorded
        {
            return Err(elsewhere(spool_id));
        }
        let spool = opened.map_err(|error| error.report())?;
        if recorded.as_deref() != Some(spool.identity().spool_id.as_str()) {
            return Err(Report::definite(
                "SPOOL_OTHER",
                "spool is not the one that the record names",
            )
            .with_detail("Confirmations to the slot rest on another spool.")
            .with_hint("Put that spool back into the state directory, and run: skein resume"));
        }
        self.stream = Some(Stream::start(context, spool));
        Ok(())
    }

    /// Replay runs, under the relations' consistent points as the target has them.
    pub(super) async fn ensure_replaying(&mut self, context: &Context) -> Result<(), Report> {
        let running = self.stream.as_ref().is_some_and(|stream| stream.replay.is_some());
        if running {
            return Ok(());
        }
        let session = self.target(context, "relations").await?;
        let rows = session
            .query(&sql!("select plan::text, consistent_point from skein.relation"), &[])
            .await
            .map_err(|error| refused("read the plan", &error))?;
        let mut relations = Vec::new();
        for row in rows {
            let leaf: Leaf = serde_json::from_str(row.get(0)).map_err(|error| {
                Report::definite("PLAN_UNREADABLE", "plan of a table cannot be read")
                    .with_class(ErrorClass::Bug)
                    .with_detail(format!("{error}."))
            })?;
            relations.push(RelationPlan {
                relid: leaf.relid,
                source: leaf.source,
                target: leaf.target,
                consistent_point: row.get(1),
                append_only: leaf.append_only,
                through_root: leaf.through_root,
                partition_constraint: leaf.partition_constraint,
            });
        }
        if let Some(stream) = &mut self.stream {
            stream.pause(false);
            stream.replay(context, relations);
        }
        Ok(())
    }

    /// Replay runs on with its end fixed, so that what comes after it is counted.
    pub(super) async fn watch_late_writes(
        &mut self,
        context: &Context,
        end_position: PgLsn,
    ) -> Result<(), Report> {
        if let Some(stream) = &self.stream {
            stream.set_end_position(Some(end_position));
        }
        self.ensure_replaying(context).await
    }
}
