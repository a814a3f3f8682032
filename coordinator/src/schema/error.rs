//! Why a part of the schema could not be moved.

use super::entry::Stage;
use proto::status::{Classify, ErrorClass};
use std::{fmt, io, path::PathBuf};

/// Reason of [`Error::SnapshotOutdated`]: the cure is a new snapshot.
pub const SNAPSHOT_OUTDATED: &str = "SNAPSHOT_OUTDATED";

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a part of the schema could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no pg_dump was found that can read PostgreSQL {major}")]
    ClientMissing { major: u32, found: String },
    #[error("could not run {program}")]
    Run { program: String, source: io::Error },
    /// `message` is the program's own, names only.
    #[error("{program} failed: {message}")]
    Client { program: &'static str, message: String, class: ErrorClass },
    #[error("a session of the source waited for the schema dump: {waiting}")]
    Waited { waiting: String },
    /// A relation that the snapshot shows was dropped since: no dump under it can succeed.
    #[error("the source's schema changed since the snapshot: {message}")]
    SnapshotOutdated { message: String },
    #[error("could not read or write {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the archive of the schema is gone: {}", .0.display())]
    ArchiveMissing(PathBuf),
    #[error("the archive of the schema cannot be read: {0}")]
    Archive(String),
    #[error("stage {stage} was begun with another archive of the schema")]
    OtherArchive { stage: Stage },
    #[error("stage {stage} has passed over objects that the filter now takes in")]
    FilterWidened { stage: Stage },
    #[error("{count} objects were refused by the target{}", if *.complete { "" } else { ", and there may be more" })]
    Refused { refused: Vec<Refused>, count: usize, complete: bool },
    #[error("the target has no lock slots left in stage {stage}")]
    LocksExhausted { stage: Stage },
    #[error("a newer epoch acts on this migration")]
    Fenced,
    #[error("large object {oid} cannot be copied")]
    LargeObject { oid: u32, source: pg::Error },
    #[error("could not {action}")]
    Server { action: &'static str, source: pg::Error },
    #[error(transparent)]
    Filter(proto::status::Report),
}

/// An object that the target did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `KIND schema.name`, as `filter.exclude_objects` takes it.
    pub object: String,
    /// The server's message, without values.
    pub message: String,
    pub sqlstate: String,
    /// Objects not tried, since they need this one.
    pub dependents: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)?;
        if !self.dependents.is_empty() {
            write!(f, " (and what needs it: {})", self.dependents.join(", "))?;
        }
        Ok(())
    }
}

impl Error {
    pub(super) fn server(action: &'static str) -> impl FnOnce(pg::Error) -> Self {
        move |source| Self::Server { action, source }
    }

    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

fn class_of(error: &pg::Error) -> ErrorClass {
    match error.class() {
        pg::error::Class::Transient => ErrorClass::Transient,
        pg::error::Class::Definite => ErrorClass::Definite,
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::ClientMissing { .. }
            | Self::Run { .. }
            | Self::SnapshotOutdated { .. }
            | Self::ArchiveMissing(_)
            | Self::Archive(_)
            | Self::OtherArchive { .. }
            | Self::FilterWidened { .. }
            | Self::LocksExhausted { .. }
            | Self::Refused { .. } => ErrorClass::Definite,
            Self::Client { class, .. } => *class,
            Self::Waited { .. } | Self::File { .. } => ErrorClass::Transient,
            Self::Fenced => ErrorClass::Fenced,
            Self::LargeObject { source, .. } | Self::Server { source, .. } => class_of(source),
            Self::Filter(report) => report.class,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::ClientMissing { .. } | Self::Run { .. } => "CLIENT_PROGRAM_MISSING",
            Self::Client { .. } => "SCHEMA_DUMP_FAILED",
            Self::Waited { .. } => "SCHEMA_DUMP_WAITED_FOR",
            Self::SnapshotOutdated { .. } => SNAPSHOT_OUTDATED,
            Self::File { .. } => "SCHEMA_FILE",
            Self::ArchiveMissing(_) => "SCHEMA_ARCHIVE_MISSING",
            Self::Archive(_) => "SCHEMA_ARCHIVE_UNREADABLE",
            Self::OtherArchive { .. } => "SCHEMA_ARCHIVE_CHANGED",
            Self::FilterWidened { .. } => "SCHEMA_FILTER_WIDENED",
            Self::LocksExhausted { .. } => "LOCKS_EXHAUSTED",
            Self::Refused { .. } => "SCHEMA_REFUSED",
            Self::Fenced => "FENCED",
            Self::LargeObject { .. } => "LARGE_OBJECT",
            Self::Server { .. } => "SCHEMA_SERVER",
            Self::Filter(_) => "FILTER_INVALID",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::ClientMissing { found, .. } => format!("Found: {found}."),
            Self::Refused { refused, .. } => {
                refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            }
            Self::Filter(report) => report.detail.clone(),
            _ => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::ClientMissing { major, .. } => format!(
                "Install the PostgreSQL {major} client programs (Debian: apt install \
                 postgresql-client-{major}), or newer ones; or set SKEIN_PG_BINDIR."
            ),
            Self::Run { .. } => "Check that it may be executed.".to_owned(),
            Self::Client { message, .. } if message.contains("out of shared memory") => {
                "Raise max_locks_per_transaction on the source, and restart it.".to_owned()
            }
            Self::Client { message, .. } if message.contains("permission denied") => {
                "Grant the role of the source SELECT on it, or leave it out.".to_owned()
            }
            Self::SnapshotOutdated { .. } => {
                "Resume when no tables are being dropped: each attempt takes a new snapshot."
                    .to_owned()
            }
            Self::ArchiveMissing(_) | Self::OtherArchive { .. } => {
                "Bring the migration's directory back, or abort and begin again with an empty \
                 target."
                    .to_owned()
            }
            Self::FilterWidened { .. } => {
                "Narrow the filter again, or abort and begin again with an empty target.".to_owned()
            }
            Self::LocksExhausted { .. } => {
                "Raise max_locks_per_transaction on the target, and restart it.".to_owned()
            }
            Self::Refused { refused, .. } => hint_of(refused),
            Self::Filter(report) => report.hint.clone(),
            _ => String::new(),
        }
    }
}

/// Whether a statement may be taken when it is tried again. An unknown SQLSTATE (an exception
/// raised by a trigger, an internal error) counts as refused here: the object is named.
pub(super) fn passes(error: &pg::Error) -> bool {
    error.sqlstate().is_none_or(|sqlstate| {
        ["08", "40", "53", "57", "58"].contains(&&sqlstate[..2.min(sqlstate.len())])
            || matches!(sqlstate, "55P03" | "55006")
    })
}

/// What to do about refused objects: the action for the first known cause, and the way around.
fn hint_of(refused: &[Refused]) -> String {
    let mut actions: Vec<&str> = Vec::new();
    for one in refused {
        let action = match one.sqlstate.as_str() {
            "0A000" | "58P01" if one.object.starts_with("EXTENSION") => {
                "Install the packages of the missing extensions on the target server."
            }
            "42704" if one.message.starts_with("role ") => {
                "Create the missing roles on the target, or do not leave out roles and owners."
            }
            "42704" if one.message.starts_with("tablespace ") => {
                "Create the missing tablespaces on the target."
            }
            "42501" => "Give the role of the target the rights it lacks.",
            "42P07" | "42710" | "42723" | "42P06" => "Empty the target database.",
            "53200" => "Raise max_locks_per_transaction on the target, and restart it.",
            _ => continue,
        };
        if !actions.contains(&action) {
            actions.push(action);
        }
    }
    actions.push(
        "Then resume; or leave these objects out (filter.exclude_objects takes each as printed).",
    );
    actions.join(" ")
}
