//! A session on a server: pinned settings, keepalives, a name.
//!
//! ```text
//! Conninfo + Settings -> connect -> pinned settings -> Session: query, execute, batch (copy: `copy.rs`)
//! ```
//! Promise: every session of ours prints values the same way (rules, part 6), cannot hang on a
//! dead peer for more than about ten seconds, carries the name `skein/MIGRATION/EPOCH/ROLE/ID`,
//! and is closed when it is dropped.

use crate::{
    Conninfo, Error, Result, Sql,
    connect::Failure,
    conninfo::{ChannelBinding, Host, TargetSession},
    sql,
    sql::Literal,
    stream::{Negotiated, Stream, connect_with, is_wanted, open_stream},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Row, SimpleQueryMessage, types::ToSql};

/// `application_name` of a session: `skein/MIGRATION/EPOCH/ROLE/ID`, at most 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName(String);

impl SessionName {
    pub fn new(migration: &str, epoch: u64, role: &str, id: impl fmt::Display) -> Self {
        let mut name = format!("skein/{migration}/{epoch}/{role}/{id}");
        // An id may be a worker's, and those are a person's to choose.
        name.truncate(name.floor_char_boundary(63));
        Self(name)
    }

    /// Before an epoch exists: preflight and the first connection.
    pub fn of_role(role: &str) -> Self {
        Self(format!("skein/-/0/{role}/0"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a session may do, and how it prints.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: SessionName,
    /// `client_encoding`; the source's server encoding on both ends. None: the server's own.
    pub client_encoding: Option<String>,
    /// `default_transaction_read_only`.
    pub read_only: bool,
    /// `session_replication_role = replica`; an error where the right is missing.
    pub replica_role: bool,
    /// `synchronous_commit`; off is safe where positions count only once flushed.
    pub synchronous_commit: bool,
    /// `lock_timeout`; zero waits for ever.
    pub lock_timeout: Duration,
    /// `statement_timeout`; zero for long work.
    pub statement_timeout: Duration,
}

impl Settings {
    /// For reading: catalogs, snapshots, checks.
    pub fn read(name: SessionName) -> Self {
        Self {
            name,
            client_encoding: None,
            read_only: true,
            replica_role: false,
            synchronous_commit: true,
            lock_timeout: Duration::ZERO,
            statement_timeout: Duration::ZERO,
        }
    }

    /// For writing on the target, or what was announced on the source.
    pub fn write(name: SessionName) -> Self {
        Self { read_only: false, ..Self::read(name) }
    }

    #[must_use]
    pub fn encoding(mut self, client_encoding: impl Into<String>) -> Self {
        self.client_encoding = Some(client_encoding.into());
        self
    }

    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    #[must_use]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// The statements that pin a session. Every timeout is set, since an `ALTER ROLE` or
    /// `ALTER DATABASE` may have set another. The server's own keepalives are ours too, so that
    /// it lets go of our locks when this machine is cut off (rules, part 6).
    fn pins(&self, server_version: u32, found_role: &str) -> Sql {
        let on_off = |on: bool| if on { "on" } else { "off" };
        let mut pins = sql!(
            "set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
             set extra_float_digits = 3; set bytea_output = 'hex'; set lc_monetary = 'C'; \
             set timezone = 'UTC'; set xmloption = 'content'; set search_path = ''; \
             set row_security = off; set standard_conforming_strings = on; \
             set array_nulls = on; set transform_null_equals = off; \
             set default_transaction_isolation = 'read committed'; \
             set default_transaction_deferrable = off; \
             set idle_in_transaction_session_timeout = 0; \
             set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; \
             set tcp_keepalives_count = 3; set tcp_user_timeout = 10000; \
             set default_transaction_read_only = {}; set synchronous_commit = {}; \
             set lock_timeout = {}; set statement_timeout = {};",
            on_off(self.read_only),
            on_off(self.synchronous_commit),
            self.lock_timeout.as_millis().try_into().unwrap_or(i64::MAX),
            self.statement_timeout.as_millis().try_into().unwrap_or(i64::MAX),
        );
        if server_version >= 140_000 {
            pins.push(
                " set idle_session_timeout = 0; set client_connection_check_interval = 2000;",
            );
        }
        if server_version >= 170_000 {
            pins.push(" set transaction_timeout = 0;");
        }
        if let Some(encoding) = &self.client_encoding {
            pins.push(sql!(" set client_encoding = {};", Literal(encoding)));
        }
        if self.replica_role {
            pins.push(" set session_replication_role = replica;");
        } else if found_role != "origin" {
            // Setting it takes a right that not everyone has: only where it must be.
            pins.push(" set session_replication_role = origin;");
        }
        pins
    }
}

/// An open session. Closed when dropped: what it had begun is rolled back.
pub struct Session {
    client: Arc<Client>,
    connection: JoinHandle<()>,
    server_version: u32,
    backend_pid: i32,
    server: String,
    conninfo: Conninfo,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}, pid {})", self.server, self.backend_pid)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Connects and pins the session.
    ///
    /// # Errors
    /// [`Error::Connect`], with the server's name and the reason.
    pub async fn connect(conninfo: &Conninfo, settings: &Settings) -> Result<Self> {
        if conninfo.target_session() == TargetSession::PreferStandby {
            let standby = Self::connect_to(conninfo, settings, TargetSession::Standby).await;
            if standby.is_ok() {
                return standby;
            }
        }
        Self::connect_to(conninfo, settings, conninfo.target_session()).await
    }

    async fn connect_to(
        conninfo: &Conninfo,
        settings: &Settings,
        wanted: TargetSession,
    ) -> Result<Self> {
        let start = |stream, host| Self::start(conninfo, settings, wanted, (stream, host));
        connect_with(conninfo, start).await
    }

    /// Authenticates over `stream`, checks that the server is the one wanted, pins.
    async fn start(
        conninfo: &Conninfo,
        settings: &Settings,
        wanted: TargetSession,
        (stream, host): (Stream, Host),
    ) -> Result<Self> {
        let config = driver_config(conninfo, &host, settings);
        let (client, connection) = config.connect_raw(stream, Negotiated).await?;
        #[allow(clippy::disallowed_methods)] // owned by the Session, aborted on drop
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        let mut session = Self {
            client: Arc::new(client),
            connection,
            server_version: 0,
            backend_pid: 0,
            server: conninfo.to_string(),
            conninfo: conninfo.clone(),
        };
        let row = session
            .query_one(
                &sql!(
                    "select current_setting('server_version_num')::int, pg_backend_pid(), \
                     pg_is_in_recovery(), \
                     current_setting('default_transaction_read_only')::bool, \
                     current_setting('session_replication_role')"
                ),
                &[],
            )
            .await?;
        if !is_wanted(wanted, row.get(2), row.get(3)) {
            let failure =
                Failure::WrongSession { address: host.to_string(), wanted: wanted.text() };
            return Err(Error::Connect {
                server: conninfo.to_string(),
                class: failure.class(),
                reason: Box::new(failure),
            });
        }
        session.server_version = u32::try_from(row.get::<_, i32>(0)).unwrap_or(0);
        session.backend_pid = row.get(1);
        session.batch(&settings.pins(session.server_version, row.get(4))).await?;
        Ok(session)
    }

    /// `server_version_num`, for example 150018.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Major version, for example 15.
    pub fn major(&self) -> u32 {
        self.server_version / 10_000
    }

    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// `host:port/database as user`.
    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub async fn query(&self, sql: &Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        Ok(self.client.query(sql.as_str(), params).await?)
    }

    pub async fn query_one(&self, sql: &Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.query_opt(sql, params)
            .await?
            .ok_or_else(|| Error::Result("a row was expected, none came".to_owned()))
    }

    pub async fn query_opt(
        &self,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>> {
        Ok(self.client.query_opt(sql.as_str(), params).await?)
    }

    /// Rows affected.
    pub async fn execute(&self, sql: &Sql, params: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        Ok(self.client.execute(sql.as_str(), params).await?)
    }

    /// One or more statements without parameters; nothing comes back.
    pub async fn batch(&self, sql: &Sql) -> Result<()> {
        Ok(self.client.batch_execute(sql.as_str()).await?)
    }

    /// One or more statements by the simple protocol; rows as text.
    pub async fn simple(&self, sql: &Sql) -> Result<Vec<SimpleQueryMessage>> {
        Ok(self.client.simple_query(sql.as_str()).await?)
    }

    /// The driver's client, for prepared statements and pipelining.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Cancels what this session runs, from anywhere.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken { token: self.client.cancel_token(), conninfo: self.conninfo.clone() }
    }
}

/// Cancels what a session runs. The request is best effort: the statement may have ended.
#[derive(Clone)]
pub struct CancelToken {
    token: tokio_postgres::CancelToken,
    conninfo: Conninfo,
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelToken({})", self.conninfo)
    }
}

impl CancelToken {
    /// # Errors
    /// When the server cannot be reached; not when nothing was running.
    pub async fn cancel(&self) -> Result<()> {
        let stream = open_stream(&self.conninfo).await?;
        Ok(self.token.cancel_query_raw(stream, Negotiated).await?)
    }
}

/// What tokio-postgres needs over a stream that is negotiated already.
fn driver_config(conninfo: &Conninfo, host: &Host, settings: &Settings) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .user(conninfo.user())
        .dbname(conninfo.database())
        .application_name(settings.name.as_str())
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct)
        .channel_binding(match conninfo.channel_binding() {
            ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
            ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
            ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
        });
    if let Some(password) = host.password() {
        config.password(password);
    }
    if let Some(options) = conninfo.options() {
        config.options(options);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = SessionName::new("x", 1, "holder", "ü".repeat(60));
        assert!(name.as_str().starts_with("skein/x/1/holder/ü") && name.as_str().len() <= 63);
    }
}
