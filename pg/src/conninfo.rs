//! libpq connection strings.
//!
//! ```text
//! text -> parse (pairs) -> service, PG* variables, defaults -> resolve (checked) -> Conninfo
//! ```
//! In: a URI or `keyword=value` pairs, and the [`Environment`]. Out: [`Conninfo`], which holds
//! all that libpq would use, so that another process reads the same from
//! [`Conninfo::expose`]. Promise: the password is never printed; what libpq would obey and we
//! cannot is refused by name, not passed over.

mod environment;
mod keyword;
mod parse;
mod passfile;
mod resolve;
mod service;
mod tls_options;

pub use environment::Environment;
pub(crate) use tls_options::{TlsOptions, TlsVersion};

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

/// A connection string is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// How far the connection is secured (libpq, sslmode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Which server of several is wanted (libpq, target_session_attrs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// Whether the password exchange is bound to the TLS channel (libpq, channel_binding).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// Which certificates we trust (libpq, sslrootcert).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCert {
    /// The operating system's.
    System,
    File(PathBuf),
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Directory of the socket.
    Unix(PathBuf),
    /// A name that is looked up.
    Name(String),
    /// An address; the name, if one was given, is what the certificate must carry.
    Address { ip: IpAddr, name: Option<String> },
}

/// One of the servers that a string names.
#[derive(Clone, PartialEq, Eq)]
pub struct Host {
    pub place: Place,
    pub port: u16,
    password: Option<String>,
}

impl Host {
    /// For the authentication exchange, and nothing else.
    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The name that a certificate must carry: none for a socket or a bare address.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.place {
            Place::Unix(_) => None,
            Place::Name(name) => Some(name),
            Place::Address { name, .. } => name.as_deref(),
        }
    }

    /// As libpq's `host` has it.
    fn host_text(&self) -> String {
        match &self.place {
            Place::Unix(directory) => directory.display().to_string(),
            Place::Name(name) => name.clone(),
            Place::Address { ip, name } => name.clone().unwrap_or_else(|| ip.to_string()),
        }
    }

    /// As libpq's `hostaddr` has it.
    fn address_text(&self) -> String {
        match &self.place {
            Place::Address { ip, .. } => ip.to_string(),
            Place::Unix(_) | Place::Name(_) => String::new(),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({self})")
    }
}

impl fmt::Display for Host {
    /// `host:port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host_text();
        if host.contains(':') && !host.starts_with('/') {
            write!(f, "[{host}]:{}", self.port)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}

/// Where a server is and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Conninfo {
    hosts: Vec<Host>,
    user: String,
    database: String,
    options: Option<String>,
    connect_timeout: Option<Duration>,
    channel_binding: ChannelBinding,
    target_session: TargetSession,
    /// Hosts are tried in random order (libpq 16, load_balance_hosts).
    shuffled: bool,
    tls: TlsOptions,
    /// Set where the hosts have different passwords.
    passfile: Option<PathBuf>,
    /// Why a password file was not used.
    passfile_note: Option<String>,
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({self})")
    }
}

impl fmt::Display for Conninfo {
    /// `host:port/database as user`, no password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        write!(f, "{}/{} as {}", hosts.join(","), self.database, self.user)
    }
}

impl Conninfo {
    /// Reads a libpq connection string in this process's environment.
    ///
    /// # Errors
    /// When a keyword is not known or a value cannot be read.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Self::parse_in(text, &Environment::of_process())
    }

    /// Reads a libpq connection string in a given environment.
    ///
    /// # Errors
    /// As [`Conninfo::parse`].
    pub fn parse_in(text: &str, environment: &Environment) -> Result<Self, ParseError> {
        resolve::resolve(parse::pairs(text)?, environment)
    }

    /// Whether the text itself holds a password; one that the environment or a password file
    /// brings is not in it.
    pub fn holds_password(text: &str) -> bool {
        parse::pairs(text).is_ok_and(|pairs| {
            pairs.iter().any(|(name, value)| name == "password" && !value.is_empty())
        })
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The servers, in the order given.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The same server and user, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// The same server and database, another user.
    #[must_use]
    pub fn with_user(&self, user: &str, password: Option<&str>) -> Self {
        let mut conninfo = Self { user: user.to_owned(), passfile: None, ..self.clone() };
        for host in &mut conninfo.hosts {
            host.password = password.map(str::to_owned);
        }
        conninfo
    }

    /// Command-line options for the server (`-c name=value`), as given.
    pub fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    pub fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    pub fn target_session(&self) -> TargetSession {
        self.target_session
    }

    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }

    pub(crate) fn tls(&self) -> &TlsOptions {
        &self.tls
    }

    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    pub(crate) fn is_shuffled(&self) -> bool {
        self.shuffled
    }

    pub(crate) fn passfile_note(&self) -> Option<&str> {
        self.passfile_note.as_deref()
    }

    /// All of it as `keyword='value'` pairs that mean the same in any environment, password and
    /// all: for a worker's memory and nowhere else.
    pub fn expose(&self) -> String {
        let pairs: Vec<String> = self
            .pairs()
            .into_iter()
            .map(|(name, _, value)| {
                let value = value.unwrap_or_default();
                format!("{name}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
            })
            .collect();
        format!("service='' {}", pairs.join(" "))
    }

    /// Environment for a libpq program (pg_dump): PGHOST, PGPORT, PGUSER, PGDATABASE,
    /// PGPASSWORD, PGSSLMODE and so on. Never on a command line. What the program inherits
    /// beside it must go first: see [`Conninfo::inherited_variables`], or use
    /// [`Conninfo::apply_to`].
    pub fn to_env(&self) -> Vec<(&'static str, String)> {
        self.pairs()
            .into_iter()
            .filter_map(|(_, variable, value)| Some((variable, value?)))
            .collect()
    }

    /// Every variable that libpq reads.
    pub fn inherited_variables() -> impl Iterator<Item = &'static str> {
        keyword::KEYWORDS
            .iter()
            .filter_map(|keyword| keyword.variable)
            .chain(keyword::OTHER_VARIABLES.iter().copied())
    }

    /// Gives a child process this connection and takes away what it would inherit.
    pub fn apply_to<'a>(
        &self,
        command: &'a mut tokio::process::Command,
    ) -> &'a mut tokio::process::Command {
        for variable in Self::inherited_variables() {
            command.env_remove(variable);
        }
        command.envs(self.to_env())
    }

    /// Keyword, variable and value of all that is obeyed; none is the default.
    fn pairs(&self) -> Vec<(&'static str, &'static str, Option<String>)> {
        let list = |text: fn(&Host) -> String| {
            let parts: Vec<String> = self.hosts.iter().map(text).collect();
            if parts.iter().all(String::is_empty) { None } else { Some(parts.join(",")) }
        };
        let mut values = vec![
            ("host", list(Host::host_text)),
            ("hostaddr", list(Host::address_text)),
            ("port", list(|host| host.port.to_string())),
            ("user", Some(self.user.clone())),
            ("dbname", Some(self.database.clone())),
            ("password", self.common_password()),
            ("passfile", self.passfile.as_ref().map(|path| path.display().to_string())),
            ("options", self.options.clone()),
            ("connect_timeout", self.connect_timeout.map(|limit| limit.as_secs().to_string())),
            ("channel_binding", Some(self.channel_binding.text().to_owned())),
            ("target_session_attrs", Some(self.target_session.text().to_owned())),
            ("gssencmode", Some("disable".to_owned())),
        ];
        if self.shuffled {
            values.push(("load_balance_hosts", Some("random".to_owned())));
        }
        values.extend(self.tls.values());
        values
            .into_iter()
            .filter_map(|(name, value)| {
                Some((name, keyword::find(name).and_then(|keyword| keyword.variable)?, value))
            })
            .collect()
    }

    /// The password, where it is one for all hosts.
    fn common_password(&self) -> Option<String> {
        if self.passfile.is_some() {
            return None;
        }
        self.hosts.first().and_then(|host| host.password.clone())
    }
}

/// A keyword's values and their texts, each written once.
macro_rules! texts {
    ($type:ty { $($variant:ident = $text:literal),* $(,)? }) => {
        impl $type {
            pub(crate) fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
            fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
texts!(SslMode {
    Disable = "disable",
    Allow = "allow",
    Prefer = "prefer",
    Require = "require",
    VerifyCa = "verify-ca",
    VerifyFull = "verify-full",
});
texts!(TargetSession {
    Any = "any",
    ReadWrite = "read-write",
    ReadOnly = "read-only",
    Primary = "primary",
    Standby = "standby",
    PreferStandby = "prefer-standby",
});
texts!(ChannelBinding { Disable = "disable", Prefer = "prefer", Require = "require" });
texts!(TlsVersion { Tls12 = "TLSv1.2", Tls13 = "TLSv1.3" });

#[cfg(test)]
mod tests;
