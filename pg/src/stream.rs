//! The byte stream to a server: TCP or a Unix socket, with keepalives.
//!
//! Promise: a peer that is gone is noticed in about ten seconds (rules, part 6).

use crate::{Conninfo, Error, Result};
use socket2::{SockRef, TcpKeepalive};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::config::Host;

/// First probe after this much silence.
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Pause between probes.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Probes without an answer until the peer counts as gone.
pub(crate) const KEEPALIVE_RETRIES: u32 = 3;
/// Sent bytes may stay without an acknowledgement this long. With these four, a cut peer was
/// noticed in 8.5 to 10.6 s; with the defaults its locks were held beyond 75 s (measured).
pub(crate) const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Both directions of a connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An open connection, before the startup message.
pub(crate) struct Stream {
    pub(crate) io: Box<dyn Duplex>,
    /// Data of SCRAM's channel binding `tls-server-end-point`, over TLS.
    pub(crate) server_end_point: Option<Vec<u8>>,
}

/// Opens the first of the hosts that answers.
///
/// # Errors
/// The last host's error.
pub(crate) async fn open_stream(conninfo: &Conninfo) -> Result<Stream> {
    let config = &conninfo.config;
    let mut last = Error::Connection("no host is given".to_owned());
    for (i, host) in config.get_hosts().iter().enumerate() {
        let ports = config.get_ports();
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        let opened = match host {
            Host::Unix(dir) => {
                let path = dir.join(format!(".s.PGSQL.{port}"));
                UnixStream::connect(path).await.map(|io| Box::new(io) as Box<dyn Duplex>)
            }
            Host::Tcp(name) => {
                let address = config.get_hostaddrs().get(i).map(ToString::to_string);
                tcp(address.as_deref().unwrap_or(name), port)
                    .await
                    .map(|io| Box::new(io) as Box<dyn Duplex>)
            }
        };
        match opened {
            Ok(io) => return Ok(Stream { io, server_end_point: None }),
            Err(error) => last = Error::Io(error),
        }
    }
    Err(last)
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES),
    )?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(stream)
}
