//! Finds a coordinator and talks to it.
//!
//! ```text
//! --coordinator URL   --dir DIR        flags
//! SKEIN_COORDINATOR   SKEIN_DIR        environment, if no flag is given
//!                     $XDG_STATE_HOME/skein or ~/.local/state/skein
//! ```
//! Out: a [`Client`]. Promise: a coordinator that does not answer is an error within
//! [`CONNECT_TIMEOUT`], and a connection that goes silent ends by HTTP/2 keepalive.

use hyper_util::rt::TokioIo;
use proto::{
    authorization::{self, Secret},
    status::{Classify, ErrorClass},
    v1::operator_service_client::OperatorServiceClient,
};
use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};

/// The coordinator's operator service; each call carries the command's trace and our token.
pub(crate) type Client = OperatorServiceClient<InterceptedService<Channel, Outgoing>>;

/// What every request carries.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    bearer: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Outgoing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        telemetry::propagate::inject(request.metadata_mut());
        authorization::carry(request.metadata_mut(), self.bearer.as_ref());
        Ok(request)
    }
}

/// What a coordinator elsewhere is trusted by, and trusts. For https alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    /// Certificate authorities; None: the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// Our certificate and its key, where one is asked for.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) token: Option<Secret>,
}

/// Time for TCP, TLS and HTTP/2. A coordinator two continents away needs under 2 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two HTTP/2 pings, and the wait for an answer: a cut peer is noticed within
/// 20 s (rules, part 6).
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer: a status with many tables, a verdict with long keys. tonic allows 4 MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Where Debian and its like keep the certificate authorities they trust.
const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Bytes of a Unix socket's path, its end included (`sun_path`, unix(7)).
const SOCKET_PATH_MAX: usize = 108;

/// Where a coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine, in a state directory; `migrate` and `check` may start it.
    Dir(PathBuf),
    /// On this machine, at a socket.
    Socket(PathBuf),
    /// `http://` or `https://`.
    Url(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir) => write!(f, "{}", socket_of(dir).display()),
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// The socket that a coordinator with this state directory listens on.
pub(crate) fn socket_of(dir: &Path) -> PathBuf {
    dir.join("coordinator.sock")
}

/// Why no coordinator answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no coordinator answers at {place}")]
    Unreachable { place: Place, cause: String },
    #[error("\"{url}\" is not a coordinator's address")]
    Address { url: String },
    #[error("\"{url}\" is off this machine and not https")]
    Open { url: String },
    #[error("could not read certificates from \"{}\"", path.display())]
    Authorities { path: PathBuf, source: io::Error },
    #[error("there is no state directory: neither --dir nor XDG_STATE_HOME nor HOME is set")]
    NoDirectory,
    #[error("the path of the coordinator's socket is too long: \"{}\"", path.display())]
    SocketPath { path: PathBuf },
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } => ErrorClass::Transient,
            Self::Address { .. }
            | Self::Open { .. }
            | Self::Authorities { .. }
            | Self::NoDirectory
            | Self::SocketPath { .. } => ErrorClass::Definite,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "COORDINATOR_UNREACHABLE",
            Self::Address { .. } | Self::Open { .. } => "COORDINATOR_ADDRESS",
            Self::Authorities { .. } => "CA_FILE",
            Self::NoDirectory | Self::SocketPath { .. } => "STATE_DIRECTORY",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::SocketPath { .. } => {
                format!("A Unix socket's path has at most {} bytes.", SOCKET_PATH_MAX - 1)
            }
            Self::Unreachable { cause, .. } => format!("Cause: {cause}."),
            Self::Open { .. } => "A token and SQL would pass in the clear.".to_owned(),
            Self::Address { .. } | Self::Authorities { .. } | Self::NoDirectory => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Unreachable { cause, .. } if cause.contains("Permission denied") => {
                "It belongs to another user of this machine: run skein as that one.".to_owned()
            }
            Self::Unreachable { place: Place::Dir(dir), .. } => {
                let dir = quoted(&dir.display().to_string());
                format!(
                    "Run the `skein migrate` command again (it starts one and goes on where it \
                     was), or: skein-coordinator --dir {dir}\n\
                     If it runs elsewhere, give --dir or --coordinator. Its log: {dir}/coordinator.log"
                )
            }
            Self::Unreachable { .. } => {
                "Check that the coordinator runs there and that the network lets you through."
                    .to_owned()
            }
            Self::Address { .. } => {
                "Give http://HOST:PORT, https://HOST:PORT or unix:/PATH.".to_owned()
            }
            Self::Open { .. } => {
                "Give https://HOST:PORT, or reach it through an SSH tunnel.".to_owned()
            }
            Self::Authorities { .. } => {
                "Give --ca-file (and --cert-file with --key-file) with PEM files.".to_owned()
            }
            Self::NoDirectory => "Give --dir DIR.".to_owned(),
            Self::SocketPath { .. } => "Give a shorter --dir.".to_owned(),
        }
    }
}

/// A word as a shell takes it back.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The place that flags and environment name.
///
/// # Errors
/// [`Error::Address`], [`Error::NoDirectory`], [`Error::SocketPath`].
pub(crate) fn place(url: Option<&str>, dir: Option<&Path>) -> Result<Place, Error> {
    if let Some(url) = url {
        return address(url);
    }
    if let Some(dir) = dir {
        return directory(dir.to_owned());
    }
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(url) = variable("SKEIN_COORDINATOR") {
        return address(&url.to_string_lossy());
    }
    match variable("SKEIN_DIR") {
        Some(dir) => directory(PathBuf::from(dir)),
        None => directory(default_dir().ok_or(Error::NoDirectory)?),
    }
}

/// `$XDG_STATE_HOME/skein` or `~/.local/state/skein`.
pub(crate) fn default_dir() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("skein"))
}

fn directory(dir: PathBuf) -> Result<Place, Error> {
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    let socket = socket_of(&dir);
    if socket.as_os_str().len() >= SOCKET_PATH_MAX {
        return Err(Error::SocketPath { path: socket });
    }
    Ok(Place::Dir(dir))
}

fn address(url: &str) -> Result<Place, Error> {
    if let Some(path) = url.strip_prefix("unix:") {
        // unix:///path is written too.
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.starts_with('/') {
            return Ok(Place::Socket(PathBuf::from(path)));
        }
    }
    let parsed = url.parse::<Uri>().ok().filter(|uri| uri.authority().is_some());
    match parsed.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri))) {
        Some(("https", _)) => Ok(Place::Url(url.to_owned())),
        Some(("http", uri)) if authorization::is_on_this_machine(uri) => {
            Ok(Place::Url(url.to_owned()))
        }
        Some(("http", _)) => Err(Error::Open { url: url.to_owned() }),
        _ => Err(Error::Address { url: url.to_owned() }),
    }
}

/// Connects, once. The channel connects again by itself when it is used after a loss.
///
/// # Errors
/// [`Error::Unreachable`], or what is wrong with the address.
pub(crate) async fn channel(place: &Place, credentials: &Credentials) -> Result<Channel, Error> {
    let unreachable = |error: tonic::transport::Error| Error::Unreachable {
        place: place.clone(),
        cause: innermost(&error),
    };
    let socket = match place {
        Place::Dir(dir) => socket_of(dir),
        Place::Socket(path) => path.clone(),
        Place::Url(url) => {
            return kept_alive(endpoint(url, credentials)?).connect().await.map_err(unreachable);
        }
    };
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    kept_alive(Endpoint::from_static("http://coordinator"))
        .connect_with_connector(connector)
        .await
        .map_err(unreachable)
}

/// The system's own words: what stands around them says "transport error" and repeats.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The operator service behind a channel; a coordinator of this machine needs no token.
pub(crate) fn client(channel: Channel, token: Option<&Secret>) -> Client {
    let bearer = token.and_then(Secret::bearer);
    OperatorServiceClient::with_interceptor(channel, Outgoing { bearer })
        .max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn kept_alive(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
}

fn endpoint(url: &str, credentials: &Credentials) -> Result<Endpoint, Error> {
    let wrong = |_| Error::Address { url: url.to_owned() };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(wrong)?;
    if !url.starts_with("https:") {
        return Ok(endpoint);
    }
    let read = |path: &Path| {
        let path = path.to_owned();
        std::fs::read(&path).map_err(|source| Error::Authorities { path, source })
    };
    let authorities = credentials.ca_file.as_deref().unwrap_or(Path::new(SYSTEM_CA_FILE));
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(authorities)?));
    if let Some((certificate, key)) = &credentials.identity {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    endpoint.tls_config(tls).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_http_or_a_socket() {
        let socket = Place::Socket(PathBuf::from("/run/skein.sock"));
        assert_eq!(address("unix:/run/skein.sock").unwrap(), socket);
        assert_eq!(address("unix:///run/skein.sock").unwrap(), socket);
        assert!(matches!(address("https://skein.example:7000").unwrap(), Place::Url(_)));
        assert!(matches!(address("http://127.0.0.1:7000").unwrap(), Place::Url(_)));
        assert!(matches!(address("http://skein.example:7000"), Err(Error::Open { .. })));
        for wrong in ["localhost:7000", "unix:skein.sock", "ftp://h/", "", "http://"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_socket_path_that_the_system_would_refuse_is_refused_with_its_limit() {
        let error = directory(PathBuf::from(format!("/{}", "d".repeat(100)))).unwrap_err();
        assert!(error.report().detail.contains("107 bytes"));
    }

    #[test]
    fn a_word_is_quoted_for_the_shell_when_it_must_be() {
        assert_eq!(quoted("/var/lib/skein"), "/var/lib/skein");
        assert_eq!(quoted("/a b/it's"), "'/a b/it'\\''s'");
    }
}
