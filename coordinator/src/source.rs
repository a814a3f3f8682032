//! What stands on the source: replica identities, publications, the slot, snapshot holders.
//!
//! ```text
//! identity (committed) -> publication (committed) -> slot -> snapshot -> holders
//! teardown: holders, slot, publications, identities, as far as each is there
//! ```
//! Promise: nothing on the source changes but what preflight announced; whatever worked before
//! works on; locks are taken with a short `lock_timeout` and retried; what was changed was
//! written down on the target first, so that teardown puts it back.

use pg::{TableName, error::Class};
use proto::status::{Classify, ErrorClass};
use std::time::Duration;

pub mod catalog;
pub mod holder;
pub mod identity;
pub mod publication;
pub mod slot;
pub mod watch;

/// How long a statement of ours waits for a lock on the source: everybody who wants the table
/// queues behind it for that long.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a lock was not had, so that those who queued behind us get through.
const LOCK_PAUSE: Duration = Duration::from_secs(3);

/// Why something on the source could not be made, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {what} on the source")]
    Read { what: &'static str, source: pg::Error },
    #[error("could not change {what} on the source")]
    Change { what: String, source: pg::Error },
    /// `blockers`: who holds it, as far as the server shows.
    #[error("could not lock table {table} on the source in {} s", waited.as_secs())]
    Locked { table: TableName, waited: Duration, blockers: Vec<String> },
    #[error("replication slot \"{slot}\" is in use by a session that is not ours")]
    SlotInUse { slot: String, pid: i32, application: String },
    #[error("replication slot \"{slot}\" did not become free in {} s", waited.as_secs())]
    SlotBusy { slot: String, waited: Duration },
    #[error("publication \"{publication}\" exists and was not made by Skein")]
    ForeignPublication { publication: String },
}

impl Error {
    pub(crate) fn read(what: &'static str) -> impl FnOnce(pg::Error) -> Self {
        move |source| Self::Read { what, source }
    }

    pub(crate) fn change(what: impl Into<String>) -> impl FnOnce(pg::Error) -> Self {
        let what = what.into();
        move |source| Self::Change { what, source }
    }
}

/// The server's class in the words of the whole system.
pub(crate) fn class_of(error: &pg::Error) -> ErrorClass {
    match error.class() {
        Class::Transient => ErrorClass::Transient,
        Class::Definite => ErrorClass::Definite,
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            // a table dropped since the survey, or what another attempt made: look again
            Self::Change { source, .. } if matches!(source.sqlstate(), Some("42P01" | "42710")) => {
                ErrorClass::Transient
            }
            Self::Read { source, .. } | Self::Change { source, .. } => class_of(source),
            Self::Locked { .. } | Self::SlotBusy { .. } => ErrorClass::Transient,
            Self::SlotInUse { .. } | Self::ForeignPublication { .. } => ErrorClass::Definite,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "SOURCE_UNREADABLE",
            Self::Change { .. } => "SOURCE_CHANGE_REFUSED",
            Self::Locked { .. } => "SOURCE_LOCK_NOT_AVAILABLE",
            Self::SlotInUse { .. } | Self::SlotBusy { .. } => "SLOT_IN_USE",
            Self::ForeignPublication { .. } => "PUBLICATION_EXISTS",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Locked { blockers, .. } if !blockers.is_empty() => {
                format!("It is held by {}.", blockers.join(", "))
            }
            Self::SlotInUse { pid, application, .. } => {
                format!("Process {pid} uses it, application_name \"{application}\".")
            }
            Self::Read { .. }
            | Self::Change { .. }
            | Self::Locked { .. }
            | Self::SlotBusy { .. }
            | Self::ForeignPublication { .. } => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Locked { .. } => {
                "Skein tries again by itself; end the transaction that holds the table.".to_owned()
            }
            Self::SlotInUse { pid, .. } => {
                format!("Run on the source: select pg_terminate_backend({pid});")
            }
            Self::ForeignPublication { publication } => {
                format!("Drop publication \"{publication}\", or give the migration another name.")
            }
            Self::Read { .. } | Self::Change { .. } | Self::SlotBusy { .. } => String::new(),
        }
    }
}
