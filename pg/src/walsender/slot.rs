//! What a replication connection asks before it streams: a walsender with a database runs SQL,
//! so the answer is of the very server that will send.

use super::{Walsender, field, wire::Row};
use crate::{PgLsn, Result, Sql, sql, sql::Literal};
use std::time::Duration;

/// A replication slot as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub plugin: String,
    pub database: String,
    /// None until something was confirmed.
    pub confirmed_flush_lsn: Option<PgLsn>,
    /// `lost`: the server removed WAL that it needs.
    pub wal_status: String,
    pub active: Option<ActiveSlot>,
}

/// Who streams from a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveSlot {
    pub pid: i32,
    /// Empty where we may not see it.
    pub application_name: String,
}

impl Walsender {
    /// The logical slot of this name, if there is one.
    ///
    /// # Errors
    /// When the connection is lost or the server refuses.
    pub async fn slot(&mut self, name: &str) -> Result<Option<SlotState>> {
        let rows = self
            .rows(&sql!(
                "select s.plugin, s.database, s.confirmed_flush_lsn, s.wal_status, \
                        s.active_pid, coalesce(a.application_name, '') \
                   from pg_catalog.pg_replication_slots s \
                   left join pg_catalog.pg_stat_activity a on a.pid = s.active_pid \
                  where s.slot_type = 'logical' and s.slot_name = {}",
                Literal(name)
            ))
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let optional = |i: usize| row.get(i).and_then(Option::as_deref);
        Ok(Some(SlotState {
            plugin: field(row, 0)?.to_owned(),
            database: field(row, 1)?.to_owned(),
            confirmed_flush_lsn: optional(2).and_then(|text| text.parse().ok()),
            wal_status: optional(3).unwrap_or_default().to_owned(),
            active: optional(4).and_then(|text| text.parse().ok()).map(|pid| ActiveSlot {
                pid,
                application_name: optional(5).unwrap_or_default().to_owned(),
            }),
        }))
    }

    /// How long the server waits for a status update; zero: for ever.
    ///
    /// # Errors
    /// As [`Walsender::slot`].
    pub async fn wal_sender_timeout(&mut self) -> Result<Duration> {
        let rows = self
            .rows(&sql!(
                "select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout'"
            ))
            .await?;
        let millis = rows.first().and_then(|row| field(row, 0).ok()?.parse().ok());
        Ok(Duration::from_millis(millis.unwrap_or(60_000)))
    }

    /// Ends another session of the server.
    ///
    /// # Errors
    /// As [`Walsender::slot`]; where we have no right to.
    pub async fn terminate(&mut self, pid: i32) -> Result<()> {
        self.rows(&sql!("select pg_catalog.pg_terminate_backend({})", pid)).await.map(drop)
    }

    async fn rows(&mut self, statement: &Sql) -> Result<Vec<Row>> {
        self.wire.query(statement.as_str()).await
    }
}
