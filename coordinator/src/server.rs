//! The gRPC edge: decodes, calls, encodes. Serves a Unix socket in the coordinator's directory
//! (0600, in a 0700 directory), and TCP where asked for: off loopback with TLS and tokens only.
//! Health and reflection with both.

pub mod guard;
pub mod operator;
pub mod worker;

use crate::{
    config::{
        Config,
        network::{Tls, Tokens},
    },
    registry::Registry,
};
use guard::Guards;
use proto::v1::{
    operator_service_server::OperatorServiceServer, worker_service_server::WorkerServiceServer,
};
use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Certificate, Identity, ServerTlsConfig, server::Router},
};

/// Both ends look for a dead peer: a cut connection is seen within about ten seconds.
const KEEPALIVE: Duration = Duration::from_secs(5);

async fn router(
    registry: &Arc<Registry>,
    guards: Guards,
    tls: Option<Tls>,
) -> anyhow::Result<Router> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OperatorServiceServer<operator::Operator>>().await;
    health.set_serving::<WorkerServiceServer<worker::Workers>>().await;
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Older clients know v1alpha only.
    let (reflection, reflection_alpha) = (described().build_v1()?, described().build_v1alpha()?);
    let mut server = tonic::transport::Server::builder();
    if let Some(tls) = tls {
        let identity = Identity::from_pem(&tls.certificate_pem, tls.key_pem.expose());
        let mut config = ServerTlsConfig::new().identity(identity);
        if let Some(pem) = &tls.client_ca_pem {
            config = config.client_ca_root(Certificate::from_pem(pem));
        }
        server = server.tls_config(config)?;
    }
    let operators = operator::Operator::new(Arc::clone(registry));
    let workers = worker::Workers::new(Arc::clone(registry));
    Ok(server
        .trace_fn(telemetry::propagate::server_span)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(InterceptedService::new(health_service, guards.any.clone()))
        .add_service(InterceptedService::new(reflection_alpha, guards.any.clone()))
        .add_service(InterceptedService::new(reflection, guards.any))
        .add_service(OperatorServiceServer::with_interceptor(operators, guards.operator))
        .add_service(WorkerServiceServer::with_interceptor(workers, guards.worker)))
}

/// Serves until `token` is cancelled.
///
/// # Errors
/// When the socket or the address cannot be listened on, or a token or certificate not be read.
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
    let open = Guards::from(&Tokens::default());
    let socket = router(&registry, open, None).await?.serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        token.clone().cancelled_owned(),
    );
    if let Some(listen) = &config.listen {
        let address = listen.address;
        let (guards, tls) = (Guards::from(&listen.tokens()?), listen.certificates()?);
        let listener = TcpListener::bind(address).await?;
        tracing::info!(%address, tls = tls.is_some(), "listening");
        let tcp = router(&registry, guards, tls).await?.serve_with_incoming_shutdown(
            TcpListenerStream::new(listener),
            token.clone().cancelled_owned(),
        );
        tokio::try_join!(socket, tcp)?;
    } else {
        socket.await?;
    }
    Ok(())
}
