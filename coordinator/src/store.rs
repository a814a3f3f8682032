//! What is kept about migrations, and why.
//!
//! The keys stand in [`key`], the records in [`record`]. Small, and written before the step that it announces runs. Not here: rows and positions
//! (target, schema `skein`), WAL (spool), leases (the target's task row issues the token; who
//! holds it is in the leader's memory and in that row).
//!
//! Promise of a [`Store`]: linearizable reads and compare-and-set on a revision. Memory changes
//! only after the durable write.

pub mod embedded;
pub mod etcd;
pub mod key;
pub mod record;

use proto::status::{Classify, ErrorClass};
use std::{fmt::Debug, future::Future, pin::Pin, sync::Arc};

/// Grows with each write of a key. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision(pub u64);

/// A value and the write that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    pub value: Vec<u8>,
    pub revision: Revision,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("\"{key}\" was changed by someone else")]
    Conflict { key: String },
    #[error("state store cannot be used: {reason}")]
    Unusable { reason: String },
    #[error("state store refuses this coordinator: {reason}")]
    Refused { reason: String },
    #[error("record \"{key}\" cannot be read")]
    Unreadable { key: String, source: serde_json::Error },
    #[error("record \"{key}\" is of version {found}, this program knows {known}")]
    Newer { key: String, found: u32, known: u32 },
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Conflict { .. } => ErrorClass::Conflict,
            Self::Unusable { .. } => ErrorClass::Transient,
            Self::Unreadable { .. } => ErrorClass::Bug,
            Self::Refused { .. } | Self::Newer { .. } => ErrorClass::Definite,
        }
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "STORE_CONFLICT",
            Self::Unusable { .. } => "STORE_UNUSABLE",
            Self::Refused { .. } => "STORE_REFUSED",
            Self::Unreadable { .. } => "STORE_UNREADABLE",
            Self::Newer { .. } => "STORE_NEWER",
        }
    }
    fn hint(&self) -> String {
        match self {
            Self::Newer { .. } => "Run the newer program again, or upgrade this one.".to_owned(),
            Self::Refused { .. } => {
                "See [store.etcd] of the configuration: user, password and certificates.".to_owned()
            }
            Self::Conflict { .. } | Self::Unusable { .. } | Self::Unreadable { .. } => {
                String::new()
            }
        }
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Linearizable reads, compare-and-set by revision.
pub trait Store: Debug + Send + Sync {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Versioned>>;
    /// Writes if the key is still at `expected` (None: not there).
    fn put_if<'a>(
        &'a self,
        key: &'a str,
        value: Vec<u8>,
        expected: Option<Revision>,
    ) -> Answer<'a, Revision>;
    /// Deletes if the key is still at `expected`.
    fn delete_if<'a>(&'a self, key: &'a str, expected: Revision) -> Answer<'a, ()>;
    /// All keys that begin with `prefix`, in order.
    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, Versioned)>>;
}

/// A store shared by the parts of a coordinator.
pub type Shared = Arc<dyn Store>;
