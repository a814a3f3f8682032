//! Why a lease operation failed.

use proto::status::{Classify, ErrorClass};

/// Why a lease operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a newer coordinator acts on this migration")]
    Fenced,
    #[error("could not change task {task_id} in the target")]
    Target { task_id: u64, source: pg::Error },
    #[error("could not reach the target's plan")]
    Plan(#[source] pg::Error),
    #[error("task {task_id} cannot be read")]
    Unreadable { task_id: u64, source: serde_json::Error },
    #[error("task {task_id} was replaced")]
    Replaced { task_id: u64 },
    #[error("stale session of task {task_id} is still there after {seconds} s")]
    StaleSession { task_id: u64, seconds: u64 },
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Fenced => ErrorClass::Fenced,
            Self::Target { source, .. } | Self::Plan(source) => {
                if source.is_transient() {
                    ErrorClass::Transient
                } else {
                    ErrorClass::Definite
                }
            }
            Self::Unreadable { .. } => ErrorClass::Bug,
            Self::Replaced { .. } | Self::StaleSession { .. } => ErrorClass::Transient,
        }
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::Fenced => "FENCED",
            Self::Target { .. } | Self::Plan(_) => "TARGET_REFUSED",
            Self::Unreadable { .. } => "PLAN_UNREADABLE",
            Self::Replaced { .. } => "TASK_REPLACED",
            Self::StaleSession { .. } => "STALE_SESSION",
        }
    }
}
