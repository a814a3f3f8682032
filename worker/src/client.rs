//! The coordinator, as a worker sees it.
//!
//! In: requests. Out: answers, or a [`Report`]. Promise: the connection comes back by itself,
//! whoever ends it; who does not answer, or does not lead, is followed by the next; every call
//! ends within its deadline; `silence` says for how long nobody has answered.

use crate::config::{Address, Credentials, host};
use hyper_util::rt::TokioIo;
use proto::{
    authorization,
    status::{ErrorClass, Report},
    v1::{self, worker_service_client::WorkerServiceClient},
};
use std::{
    future::Future,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::UnixStream, time::Instant};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};

/// A call that does no work on the other side.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the coordinator may keep a LeaseTask until there is a task.
const LEASE_WAIT: Duration = Duration::from_secs(20);
/// HTTP/2 pings: a coordinator that is gone without a word is noticed in 15 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A build's statements or a verification's differences; gRPC's own default is 4 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Reason of a coordinator that does not lead.
const LEADER_ELSEWHERE: &str = "LEADER_ELSEWHERE";

type Rpc = WorkerServiceClient<InterceptedService<Channel, Outgoing>>;

/// What every request carries: the trace, and our token.
#[derive(Clone, Debug)]
struct Outgoing {
    bearer: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Outgoing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        telemetry::propagate::inject(request.metadata_mut());
        authorization::carry(request.metadata_mut(), self.bearer.as_ref());
        Ok(request)
    }
}

/// Calls of `WorkerService`. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// One for each coordinator; never none.
    rpcs: Arc<[Rpc]>,
    /// Which of them is asked.
    current: Arc<AtomicUsize>,
    worker_id: Arc<str>,
    /// When the coordinator last answered anything.
    answered_at: Arc<Mutex<Instant>>,
}

impl Client {
    /// Connects with the first call, and again with each one after a loss.
    pub(crate) fn new(
        addresses: &[Address],
        credentials: &Credentials,
        worker_id: &str,
    ) -> Result<Self, tonic::transport::Error> {
        let rpcs = addresses.iter().map(|address| rpc(address, credentials));
        let rpcs = rpcs.collect::<Result<Arc<[Rpc]>, _>>()?;
        let answered_at = Arc::new(Mutex::new(Instant::now()));
        Ok(Self { rpcs, current: Arc::default(), worker_id: worker_id.into(), answered_at })
    }

    /// The coordinator to ask, and its place in the list.
    fn rpc(&self) -> (usize, Rpc) {
        let place = self.current.load(Ordering::Relaxed) % self.rpcs.len();
        (place, self.rpcs[place].clone())
    }

    /// The next one is asked from now on, if nobody saw to that yet.
    fn pass_over(&self, place: usize) {
        let next = (place + 1) % self.rpcs.len();
        // A failure means that another call was faster.
        let _ = self.current.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Announces this worker; milliseconds between heartbeats come back.
    pub(crate) async fn register(&self, slots: u32) -> Result<Duration, Report> {
        let request = v1::RegisterWorkerRequest {
            worker_id: self.worker_id.to_string(),
            host: host(),
            pid: std::process::id(),
            slots,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (place, mut rpc) = self.rpc();
        let answer =
            self.call(place, CALL_TIMEOUT, rpc.register_worker(Request::new(request))).await?;
        Ok(Duration::from_millis(u64::from(answer.heartbeat_ms)))
    }

    pub(crate) async fn heartbeat(
        &self,
        leases: Vec<v1::HeldLease>,
        holders: Vec<v1::Holder>,
    ) -> Result<v1::HeartbeatResponse, Report> {
        let worker_id = self.worker_id.to_string();
        let request = v1::HeartbeatRequest { worker_id, leases, holders };
        let (place, mut rpc) = self.rpc();
        self.call(place, CALL_TIMEOUT, rpc.heartbeat(Request::new(request))).await
    }

    /// The next task, or None when there was none for a while.
    pub(crate) async fn lease_task(&self) -> Result<Option<v1::Task>, Report> {
        let wait_ms = u32::try_from(LEASE_WAIT.as_millis()).unwrap_or(u32::MAX);
        let request = v1::LeaseTaskRequest { worker_id: self.worker_id.to_string(), wait_ms };
        let (place, mut rpc) = self.rpc();
        let call = rpc.lease_task(Request::new(request));
        Ok(self.call(place, LEASE_WAIT + CALL_TIMEOUT, call).await?.task)
    }

    pub(crate) async fn complete(
        &self,
        mut request: v1::CompleteTaskRequest,
    ) -> Result<(), Report> {
        request.worker_id = self.worker_id.to_string();
        let (place, mut rpc) = self.rpc();
        self.call(place, CALL_TIMEOUT, rpc.complete_task(Request::new(request))).await?;
        Ok(())
    }

    pub(crate) async fn release(&self, mut request: v1::ReleaseTaskRequest) -> Result<(), Report> {
        request.worker_id = self.worker_id.to_string();
        let (place, mut rpc) = self.rpc();
        self.call(place, CALL_TIMEOUT, rpc.release_task(Request::new(request))).await?;
        Ok(())
    }

    /// How long the coordinator has not answered.
    pub(crate) fn silence(&self) -> Duration {
        self.answered_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    async fn call<T>(
        &self,
        place: usize,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Report> {
        let answer = tokio::time::timeout(deadline, call)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the coordinator did not answer")));
        let unreached = answer.as_ref().is_err_and(|status| {
            matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
            )
        });
        let answer =
            answer.map(Response::into_inner).map_err(|status| Box::new(Report::from(&status)));
        match answer {
            // It is not for a worker to end over: another coordinator leads, or will.
            Err(report) if report.reason == LEADER_ELSEWHERE => {
                self.pass_over(place);
                Err(report.with_class(ErrorClass::Transient))
            }
            Err(report) if unreached => {
                self.pass_over(place);
                Err(*report)
            }
            answer => {
                *self.answered_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                answer.map_err(|report| *report)
            }
        }
    }
}

fn rpc(address: &Address, credentials: &Credentials) -> Result<Rpc, tonic::transport::Error> {
    let (channel, bearer) = match address {
        Address::Http(url) => {
            let mut endpoint = endpoint(url)?;
            if url.starts_with("https:") {
                endpoint = endpoint.tls_config(tls(credentials))?;
            }
            let bearer = credentials.token.as_ref().and_then(authorization::Secret::bearer);
            (endpoint.connect_lazy(), bearer)
        }
        Address::Unix(path) => {
            let path = path.clone();
            // The URI is not looked at: the connector knows the path.
            let connector = tower::service_fn(move |_: Uri| dial(path.clone()));
            (endpoint("http://coordinator")?.connect_with_connector_lazy(connector), None)
        }
    };
    Ok(WorkerServiceClient::with_interceptor(channel, Outgoing { bearer })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn tls(credentials: &Credentials) -> ClientTlsConfig {
    let mut tls = ClientTlsConfig::new();
    if let Some(pem) = &credentials.ca_pem {
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    if let Some((certificate, key)) = &credentials.identity {
        tls = tls.identity(Identity::from_pem(certificate, key.expose()));
    }
    tls
}

fn endpoint(url: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CALL_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

async fn dial(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(UnixStream::connect(path).await?))
}
