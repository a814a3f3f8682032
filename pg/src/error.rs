//! One error for everything that speaks to a server.
//!
//! Promise: no row value and no password in any text. A server's message may quote a value
//! (class 22, `invalid input syntax for type integer: "..."`), its detail a key: neither is kept.

use crate::{TableName, sqlstate};
use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether the same call may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Transient,
    Definite,
}

/// Why a call on a server failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connection string cannot be read: {0}")]
    Conninfo(#[from] crate::conninfo::ParseError),
    /// `server` is host:port/database, without secrets.
    #[error("could not connect to {server}: {reason}")]
    Connect { server: String, reason: Box<crate::connect::Failure>, class: Class },
    #[error("{}", .0.text())]
    Server(Box<ServerError>),
    #[error("connection lost: {0}")]
    Connection(String),
    #[error("could not read or write: {0}")]
    Io(#[from] io::Error),
    /// The server sent what the protocol does not allow here.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// A value had another type than asked for: a mistake of ours.
    #[error("result cannot be read: {0}")]
    Result(String),
}

/// What the server said, without values.
#[derive(Clone, Debug)]
pub struct ServerError {
    pub sqlstate: String,
    /// Primary message; replaced by the condition's name where it may hold a value.
    pub message: String,
    pub hint: Option<String>,
    pub schema: Option<String>,
    pub table: Option<String>,
    pub column: Option<String>,
    pub constraint: Option<String>,
}

impl ServerError {
    fn text(&self) -> String {
        let mut text = format!("{} (SQLSTATE {}", self.message, self.sqlstate);
        if let (Some(schema), Some(table)) = (&self.schema, &self.table) {
            text.push_str(&format!(", table {}", TableName::new(schema, table)));
        }
        if let Some(column) = &self.column {
            text.push_str(&format!(", column \"{column}\""));
        }
        if let Some(constraint) = &self.constraint {
            text.push_str(&format!(", constraint \"{constraint}\""));
        }
        text.push(')');
        text
    }
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn class(&self) -> Class {
        match self {
            Self::Server(error) => sqlstate::class(&error.sqlstate),
            Self::Connect { class, .. } => *class,
            Self::Connection(_) | Self::Io(_) => Class::Transient,
            Self::Conninfo(_) | Self::Protocol(_) | Self::Result(_) => Class::Definite,
        }
    }

    pub fn is_transient(&self) -> bool {
        self.class() == Class::Transient
    }

    /// SQLSTATE, if the server spoke.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.sqlstate),
            Self::Connect { reason, .. } => reason.sqlstate(),
            _ => None,
        }
    }

    /// Why a connection could not be made, for a person: reason and hint.
    pub fn failure(&self) -> Option<&crate::connect::Failure> {
        match self {
            Self::Connect { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Whether the session is gone (as against a statement that failed in a living one).
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Server(error) => {
                error.sqlstate.starts_with("57P") || error.sqlstate.starts_with("08")
            }
            Self::Connection(_) | Self::Io(_) | Self::Protocol(_) | Self::Connect { .. } => true,
            Self::Conninfo(_) | Self::Result(_) => false,
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return Self::Server(Box::new(db.into()));
        }
        if error.is_closed() {
            return Self::Connection("the server closed the connection".to_owned());
        }
        let text = chain(&error);
        if text.contains("deserializing") || text.contains("serializing") {
            return Self::Result(text);
        }
        Self::Connection(text)
    }
}

/// Display of an error with its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(db: &tokio_postgres::error::DbError) -> Self {
        let names = [db.schema(), db.table(), db.column(), db.constraint()];
        // Whatever SQLSTATE a RAISE gives itself, its text is the user's.
        if db.routine() == Some("exec_stmt_raise") {
            return Self::from_fields(db.code().code(), RAISED, None, names);
        }
        Self::from_fields(db.code().code(), db.message(), db.hint(), names)
    }
}

impl ServerError {
    /// From the fields of an ErrorResponse; `[schema, table, column, constraint]`.
    pub fn from_fields(
        sqlstate: &str,
        message: &str,
        hint: Option<&str>,
        names: [Option<&str>; 4],
    ) -> Self {
        let [schema, table, column, constraint] = names.map(|name| name.map(str::to_owned));
        Self {
            sqlstate: sqlstate.to_owned(),
            message: without_values(sqlstate, message),
            hint: hint.map(str::to_owned),
            schema,
            table,
            column,
            constraint,
        }
    }
}

/// For what a user's function raised: any part of its text may be a row's value.
const RAISED: &str = "a function of the database raised an error, see the server's log";

/// Classes whose primary message may quote a row's value: data exceptions, cut at the first colon
/// or quote, and exceptions of user code (PL/pgSQL, external routines).
fn without_values(sqlstate: &str, message: &str) -> String {
    if ["P0", "38", "39"].iter().any(|class| sqlstate.starts_with(class)) {
        return RAISED.to_owned();
    }
    if sqlstate.starts_with("22") {
        let end = message.find([':', '"', '\'']).unwrap_or(message.len());
        return message[..end].trim_end().to_owned();
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_a_message_is_left_out() {
        let text = without_values("22P02", "invalid input syntax for type integer: \"4111 1111\"");
        assert_eq!(text, "invalid input syntax for type integer");
        assert_eq!(without_values("P0001", "customer 4711 is in arrears"), RAISED);
        assert_eq!(without_values("42P01", "relation \"a\" does not exist").len(), 27);
    }
}
