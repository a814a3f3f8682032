//! A byte stream to a server, plain or TLS, and the order in which servers are tried.
//!
//! ```text
//! hosts x addresses x (TLS | plain, by sslmode) -> socket -> SSLRequest -> handshake -> Stream
//!       ^                                                                               |
//!       +------ next, where libpq would try the next <------ startup refused <----------+
//! ```
//! Promise: a dead peer is noticed within about ten seconds (rules, part 6); TLS falls back to
//! plain only with sslmode allow and prefer.

use crate::{
    Conninfo, Error, Result,
    connect::Failure,
    conninfo::{Host, Place, SslMode, TargetSession},
    tls,
};
use rand::seq::SliceRandom as _;
use socket2::{SockRef, TcpKeepalive};
use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// How long a server may take to let us in, where the user set no connect_timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle time, pause and count of keepalive probes, and how long sent data may stay
/// unacknowledged: a cut peer was noticed in 8.5 to 10.6 s (rules, part 6), where the system's
/// defaults kept locks and snapshot beyond 75 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_COUNT: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// SSLRequest: length 8, code 80877103 (manual: protocol-message-formats).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Both directions of a connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connected stream, before the startup message.
pub struct Stream {
    inner: Inner,
    server_end_point: Option<Vec<u8>>,
}

enum Inner {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.inner {
            Inner::Tcp(_) => "Stream(tcp)",
            Inner::Unix(_) => "Stream(unix)",
            Inner::Tls(_) => "Stream(tls)",
        })
    }
}

impl Stream {
    pub fn is_tls(&self) -> bool {
        matches!(self.inner, Inner::Tls(_))
    }

    /// `tls-server-end-point` data for SCRAM-SHA-256-PLUS.
    pub fn server_end_point(&self) -> Option<&[u8]> {
        self.server_end_point.as_deref()
    }
}

/// One address of a server.
#[derive(Clone, Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "socket {}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Plain,
    Tls,
}

impl Transport {
    /// In the order that sslmode wants; TLS is not for Unix sockets.
    fn by_mode(mode: SslMode, address: &Address) -> &'static [Self] {
        match (address, mode) {
            (Address::Unix(_), _) | (_, SslMode::Disable) => &[Self::Plain],
            (_, SslMode::Allow) => &[Self::Plain, Self::Tls],
            (_, SslMode::Prefer) => &[Self::Tls, Self::Plain],
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Self::Tls],
        }
    }
}

/// A stream to the first server that answers, TLS negotiated, nothing sent yet.
///
/// What the server says to the startup message is not seen here: use [`connect_with`] where
/// a refusal (no pg_hba line for TLS) should lead to the next attempt.
///
/// # Errors
/// [`Error::Connect`].
pub(crate) async fn open_stream(conninfo: &Conninfo) -> Result<Stream> {
    connect_with(conninfo, |stream, _| async { Ok(stream) }).await
}

/// Opens a stream and runs `startup` over it; tries the next transport, address and host where
/// libpq would.
///
/// # Errors
/// [`Error::Connect`] with the failure that tells most.
pub(crate) async fn connect_with<T, S, F>(conninfo: &Conninfo, startup: S) -> Result<T>
where
    S: Fn(Stream, Host) -> F,
    F: Future<Output = Result<T>>,
{
    let mut hosts = conninfo.hosts().to_vec();
    if conninfo.is_shuffled() {
        hosts.shuffle(&mut rand::rng());
    }
    let mut told: Option<Failure> = None;
    for host in &hosts {
        match try_host(conninfo, host, &startup).await {
            Ok(done) => return Ok(done),
            Err(failure) => {
                let go_on = failure.may_try_next_host();
                told = Some(failure);
                if !go_on {
                    break;
                }
            }
        }
    }
    let failure = told.unwrap_or(Failure::NameNotResolved {
        host: String::new(),
        text: "no host is given".to_owned(),
    });
    Err(Error::Connect {
        server: conninfo.to_string(),
        class: failure.class(),
        reason: Box::new(failure),
    })
}

async fn try_host<T, S, F>(conninfo: &Conninfo, host: &Host, startup: &S) -> Result<T, Failure>
where
    S: Fn(Stream, Host) -> F,
    F: Future<Output = Result<T>>,
{
    let limit = conninfo.connect_timeout().unwrap_or(CONNECT_TIMEOUT);
    let mut told: Option<Failure> = None;
    for address in addresses(host, limit).await? {
        // The first transport's failure tells more than that of the second choice.
        let mut first: Option<Failure> = None;
        for transport in Transport::by_mode(conninfo.ssl_mode(), &address) {
            let attempt = async {
                let stream = open(conninfo, host, &address, *transport).await?;
                startup(stream, host.clone()).await.map_err(|error| {
                    let note = conninfo.passfile_note();
                    Failure::from_error(&error, &address.to_string(), conninfo.user(), note)
                })
            };
            let failure = match tokio::time::timeout(limit, attempt).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(failure)) => failure,
                Err(_) => timed_out(&address.to_string(), limit),
            };
            let go_on = failure.may_try_other_transport();
            let weak = matches!(first, None | Some(Failure::TlsRefused { .. }));
            if weak || !go_on {
                first = Some(failure);
            }
            if !go_on {
                break;
            }
        }
        let Some(failure) = first else { continue };
        if !failure.may_try_next_host() {
            return Err(failure);
        }
        told = Some(failure);
    }
    Err(told.unwrap_or(Failure::NameNotResolved {
        host: host.to_string(),
        text: "the name has no address".to_owned(),
    }))
}

fn timed_out(address: &str, limit: Duration) -> Failure {
    Failure::TimedOut { address: address.to_owned(), seconds: limit.as_secs() }
}

async fn addresses(host: &Host, limit: Duration) -> Result<Vec<Address>, Failure> {
    match &host.place {
        Place::Unix(directory) => {
            Ok(vec![Address::Unix(directory.join(format!(".s.PGSQL.{}", host.port)))])
        }
        Place::Address { ip, .. } => Ok(vec![Address::Tcp(SocketAddr::new(*ip, host.port))]),
        Place::Name(name) => {
            let lookup = tokio::net::lookup_host((name.as_str(), host.port));
            match tokio::time::timeout(limit, lookup).await {
                Ok(Ok(found)) => Ok(found.map(Address::Tcp).collect()),
                Ok(Err(error)) => Err(Failure::NameNotResolved {
                    host: name.clone(),
                    text: without_preamble(&error),
                }),
                Err(_) => Err(timed_out(name, limit)),
            }
        }
    }
}

/// "failed to lookup address information: " says no more than we do.
fn without_preamble(error: &io::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("information: ").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

async fn open(
    conninfo: &Conninfo,
    host: &Host,
    address: &Address,
    transport: Transport,
) -> Result<Stream, Failure> {
    let text = address.to_string();
    let failed = |error: io::Error| Failure::from_io(&text, &error);
    let mut tcp = match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            return Ok(Stream { inner: Inner::Unix(stream), server_end_point: None });
        }
        Address::Tcp(address) => TcpStream::connect(address).await.map_err(failed)?,
    };
    watch_peer(&tcp).map_err(failed)?;
    if transport == Transport::Plain {
        return Ok(Stream { inner: Inner::Tcp(tcp), server_end_point: None });
    }
    let options = conninfo.tls();
    if !options.direct {
        tcp.write_all(&SSL_REQUEST).await.map_err(failed)?;
        // One byte, and no more: what a man in the middle sends ahead must not be taken for
        // the server's encrypted words (CVE-2021-23222).
        let mut answer = [0];
        tcp.read_exact(&mut answer).await.map_err(failed)?;
        if answer[0] != b'S' {
            let mode = options.mode.text();
            return Err(Failure::TlsRefused { address: text, mode });
        }
    }
    let secured = tls::handshake(tcp, options, host.name(), &text).await?;
    Ok(Stream {
        inner: Inner::Tls(Box::new(secured.stream)),
        server_end_point: secured.server_end_point,
    })
}

/// Keepalives and user timeout, so that a peer that is gone is noticed.
fn watch_peer(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_COUNT),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// Whether a server is the one wanted, from `(in recovery, read only by default)`.
pub(crate) fn is_wanted(wanted: TargetSession, in_recovery: bool, read_only: bool) -> bool {
    match wanted {
        TargetSession::Any | TargetSession::PreferStandby => true,
        TargetSession::ReadWrite => !in_recovery && !read_only,
        TargetSession::ReadOnly => in_recovery || read_only,
        TargetSession::Primary => !in_recovery,
        TargetSession::Standby => in_recovery,
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

impl tokio_postgres::tls::TlsStream for Stream {
    fn channel_binding(&self) -> tokio_postgres::tls::ChannelBinding {
        match &self.server_end_point {
            Some(data) => tokio_postgres::tls::ChannelBinding::tls_server_end_point(data.clone()),
            None => tokio_postgres::tls::ChannelBinding::none(),
        }
    }
}

/// Tells tokio-postgres that the stream it is given is what it asked for: negotiation was done
/// here, so that sessions and walsender share one way in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Negotiated;

impl tokio_postgres::tls::TlsConnect<Stream> for Negotiated {
    type Stream = Stream;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Stream>>;

    fn connect(self, stream: Stream) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}
