//! Why a stream ended, or may not begin.

use crate::replay::spool;
use pg::PgLsn;
use proto::status::{Classify, ErrorClass};

/// Why a stream ended, or may not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream cannot be joined to the spool: between them something is missing.
    #[error("changes of slot \"{slot}\" were lost: {what}")]
    ChangesLost { slot: String, what: Lost },
    #[error("slot \"{slot}\" is in use by \"{application_name}\" (pid {pid})")]
    SlotInUse { slot: String, pid: i32, application_name: String },
    #[error("could not stream from slot \"{slot}\"")]
    Stream { slot: String, source: pg::Error },
    #[error("could not write to the spool")]
    Spool { source: spool::Error },
    /// The server sent what the protocol does not allow here.
    #[error("stream of slot \"{slot}\" is out of order: {what}")]
    OutOfOrder { slot: String, what: &'static str },
    #[error("a thread of the receiver ended without a word")]
    Thread,
}

/// What shows that the stream does not join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the slot does not exist")]
    NoSlot,
    #[error("the slot uses plugin \"{found}\", not pgoutput")]
    Plugin { found: String },
    #[error("the slot belongs to database \"{found}\", not \"{expected}\"")]
    Database { found: String, expected: String },
    #[error("the server's system identifier is {found}, not {expected}")]
    System { found: String, expected: String },
    #[error("the server is on timeline {found}, not {expected}")]
    Timeline { found: i32, expected: i32 },
    #[error("the slot was confirmed up to {confirmed}, the spool holds up to {spooled}")]
    Confirmed { confirmed: PgLsn, spooled: PgLsn },
    #[error("the server removed WAL that the slot needs")]
    WalRemoved,
}

impl From<spool::Error> for Error {
    fn from(source: spool::Error) -> Self {
        Self::Spool { source }
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::ChangesLost { .. } => ErrorClass::Definite,
            Self::SlotInUse { .. } | Self::Thread => ErrorClass::Transient,
            Self::Stream { source, .. } => match source.class() {
                pg::error::Class::Transient => ErrorClass::Transient,
                pg::error::Class::Definite => ErrorClass::Definite,
            },
            Self::Spool { source } => source.class(),
            Self::OutOfOrder { .. } => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::ChangesLost { .. } => "CHANGES_LOST",
            Self::SlotInUse { .. } => "SLOT_IN_USE",
            Self::Stream { .. } => "STREAM_FAILED",
            Self::Spool { source } => source.reason(),
            Self::OutOfOrder { .. } => "STREAM_OUT_OF_ORDER",
            Self::Thread => "RECEIVER_BROKEN",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::ChangesLost { .. } => {
                "Streaming on would skip changes in silence, so it was not begun. Tables on the \
                 target are as of the last applied position."
                    .to_owned()
            }
            Self::Spool { source } => source.detail(),
            Self::SlotInUse { .. }
            | Self::Stream { .. }
            | Self::OutOfOrder { .. }
            | Self::Thread => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::ChangesLost { .. } => {
                "Abort the migration and start it again: its tables need new consistent points. \
                 Let nothing else use or advance its slot."
                    .to_owned()
            }
            Self::SlotInUse { pid, .. } => format!(
                "If it is not another coordinator of this migration, run on the source: \
                 select pg_terminate_backend({pid});"
            ),
            Self::Spool { source } => source.hint(),
            Self::Stream { .. } => {
                "Check that the source can be reached, and that slot and publications are there."
                    .to_owned()
            }
            Self::OutOfOrder { .. } | Self::Thread => String::new(),
        }
    }
}
