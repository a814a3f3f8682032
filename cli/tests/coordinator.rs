//! A coordinator whose whole state are files of a directory, so that it can be killed and
//! started again, run as a process of its own, and be told by a test what happens next.
//!
//! ```text
//! DIR/fake/NAME.bin      a Migration; the watch sends it again whenever it changes
//! DIR/fake/checks.bin    the answer of CheckMigration
//! DIR/fake/verify.bin    answers of VerifyMigration, length-delimited
//! DIR/fake/failure.bin   an ErrorDetail with which GetMigration fails
//! DIR/fake/calls.log     what was called
//! ```

use futures::Stream;
use prost::Message;
use proto::{
    status::Report,
    v1::{
        self, Phase,
        operator_service_server::{OperatorService, OperatorServiceServer},
    },
};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};
use tokio::{net::UnixListener, runtime::Runtime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Its state.
#[derive(Clone, Debug)]
pub(crate) struct State {
    folder: PathBuf,
}

impl State {
    pub(crate) fn of(dir: &Path) -> Self {
        let folder = dir.join("fake");
        fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    pub(crate) fn put(&self, migration: &v1::Migration) {
        self.write(&format!("{}.bin", migration.name), &migration.encode_to_vec());
    }

    pub(crate) fn get(&self, name: &str) -> Option<v1::Migration> {
        let bytes = fs::read(self.folder.join(format!("{name}.bin"))).ok()?;
        Some(v1::Migration::decode(bytes.as_slice()).unwrap())
    }

    /// Changes a migration that exists.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut v1::Migration)) {
        let mut migration = self.get(name).unwrap();
        change(&mut migration);
        self.put(&migration);
    }

    pub(crate) fn set_checks(&self, checks: Vec<v1::Check>) {
        self.write("checks.bin", &v1::CheckMigrationResponse { checks }.encode_to_vec());
    }

    pub(crate) fn set_verdicts(&self, answers: &[v1::VerifyMigrationResponse]) {
        let bytes: Vec<u8> =
            answers.iter().flat_map(Message::encode_length_delimited_to_vec).collect();
        self.write("verify.bin", &bytes);
    }

    pub(crate) fn set_failure(&self, report: Report) {
        self.write("failure.bin", &v1::ErrorDetail::from(report).encode_to_vec());
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("calls.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Whole or not there: a reader never sees half of it.
    fn write(&self, name: &str, bytes: &[u8]) {
        let fresh = self.folder.join(format!(".{name}.new"));
        fs::write(&fresh, bytes).unwrap();
        fs::rename(fresh, self.folder.join(name)).unwrap();
    }

    fn log<T>(&self, call: &str, request: &Request<T>) {
        let mut file =
            fs::File::options().append(true).create(true).open(self.folder.join("calls.log"));
        let traced = request.metadata().contains_key("traceparent");
        let line = if traced { format!("{call} traced\n") } else { format!("{call}\n") };
        file.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let ours = ["checks", "verify", "failure"];
        let mut names: Vec<String> = fs::read_dir(&self.folder)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".bin").map(str::to_owned))
            .filter(|name| !ours.contains(&name.as_str()))
            .collect();
        names.sort();
        names
    }

    fn found(&self, name: &str) -> Result<v1::Migration, Status> {
        if let Ok(bytes) = fs::read(self.folder.join("failure.bin")) {
            let detail = v1::ErrorDetail::decode(bytes.as_slice()).unwrap();
            return Err(Report::from(detail).into());
        }
        self.get(name).ok_or_else(|| {
            let report = Report::definite("NOT_FOUND", format!("there is no migration \"{name}\""));
            report.with_hint("Run: skein list").into()
        })
    }
}

/// The service in front of the state.
#[derive(Debug)]
struct Fake(State);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl OperatorService for Fake {
    async fn check_migration(
        &self,
        request: Request<v1::CheckMigrationRequest>,
    ) -> Result<Response<v1::CheckMigrationResponse>, Status> {
        self.0.log("check", &request);
        let spec = request.into_inner().spec.unwrap();
        // As the real one: a reference must lead somewhere.
        for reference in [&spec.source, &spec.target] {
            let path = reference.strip_prefix("file:").unwrap_or("/");
            if !Path::new(path).exists() {
                return Err(Report::definite("SECRET", "a secret is missing").into());
            }
        }
        let passed = v1::Check {
            name: "versions".into(),
            r#where: "both".into(),
            outcome: v1::CheckOutcome::Pass.into(),
            found: "15.20 to 15.20".into(),
            ..v1::Check::default()
        };
        let answer = match fs::read(self.0.folder.join("checks.bin")) {
            Ok(bytes) => v1::CheckMigrationResponse::decode(bytes.as_slice()).unwrap(),
            Err(_) => v1::CheckMigrationResponse { checks: vec![passed] },
        };
        Ok(Response::new(answer))
    }

    async fn create_migration(
        &self,
        request: Request<v1::CreateMigrationRequest>,
    ) -> Result<Response<v1::CreateMigrationResponse>, Status> {
        self.0.log("create", &request);
        let spec = request.into_inner().spec.unwrap();
        if let Some(held) = self.0.get(&spec.name) {
            let known = held.spec.clone().unwrap_or_default();
            if (&known.source, &known.target) != (&spec.source, &spec.target) {
                let primary = format!("migration \"{}\" moves something else", spec.name);
                return Err(Report::definite("ALREADY_EXISTS", primary).into());
            }
            return Ok(Response::new(v1::CreateMigrationResponse { migration: Some(held) }));
        }
        let migration = v1::Migration {
            name: spec.name.clone(),
            phase: Phase::Preflight.into(),
            spec: Some(spec),
            ..v1::Migration::default()
        };
        self.0.put(&migration);
        Ok(Response::new(v1::CreateMigrationResponse { migration: Some(migration) }))
    }

    async fn start_migration(
        &self,
        request: Request<v1::StartMigrationRequest>,
    ) -> Result<Response<v1::StartMigrationResponse>, Status> {
        self.0.log("start", &request);
        let mut migration = self.0.found(&request.into_inner().name)?;
        migration.started = true;
        migration.fault = None;
        if migration.phase() == Phase::Preflight {
            migration.set_phase(Phase::Copying);
        }
        self.0.put(&migration);
        Ok(Response::new(v1::StartMigrationResponse { migration: Some(migration) }))
    }

    async fn list_migrations(
        &self,
        request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsResponse>, Status> {
        self.0.log("list", &request);
        let migrations = self.0.names().iter().filter_map(|name| self.0.get(name)).collect();
        Ok(Response::new(v1::ListMigrationsResponse { migrations }))
    }

    async fn get_migration(
        &self,
        request: Request<v1::GetMigrationRequest>,
    ) -> Result<Response<v1::GetMigrationResponse>, Status> {
        self.0.log("get", &request);
        let migration = Some(self.0.found(&request.into_inner().name)?);
        Ok(Response::new(v1::GetMigrationResponse { migration }))
    }

    type WatchMigrationStream = Answers<v1::WatchMigrationResponse>;

    async fn watch_migration(
        &self,
        request: Request<v1::WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        self.0.log("watch", &request);
        let name = request.into_inner().name;
        let first = self.0.found(&name)?;
        let state = self.0.clone();
        let sent = futures::stream::unfold(Some((state, first)), move |last| {
            let name = name.clone();
            async move {
                let (state, migration) = last?;
                let answer = v1::WatchMigrationResponse { migration: Some(migration.clone()) };
                let next = changed(&state, &name, &migration).await;
                Some((Ok(answer), next.map(|next| (state, next))))
            }
        });
        Ok(Response::new(Box::pin(sent)))
    }

    async fn pause_migration(
        &self,
        request: Request<v1::PauseMigrationRequest>,
    ) -> Result<Response<v1::PauseMigrationResponse>, Status> {
        self.0.log("pause", &request);
        let mut migration = self.0.found(&request.into_inner().name)?;
        migration.paused = true;
        self.0.put(&migration);
        Ok(Response::new(v1::PauseMigrationResponse { migration: Some(migration) }))
    }

    async fn resume_migration(
        &self,
        request: Request<v1::ResumeMigrationRequest>,
    ) -> Result<Response<v1::ResumeMigrationResponse>, Status> {
        self.0.log("resume", &request);
        let mut migration = self.0.found(&request.into_inner().name)?;
        migration.paused = false;
        migration.fault = None;
        self.0.put(&migration);
        Ok(Response::new(v1::ResumeMigrationResponse { migration: Some(migration) }))
    }

    async fn cutover_migration(
        &self,
        request: Request<v1::CutoverMigrationRequest>,
    ) -> Result<Response<v1::CutoverMigrationResponse>, Status> {
        let call = request.get_ref();
        let words = format!("cutover no_fence={} timeout_s={}", call.no_fence, call.timeout_s);
        self.0.log(&words, &request);
        let request = request.into_inner();
        let mut migration = self.0.found(&request.name)?;
        let plan = vec!["end other sessions".to_owned(), "open the target".to_owned()];
        if request.dry_run {
            let answer = v1::CutoverMigrationResponse { migration: Some(migration), plan };
            return Ok(Response::new(answer));
        }
        if migration.phase() != Phase::Ready {
            return Err(Report::definite("NOT_READY", "the migration is not ready")
                .with_detail("It is still copying.")
                .with_hint("Wait for phase ready.")
                .into());
        }
        let attempt = migration.cutover.as_ref().map_or(1, |cutover| cutover.attempt + 1);
        migration.set_phase(Phase::CuttingOver);
        migration.cutover = Some(v1::CutoverReport { attempt, ..v1::CutoverReport::default() });
        self.0.put(&migration);
        Ok(Response::new(v1::CutoverMigrationResponse { migration: Some(migration), plan }))
    }

    type VerifyMigrationStream = Answers<v1::VerifyMigrationResponse>;

    async fn verify_migration(
        &self,
        request: Request<v1::VerifyMigrationRequest>,
    ) -> Result<Response<Self::VerifyMigrationStream>, Status> {
        self.0.log("verify", &request);
        let bytes = fs::read(self.0.folder.join("verify.bin")).unwrap_or_default();
        let mut rest = bytes.as_slice();
        let mut answers = Vec::new();
        while !rest.is_empty() {
            answers
                .push(Ok(v1::VerifyMigrationResponse::decode_length_delimited(&mut rest).unwrap()));
        }
        Ok(Response::new(Box::pin(futures::stream::iter(answers))))
    }

    async fn abort_migration(
        &self,
        request: Request<v1::AbortMigrationRequest>,
    ) -> Result<Response<v1::AbortMigrationResponse>, Status> {
        self.0.log(&format!("abort dry_run={}", request.get_ref().dry_run), &request);
        let request = request.into_inner();
        let mut migration = self.0.found(&request.name)?;
        if !request.dry_run {
            migration.set_phase(Phase::Aborted);
            self.0.put(&migration);
        }
        let drops = vec!["slot skein_main on the source".to_owned()];
        Ok(Response::new(v1::AbortMigrationResponse { migration: Some(migration), drops }))
    }

    async fn cleanup_migration(
        &self,
        request: Request<v1::CleanupMigrationRequest>,
    ) -> Result<Response<v1::CleanupMigrationResponse>, Status> {
        self.0.log(&format!("cleanup dry_run={}", request.get_ref().dry_run), &request);
        let request = request.into_inner();
        self.0.found(&request.name)?;
        if !request.dry_run {
            fs::remove_file(self.0.folder.join(format!("{}.bin", request.name))).unwrap();
        }
        let drops = vec!["schema skein on the target".to_owned()];
        Ok(Response::new(v1::CleanupMigrationResponse { drops }))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        self.0.log("workers", &request);
        let worker = v1::Worker {
            worker_id: "w1".into(),
            host: "db1".into(),
            pid: 42,
            slots: 2,
            running: 1,
            version: "0.1.0".into(),
            ..v1::Worker::default()
        };
        Ok(Response::new(v1::ListWorkersResponse { workers: vec![worker] }))
    }
}

/// The migration when it has changed, or after a second; nothing when it is gone.
async fn changed(state: &State, name: &str, last: &v1::Migration) -> Option<v1::Migration> {
    for _ in 0..50 {
        let next = state.get(name)?;
        if next != *last {
            return Some(next);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    state.get(name)
}

/// Serves DIR/coordinator.sock until it is dropped with its runtime.
async fn serve(dir: PathBuf) {
    let socket = dir.join("coordinator.sock");
    let _left_by_a_killed_one = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OperatorServiceServer<Fake>>().await;
    Server::builder()
        .add_service(health_service)
        .add_service(OperatorServiceServer::new(Fake(State::of(&dir))))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .unwrap();
}

/// A coordinator inside the test.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) state: State,
    _runtime: Runtime,
}

impl Coordinator {
    pub(crate) fn serving(dir: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let state = State::of(dir);
        runtime.spawn(serve(dir.to_owned()));
        crate::scenario::eventually("its socket", || dir.join("coordinator.sock").exists());
        Self { state, _runtime: runtime }
    }
}

/// Variable with the directory, for the coordinator that is a process of its own.
pub(crate) const DIR_VARIABLE: &str = "SKEIN_TEST_COORDINATOR_DIR";

/// Not a test: the entry of that process, see `launch`. Without the variable it does nothing.
#[test]
fn a_process_of_its_own() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE).map(PathBuf::from) else { return };
    let state = State::of(&dir);
    state.write("pid", std::process::id().to_string().as_bytes());
    Runtime::new().unwrap().block_on(serve(dir));
}
