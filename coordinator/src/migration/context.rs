//! What every step of a migration needs: both servers, the epoch, the spec, a directory.

use pg::{Conninfo, Result, Session, SessionName, Settings};
use proto::v1::MigrationSpec;
use std::path::PathBuf;

/// `client_encoding` of our sessions.
pub const UTF_8: &str = "UTF8";

/// A database whose bytes are of no known encoding.
const SQL_ASCII: &str = "SQL_ASCII";

/// One migration under one epoch. Cheap to clone; holds secrets in memory only.
#[derive(Clone, Debug)]
pub struct Context {
    pub name: String,
    pub spec: MigrationSpec,
    pub source: Conninfo,
    pub target: Conninfo,
    /// Term of this coordinator, issued by the target.
    pub epoch: u64,
    /// Source's server encoding, in which workers pass COPY bytes through. Every other session,
    /// the walsender too, speaks UTF-8: names and statements are, and a server checks what comes
    /// in as UTF-8 before it stores it (as SQL_ASCII it would not). Nobody converts a source in
    /// SQL_ASCII: there the stream, too, passes bytes through.
    pub source_encoding: String,
    /// `server_version_num` of the source, for example 150018.
    pub source_version: u32,
    pub target_version: u32,
    /// This migration's directory: schema archive, spool.
    pub dir: PathBuf,
}

impl Context {
    /// `skein/NAME/EPOCH/ROLE/ID`.
    pub fn session_name(&self, role: &str, id: impl std::fmt::Display) -> SessionName {
        SessionName::new(&self.name, self.epoch, role, id)
    }

    /// `client_encoding` of the stream. A server in SQL_ASCII only checks: asked for UTF-8, it ends
    /// the stream at the first bytes that are not.
    pub fn stream_encoding(&self) -> &'static str {
        if self.is_without_encoding() { SQL_ASCII } else { UTF_8 }
    }

    /// Nobody knows the encoding of the source's bytes.
    pub fn is_without_encoding(&self) -> bool {
        self.source_encoding.eq_ignore_ascii_case(SQL_ASCII)
    }

    /// A read-only session on the source.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses us.
    pub async fn source_session(&self, role: &str, id: impl std::fmt::Display) -> Result<Session> {
        let settings = Settings::read(self.session_name(role, id)).encoding(UTF_8);
        Session::connect(&self.source, &settings).await
    }

    /// A writing session on the target. Writes go through [`crate::target::fenced`].
    ///
    /// # Errors
    /// As [`Context::source_session`].
    pub async fn target_session(&self, role: &str, id: impl std::fmt::Display) -> Result<Session> {
        let settings = Settings::write(self.session_name(role, id)).encoding(UTF_8);
        Session::connect(&self.target, &settings).await
    }

    /// Name of the replication slot on the source; also the prefix of the publications.
    pub fn slot_name(&self) -> String {
        format!("skein_{}", self.name)
    }

    /// Publication of tables with every action.
    pub fn full_publication(&self) -> String {
        format!("skein_{}_full", self.name)
    }

    /// Publication of tables with INSERT and TRUNCATE alone.
    pub fn append_publication(&self) -> String {
        format!("skein_{}_append", self.name)
    }
}
