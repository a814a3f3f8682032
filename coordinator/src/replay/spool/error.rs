//! Why the spool could not do its work.

use pg::PgLsn;
use proto::status::{Classify, ErrorClass};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why the spool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {verb} {}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    /// Never tried again: what the kernel then says of the same pages is worth nothing.
    #[error("could not make {} durable", path.display())]
    Sync { path: PathBuf, source: io::Error },
    #[error("spool file {} is damaged at byte {offset}", path.display())]
    Corrupt { path: PathBuf, offset: u64 },
    #[error("there is no spool in {}", dir.display())]
    Missing { dir: PathBuf },
    #[error("there is a spool in {} already", dir.display())]
    Exists { dir: PathBuf },
    #[error("the spool in {} is in use by another process", dir.display())]
    Locked { dir: PathBuf },
    #[error("spool.meta in {} cannot be read", dir.display())]
    Meta { dir: PathBuf, source: serde_json::Error },
    #[error("the spool in {} has format {found}, this program reads {supported}", dir.display())]
    Version { dir: PathBuf, found: u32, supported: u32 },
    #[error("the spool is being written to already")]
    Busy,
    #[error("changes after {after} are not in the spool any more, it begins at {base}")]
    Released { after: PgLsn, base: PgLsn },
    #[error("the spool was stopped")]
    Stopped,
}

impl Error {
    pub(super) fn io(verb: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { verb, path: path.to_owned(), source }
    }

    pub(super) fn corrupt(path: &Path, offset: u64) -> Self {
        Self::Corrupt { path: path.to_owned(), offset }
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Io { .. } | Self::Sync { .. } | Self::Locked { .. } | Self::Stopped => {
                ErrorClass::Transient
            }
            Self::Corrupt { .. }
            | Self::Missing { .. }
            | Self::Exists { .. }
            | Self::Meta { .. }
            | Self::Version { .. }
            | Self::Released { .. } => ErrorClass::Definite,
            Self::Busy => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Sync { .. } => "SPOOL_IO",
            Self::Corrupt { .. } | Self::Meta { .. } => "SPOOL_CORRUPT",
            Self::Missing { .. } => "SPOOL_MISSING",
            Self::Exists { .. } => "SPOOL_EXISTS",
            Self::Locked { .. } => "SPOOL_LOCKED",
            Self::Version { .. } => "SPOOL_VERSION",
            Self::Busy => "SPOOL_BUSY",
            Self::Released { .. } => "CHANGES_LOST",
            Self::Stopped => "SPOOL_STOPPED",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Corrupt { .. } | Self::Meta { .. } | Self::Missing { .. } => {
                "What was confirmed to the slot exists only here.".to_owned()
            }
            Self::Released { .. } => {
                "They were removed when the target had them; the target's positions went back."
                    .to_owned()
            }
            Self::Io { .. }
            | Self::Sync { .. }
            | Self::Exists { .. }
            | Self::Locked { .. }
            | Self::Version { .. }
            | Self::Busy
            | Self::Stopped => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Corrupt { .. }
            | Self::Meta { .. }
            | Self::Missing { .. }
            | Self::Released { .. } => {
                "Restore the spool's directory if it was moved; otherwise abort the migration \
                 and start it again, so that its tables get new consistent points."
                    .to_owned()
            }
            Self::Exists { .. } => "Abort the migration that it belongs to first.".to_owned(),
            Self::Locked { .. } => "Stop the other coordinator.".to_owned(),
            Self::Version { .. } => "Use the version of Skein that began the migration.".to_owned(),
            Self::Io { .. } | Self::Sync { .. } => {
                "Check the disk of the spool's directory: free space, rights, errors.".to_owned()
            }
            Self::Busy | Self::Stopped => String::new(),
        }
    }
}
