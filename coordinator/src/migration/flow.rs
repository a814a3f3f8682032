//! The steps of one migration, and what lives across them.
//!
//! ```text
//! preflight -> provision -> copying -> catch_up -> ready <-> cutover -> done
//! lives across them: Context (epoch), snapshots, Leases, stream (receiver, spool, replay), observer
//! ```
//! Each step finds out by itself what it had done before; see the file of its name.

use super::{
    connect,
    context::Context,
    driver::not_stored,
    observe,
    phase::{Event, Phase},
    preflight,
    shared::Shared,
    snapshots::Snapshots,
    stream::Stream,
};
use crate::{
    fleet::Fleet,
    lease::{Finding, Leases},
    secret,
    store::record::{Record, Stored},
};
use pg::Session;
use proto::status::{Classify as _, Report};
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

/// Pause between two looks of a step that waits for something.
pub const LOOK: Duration = Duration::from_millis(200);

/// Pause between two looks at receiver, fence and snapshots while a migration is held.
const LOOK_WHILE_HELD: Duration = Duration::from_secs(5);

/// Lag under which a cutover begins, when the spec says nothing: about a second of a busy
/// source's WAL.
const DEFAULT_MAX_LAG_BYTES: u64 = 16 << 20;

/// Seconds after which a fence is lifted, when the spec says nothing.
const DEFAULT_CUTOVER_TIMEOUT_S: u32 = 60;

/// See the module.
#[derive(Debug)]
pub struct Flow {
    stored: Stored,
    shared: Arc<Shared>,
    pub(super) fleet: Arc<Fleet>,
    dir: PathBuf,
    context: Option<Context>,
    pub(super) snapshots: Snapshots,
    pub(super) stream: Option<Stream>,
    pub(super) survey: super::tables::Survey,
    /// How often a relation was rewritten under its copy.
    pub(super) rewrites: HashMap<u32, u32>,
    /// Copies small tables as soon as the next snapshot is there.
    pub(super) still: Option<super::copying::still::Still>,
    background: JoinSet<()>,
    token: CancellationToken,
}

impl Flow {
    pub fn new(stored: Stored, shared: Arc<Shared>, fleet: Arc<Fleet>, dir: PathBuf) -> Self {
        Self {
            stored,
            shared,
            fleet,
            dir,
            context: None,
            snapshots: Snapshots::default(),
            stream: None,
            survey: super::tables::Survey::default(),
            rewrites: HashMap::new(),
            still: None,
            background: JoinSet::new(),
            token: CancellationToken::new(),
        }
    }

    pub fn record(&self) -> &Record {
        &self.stored.record
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Changes the record: durable first, then here, then in the view.
    ///
    /// # Errors
    /// When the store refuses; nothing is changed then.
    pub async fn change(&mut self, edit: impl FnOnce(&mut Record)) -> Result<(), Report> {
        self.stored.change(edit).await.map_err(|error| not_stored(&error))?;
        self.shared.set_record(self.stored.record.clone());
        Ok(())
    }

    /// The step of the phase; or, while held, what goes on all the same.
    ///
    /// # Errors
    /// As [`Flow::step`] and [`Flow::idle`].
    pub async fn work(&mut self, held: bool) -> Result<Option<Event>, Report> {
        if held { self.idle().await.map(|()| None) } else { self.step().await.map(Some) }
    }

    /// Runs the step of the phase. Safe to drop at any await.
    ///
    /// # Errors
    /// What stopped it; the class says whether it is tried again.
    async fn step(&mut self) -> Result<Event, Report> {
        match self.record().phase.clone() {
            Phase::Preflight => Box::pin(self.preflight()).await,
            Phase::Provisioning => Box::pin(self.provision()).await,
            Phase::Copying { .. } => Box::pin(self.copying()).await,
            Phase::CatchingUp { .. } => Box::pin(self.catch_up()).await,
            Phase::Ready => Box::pin(self.ready()).await,
            Phase::CuttingOver { attempt, fence, timeout_s } => {
                Box::pin(self.cut_over(attempt, fence, timeout_s)).await
            }
            Phase::Done { end_position } => Box::pin(self.done(end_position)).await,
            Phase::Aborting => Box::pin(self.tear_down()).await,
            Phase::Aborted => {
                self.shared.set_activity("aborted; skein cleanup drops what is left");
                std::future::pending().await
            }
        }
    }

    /// While paused or stopped at a fault: changes are still received, snapshots still held.
    ///
    /// # Errors
    /// What keeps the stream from being received; tried again.
    async fn idle(&mut self) -> Result<(), Report> {
        let record = self.record().clone();
        let over = matches!(record.phase, Phase::Aborting | Phase::Aborted);
        if record.stream.is_none() || over {
            std::future::pending::<()>().await;
        }
        let context = self.context().await?;
        let mut looked_at: Option<Instant> = None;
        loop {
            if looked_at.is_none_or(|at| at.elapsed() >= LOOK_WHILE_HELD) {
                looked_at = Some(Instant::now());
                self.lift_if_overdue(&context).await;
                Box::pin(self.receive_or_wait(&context)).await?;
                let lost = self.snapshots.keep(&context, &record, &self.fleet).await?;
                self.publish_snapshots(&context);
                if !lost.is_empty() {
                    // Copied again under a new one when it goes on.
                    tracing::warn!(?lost, "snapshot lost while held");
                }
            }
            // Positions and what troubles the receiver are shown all the same. A fault that stands
            // is not told twice; a receiver that ended begins again at the next look.
            let checked = self.check_stream();
            if record.fault.is_none() {
                checked?;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn preflight(&mut self) -> Result<Event, Report> {
        self.shared.set_activity("checking both servers");
        let spec = self.record().spec.clone();
        let source = secret::resolve("source", &spec.source)?;
        let target = secret::resolve("target", &spec.target)?;
        let checks = preflight::run(&spec, &source, &target, &self.dir).await;
        if let Some(report) = preflight::failures(&checks) {
            return Err(report);
        }
        Ok(Event::PreflightPassed)
    }

    /// Both servers, under this coordinator's epoch; the same for the life of the process.
    ///
    /// # Errors
    /// When a server cannot be reached, or the target is another migration's.
    pub async fn context(&mut self) -> Result<Context, Report> {
        if let Some(context) = &self.context {
            return Ok(context.clone());
        }
        std::fs::create_dir_all(&self.dir).map_err(|error| {
            Report::definite("DIRECTORY", format!("could not make {}", self.dir.display()))
                .with_detail(format!("{error}."))
        })?;
        let context = connect::claim(self.record(), self.dir.clone()).await?;
        // What takes everything back leaves no session of its own.
        if !matches!(self.record().phase, Phase::Aborting | Phase::Aborted) {
            self.background.spawn(observe::run(
                context.clone(),
                Arc::clone(&self.shared),
                self.token.child_token(),
            ));
        }
        self.context = Some(context.clone());
        Ok(context)
    }

    /// The plan as the target has it now: a step that was stopped between a change of the plan
    /// and its reading left an older one in memory, under which relations that are to be copied
    /// again would count as finished.
    ///
    /// # Errors
    /// When the target cannot be read.
    pub(super) async fn leases(&mut self, context: &Context) -> Result<Leases, Report> {
        if let Some(leases) = self.shared.leases() {
            leases.reload().await.map_err(|error| error.report())?;
            return Ok(leases);
        }
        let leases = Leases::load(context.clone()).await.map_err(|error| error.report())?;
        self.shared.set_leases(Some(leases.clone()));
        Ok(leases)
    }

    /// A writing session on the target for a step.
    pub(super) async fn target(&self, context: &Context, role: &str) -> Result<Session, Report> {
        context
            .target_session(role, 0)
            .await
            .map_err(|error| connect::refused("reach the target", &error))
    }

    /// Tells leases and workers which snapshots live.
    pub(super) fn publish_snapshots(&self, context: &Context) {
        self.shared.set_holds(self.snapshots.holds(context, &self.fleet));
    }

    /// A fault of the stream's parts, if there is one.
    pub(super) fn check_stream(&mut self) -> Result<(), Report> {
        match &mut self.stream {
            Some(stream) => stream.check(&self.shared),
            None => Ok(()),
        }
    }

    /// Lag in bytes under which a cutover begins.
    pub(super) fn max_lag_bytes(&self) -> u64 {
        match self.record().spec.cutover.as_ref().map_or(0, |cutover| cutover.max_lag_bytes) {
            0 => DEFAULT_MAX_LAG_BYTES,
            bytes => bytes,
        }
    }

    /// Seconds for an attempt: what was asked, else the spec's.
    pub fn cutover_timeout(&self, asked: u32) -> u32 {
        let spec = self.record().spec.cutover.as_ref().map_or(0, |cutover| cutover.timeout_s);
        [asked, spec].into_iter().find(|s| *s > 0).unwrap_or(DEFAULT_CUTOVER_TIMEOUT_S)
    }

    /// Nothing new is granted or applied from now on.
    pub fn hold(&mut self) {
        if let Some(leases) = self.shared.leases() {
            leases.close();
            leases.revoke_running();
        }
        if let Some(stream) = &self.stream {
            stream.pause(true);
        }
    }

    /// What stopped at a fault may be tried again.
    pub fn forgive(&mut self) {
        if let Some(leases) = self.shared.leases() {
            leases.forgive();
        }
        if let Some(stream) = &mut self.stream {
            stream.pause(false);
            stream.forget_fault();
        }
    }

    /// What the workers found, as far as it is a fault.
    pub(super) fn faults_of(findings: &[Finding]) -> Result<(), Report> {
        for finding in findings {
            if let Finding::Fault(report) = finding {
                return Err(report.clone());
            }
        }
        Ok(())
    }

    /// After a transient failure: nothing is kept that hides a server that came back otherwise.
    pub async fn disconnect_if_lost(&mut self) {
        self.still = None;
        self.snapshots.ping().await;
    }

    /// Ends everything that runs. The record stays where it is.
    pub async fn stop(&mut self) {
        self.token.cancel();
        if let Some(stream) = self.stream.take() {
            stream.stop().await;
        }
        while self.background.join_next().await.is_some() {}
        self.snapshots.release();
    }

    /// Begins anew towards both servers, as a restarted coordinator would: a person mended
    /// something, perhaps a password or an address. Snapshots stay held.
    pub async fn reconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.stop().await;
        }
        self.stop_observing().await;
        self.shared.set_leases(None);
        self.still = None;
    }

    /// Ends the observer, which would keep a session on the source. The next step that needs the
    /// servers starts another.
    pub(super) async fn stop_observing(&mut self) {
        self.token.cancel();
        while self.background.join_next().await.is_some() {}
        self.token = CancellationToken::new();
        self.context = None;
    }

    /// Forgets leases and what is held: after an abort, or at cleanup.
    pub(super) async fn let_go(&mut self) {
        self.still = None;
        if let Some(stream) = self.stream.take() {
            stream.stop().await;
        }
        self.snapshots.release();
        self.shared.set_leases(None);
        self.shared.set_holds(Vec::new());
    }

    /// Deletes the record and the directory of a migration whose servers are clean.
    pub(super) async fn forget(&mut self) -> Result<(), Report> {
        self.stop().await;
        let stored = self.stored.clone();
        stored.delete().await.map_err(|error| not_stored(&error))?;
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Report::definite(
                "DIRECTORY",
                format!("could not remove {}", self.dir.display()),
            )
            .with_detail(format!("{error}."))),
            _ => Ok(()),
        }
    }

    /// Where this migration keeps its files.
    pub(super) fn dir(&self) -> &std::path::Path {
        &self.dir
    }
}
