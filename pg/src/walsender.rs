//! The replication connection: our own thin client, since the driver has no CopyBoth.
//!
//! ```text
//! connect -> identify_system -> create_slot -> (keep it: the snapshot lives here)
//!         -> start_replication -> ReplicationStream --split--> FrameReader   XLogData, keepalive
//!                                                         \--> StatusSender  write, flush, apply
//! ```
//! Promise: every setting that changes the text of a value is pinned, as in a [`crate::Session`]
//! (rules, part 6); options of pgoutput follow the server's version by one table
//! (`walsender/options.rs`); reading a frame is cancel safe and copies nothing.

mod frame;
mod options;
mod slot;
mod startup;
mod wire;

pub use frame::{Frame, FrameReader, ReplicationStream, Reply, StatusSender};
pub use options::PgoutputOptions;
pub use slot::{ActiveSlot, SlotState};

use crate::{
    Conninfo, Error, PgLsn, Result, SessionName,
    conninfo::Host,
    stream::{Stream, connect_with},
};
use std::fmt;
use wire::Wire;

/// An open replication connection to one database. Closed when dropped.
pub struct Walsender {
    wire: Wire,
    server_version: u32,
    backend_pid: i32,
    server: String,
}

impl fmt::Debug for Walsender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Walsender({}, pid {})", self.server, self.backend_pid)
    }
}

/// Answer to IDENTIFY_SYSTEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemId {
    pub system_id: String,
    pub timeline: i32,
    /// Where the server has flushed its WAL.
    pub flushed_lsn: PgLsn,
    pub database: String,
}

/// Whether a slot outlives its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotLifetime {
    Permanent,
    /// Dropped with the connection that made it.
    Temporary,
}

/// Whether a slot follows to a standby (17 and later; passed over before).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotFailover {
    Off,
    On,
}

/// A new slot, and the snapshot at its consistent point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    pub name: String,
    pub consistent_point: PgLsn,
    /// Lives until the next command on the connection that made it, or its end.
    pub snapshot: String,
}

impl Walsender {
    /// Connects with `replication=database` and pins the session.
    ///
    /// # Errors
    /// [`Error::Connect`], with the server's name and the reason.
    pub async fn connect(
        conninfo: &Conninfo,
        name: &SessionName,
        client_encoding: &str,
    ) -> Result<Self> {
        connect_with(conninfo, |stream, host| {
            Self::start(conninfo, name, client_encoding, (stream, host))
        })
        .await
    }

    /// Authenticates over `stream`, and pins.
    async fn start(
        conninfo: &Conninfo,
        name: &SessionName,
        encoding: &str,
        (stream, host): (Stream, Host),
    ) -> Result<Self> {
        let login = startup::Login {
            conninfo,
            password: host.password(),
            server_end_point: stream.server_end_point().map(<[u8]>::to_vec),
        };
        let mut wire = Wire::new(Box::new(stream));
        let started = startup::run(&mut wire, &login, name.as_str(), encoding).await?;
        for pin in options::version_pins(started.server_version) {
            wire.query(pin).await?;
        }
        Ok(Self {
            wire,
            server_version: started.server_version,
            backend_pid: started.backend_pid,
            server: conninfo.to_string(),
        })
    }

    /// `server_version_num`, for example 150018.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Who the server is.
    ///
    /// # Errors
    /// When the connection is lost or the answer is not one.
    pub async fn identify_system(&mut self) -> Result<SystemId> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        Ok(SystemId {
            system_id: field(&row, 0)?.to_owned(),
            timeline: parsed(&row, 1)?,
            flushed_lsn: parsed(&row, 2)?,
            database: field(&row, 3)?.to_owned(),
        })
    }

    /// Creates a pgoutput slot and exports the snapshot at its consistent point. Waits for every
    /// open transaction with an xid: give it a deadline.
    ///
    /// # Errors
    /// What the server refused.
    pub async fn create_slot(
        &mut self,
        name: &str,
        lifetime: SlotLifetime,
        failover: SlotFailover,
    ) -> Result<CreatedSlot> {
        let command = options::create_slot(self.server_version, name, lifetime, failover);
        let row = self.row(&command).await?;
        Ok(CreatedSlot {
            name: field(&row, 0)?.to_owned(),
            consistent_point: parsed(&row, 1)?,
            snapshot: field(&row, 2)?.to_owned(),
        })
    }

    /// Starts streaming at `start`, the end of what is durable on our side. A position below the
    /// slot's `confirmed_flush_lsn` would skip ahead in silence: check before.
    ///
    /// # Errors
    /// What the server refused, for example a slot that is active elsewhere (55006).
    pub async fn start_replication(
        mut self,
        slot: &str,
        start: PgLsn,
        options: &PgoutputOptions,
    ) -> Result<ReplicationStream> {
        let command = options::start_replication(self.server_version, slot, start, options);
        self.wire.start_copy_both(&command).await?;
        Ok(ReplicationStream::new(self.wire, self.backend_pid))
    }

    async fn row(&mut self, command: &str) -> Result<wire::Row> {
        let mut rows = self.wire.query(command).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(Error::Protocol("one row was expected".to_owned())),
        }
    }
}

fn field(row: &wire::Row, i: usize) -> Result<&str> {
    row.get(i)
        .and_then(Option::as_deref)
        .ok_or_else(|| Error::Protocol(format!("column {i} is missing")))
}

fn parsed<T: std::str::FromStr>(row: &wire::Row, i: usize) -> Result<T> {
    field(row, i)?.parse().map_err(|_| Error::Protocol(format!("column {i} cannot be read")))
}
