//! libpq connection strings.
//!
//! In: a URI (`postgresql://...`) or `key=value` pairs, as libpq takes them. Out: [`Conninfo`].
//! Promise: the password is never printed.

use std::{fmt, path::PathBuf};

/// A connection string is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// How far a server's certificate is checked (libpq, sslmode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Where a server is and who we are there.
#[derive(Clone)]
pub struct Conninfo {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) ssl_mode: SslMode,
    pub(crate) ssl_root_cert: Option<PathBuf>,
    pub(crate) ssl_cert: Option<PathBuf>,
    pub(crate) ssl_key: Option<PathBuf>,
    text: String,
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({self})")
    }
}

impl fmt::Display for Conninfo {
    /// `host:port/database as user`, no password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match self.config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            Some(tokio_postgres::config::Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let user = self.config.get_user().unwrap_or("");
        write!(f, "{host}:{port}/{} as {user}", self.database())
    }
}

impl Conninfo {
    /// Reads a libpq connection string.
    ///
    /// # Errors
    /// When a keyword is not known or a value cannot be read.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let config: tokio_postgres::Config = text
            .parse()
            .map_err(|error: tokio_postgres::Error| ParseError(crate::error::chain(&error)))?;
        Ok(Self {
            config,
            ssl_mode: SslMode::Prefer,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            text: text.to_owned(),
        })
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        self.config.get_dbname().or(self.config.get_user()).unwrap_or("postgres")
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or("")
    }

    /// The string as it was given, password and all: for a worker's memory and nowhere else.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Environment for a libpq program (pg_dump): PGHOST, PGPORT, PGUSER, PGDATABASE,
    /// PGPASSWORD, PGSSLMODE and so on. Never on a command line.
    pub fn to_env(&self) -> Vec<(&'static str, String)> {
        let mut env = vec![("PGDATABASE", self.database().to_owned())];
        let hosts: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .map(|host| match host {
                tokio_postgres::config::Host::Tcp(host) => host.clone(),
                tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        if !hosts.is_empty() {
            env.push(("PGHOST", hosts.join(",")));
        }
        let ports: Vec<String> = self.config.get_ports().iter().map(ToString::to_string).collect();
        if !ports.is_empty() {
            env.push(("PGPORT", ports.join(",")));
        }
        if let Some(user) = self.config.get_user() {
            env.push(("PGUSER", user.to_owned()));
        }
        if let Some(password) = self.config.get_password() {
            env.push(("PGPASSWORD", String::from_utf8_lossy(password).into_owned()));
        }
        env
    }
}
