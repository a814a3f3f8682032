//! Why replay stopped.

use pg::{PgLsn, TableName, error::Class};
use proto::status::{Classify, ErrorClass};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why replay stopped. No text holds a value of a row.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("replay under epoch {epoch} was superseded by a newer coordinator")]
    Fenced { epoch: u64 },
    /// Someone's COMMIT arrived that we did not hear of: positions are read again.
    #[error("position of lane {lane} is not where this coordinator left it")]
    Moved { lane: usize },
    #[error("could not {action} on the target")]
    Target { action: &'static str, source: pg::Error },
    #[error("could not {operation} in table {table} for the transaction that ends at {end_lsn}")]
    Apply { operation: &'static str, table: TableName, end_lsn: PgLsn, source: pg::Error },
    #[error("could not commit the transaction that ends at {end_lsn} on the target")]
    Commit { end_lsn: PgLsn, source: pg::Error },
    #[error(
        "{operation} in table {table} met {affected} rows where {meant} were meant, in the \
         transaction that ends at {end_lsn}"
    )]
    RowsDiffer {
        operation: &'static str,
        table: TableName,
        end_lsn: PgLsn,
        meant: u64,
        affected: u64,
    },
    #[error("table {table} differs between source and target: {difference}")]
    SchemaChanged { table: TableName, difference: String, end_lsn: PgLsn },
    #[error("relation {relid} of the stream is not part of the plan")]
    UnknownRelation { relid: u32, name: Option<TableName>, end_lsn: PgLsn },
    #[error(
        "TRUNCATE of hash partition {table} cannot be repeated on a target partitioned otherwise"
    )]
    TruncateByHash { table: TableName, end_lsn: PgLsn },
    #[error("\"{name}\" on table {table} of the target would fire for changes that are replayed")]
    Fires { table: TableName, name: String },
    /// Only tried again change by change; never leaves this module.
    #[error("batch that ends at {end_lsn} failed in bulk")]
    Bulk { end_lsn: PgLsn, source: Box<Error> },
    /// A row was there twice, or missing, by the stream's own account.
    #[error("changes of one key in table {table} contradict each other")]
    Fold { table: TableName },
    #[error("stream cannot be read: {0}")]
    Stream(String),
    #[error("spool cannot be read")]
    Spool { class: ErrorClass, source: Box<super::spool::Error> },
    #[error("routing recorded in the target cannot be read: {0}")]
    Routing(String),
    #[error("part of replay ended without a word: {0}")]
    Lost(&'static str),
}

impl Error {
    /// For `map_err`: which action on the target failed.
    pub(super) fn target(action: &'static str) -> impl Fn(pg::Error) -> Self {
        move |source| Self::Target { action, source }
    }

    /// Worth another try change by change: the server or the count refused a bulk statement.
    pub(super) fn is_of_bulk(&self) -> bool {
        match self {
            Self::Apply { .. } | Self::Commit { .. } | Self::RowsDiffer { .. } => {
                self.class() == ErrorClass::Definite
            }
            Self::Fold { .. } => true,
            Self::Fenced { .. }
            | Self::Moved { .. }
            | Self::Target { .. }
            | Self::SchemaChanged { .. }
            | Self::UnknownRelation { .. }
            | Self::TruncateByHash { .. }
            | Self::Fires { .. }
            | Self::Bulk { .. }
            | Self::Stream(_)
            | Self::Spool { .. }
            | Self::Routing(_)
            | Self::Lost(_) => false,
        }
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Fenced { .. } => ErrorClass::Fenced,
            Self::Moved { .. } | Self::Bulk { .. } | Self::Lost(_) => ErrorClass::Transient,
            Self::Target { source, .. }
            | Self::Apply { source, .. }
            | Self::Commit { source, .. } => match source.class() {
                Class::Transient => ErrorClass::Transient,
                Class::Definite => ErrorClass::Definite,
            },
            Self::Spool { class, .. } => *class,
            Self::RowsDiffer { .. }
            | Self::SchemaChanged { .. }
            | Self::UnknownRelation { .. }
            | Self::TruncateByHash { .. }
            | Self::Fires { .. }
            | Self::Routing(_)
            | Self::Fold { .. } => ErrorClass::Definite,
            Self::Stream(_) => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "FENCED",
            Self::Moved { .. } => "LANE_MOVED",
            Self::Target { .. } => "TARGET",
            Self::Apply { .. } | Self::Commit { .. } => "CHANGE_REFUSED",
            Self::RowsDiffer { .. } | Self::Fold { .. } => "ROWS_DIFFER",
            Self::SchemaChanged { .. } => "SCHEMA_CHANGED",
            Self::UnknownRelation { .. } => "UNKNOWN_RELATION",
            Self::TruncateByHash { .. } => "TRUNCATE_REFUSED",
            Self::Fires { .. } => "TRIGGER_FIRES",
            Self::Bulk { .. } => "BULK_FAILED",
            Self::Stream(_) => "STREAM_UNREADABLE",
            Self::Spool { .. } => "SPOOL",
            Self::Routing(_) => "ROUTING_UNREADABLE",
            Self::Lost(_) => "REPLAY_LOST",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::SchemaChanged { end_lsn, .. } => format!(
                "Found at the first change after it, in the transaction that ends at {end_lsn}. \
                 Nothing of that transaction was applied; changes are still received."
            ),
            Self::RowsDiffer { .. } => {
                "Someone wrote to the target, or a copied row is missing there. The transaction \
                 was rolled back; changes are still received."
                    .to_owned()
            }
            Self::Apply { .. } | Self::Commit { .. } => {
                "The transaction was rolled back; changes are still received.".to_owned()
            }
            Self::UnknownRelation { name: Some(name), end_lsn, .. } => format!(
                "It is table {name}; its first change is in the transaction that ends at \
                 {end_lsn}."
            ),
            Self::TruncateByHash { end_lsn, .. } => format!(
                "The rows of one hash partition are not known by their values on another server. \
                 It stands in the transaction that ends at {end_lsn}."
            ),
            Self::Fires { .. } => {
                "Triggers and rules that fire in the replica role are enabled at cutover."
                    .to_owned()
            }
            Self::Fenced { .. }
            | Self::Moved { .. }
            | Self::Target { .. }
            | Self::UnknownRelation { .. }
            | Self::Bulk { .. }
            | Self::Fold { .. }
            | Self::Stream(_)
            | Self::Spool { .. }
            | Self::Routing(_)
            | Self::Lost(_) => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::SchemaChanged { .. } => {
                "Make the same change on the target, then run: skein resume.".to_owned()
            }
            Self::RowsDiffer { table, .. } => format!(
                "Compare table {table} on both servers, mend the target, then run: skein resume."
            ),
            Self::Apply { table, .. } => {
                format!("Mend table {table} on the target, then run: skein resume.")
            }
            Self::Commit { .. } => "Mend the target, then run: skein resume.".to_owned(),
            Self::UnknownRelation { .. } => {
                "Drop the table from the publication or begin its copy, then run: skein resume."
                    .to_owned()
            }
            Self::TruncateByHash { table, .. } => {
                format!("Delete the rows of {table} on the target by hand, then run: skein resume.")
            }
            Self::Fires { table, .. } => format!(
                "Disable it on the target (alter table {table} disable trigger or rule), then run: \
                 skein resume."
            ),
            Self::Fenced { .. }
            | Self::Moved { .. }
            | Self::Target { .. }
            | Self::Bulk { .. }
            | Self::Fold { .. }
            | Self::Stream(_)
            | Self::Spool { .. }
            | Self::Routing(_)
            | Self::Lost(_) => String::new(),
        }
    }
}
