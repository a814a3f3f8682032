//! A session on a server: pinned settings, keepalives, a name.
//!
//! ```text
//! Conninfo + Settings -> connect -> pinned settings -> Session: query, execute, batch, copy
//! ```
//! Promise: every session of ours prints values the same way (rules, part 6), cannot hang on a
//! dead peer for more than about ten seconds, carries the name `skein/MIGRATION/EPOCH/ROLE/ID`,
//! and is closed when it is dropped.

use crate::{Conninfo, Error, Result, Sql, error::Class, sql, sql::Literal};
use bytes::Bytes;
use futures::StreamExt as _;
use std::{fmt, ops::Deref, sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, CopyInSink, CopyOutStream, NoTls, Row, SimpleQueryMessage, types::ToSql,
};

/// `application_name` of a session: `skein/MIGRATION/EPOCH/ROLE/ID`, at most 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName(String);

impl SessionName {
    pub fn new(migration: &str, epoch: u64, role: &str, id: impl fmt::Display) -> Self {
        let mut name = format!("skein/{migration}/{epoch}/{role}/{id}");
        name.truncate(63);
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
    /// `ALTER DATABASE` may have set another.
    fn pins(&self, server_version: u32) -> Sql {
        let on_off = |on: bool| if on { "on" } else { "off" };
        let mut pins = sql!(
            "set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
             set extra_float_digits = 3; set bytea_output = 'hex'; set lc_monetary = 'C'; \
             set timezone = 'UTC'; set xmloption = 'content'; set search_path = ''; \
             set row_security = off; set standard_conforming_strings = on; \
             set default_transaction_isolation = 'read committed'; \
             set default_transaction_deferrable = off; \
             set idle_in_transaction_session_timeout = 0; \
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

/// How long a server may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

impl Session {
    /// Connects and pins the session.
    ///
    /// # Errors
    /// [`Error::Connect`], with the server's name and the reason.
    pub async fn connect(conninfo: &Conninfo, settings: &Settings) -> Result<Self> {
        let server = conninfo.to_string();
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, Self::open(conninfo, settings)).await;
        match attempt {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(Error::Connect {
                server,
                reason: error.to_string(),
                class: error.class(),
                source: Some(Box::new(error)),
            }),
            Err(_) => Err(Error::Connect {
                server,
                reason: format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()),
                class: Class::Transient,
                source: None,
            }),
        }
    }

    async fn open(conninfo: &Conninfo, settings: &Settings) -> Result<Self> {
        let mut config = conninfo.config.clone();
        config
            .application_name(settings.name.as_str())
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(10));
        // TLS is added by `conninfo` (sslmode); plain for the skeleton.
        let (client, connection) = config.connect(NoTls).await?;
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
        };
        let row = session
            .query_one(
                &sql!("select current_setting('server_version_num')::int, pg_backend_pid()"),
                &[],
            )
            .await?;
        session.server_version = u32::try_from(row.get::<_, i32>(0)).unwrap_or(0);
        session.backend_pid = row.get(1);
        session.batch(&settings.pins(session.server_version)).await?;
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

    /// `COPY ... TO STDOUT`: the bytes of each CopyData.
    pub async fn copy_out(&self, sql: &Sql) -> Result<CopyOut> {
        Ok(CopyOut(Box::pin(self.client.copy_out(sql.as_str()).await?)))
    }

    /// `COPY ... FROM STDIN`: finish the sink, or nothing is kept.
    pub async fn copy_in(&self, sql: &Sql) -> Result<CopyInSink<Bytes>> {
        Ok(self.client.copy_in(sql.as_str()).await?)
    }

    /// The driver's client, for prepared statements and pipelining.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks the server to cancel what this session runs.
    pub fn cancel_token(&self) -> tokio_postgres::CancelToken {
        self.client.cancel_token()
    }
}

/// Bytes of a `COPY ... TO STDOUT`.
pub struct CopyOut(std::pin::Pin<Box<CopyOutStream>>);

impl fmt::Debug for CopyOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CopyOut")
    }
}

impl CopyOut {
    /// The next CopyData, or None at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        self.0.next().await.map(|item| item.map_err(Error::from))
    }
}

impl Deref for CopyOut {
    type Target = CopyOutStream;
    fn deref(&self) -> &CopyOutStream {
        &self.0
    }
}
