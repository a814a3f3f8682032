//! The gRPC edge: decodes, calls, encodes. Serves a Unix socket in the coordinator's directory
//! (0600, in a 0700 directory), and loopback TCP where asked for; health and reflection with it.

pub mod operator;
pub mod worker;

use crate::{config::Config, registry::Registry};
use proto::v1::{
    operator_service_server::OperatorServiceServer, worker_service_server::WorkerServiceServer,
};
use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

/// Both ends look for a dead peer: a cut connection is seen within about ten seconds.
const KEEPALIVE: Duration = Duration::from_secs(5);

async fn router(registry: &Arc<Registry>) -> anyhow::Result<Router> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OperatorServiceServer<operator::Operator>>().await;
    health.set_serving::<WorkerServiceServer<worker::Workers>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(tonic::transport::Server::builder()
        .trace_fn(telemetry::propagate::server_span)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(OperatorServiceServer::new(operator::Operator::new(Arc::clone(registry))))
        .add_service(WorkerServiceServer::new(worker::Workers::new(Arc::clone(registry)))))
}

/// Serves until `token` is cancelled.
///
/// # Errors
/// When the socket or the address cannot be listened on.
pub async fn serve(
    config: &Config,
    registry: Arc<Registry>,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let path = config.socket();
    // Whoever holds the directory's lock owns the socket: an old one is a dead process's.
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let socket = router(&registry).await?.serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        token.clone().cancelled_owned(),
    );
    if let Some(listen) = &config.listen {
        let address = listen.address;
        let listener = TcpListener::bind(address).await?;
        tracing::info!(%address, "listening");
        let tcp = router(&registry).await?.serve_with_incoming_shutdown(
            TcpListenerStream::new(listener),
            token.clone().cancelled_owned(),
        );
        tokio::try_join!(socket, tcp)?;
    } else {
        socket.await?;
    }
    Ok(())
}
