//! OperatorService: what `skein` asks.

use crate::{
    filter::Filter,
    migration::{driver::Command, preflight, spec},
    registry::{Handle, Registry},
    secret, verify,
};
use proto::{
    status::Report,
    v1::{self, operator_service_server::OperatorService},
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug)]
pub struct Operator {
    registry: Arc<Registry>,
    /// Streams that are being fed; ended with the service.
    feeds: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Operator {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, feeds: Arc::default() }
    }

    fn get(&self, name: &str) -> Result<Handle, Status> {
        Ok(self.registry.get(name)?)
    }

    async fn command(&self, name: &str, command: Command) -> Result<Handle, Status> {
        let handle = self.get(name)?;
        handle.command(command).await?;
        Ok(handle)
    }

    /// Feeds a stream from a task of this service.
    async fn feed<F>(&self, feed: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut feeds = self.feeds.lock().await;
        while feeds.try_join_next().is_some() {}
        feeds.spawn(feed);
    }
}

fn shown(handle: &Handle) -> Option<v1::Migration> {
    Some(handle.shared.migration())
}

#[tonic::async_trait]
impl OperatorService for Operator {
    async fn check_migration(
        &self,
        request: Request<v1::CheckMigrationRequest>,
    ) -> Result<Response<v1::CheckMigrationResponse>, Status> {
        let spec = request.into_inner().spec.unwrap_or_default();
        let spec = spec::checked(spec)?;
        let source = secret::resolve("source", &spec.source)?;
        let target = secret::resolve("target", &spec.target)?;
        let checks = preflight::run(&spec, &source, &target, self.registry.dir()).await;
        Ok(Response::new(v1::CheckMigrationResponse { checks }))
    }

    async fn create_migration(
        &self,
        request: Request<v1::CreateMigrationRequest>,
    ) -> Result<Response<v1::CreateMigrationResponse>, Status> {
        let spec = request.into_inner().spec.unwrap_or_default();
        let handle = self.registry.create(spec).await?;
        Ok(Response::new(v1::CreateMigrationResponse { migration: shown(&handle) }))
    }

    async fn start_migration(
        &self,
        request: Request<v1::StartMigrationRequest>,
    ) -> Result<Response<v1::StartMigrationResponse>, Status> {
        let handle = self.command(&request.into_inner().name, Command::Start).await?;
        Ok(Response::new(v1::StartMigrationResponse { migration: shown(&handle) }))
    }

    async fn list_migrations(
        &self,
        _: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsResponse>, Status> {
        let migrations = self.registry.shown().await?;
        Ok(Response::new(v1::ListMigrationsResponse { migrations }))
    }

    async fn get_migration(
        &self,
        request: Request<v1::GetMigrationRequest>,
    ) -> Result<Response<v1::GetMigrationResponse>, Status> {
        let name = request.into_inner().name;
        let handle = match self.registry.get(&name) {
            Ok(handle) => handle,
            Err(report) => {
                // A standby reads.
                let found = if self.registry.check_leading().is_ok() {
                    None
                } else {
                    self.registry.shown().await?.into_iter().find(|one| one.name == name)
                };
                let migration = Some(found.ok_or(report)?);
                return Ok(Response::new(v1::GetMigrationResponse { migration }));
            }
        };
        Ok(Response::new(v1::GetMigrationResponse { migration: shown(&handle) }))
    }

    type WatchMigrationStream = Streamed<v1::WatchMigrationResponse>;

    async fn watch_migration(
        &self,
        request: Request<v1::WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let request = request.into_inner();
        let handle = self.get(&request.name)?;
        let interval_ms = if request.interval_ms == 0 { 1000 } else { request.interval_ms };
        let interval = Duration::from_millis(interval_ms.clamp(100, 60_000).into());
        let (sender, receiver) = mpsc::channel(4);
        // A watch has no end of its own: without this one, who watches keeps us from stopping.
        let stopping = self.registry.stopping();
        self.feed(async move {
            // Phase changes and faults are sent at once, the rest at each interval.
            let look = Duration::from_millis(50).min(interval);
            let mut sent: Option<(v1::Migration, Instant)> = None;
            loop {
                let migration = handle.shared.migration();
                let due = sent.as_ref().is_none_or(|(last, at)| {
                    last.phase != migration.phase
                        || last.fault != migration.fault
                        || last.paused != migration.paused
                        || at.elapsed() >= interval
                });
                if due {
                    let response =
                        v1::WatchMigrationResponse { migration: Some(migration.clone()) };
                    if sender.send(Ok(response)).await.is_err() {
                        return;
                    }
                    sent = Some((migration, Instant::now()));
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(look) => {}
                }
            }
        })
        .await;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn pause_migration(
        &self,
        request: Request<v1::PauseMigrationRequest>,
    ) -> Result<Response<v1::PauseMigrationResponse>, Status> {
        let handle = self.command(&request.into_inner().name, Command::Pause).await?;
        Ok(Response::new(v1::PauseMigrationResponse { migration: shown(&handle) }))
    }

    async fn resume_migration(
        &self,
        request: Request<v1::ResumeMigrationRequest>,
    ) -> Result<Response<v1::ResumeMigrationResponse>, Status> {
        let handle = self.command(&request.into_inner().name, Command::Resume).await?;
        Ok(Response::new(v1::ResumeMigrationResponse { migration: shown(&handle) }))
    }

    async fn cutover_migration(
        &self,
        request: Request<v1::CutoverMigrationRequest>,
    ) -> Result<Response<v1::CutoverMigrationResponse>, Status> {
        let request = request.into_inner();
        let handle = self.get(&request.name)?;
        let fence = !request.no_fence;
        let plan = handle
            .command(Command::Cutover {
                fence,
                timeout_s: request.timeout_s,
                dry_run: request.dry_run,
            })
            .await?;
        Ok(Response::new(v1::CutoverMigrationResponse { migration: shown(&handle), plan }))
    }

    type VerifyMigrationStream = Streamed<v1::VerifyMigrationResponse>;

    async fn verify_migration(
        &self,
        request: Request<v1::VerifyMigrationRequest>,
    ) -> Result<Response<Self::VerifyMigrationStream>, Status> {
        let request = request.into_inner();
        let handle = self.get(&request.name)?;
        let max_differences =
            if request.max_differences == 0 { 20 } else { request.max_differences };
        let started = Instant::now();
        let comparison = begin_verify(&self.registry, &handle, max_differences).await?;
        let (sender, receiver) = mpsc::channel(16);
        self.feed(comparison.report(sender, started)).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn abort_migration(
        &self,
        request: Request<v1::AbortMigrationRequest>,
    ) -> Result<Response<v1::AbortMigrationResponse>, Status> {
        let request = request.into_inner();
        let handle = self.get(&request.name)?;
        let drops = handle.command(Command::Abort { dry_run: request.dry_run }).await?;
        Ok(Response::new(v1::AbortMigrationResponse { migration: shown(&handle), drops }))
    }

    async fn cleanup_migration(
        &self,
        request: Request<v1::CleanupMigrationRequest>,
    ) -> Result<Response<v1::CleanupMigrationResponse>, Status> {
        let request = request.into_inner();
        let handle = self.get(&request.name)?;
        let name = handle.shared.record().spec.name;
        let drops = handle.command(Command::Cleanup { dry_run: request.dry_run }).await?;
        if !request.dry_run {
            self.registry.forget(&name);
        }
        Ok(Response::new(v1::CleanupMigrationResponse { drops }))
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        self.registry.check_leading()?;
        Ok(Response::new(v1::ListWorkersResponse { workers: self.registry.fleet.list() }))
    }
}

/// A comparison under way.
struct Comparison {
    verdicts: mpsc::Receiver<v1::TableVerdict>,
    notes: Vec<String>,
}

/// Puts every table of the migration on the board.
async fn begin_verify(
    registry: &Registry,
    handle: &Handle,
    max_differences: u32,
) -> Result<Comparison, Report> {
    let record = handle.shared.record();
    let filter = Filter::try_from(&record.spec.filter.clone().unwrap_or_default())?;
    let context = crate::migration::context::Context::read_only(&record.spec).await?;
    let refused = |error: pg::Error| {
        Report::definite("SOURCE_UNREACHABLE", "could not list the source's tables")
            .with_detail(format!("{error}."))
    };
    let session = context.source_session("verify", 0).await.map_err(refused)?;
    let tables = verify::tables(&session, &filter).await.map_err(refused)?;
    let mut notes = record.not_moved;
    let quiet = matches!(record.phase, crate::migration::phase::Phase::Done { .. });
    if !quiet {
        notes.push(format!(
            "Phase is {}: rows written during the comparison show as differences.",
            record.phase
        ));
    }
    let verdicts = registry.board.begin(&context, tables, max_differences);
    Ok(Comparison { verdicts, notes })
}

impl Comparison {
    /// Sends each verdict, then the sum.
    async fn report(
        mut self,
        sender: mpsc::Sender<Result<v1::VerifyMigrationResponse, Status>>,
        started: Instant,
    ) {
        use v1::verify_migration_response::Event;
        let mut summary = v1::VerifySummary { notes: self.notes, ..Default::default() };
        loop {
            let verdict = tokio::select! {
                verdict = self.verdicts.recv() => verdict,
                () = sender.closed() => return,
            };
            let Some(verdict) = verdict else { break };
            summary.tables += 1;
            summary.failed += u64::from(verdict.error.is_some());
            summary.different += u64::from(verdict.error.is_none() && !verdict.equal);
            summary.source_rows += verdict.source_rows;
            summary.target_rows += verdict.target_rows;
            let response = v1::VerifyMigrationResponse { event: Some(Event::Table(verdict)) };
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
        }
        summary.seconds = started.elapsed().as_secs_f64();
        let response = v1::VerifyMigrationResponse { event: Some(Event::Summary(summary)) };
        // An asker that went away needs no summary.
        drop(sender.send(Ok(response)).await);
    }
}
