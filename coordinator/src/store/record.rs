//! The record of a migration: versioned JSON, one per migration.
//!
//! Holds no secret: the spec names one. Wall-clock times are for display only.

use super::{Error, Revision, Shared, key};
use crate::migration::phase::Phase;
use proto::{status::Report, v1::MigrationSpec};
use serde::{Deserialize, Serialize};

/// Version of [`Record`]. A newer one is refused.
const RECORD_VERSION: u32 = 1;

/// A migration as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    /// Random; stands in schema `skein` of the target too, so that another migration's schema
    /// is never taken for ours.
    pub migration_id: String,
    pub spec: MigrationSpec,
    pub phase: Phase,
    /// Seconds since 1970, for display.
    pub created_at: u64,
    pub phase_since: u64,
    #[serde(default)]
    pub started: bool,
    #[serde(default)]
    pub paused: bool,
    /// Beside the phase: what stops it until `resume`.
    #[serde(default)]
    pub fault: Option<Report>,
    /// Set when slot, spool and first holder exist.
    #[serde(default)]
    pub stream: Option<Stream>,
    /// The snapshots that are being copied under, oldest first: one, and one more for each time
    /// that relations needed a new consistent point. None before, and when the copy is in.
    #[serde(default)]
    pub snapshots: Vec<Snapshot>,
    /// Snapshot epochs taken so far.
    #[serde(default)]
    pub snapshot_epoch: u32,
    /// Cutover attempts begun so far.
    #[serde(default)]
    pub attempt: u32,
    #[serde(default)]
    pub not_moved: Vec<String>,
    #[serde(default)]
    pub notices: Vec<String>,
    /// Steps and seconds of the last cutover attempt.
    #[serde(default)]
    pub cutover: Option<CutoverOutcome>,
}

/// What confirmations to the slot rest on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    pub slot: String,
    pub spool_id: String,
    pub system_id: String,
    pub timeline: i32,
    pub database: String,
    #[serde(with = "crate::migration::phase::lsn")]
    pub consistent_point: pg::PgLsn,
}

/// A snapshot epoch and the names by which its holders export it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub epoch: u32,
    #[serde(with = "crate::migration::phase::lsn")]
    pub consistent_point: pg::PgLsn,
    pub names: Vec<String>,
    /// Seconds since 1970, for display.
    pub taken_at: u64,
}

/// How the last cutover attempt went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CutoverOutcome {
    pub attempt: u32,
    pub state: String,
    pub steps: Vec<proto::v1::CutoverStep>,
    pub writes_stopped_s: f64,
    pub end_position: Option<String>,
    pub lift_sql: String,
}

impl Record {
    /// A new migration, not started.
    pub fn new(migration_id: String, spec: MigrationSpec, now: u64) -> Self {
        Self {
            version: RECORD_VERSION,
            migration_id,
            spec,
            phase: Phase::Preflight,
            created_at: now,
            phase_since: now,
            started: false,
            paused: false,
            fault: None,
            stream: None,
            snapshots: Vec::new(),
            snapshot_epoch: 0,
            attempt: 0,
            not_moved: Vec::new(),
            notices: Vec::new(),
            cutover: None,
        }
    }

    /// Nothing may be granted or applied now.
    pub fn is_held(&self) -> bool {
        !self.started || self.paused || self.fault.is_some()
    }
}

/// Reads a stored record.
///
/// # Errors
/// When it cannot be read or is of a newer version.
pub fn decode(key: &str, value: &[u8]) -> Result<Record, Error> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let unreadable = |source| Error::Unreadable { key: key.to_owned(), source };
    let version: Version = serde_json::from_slice(value).map_err(unreadable)?;
    if version.version > RECORD_VERSION {
        return Err(Error::Newer {
            key: key.to_owned(),
            found: version.version,
            known: RECORD_VERSION,
        });
    }
    serde_json::from_slice(value).map_err(unreadable)
}

/// A record and where it is stored: changed by writing a copy first.
#[derive(Clone, Debug)]
pub struct Stored {
    store: Shared,
    pub record: Record,
    revision: Revision,
}

impl Stored {
    /// Writes a new record.
    ///
    /// # Errors
    /// [`Error::Conflict`] when one of that name exists.
    pub async fn create(store: Shared, record: Record) -> Result<Self, Error> {
        let revision =
            store.put_if(&key::migration(&record.spec.name), encode(&record)?, None).await?;
        Ok(Self { store, record, revision })
    }

    /// Reads all records.
    ///
    /// # Errors
    /// When the store or a record cannot be read.
    pub async fn list(store: &Shared) -> Result<Vec<Self>, Error> {
        let mut all = Vec::new();
        for (key, versioned) in store.list(key::MIGRATIONS).await? {
            let record = decode(&key, &versioned.value)?;
            let revision = versioned.revision;
            all.push(Self { store: Shared::clone(store), record, revision });
        }
        Ok(all)
    }

    /// Changes a copy, writes it, and only then swaps it in.
    ///
    /// # Errors
    /// [`Error::Conflict`] when someone was faster; nothing is changed then.
    pub async fn change(&mut self, edit: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut changed = self.record.clone();
        edit(&mut changed);
        if changed == self.record {
            return Ok(());
        }
        let key = key::migration(&changed.spec.name);
        self.revision = self.store.put_if(&key, encode(&changed)?, Some(self.revision)).await?;
        self.record = changed;
        Ok(())
    }

    /// Forgets the migration.
    ///
    /// # Errors
    /// [`Error::Conflict`] when someone changed it meanwhile.
    pub async fn delete(self) -> Result<(), Error> {
        self.store.delete_if(&key::migration(&self.record.spec.name), self.revision).await
    }
}

fn encode(record: &Record) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(record)
        .map_err(|source| Error::Unreadable { key: key::migration(&record.spec.name), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_record_is_refused() {
        let newer = br#"{"version": 99, "unknown": true}"#;
        assert!(matches!(decode("k", newer), Err(Error::Newer { found: 99, .. })));
    }

    #[test]
    fn a_record_is_read_as_written() {
        let spec = MigrationSpec { name: "shop".into(), ..Default::default() };
        let record = Record::new("id".into(), spec, 5);
        let bytes = serde_json::to_vec(&record).unwrap();
        assert_eq!(decode("k", &bytes).unwrap(), record);
    }
}
