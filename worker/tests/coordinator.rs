//! A WorkerService that hands out what a test offers and tells what it hears.

use proto::v1::{
    self, CompleteTaskRequest, ReleaseCause, ReleaseTaskRequest,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{net::UnixListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Longest wait for anything in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// What a worker said about a task.
#[derive(Clone, Debug)]
pub(crate) enum Heard {
    Completed(CompleteTaskRequest),
    Released(ReleaseTaskRequest),
}

#[derive(Debug, Default)]
pub(crate) struct State {
    offered: VecDeque<v1::Task>,
    known: HashSet<String>,
    pub(crate) registered: u32,
    pub(crate) answer: v1::HeartbeatResponse,
    /// The last heartbeat of each worker.
    pub(crate) beats: HashMap<String, v1::HeartbeatRequest>,
    /// Completions to be refused before one is heard.
    pub(crate) deaf: u32,
}

/// A running service.
#[derive(Debug)]
pub(crate) struct Coordinator {
    state: Arc<Mutex<State>>,
    heard: mpsc::Receiver<Heard>,
    said: mpsc::Sender<Heard>,
    socket: PathBuf,
    /// A runtime of its own, whose end also ends the connections.
    server: Option<Runtime>,
    _directory: tempfile::TempDir,
}

#[derive(Clone, Debug)]
struct Service {
    state: Arc<Mutex<State>>,
    said: mpsc::Sender<Heard>,
}

impl Coordinator {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (said, heard) = mpsc::channel(1000);
        let mut coordinator = Self {
            state: Arc::default(),
            heard,
            said,
            socket: directory.path().join("coordinator.sock"),
            server: None,
            _directory: directory,
        };
        coordinator.serve();
        coordinator
    }

    /// Listens; after `die`, again, knowing no worker.
    pub(crate) fn serve(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let service = Service { state: Arc::clone(&self.state), said: self.said.clone() };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = {
            let _context = runtime.enter();
            UnixListener::bind(&self.socket).unwrap()
        };
        runtime.spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            let server = Server::builder().add_service(WorkerServiceServer::new(service));
            server.serve_with_incoming(incoming).await.unwrap();
        });
        self.server = Some(runtime);
    }

    /// As after a kill -9: connections end, registrations are forgotten.
    pub(crate) fn die(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        let _ = std::fs::remove_file(&self.socket);
        self.state().known.clear();
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn url(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn offer(&self, task: v1::Task) {
        self.state().offered.push_back(task);
    }

    /// Takes back what nobody leased.
    pub(crate) fn withdraw(&self) {
        self.state().offered.clear();
    }

    /// Passes over what was said until now.
    pub(crate) fn forget_heard(&mut self) {
        while self.heard.try_recv().is_ok() {}
    }

    /// The next completion or release.
    pub(crate) async fn heard(&mut self) -> Heard {
        tokio::time::timeout(DEADLINE, self.heard.recv()).await.expect("nothing heard").unwrap()
    }

    pub(crate) async fn completed(&mut self) -> CompleteTaskRequest {
        match self.heard().await {
            Heard::Completed(request) => request,
            Heard::Released(request) => panic!("released: {request:?}"),
        }
    }

    pub(crate) async fn released(&mut self, cause: ReleaseCause) -> v1::ErrorDetail {
        match self.heard().await {
            Heard::Released(request) if request.cause() == cause => request.error.unwrap(),
            other => panic!("{cause:?} was expected: {other:?}"),
        }
    }

    /// Offers one task and waits for its completion.
    pub(crate) async fn run(&mut self, task: v1::Task) -> v1::complete_task_request::Result {
        self.offer(task);
        self.completed().await.result.unwrap()
    }

    /// Waits until `check` finds what it looks for.
    pub(crate) async fn until<T>(&self, what: &str, check: impl Fn(&State) -> Option<T>) -> T {
        until(what, async || check(&self.state())).await
    }
}

/// Waits until `check` finds what it looks for.
pub(crate) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("never: {what}"))
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.die();
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    async fn register_worker(
        &self,
        request: Request<v1::RegisterWorkerRequest>,
    ) -> Result<Response<v1::RegisterWorkerResponse>, Status> {
        let mut state = self.state.lock().unwrap();
        state.known.insert(request.into_inner().worker_id);
        state.registered += 1;
        Ok(Response::new(v1::RegisterWorkerResponse { heartbeat_ms: 100 }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        if !state.known.contains(&request.worker_id) {
            let unknown = v1::HeartbeatResponse { unknown: true, ..Default::default() };
            return Ok(Response::new(unknown));
        }
        state.beats.insert(request.worker_id.clone(), request);
        Ok(Response::new(state.answer.clone()))
    }

    async fn lease_task(
        &self,
        request: Request<v1::LeaseTaskRequest>,
    ) -> Result<Response<v1::LeaseTaskResponse>, Status> {
        let deadline = tokio::time::Instant::now()
            + Duration::from_millis(u64::from(request.into_inner().wait_ms));
        loop {
            let task = self.state.lock().unwrap().offered.pop_front();
            if task.is_some() || tokio::time::Instant::now() > deadline {
                return Ok(Response::new(v1::LeaseTaskResponse { task }));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn complete_task(
        &self,
        request: Request<CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        {
            let mut state = self.state.lock().unwrap();
            if state.deaf > 0 {
                state.deaf -= 1;
                return Err(Status::unavailable("deaf"));
            }
        }
        self.said.send(Heard::Completed(request.into_inner())).await.unwrap();
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn release_task(
        &self,
        request: Request<ReleaseTaskRequest>,
    ) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
        self.said.send(Heard::Released(request.into_inner())).await.unwrap();
        Ok(Response::new(v1::ReleaseTaskResponse {}))
    }
}
