//! The ways out: cutover, abort, cleanup.
//!
//! ```text
//! cut_over: Cutover (fence, end position, open) with replay's drain and the schema's last stage
//!           opened -> Done; lifted -> Ready
//! tear_down: everything of ours on the source; clean_up: that, schema skein, the record
//! ```

mod parts;

use super::{
    connect::TARGET_TAKEN,
    context::Context,
    cutover::{self, Cutover, Outcome, State, fence},
    flow::{Flow, LOOK},
    phase::{Event, Phase},
    provision::{ORIGINALS, filter_of, read_step},
    teardown::{self, Scope},
};
use crate::{
    clock,
    lease::Leases,
    replay::run::ReplayStatus,
    schema::{Schema, Stage},
    store::record::CutoverOutcome,
};
use parts::Ours;
use pg::PgLsn;
use proto::{
    status::{Classify as _, ErrorClass, Report},
    v1,
};
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Status of replay, and its end position.
type Replaying = (watch::Receiver<ReplayStatus>, watch::Sender<Option<PgLsn>>);

/// Whether every table's rows are in: those of one that came late are copied in any phase.
fn all_copied(leases: &Leases) -> Result<(), Report> {
    match leases.unfinished_through(i32::MAX) {
        0 => Ok(()),
        tasks => Err(Report::definite("COPY_UNFINISHED", "tables are still being copied")
            .with_detail(format!("{tasks} tasks of tables that came late are not finished."))
            .with_hint("See: skein status. When they are in, run: skein cutover")),
    }
}

impl Flow {
    /// What a cutover would do, or why it cannot.
    pub(super) async fn cutover_plan(&mut self, fence: bool) -> Result<Vec<String>, Report> {
        let context = self.context().await?;
        self.leases(&context).await.and_then(|leases| all_copied(&leases))?;
        let source = fence::session(&context)
            .await
            .map_err(|error| super::connect::refused("reach the source", &error))?;
        let plan = fence::plan(&source, &context, fence).await.map_err(|error| error.report())?;
        if !plan.missing.is_empty() {
            return Err(cutover::Error::NotPermitted { missing: plan.missing }.report());
        }
        if !plan.prepared.is_empty() {
            return Err(cutover::Error::PreparedTransaction { gids: plan.prepared }.report());
        }
        Ok(plan.actions)
    }

    pub(super) async fn cut_over(
        &mut self,
        attempt: u32,
        fence: bool,
        timeout_s: u32,
    ) -> Result<Event, Report> {
        let context = self.context().await?;
        let filter = filter_of(&context)?;
        let ready = self.ready_to_drain(&context).await;
        let not_moved = Arc::default();
        let target = self.target(&context, "cutover").await?;
        let (replay, end_position, refusal) = match ready {
            Ok((replay, end_position)) => (replay, end_position, None),
            // Without replay there is nothing to drain; what is there is only lifted.
            Err(report) => {
                let replay = watch::channel(ReplayStatus::default()).1;
                (replay, watch::channel(None).0, Some(report))
            }
        };
        let parts = Ours {
            context: context.clone(),
            replay,
            end_position,
            shared: Arc::clone(self.shared()),
            originals: read_step(&target, ORIGINALS).await?.unwrap_or_default(),
            not_moved: Arc::clone(&not_moved),
        };
        let request =
            cutover::Request { attempt, fence, timeout: Duration::from_secs(timeout_s.into()) };
        if let Some(report) = refusal {
            let now = cutover::attempt::read(&target).await.map_err(|error| error.report())?;
            let may_pass = matches!(report.class, ErrorClass::Transient | ErrorClass::Conflict);
            if report.class == ErrorClass::Fenced || (may_pass && !now.is_overdue()) {
                return Err(report);
            }
            let outcome = Cutover::new(&context, &filter, request, parts).give_up(report).await;
            return self.record_outcome(attempt, outcome.map_err(|error| error.report())?).await;
        }
        drop(target);
        self.show_lift_sql(&context, timeout_s, fence).await;
        let cutover = Cutover::new(&context, &filter, request, parts);
        let run = cutover.run();
        tokio::pin!(run);
        let outcome = loop {
            tokio::select! {
                outcome = &mut run => break outcome.map_err(|error| error.report())?,
                // A fault of replay reaches the cutover through its status; here it is shown.
                () = tokio::time::sleep(LOOK) => drop(self.check_stream()),
            }
        };
        let notes = std::mem::take(&mut *not_moved.lock().unwrap_or_else(PoisonError::into_inner));
        self.note_not_moved(notes).await?;
        self.record_outcome(attempt, outcome).await
    }

    /// Replay's status, and where it takes an end position.
    async fn ready_to_drain(&mut self, context: &Context) -> Result<Replaying, Report> {
        // A table that came late may be half copied: it must not be replayed into.
        self.leases(context).await.and_then(|leases| all_copied(&leases))?;
        self.ensure_receiving(context).await?;
        // After a restart, too, nothing behind a fixed end is applied: the target may be open.
        let target = self.target(context, "cutover").await?;
        let now = cutover::attempt::read(&target).await.map_err(|error| error.report())?;
        let stands = matches!(now.state, State::Fenced | State::Lifting | State::Opened);
        if let (true, Some(end), Some(stream)) = (stands, now.end_position, &self.stream) {
            stream.set_end_position(Some(end));
        }
        self.ensure_replaying(context).await?;
        let Some(stream) = &self.stream else {
            return Err(Report::definite("STREAM_ENDED", "stream is not received")
                .with_class(ErrorClass::Transient));
        };
        let Some(replay) = stream.status() else {
            return Err(Report::definite("REPLAY_ENDED", "replay does not run")
                .with_class(ErrorClass::Transient));
        };
        Ok((replay, stream.end_position()))
    }

    /// While held in a cutover nobody runs the attempt: its fence goes at its deadline all the
    /// same.
    pub(super) async fn lift_if_overdue(&self, context: &Context) {
        if !matches!(self.record().phase, Phase::CuttingOver { .. }) {
            return;
        }
        if let Err(error) = cutover::lift_overdue(context).await {
            tracing::warn!(error = %error, "overdue fence is not lifted yet");
        }
    }

    /// Lifts the fence of an attempt that is held, so that the migration can be aborted.
    pub(super) async fn lift_to_abort(&mut self) -> Result<(), Report> {
        let context = self.context().await?;
        let refused = |error: pg::Error| super::connect::refused("lift the fence", &error);
        let source = fence::session(&context).await.map_err(refused)?;
        let target = self.target(&context, "lift").await?;
        let lifted =
            cutover::lift(&source, &target, &context).await.map_err(|error| error.report())?;
        match lifted {
            cutover::Lifted::Done => Ok(()),
            cutover::Lifted::TargetIsOpen => {
                Err(Report::definite("TARGET_OPEN", "could not abort: the target is open")
                    .with_hint("Run: skein resume, then: skein cleanup"))
            }
        }
    }

    /// Number of the next attempt: past those that the record or the target knows.
    pub(super) async fn next_attempt(&mut self) -> Result<u32, Report> {
        let context = self.context().await?;
        let target = self.target(&context, "attempt").await?;
        let known = cutover::attempt::read(&target).await.map_err(|error| error.report())?;
        Ok(self.record().attempt.max(known.number) + 1)
    }

    /// Shown while the fence stands: how a person lifts it.
    async fn show_lift_sql(&self, context: &Context, timeout_s: u32, fence: bool) {
        if !fence {
            return;
        }
        let Ok(source) = fence::session(context).await else { return };
        let Ok(target) = self.target(context, "lift").await else { return };
        let timeout = Duration::from_secs(timeout_s.into());
        let Ok(lift) = cutover::lift_by_hand(&source, &target, context, timeout).await else {
            return;
        };
        let deadline = clock::timestamp(clock::now() + lift.remaining.as_secs());
        self.shared().set_lift_sql(lift.sql, Some(deadline));
    }

    async fn record_outcome(&mut self, attempt: u32, outcome: Outcome) -> Result<Event, Report> {
        match outcome {
            Outcome::Opened(opened) => {
                let steps = opened
                    .steps
                    .into_iter()
                    .map(|step| v1::CutoverStep { name: step.name, seconds: step.seconds })
                    .collect();
                let end_position = opened.end_position;
                super::meter::writes_stopped(&self.record().spec.name, opened.writes_stopped_s);
                self.change(|record| {
                    record.cutover = Some(CutoverOutcome {
                        attempt,
                        state: "opened".to_owned(),
                        steps,
                        writes_stopped_s: opened.writes_stopped_s,
                        end_position: Some(end_position.to_string()),
                        lift_sql: opened.unfence_sql.clone(),
                    });
                })
                .await?;
                self.shared().set_lift_sql(opened.unfence_sql, None);
                Ok(Event::Opened { end_position })
            }
            Outcome::NotOpened { cause } => {
                tracing::warn!(attempt, cause = %cause, detail = %cause.detail, "cutover was lifted");
                let notice = format!(
                    "Cutover attempt {attempt} was lifted: {}. {} {}",
                    cause.primary, cause.detail, cause.hint
                );
                self.change(|record| {
                    record.notices.push(notice.trim_end().to_owned());
                    record.cutover = Some(CutoverOutcome {
                        attempt,
                        state: "lifted".to_owned(),
                        ..CutoverOutcome::default()
                    });
                })
                .await?;
                self.shared().set_lift_sql(String::new(), None);
                if let Some(stream) = &self.stream {
                    stream.set_end_position(None);
                }
                // What came since the last survey may be why.
                self.survey.now();
                Ok(Event::FenceLifted)
            }
        }
    }

    /// What a teardown would drop.
    pub(super) async fn teardown_plan(&mut self, scope: Scope) -> Result<Vec<String>, Report> {
        let Some(context) = self.context_to_tear_down().await? else { return Ok(Vec::new()) };
        teardown::plan(&context, scope).await.map_err(|error| error.report())
    }

    /// None where nothing of ours was ever made: nothing is before the target is claimed, and one
    /// that is another migration's was not.
    async fn context_to_tear_down(&mut self) -> Result<Option<Context>, Report> {
        let record = self.record();
        if record.phase == Phase::Preflight || (record.phase == Phase::Aborted && !record.started) {
            return Ok(None);
        }
        match self.context().await {
            Ok(context) => Ok(Some(context)),
            Err(report) if report.reason == TARGET_TAKEN => Ok(None),
            Err(report) => Err(report),
        }
    }

    /// Takes back what stands on the source.
    pub(super) async fn tear_down(&mut self) -> Result<Event, Report> {
        self.shared().set_activity("taking back what was made on the source");
        let Some(context) = self.context_to_tear_down().await? else { return Ok(Event::TornDown) };
        self.let_go().await;
        self.stop_observing().await;
        let torn = teardown::run(&context, Scope::Abort).await.map_err(|error| error.report())?;
        self.change(|record| {
            record.snapshots.clear();
            record.notices.extend(torn.notices);
        })
        .await?;
        Ok(Event::TornDown)
    }

    /// Takes back everything but the moved database, and forgets the migration.
    pub(super) async fn clean_up(&mut self) -> Result<(), Report> {
        if let Some(context) = self.context_to_tear_down().await? {
            self.let_go().await;
            self.stop_observing().await;
            teardown::run(&context, Scope::Cleanup).await.map_err(|error| error.report())?;
        }
        self.forget().await
    }

    /// Validates the foreign keys that were added unvalidated, once the target is open.
    pub(super) async fn after_open(&mut self, context: &Context) -> Result<(), Report> {
        self.shared().set_activity("validating foreign keys on the open target");
        let schema = Schema::new(context.clone());
        let (archive, _) = schema.archive().await.map_err(|error| error.report())?;
        let notes =
            schema.restore(Stage::AfterOpen, &archive).await.map_err(|error| error.report())?;
        self.note_not_moved(notes).await
    }
}
