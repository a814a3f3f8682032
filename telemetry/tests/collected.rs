//! Telemetry is set up from the environment and once in a process, so the test runs itself again
//! as the process that sends.

use loadtest::cluster::collector::{Collector, Received};
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
    logs_service_client::LogsServiceClient,
    logs_service_server::{LogsService, LogsServiceServer},
};
use telemetry::{Options, field, metric, propagate};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};
use tracing::Instrument as _;

const CHILD: &str = "SKEIN_TEST_TELEMETRY_CHILD";

/// A service, any service: this one needs no code but its own.
struct Echo;

#[tonic::async_trait]
impl LogsService for Echo {
    async fn export(
        &self,
        _: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        tracing::info!("served");
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

/// One call from a client with the interceptor to a server with the span, and one metric.
async fn call() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(
        Server::builder()
            .trace_fn(propagate::server_span)
            .add_service(LogsServiceServer::new(Echo))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut client = LogsServiceClient::with_interceptor(channel, propagate::Inject);
    let span = tracing::info_span!("command", { field::MIGRATION } = "m");
    client.export(ExportLogsServiceRequest::default()).instrument(span).await.unwrap();
    let label = KeyValue::new(field::MIGRATION, "m");
    metric::COPIED_BYTES.counter().add(7, &[label]);
}

#[test]
fn child_that_sends() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    // Dropped inside a runtime of one thread: the place where a flush could hang.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _guard = telemetry::init(Options::new("skein-test")).unwrap();
        call().await;
    });
}

/// Runs `child_that_sends` in a process of its own.
async fn run_child(endpoint: &str) -> std::process::Output {
    tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "collected::child_that_sends", "--nocapture"])
        .env(CHILD, "1")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn traces_metrics_and_logs_reach_a_collector_under_one_trace() {
    let collector = Collector::start().await.unwrap();
    let output = run_child(&collector.endpoint()).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("served"), "the log line is on stderr as well: {text}");

    let Received { spans, metrics, logs } = collector.received();
    let named = |name: &str| spans.iter().find(|span| span.name == name);
    let client = named("command").unwrap_or_else(|| panic!("no client span in {spans:?}"));
    let path = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    let server = named(path).unwrap_or_else(|| panic!("no server span in {spans:?}"));
    assert_eq!(client.trace, server.trace);
    assert_eq!(client.id, server.parent);
    assert_eq!(client.service, "skein-test");
    let service = "skein-test".to_owned();
    assert!(
        metrics.contains(&(service.clone(), metric::COPIED_BYTES.name.to_owned())),
        "{metrics:?}"
    );
    assert!(logs.contains(&(service, "served".to_owned())), "{logs:?}");
}

#[tokio::test]
async fn a_collector_that_is_away_stops_nobody() {
    let begun = std::time::Instant::now();
    let output = run_child("http://127.0.0.1:9").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(begun.elapsed().as_secs() < 20);
}
