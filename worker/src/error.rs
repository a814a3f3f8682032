//! Why a task was not finished, and what the coordinator may do about it.
//!
//! Promise: no row value and no password in any text (`pg::Error` holds none).
#![deny(clippy::wildcard_enum_match_arm)]

use crate::lease::Ending;
use pg::TableName;
use proto::{
    status::{Classify, ErrorClass},
    v1::ReleaseCause,
};
use std::fmt;

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// Why a task was not finished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("task cannot be read: {what}")]
    Malformed { what: String },
    #[error("task was given back: {0}")]
    Ended(Ending),
    #[error("task was given back: its code panicked")]
    Panicked,
    #[error("the target no longer accepts token {token} of task {task}")]
    Fenced { task: u64, token: u64 },
    #[error("table {table} was rewritten on the source since its copy was planned")]
    Rewritten { table: TableName },
    #[error("name {table} on the source means another relation than planned")]
    Replaced { table: TableName },
    #[error("no live snapshot could be imported")]
    SnapshotLost,
    #[error("could not connect to the {side}")]
    Connect { side: Side, source: pg::Error },
    #[error("could not lock table {table} on the source")]
    Lock { table: TableName, source: pg::Error },
    #[error("could not read table {table} from the source")]
    Read { table: TableName, source: pg::Error },
    #[error("could not write table {table} on the target")]
    Write { table: TableName, source: pg::Error },
    #[error("could not read or write the row of task {task} on the target")]
    Mark { task: u64, source: pg::Error },
    #[error("could not build {object} on the target")]
    Build { object: String, source: pg::Error },
    #[error("could not read table {table} on the {side} for comparison")]
    Verify { table: TableName, side: Side, source: pg::Error },
    #[error("it is not known whether task {task} was committed on the target")]
    CommitUnknown { task: u64, source: pg::Error },
    #[error("failpoint {name} was reached")]
    Failpoint { name: &'static str },
}

/// A task's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What the coordinator is told.
    pub fn cause(&self) -> ReleaseCause {
        match self {
            Self::Ended(Ending::Fenced) | Self::Fenced { .. } => ReleaseCause::Fenced,
            // A lock of the application is waited for, and is no failure of the task.
            Self::Ended(Ending::Revoked | Ending::Drained) | Self::Lock { .. } => {
                ReleaseCause::HandedBack
            }
            Self::Rewritten { .. } => ReleaseCause::Rewritten,
            Self::Replaced { .. } => ReleaseCause::Replaced,
            Self::SnapshotLost => ReleaseCause::SnapshotLost,
            Self::Malformed { .. }
            | Self::Panicked
            | Self::Connect { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Mark { .. }
            | Self::Build { .. }
            | Self::Verify { .. }
            | Self::CommitUnknown { .. }
            | Self::Failpoint { .. } => ReleaseCause::Failed,
        }
    }

    /// The server's error behind this one.
    fn server(&self) -> Option<&pg::Error> {
        match self {
            Self::Connect { source, .. }
            | Self::Lock { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Mark { source, .. }
            | Self::Build { source, .. }
            | Self::Verify { source, .. }
            | Self::CommitUnknown { source, .. } => Some(source),
            Self::Malformed { .. }
            | Self::Ended(_)
            | Self::Panicked
            | Self::Fenced { .. }
            | Self::Rewritten { .. }
            | Self::Replaced { .. }
            | Self::SnapshotLost
            | Self::Failpoint { .. } => None,
        }
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Malformed { .. } | Self::Panicked => ErrorClass::Bug,
            Self::Ended(Ending::Fenced) | Self::Fenced { .. } => ErrorClass::Fenced,
            Self::Ended(Ending::Revoked | Ending::Drained)
            | Self::CommitUnknown { .. }
            | Self::Lock { .. }
            | Self::Failpoint { .. } => ErrorClass::Transient,
            // The plan is out of date: read again, then decide.
            Self::Rewritten { .. } | Self::SnapshotLost => ErrorClass::Conflict,
            Self::Replaced { .. } => ErrorClass::Definite,
            Self::Connect { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Mark { source, .. }
            | Self::Build { source, .. }
            | Self::Verify { source, .. } => class_of(source),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "TASK_MALFORMED",
            Self::Ended(Ending::Drained) => "WORKER_DRAINED",
            Self::Ended(Ending::Revoked) => "LEASE_REVOKED",
            Self::Panicked => "WORKER_PANICKED",
            Self::Ended(Ending::Fenced) | Self::Fenced { .. } => "FENCED",
            Self::Rewritten { .. } => "TABLE_REWRITTEN",
            Self::Replaced { .. } => "TABLE_REPLACED",
            Self::SnapshotLost => "SNAPSHOT_LOST",
            Self::Connect { side: Side::Source, .. } => "SOURCE_UNREACHABLE",
            Self::Connect { side: Side::Target, .. } => "TARGET_UNREACHABLE",
            Self::Lock { .. } => "SOURCE_TABLE_LOCKED",
            Self::Read { .. } => "SOURCE_READ_FAILED",
            Self::Write { .. } => "TARGET_WRITE_FAILED",
            Self::Mark { .. } => "TARGET_MARK_FAILED",
            Self::Build { .. } => "BUILD_FAILED",
            Self::Verify { .. } => "VERIFY_FAILED",
            Self::CommitUnknown { .. } => "COMMIT_UNKNOWN",
            Self::Failpoint { .. } => "FAILPOINT",
        }
    }

    fn detail(&self) -> String {
        let detail = match self {
            Self::Rewritten { .. } => {
                "Its file changed (VACUUM FULL, CLUSTER, TRUNCATE or ALTER TABLE); the old \
                 snapshot would read it incompletely."
            }
            Self::Replaced { .. } => "It was dropped, or renamed and another took its name.",
            Self::Fenced { .. } => "A newer lease or snapshot of this task exists.",
            Self::Malformed { .. }
            | Self::Ended(_)
            | Self::Panicked
            | Self::SnapshotLost
            | Self::Connect { .. }
            | Self::Lock { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Mark { .. }
            | Self::Build { .. }
            | Self::Verify { .. }
            | Self::CommitUnknown { .. }
            | Self::Failpoint { .. } => "",
        };
        detail.to_owned()
    }

    fn hint(&self) -> String {
        let code = self.server().and_then(pg::Error::sqlstate).unwrap_or("");
        let hint = match (self, code) {
            (Self::Replaced { .. }, _) => {
                "Rename the planned table back, or leave the table out and start again."
            }
            (Self::Lock { .. }, "55P03") => {
                "Wait until the session that holds the lock on the source ends; it is tried again."
            }
            (Self::Write { .. } | Self::Build { .. } | Self::Mark { .. }, "53100") => {
                "Free disk space on the target; it is tried again."
            }
            (Self::Read { .. }, "42501") => {
                "Grant SELECT on the table, and BYPASSRLS where it has row security."
            }
            (Self::Build { .. }, "23505") => {
                "Remove the duplicate rows on the source, or leave this index out."
            }
            _ => "",
        };
        hint.to_owned()
    }
}

/// Class of a server's error.
fn class_of(error: &pg::Error) -> ErrorClass {
    match error.class() {
        pg::error::Class::Transient => ErrorClass::Transient,
        pg::error::Class::Definite => ErrorClass::Definite,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_target_is_tried_again_and_a_refused_value_is_not() {
        let server = |code: &str| {
            let error = pg::error::ServerError::from_fields(code, "no", None, [None; 4]);
            let table = TableName::new("public", "t");
            Error::Write { table, source: pg::Error::Server(Box::new(error)) }
        };
        assert_eq!(server("53100").class(), ErrorClass::Transient);
        assert_eq!(server("22P02").class(), ErrorClass::Definite);
        assert!(server("53100").hint().contains("Free disk space"));
        assert_eq!(server("22P02").cause(), ReleaseCause::Failed);
    }

    #[test]
    fn a_revoked_lease_is_handed_back_and_a_fenced_one_is_fenced() {
        assert_eq!(Error::Ended(Ending::Revoked).cause(), ReleaseCause::HandedBack);
        assert_eq!(Error::Ended(Ending::Drained).cause(), ReleaseCause::HandedBack);
        assert_eq!(Error::Ended(Ending::Fenced).cause(), ReleaseCause::Fenced);
    }
}
