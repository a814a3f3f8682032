//! Logs, traces and metrics, set up once in each `main`.
//!
//! ```text
//! tracing --> fmt layer ----------> stderr or a file
//!         \-> OpenTelemetry layer -> OTLP over gRPC, if OTEL_EXPORTER_OTLP_ENDPOINT is set
//! metric::X.counter() ------------/
//! ```
//! How to use it:
//!
//! ```no_run
//! # fn main() -> Result<(), telemetry::Error> {
//! // First in main, held to its end: dropping it sends what is not sent yet.
//! let _telemetry = telemetry::init(telemetry::Options::new("skein-worker"))?;
//! # Ok(()) }
//! // Client:  OperatorServiceClient::with_interceptor(channel, telemetry::propagate::Inject)
//! // Server:  tonic::transport::Server::builder().trace_fn(telemetry::propagate::server_span)
//! // Metric:  telemetry::metric::COPIED_BYTES.counter().add(n, &[KeyValue::new(field::MIGRATION, m)])
//! ```
//! Promise: without the variable nothing is opened and nothing is sent; with it, a collector that
//! is away costs nothing but what could not be sent. The standard `OTEL_*` variables are
//! honoured. It owns its runtime, so that the guard may be dropped anywhere. The driver of
//! PostgreSQL is never heard, whatever a filter says: it prints parameters, statements (those with
//! passwords, too) and notices, in which a function of the user's may have put a row.

pub mod field;
pub mod metric;
pub mod propagate;

use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::{
    Resource, logs::SdkLoggerProvider, metrics::SdkMeterProvider,
    propagation::TraceContextPropagator, trace::SdkTracerProvider,
};
use std::{
    fs::File,
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};
use tokio::runtime::Runtime;
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, FilterFn, filter_fn},
    layer::{Filter, SubscriberExt as _},
    util::{SubscriberInitExt as _, TryInitError},
};

/// What goes to a collector. The libraries that send it are left out, or each send would be
/// something to send.
const SENT: &str = "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off,\
                    opentelemetry_sdk=off,opentelemetry_otlp=off";

/// Longest wait for a collector at the end of a process.
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log filter \"{filter}\" cannot be read: {reason}")]
    Filter { filter: String, reason: String },
    #[error("could not open log file {}: {source}", .path.display())]
    LogFile { path: PathBuf, source: io::Error },
    #[error("OTLP exporter cannot be made from the OTEL_ variables: {0}")]
    Exporter(#[from] ExporterBuildError),
    #[error("could not start a thread for telemetry: {0}")]
    Runtime(io::Error),
    #[error("telemetry was set up before: {0}")]
    Twice(#[from] TryInitError),
}

/// Where log lines go.
#[derive(Clone, Debug, Default)]
pub enum Log {
    #[default]
    Stderr,
    /// Appended to.
    File(PathBuf),
}

/// What a process wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// `service.name`, unless OTEL_SERVICE_NAME says otherwise.
    pub service_name: &'static str,
    pub log: Log,
    /// One JSON object a line.
    pub json: bool,
    /// Directives of `tracing_subscriber::EnvFilter`; SKEIN_LOG wins over them.
    pub filter: String,
}

impl Options {
    /// Lines at `info` and above, on stderr.
    pub fn new(service_name: &'static str) -> Self {
        Self { service_name, log: Log::Stderr, json: false, filter: "info".to_owned() }
    }
}

/// Held to the end of `main`. Sends what is left, for three seconds at most, when dropped.
#[derive(Debug, Default)]
#[must_use = "dropping it ends telemetry"]
pub struct Guard {
    tracer: Option<SdkTracerProvider>,
    meter: Option<SdkMeterProvider>,
    logger: Option<SdkLoggerProvider>,
    runtime: Option<Runtime>,
}

impl Guard {
    /// Sends what there is now; an error of the collector is no error of ours.
    pub fn flush(&self) {
        let _ = self.tracer.as_ref().map(SdkTracerProvider::force_flush);
        let _ = self.meter.as_ref().map(SdkMeterProvider::force_flush);
        let _ = self.logger.as_ref().map(SdkLoggerProvider::force_flush);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.tracer.take().map(|it| it.shutdown_with_timeout(FLUSH_DEADLINE));
        let _ = self.meter.take().map(|it| it.shutdown_with_timeout(FLUSH_DEADLINE));
        let _ = self.logger.take().map(|it| it.shutdown_with_timeout(FLUSH_DEADLINE));
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Sets up logging, and OTLP where it is asked for. Once in a process.
///
/// # Errors
/// A filter, a path or an `OTEL_` variable that cannot be used.
pub fn init(options: Options) -> Result<Guard, Error> {
    let mut guard = Guard::default();
    let mut layers = vec![log_layer(&options)?];
    global::set_text_map_propagator(TraceContextPropagator::new());
    let (traces, metrics, logs) = (sends("TRACES"), sends("METRICS"), sends("LOGS"));
    if traces || metrics || logs {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()
            .map_err(Error::Runtime)?;
        {
            // The exporters' connections live on this runtime, not on the caller's.
            let _context = runtime.enter();
            let resource = resource(options.service_name);
            if traces {
                layers.push(trace_layer(&mut guard, resource.clone())?);
            }
            if metrics {
                let exporter = MetricExporter::builder().with_tonic().build()?;
                let provider = SdkMeterProvider::builder()
                    .with_periodic_exporter(exporter)
                    .with_resource(resource.clone())
                    .build();
                global::set_meter_provider(provider.clone());
                guard.meter = Some(provider);
            }
            if logs {
                layers.push(sent_log_layer(&mut guard, resource)?);
            }
        }
        guard.runtime = Some(runtime);
    }
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(guard)
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn log_layer(options: &Options) -> Result<BoxedLayer, Error> {
    let directives = std::env::var("SKEIN_LOG").unwrap_or_else(|_| options.filter.clone());
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| Error::Filter { filter: directives, reason: error.to_string() })?;
    let layer = tracing_subscriber::fmt::layer().with_target(true);
    let layer: BoxedLayer = match (&options.log, options.json) {
        (Log::Stderr, false) => {
            layer.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).boxed()
        }
        (Log::Stderr, true) => layer.json().with_writer(io::stderr).boxed(),
        (Log::File(path), json) => {
            let file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|source| Error::LogFile { path: path.clone(), source })?;
            let layer = layer.with_ansi(false).with_writer(Mutex::new(file));
            if json { layer.json().boxed() } else { layer.boxed() }
        }
    };
    Ok(layer.with_filter(without_values(filter)).boxed())
}

/// A filter that lets nothing of the driver through: a directive could be overruled by one for a
/// module of it.
fn without_values(filter: EnvFilter) -> impl Filter<Registry> {
    let others: FilterFn<fn(&Metadata<'_>) -> bool> =
        filter_fn(|metadata| !metadata.target().starts_with("tokio_postgres"));
    filter.and(others.with_max_level_hint(LevelFilter::TRACE))
}

fn trace_layer(guard: &mut Guard, resource: Resource) -> Result<BoxedLayer, Error> {
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer("skein");
    global::set_tracer_provider(provider.clone());
    guard.tracer = Some(provider);
    Ok(tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_filter(without_values(EnvFilter::new(SENT)))
        .boxed())
}

fn sent_log_layer(guard: &mut Guard, resource: Resource) -> Result<BoxedLayer, Error> {
    let exporter = LogExporter::builder().with_tonic().build()?;
    let provider =
        SdkLoggerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let layer = OpenTelemetryTracingBridge::new(&provider);
    guard.logger = Some(provider);
    Ok(layer.with_filter(without_values(EnvFilter::new(SENT))).boxed())
}

/// Whether a signal is to be sent (opentelemetry.io/docs/specs/otel/configuration, variables).
fn sends(signal: &str) -> bool {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true"));
    let none = variable(&format!("OTEL_{signal}_EXPORTER")).is_some_and(|it| it == "none");
    let endpoint = variable("OTEL_EXPORTER_OTLP_ENDPOINT")
        .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")));
    endpoint.is_some() && !disabled && !none
}

fn resource(service_name: &'static str) -> Resource {
    let mut builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        builder = builder.with_service_name(service_name);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_not_heard_whatever_the_filter_says() {
        let path = std::env::temp_dir().join(format!("skein-telemetry-{}", std::process::id()));
        let filter = "trace,tokio_postgres::query=trace".to_owned();
        let log = Log::File(path.clone());
        let options = Options { log, filter, ..Options::new("x") };
        let layers = vec![log_layer(&options).unwrap()];
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layers), || {
            tracing::debug!(target: "tokio_postgres::query", "parameters: [4111]");
            tracing::info!(target: "tokio_postgres::connection", "NOTICE: row 4111");
            tracing::debug!(target: "skein", "heard");
        });
        let written = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(written.contains("heard") && !written.contains("4111"), "{written}");
    }
}
