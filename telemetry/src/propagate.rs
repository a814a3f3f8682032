//! Carries the trace over gRPC (W3C `traceparent`).
//!
//! ```text
//! client: current span --Inject--> request metadata --server_span--> parent of the server's span
//! ```
//! Promise: one trace id from the command line to the task; a request without a trace starts one.

use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
};
use tonic::{
    Request, Status,
    metadata::{MetadataKey, MetadataMap, MetadataValue},
    service::Interceptor,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A client's interceptor: `XClient::with_interceptor(channel, Inject)`, whose type is
/// `XClient<InterceptedService<Channel, Inject>>`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inject;

impl Interceptor for Inject {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        inject(request.metadata_mut());
        Ok(request)
    }
}

/// Adds the current span's context, for those who have an interceptor of their own.
pub fn inject(metadata: &mut MetadataMap) {
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Carrier(metadata));
    });
}

/// The span of one request: `Server::builder().trace_fn(server_span)`.
pub fn server_span(request: &http::Request<()>) -> Span {
    let path = request.uri().path();
    let span =
        tracing::info_span!("rpc", otel.name = path, otel.kind = "server", rpc.system = "grpc");
    let parent = parent_of(request.headers());
    // Fails only where no OpenTelemetry layer listens: then there is nothing to join.
    let _ = span.set_parent(parent);
    span
}

fn parent_of(headers: &http::HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)))
}

struct Carrier<'a>(&'a mut MetadataMap);

impl Injector for Carrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        let key = MetadataKey::from_bytes(key.as_bytes());
        if let (Ok(key), Ok(value)) = (key, MetadataValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
