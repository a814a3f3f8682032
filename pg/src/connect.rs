//! Why a server did not let us in, as a person is told.
//!
//! In: what socket, TLS and server said. Out: [`Failure`], with text, reason and hint.
//! Promise: no password in any text.

use crate::{Error, error::Class};
use std::io;

/// Why a connection could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("host name \"{host}\" could not be resolved: {text}")]
    NameNotResolved { host: String, text: String },
    #[error("connection to {address} was refused")]
    Refused { address: String },
    #[error("{address} could not be reached: {text}")]
    Unreachable { address: String, text: String },
    #[error("no answer from {address} in {seconds} s")]
    TimedOut { address: String, seconds: u64 },
    #[error("connection to {address} broke off: {text}")]
    BrokenOff { address: String, text: String },
    #[error("password authentication failed for user \"{user}\"")]
    WrongPassword { user: String },
    #[error("user \"{user}\" needs a password and none was given")]
    PasswordMissing { user: String, note: Option<String> },
    #[error("{message}")]
    NotAuthorized { message: String },
    #[error("{message}")]
    DatabaseMissing { message: String },
    #[error("server has no connection left: {message}")]
    TooManyConnections { message: String },
    #[error("server is not ready: {message}")]
    NotReady { message: String },
    #[error("server refused: {message}")]
    Other { message: String, sqlstate: String },
    #[error("server at {address} does not offer TLS, and sslmode=\"{mode}\" requires it")]
    TlsRefused { address: String, mode: &'static str },
    #[error("TLS with {address} failed: {text}")]
    TlsFailed { address: String, text: String },
    #[error("certificate of {address} is not trusted: {text}")]
    CertificateNotTrusted { address: String, text: String },
    #[error("certificate of {address} is not for host name \"{host}\" (it names {names})")]
    CertificateName { address: String, host: String, names: String },
    #[error("{what} cannot be used: {text}")]
    File { what: String, text: String },
    #[error("sslmode=\"{mode}\" needs a root certificate, and none was found")]
    RootCertMissing { mode: &'static str },
    #[error("sslmode=verify-full needs a host name to compare with the certificate")]
    HostNameMissing,
    #[error("channel_binding=require, and the server did not bind the channel")]
    NoChannelBinding,
    #[error("server at {address} is not \"{wanted}\" (target_session_attrs)")]
    WrongSession { address: String, wanted: &'static str },
    #[error("server asked for an authentication method that is not supported: {text}")]
    Method { text: String },
}

impl Failure {
    /// Whether the same call may succeed later.
    pub fn class(&self) -> Class {
        match self {
            Self::NameNotResolved { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::BrokenOff { .. }
            | Self::TooManyConnections { .. }
            | Self::NotReady { .. }
            | Self::TlsFailed { .. }
            | Self::WrongSession { .. } => Class::Transient,
            Self::Other { sqlstate, .. } => crate::sqlstate::class(sqlstate),
            Self::WrongPassword { .. }
            | Self::PasswordMissing { .. }
            | Self::NotAuthorized { .. }
            | Self::DatabaseMissing { .. }
            | Self::TlsRefused { .. }
            | Self::CertificateNotTrusted { .. }
            | Self::CertificateName { .. }
            | Self::File { .. }
            | Self::RootCertMissing { .. }
            | Self::HostNameMissing
            | Self::NoChannelBinding
            | Self::Method { .. } => Class::Definite,
        }
    }

    /// Upper-case word by which operators search.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NameNotResolved { .. } => "HOST_NAME_NOT_RESOLVED",
            Self::Refused { .. } => "CONNECTION_REFUSED",
            Self::Unreachable { .. } => "HOST_UNREACHABLE",
            Self::TimedOut { .. } => "CONNECT_TIMEOUT",
            Self::BrokenOff { .. } => "CONNECTION_BROKEN",
            Self::WrongPassword { .. } => "PASSWORD_REFUSED",
            Self::PasswordMissing { .. } => "PASSWORD_MISSING",
            Self::NotAuthorized { .. } => "NOT_AUTHORIZED",
            Self::DatabaseMissing { .. } => "DATABASE_MISSING",
            Self::TooManyConnections { .. } => "TOO_MANY_CONNECTIONS",
            Self::NotReady { .. } => "SERVER_NOT_READY",
            Self::Other { .. } => "CONNECTION_FAILED",
            Self::TlsRefused { .. } => "TLS_REFUSED",
            Self::TlsFailed { .. } => "TLS_FAILED",
            Self::CertificateNotTrusted { .. } => "CERTIFICATE_NOT_TRUSTED",
            Self::CertificateName { .. } => "CERTIFICATE_NAME_MISMATCH",
            Self::File { .. } => "TLS_FILE_UNUSABLE",
            Self::RootCertMissing { .. } => "ROOT_CERTIFICATE_MISSING",
            Self::HostNameMissing => "HOST_NAME_MISSING",
            Self::NoChannelBinding => "CHANNEL_BINDING_MISSING",
            Self::WrongSession { .. } => "WRONG_SESSION",
            Self::Method { .. } => "AUTHENTICATION_METHOD",
        }
    }

    /// What to do.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::NameNotResolved { .. } => {
                "Check the host name, and the resolver of this machine."
            }
            Self::Refused { .. } => {
                "Check host and port, that the server runs, and that listen_addresses includes \
                 that address."
            }
            Self::Unreachable { .. } | Self::TimedOut { .. } => {
                "Check host, port and firewall: nothing answers there."
            }
            Self::BrokenOff { .. } => "See the server's log; a pooler or firewall may be between.",
            Self::WrongPassword { .. } => "Check user and password.",
            Self::PasswordMissing { note, .. } => {
                return match note {
                    Some(note) => format!("Note: {note}."),
                    None => "Set it in the connection string, in PGPASSWORD, or in ~/.pgpass."
                        .to_owned(),
                };
            }
            Self::NotAuthorized { .. } => {
                "Add a line for this user, database and address to the server's pg_hba.conf, then \
                 run: select pg_reload_conf();"
            }
            Self::DatabaseMissing { .. } => "Check the name, or create the database.",
            Self::TooManyConnections { .. } => {
                "Raise max_connections, end idle sessions, or use fewer workers."
            }
            Self::NotReady { .. } => "Wait until the server has started.",
            Self::Other { .. } => "See the server's log.",
            Self::TlsRefused { .. } => {
                "Turn on ssl on the server, or give sslmode=prefer if plain text is acceptable."
            }
            Self::TlsFailed { .. } => "See the server's log; it must speak TLS 1.2 or 1.3.",
            Self::CertificateNotTrusted { .. } => {
                "Name the certificate of the authority that signed it with sslrootcert=FILE."
            }
            Self::CertificateName { .. } => {
                "Connect by a name that the certificate carries, or give sslmode=verify-ca."
            }
            Self::File { .. } => "Give a readable PEM file.",
            Self::RootCertMissing { .. } => {
                "Give sslrootcert=FILE, or sslrootcert=system with sslmode=verify-full."
            }
            Self::HostNameMissing => "Give host=NAME beside hostaddr.",
            Self::NoChannelBinding => {
                "Use TLS and a scram-sha-256 password, or give channel_binding=prefer."
            }
            Self::WrongSession { .. } => "Name a server that is, or change target_session_attrs.",
            Self::Method { .. } => "Use scram-sha-256, a client certificate, or trust.",
        };
        hint.to_owned()
    }

    /// SQLSTATE, where the server spoke.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::WrongPassword { .. } => Some("28P01"),
            Self::NotAuthorized { .. } => Some("28000"),
            Self::DatabaseMissing { .. } => Some("3D000"),
            Self::TooManyConnections { .. } => Some("53300"),
            Self::NotReady { .. } => Some("57P03"),
            Self::Other { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    /// The next server of the string may be asked (libpq: not after a refused password).
    pub(crate) fn may_try_next_host(&self) -> bool {
        matches!(
            self,
            Self::NameNotResolved { .. }
                | Self::Refused { .. }
                | Self::Unreachable { .. }
                | Self::TimedOut { .. }
                | Self::BrokenOff { .. }
                | Self::NotReady { .. }
                | Self::WrongSession { .. }
                | Self::TlsFailed { .. }
        )
    }

    /// With sslmode allow and prefer: the other way (TLS or plain) may be let in.
    pub(crate) fn may_try_other_transport(&self) -> bool {
        matches!(
            self,
            Self::NotAuthorized { .. }
                | Self::BrokenOff { .. }
                | Self::TlsRefused { .. }
                | Self::TlsFailed { .. }
                | Self::CertificateNotTrusted { .. }
                | Self::CertificateName { .. }
        )
    }

    /// From a failure to reach an address.
    pub(crate) fn from_io(address: &str, error: &io::Error) -> Self {
        let address = address.to_owned();
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { address },
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Self::BrokenOff { address, text: error.to_string() },
            _ => Self::Unreachable { address, text: error.to_string() },
        }
    }

    /// From what a server said, or what broke, while it let us in.
    pub(crate) fn from_error(error: &Error, address: &str, user: &str, note: Option<&str>) -> Self {
        match error {
            Error::Server(server) => {
                let message = server.message.clone();
                match server.sqlstate.as_str() {
                    "28P01" => Self::WrongPassword { user: user.to_owned() },
                    "28000" => Self::NotAuthorized { message },
                    "3D000" => Self::DatabaseMissing { message },
                    "53300" => Self::TooManyConnections { message },
                    "57P03" => Self::NotReady { message },
                    sqlstate => Self::Other { message, sqlstate: sqlstate.to_owned() },
                }
            }
            Error::Connect { reason, .. } => (**reason).clone(),
            Error::Io(error) => Self::from_io(address, error),
            other => {
                let text = other.to_string();
                if text.contains("password missing") {
                    let note = note.map(str::to_owned);
                    Self::PasswordMissing { user: user.to_owned(), note }
                } else if text.contains("channel binding") {
                    Self::NoChannelBinding
                } else if text.contains("unsupported authentication")
                    || text.contains("unsupported SASL")
                {
                    Self::Method { text }
                } else {
                    Self::BrokenOff { address: address.to_owned(), text }
                }
            }
        }
    }
}
