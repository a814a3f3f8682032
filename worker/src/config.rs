//! What a worker is told when it starts.
//!
//! In: built-in defaults, a file, the environment and flags (each over the one before). Out: a
//! checked [`Config`]. Promise: an unknown key or an impossible value is an error by name.

use proto::{authorization, authorization::Secret, status::Report};
use serde::Deserialize;
use std::{fmt, num::NonZeroU32, path::PathBuf, time::Duration};

/// `worker.toml` as written by the operator. Every field optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// One address, or several with commas between.
    pub coordinator: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// `env:NAME` or `file:PATH`.
    pub token: Option<String>,
    pub id: Option<String>,
    pub slots: Option<u32>,
    #[serde(with = "humantime_serde")]
    pub orphan_timeout: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Option<Duration>,
}

/// Where the coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket on this machine.
    Unix(PathBuf),
    /// `https://HOST:PORT`; `http://` on this machine alone.
    Http(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(url) => f.write_str(url),
        }
    }
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one: who does not answer, or does not lead, is followed by the next.
    pub coordinators: Vec<Address>,
    pub credentials: Credentials,
    pub id: String,
    /// Tasks at once.
    pub slots: NonZeroU32,
    /// How long it goes on without a coordinator.
    pub orphan_timeout: Duration,
    /// How long running tasks may take to finish once it was told to stop.
    pub drain_timeout: Duration,
}

/// What a coordinator off this machine is trusted by, and trusts.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Certificate authorities, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Our certificate and its key, PEM.
    pub identity: Option<(Vec<u8>, Secret)>,
    pub token: Option<Secret>,
}

/// A setting is missing or cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("setting \"{key}\" is missing")]
    Missing { key: &'static str },
    #[error("setting \"{key}\" cannot be \"{given}\"; allowed: {allowed}")]
    Value { key: &'static str, given: String, allowed: &'static str },
    #[error("configuration file cannot be read: {0}")]
    File(String),
    #[error("\"{url}\" is off this machine and not https; allowed: https://HOST:PORT")]
    Open { url: String },
    #[error("could not read \"{}\": {reason}", path.display())]
    Pem { path: PathBuf, reason: String },
    #[error("{}. {} {}", .0.primary, .0.detail, .0.hint)]
    Token(Report),
}

/// A COPY stream keeps about one core of each server busy; more is the operator's choice.
const SLOTS: u32 = 4;
/// More sessions than this from one process are a mistake.
const SLOTS_MAX: u32 = 256;
/// A coordinator that was killed is started again within this, or nobody comes (the brief of
/// `skein migrate`: the work goes on in the background).
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(600);
/// A supervisor waits 10 s before it kills (systemd waits 90 s); half of it for the chunks.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What `--print-default-config` prints.
pub const DEFAULT: &str = "\
# Settings of skein-worker. Flags and SKEIN_ variables win over this file.

# Where the coordinator listens: unix:PATH, https://HOST:PORT, or http://127.0.0.1:PORT. No default.
# Several coordinators: their addresses with commas between.
# coordinator = \"unix:/var/lib/skein/coordinator.sock\"

# For https: certificate authorities (default: the system's), the token as env:NAME or file:PATH,
# and a certificate and key, where the coordinator asks for one. PEM.
# ca_file = \"/etc/skein/ca.crt\"
# token = \"file:/etc/skein/worker.token\"
# cert_file = \"/etc/skein/worker.crt\"
# key_file = \"/etc/skein/worker.key\"

# Name of this worker. Default: HOST-PID.
# id = \"copier-1\"

# Tasks at once: 1 to 256.
slots = 4

# How long it goes on without a coordinator.
orphan_timeout = \"10m\"

# How long running tasks may take to finish when it is told to stop.
drain_timeout = \"5s\"
";

impl Settings {
    /// Reads `worker.toml`.
    ///
    /// # Errors
    /// An unknown key or a value of another type, with its place.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::File(error.to_string()))
    }

    /// `self` where it says something, else `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            coordinator: self.coordinator.or(below.coordinator),
            ca_file: self.ca_file.or(below.ca_file),
            cert_file: self.cert_file.or(below.cert_file),
            key_file: self.key_file.or(below.key_file),
            token: self.token.or(below.token),
            id: self.id.or(below.id),
            slots: self.slots.or(below.slots),
            orphan_timeout: self.orphan_timeout.or(below.orphan_timeout),
            drain_timeout: self.drain_timeout.or(below.drain_timeout),
        }
    }
}

impl TryFrom<Settings> for Config {
    type Error = ConfigError;

    fn try_from(settings: Settings) -> Result<Self, ConfigError> {
        let urls = settings.coordinator.ok_or(ConfigError::Missing { key: "coordinator" })?;
        let coordinators = urls
            .split(',')
            .map(|url| Address::parse(url.trim()))
            .collect::<Result<Vec<_>, ConfigError>>()?;
        let off_machine = coordinators.iter().any(Address::is_https);
        let credentials = Credentials {
            ca_pem: authorities(settings.ca_file, off_machine)?,
            identity: identity(settings.cert_file, settings.key_file)?,
            token: settings
                .token
                .map(|reference| Secret::token("token", &reference).map_err(ConfigError::Token))
                .transpose()?,
        };
        let slots = settings.slots.unwrap_or(SLOTS);
        let slots =
            NonZeroU32::new(slots).filter(|slots| slots.get() <= SLOTS_MAX).ok_or_else(|| {
                ConfigError::Value { key: "slots", given: slots.to_string(), allowed: "1 to 256" }
            })?;
        Ok(Self {
            coordinators,
            credentials,
            id: settings.id.unwrap_or_else(|| format!("{}-{}", host(), std::process::id())),
            slots,
            orphan_timeout: settings.orphan_timeout.unwrap_or(ORPHAN_TIMEOUT),
            drain_timeout: settings.drain_timeout.unwrap_or(DRAIN_TIMEOUT),
        })
    }
}

impl Address {
    fn is_https(&self) -> bool {
        matches!(self, Self::Http(url) if url.starts_with("https://"))
    }

    /// Reads `unix:PATH`, `https://HOST:PORT` or, of this machine, `http://HOST:PORT`.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.is_empty() {
                return Ok(Self::Unix(PathBuf::from(path)));
            }
        }
        let parsed = url.parse::<http::Uri>().ok().filter(|uri| uri.authority().is_some());
        match parsed.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri))) {
            Some(("https", _)) => return Ok(Self::Http(url.to_owned())),
            Some(("http", uri)) if authorization::is_on_this_machine(uri) => {
                return Ok(Self::Http(url.to_owned()));
            }
            // Connection settings of databases come over it.
            Some(("http", _)) => return Err(ConfigError::Open { url: url.to_owned() }),
            _ => {}
        }
        Err(ConfigError::Value {
            key: "coordinator",
            given: url.to_owned(),
            allowed: "unix:/path/coordinator.sock, https://HOST:PORT",
        })
    }
}

/// Where Debian and its like keep the certificate authorities they trust.
const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

fn authorities(file: Option<PathBuf>, needed: bool) -> Result<Option<Vec<u8>>, ConfigError> {
    match (file, needed) {
        (Some(path), _) => pem(path).map(Some),
        (None, true) => pem(SYSTEM_CA_FILE.into()).map(Some),
        (None, false) => Ok(None),
    }
}

fn identity(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<(Vec<u8>, Secret)>, ConfigError> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::Missing { key: "key_file" }),
        (None, Some(_)) => Err(ConfigError::Missing { key: "cert_file" }),
        (Some(certificate), Some(key)) => {
            let key = String::from_utf8_lossy(&pem(key)?).into_owned();
            Ok(Some((pem(certificate)?, Secret::new(key))))
        }
    }
}

fn pem(path: PathBuf) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(&path).map_err(|error| ConfigError::Pem { path, reason: error.to_string() })
}

/// This machine's name.
pub(crate) fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = Settings::parse("slots = 2\norphan_timeout = \"1m\"").unwrap();
        let coordinator = Some("unix:/run/skein.sock".to_owned());
        let flags = Settings { coordinator, slots: Some(8), ..Settings::default() };
        let config = Config::try_from(flags.over(file)).unwrap();
        assert_eq!(config.slots.get(), 8);
        assert_eq!(config.orphan_timeout, Duration::from_secs(60));
        assert_eq!(config.coordinators, [Address::Unix("/run/skein.sock".into())]);
    }

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        let coordinator = Some("unix:/s".to_owned());
        let of = |settings: Settings| {
            let flags = Settings { coordinator: coordinator.clone(), ..Settings::default() };
            Config::try_from(flags.over(settings)).unwrap()
        };
        let (printed, built_in) = (of(Settings::parse(DEFAULT).unwrap()), of(Settings::default()));
        assert_eq!(printed.slots, built_in.slots);
        assert_eq!(printed.orphan_timeout, built_in.orphan_timeout);
        assert_eq!(printed.drain_timeout, built_in.drain_timeout);
    }

    #[test]
    fn an_unknown_key_and_an_impossible_value_are_named() {
        assert!(Settings::parse("slotz = 2").unwrap_err().to_string().contains("slotz"));
        let settings = Settings {
            coordinator: Some("http://127.0.0.1:1".to_owned()),
            slots: Some(0),
            ..Settings::default()
        };
        let error = Config::try_from(settings).unwrap_err();
        assert!(error.to_string().contains("\"slots\" cannot be \"0\""));
        assert!(Address::parse("ftp://x").is_err());
        assert!(Address::parse("unix:").is_err());
    }

    #[test]
    fn off_this_machine_only_https_is_spoken() {
        assert!(Address::parse("https://skein.example:7450").is_ok());
        assert!(Address::parse("http://localhost:7450").is_ok());
        let refused = Address::parse("http://skein.example:7450");
        assert!(matches!(refused, Err(ConfigError::Open { .. })));
    }

    #[test]
    fn several_coordinators_are_read_and_a_token_is_a_reference() {
        let of = |token: &str| {
            Config::try_from(Settings {
                coordinator: Some("unix:/a, unix:/b".to_owned()),
                token: Some(token.to_owned()),
                ..Settings::default()
            })
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let config = of(&format!("file:{}", file.path().display())).unwrap();
        assert_eq!(config.coordinators.len(), 2);
        assert!(!format!("{config:?}").contains("0123"));
        let refused = of("0123456789abcdef").unwrap_err().to_string();
        assert!(!refused.contains("0123"), "{refused}");
    }
}
