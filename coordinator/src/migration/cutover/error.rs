//! Why a cutover did not go on.

use super::{
    attempt::{Attempt, Move, State},
    fence::Missing,
};
use crate::source::class_of;
use pg::TableName;
use proto::status::{Classify, ErrorClass, Report};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read or change {what} on the source")]
    Source { what: &'static str, source: pg::Error },
    #[error("could not read or change {what} on the target")]
    Target { what: &'static str, source: pg::Error },
    #[error("could not connect to the {side}")]
    Connect { side: &'static str, source: pg::Error },
    #[error("a coordinator with a newer epoch than {epoch} acts")]
    Superseded { epoch: u64 },
    #[error("cutover attempt {number} is {state}: {step} is no longer possible")]
    Illegal { number: u32, state: State, step: &'static str },
    #[error("the record of the cutover cannot be read: {0}")]
    Record(String),
    #[error("prepared transaction {} is pending on the source", names(gids))]
    PreparedTransaction { gids: Vec<String> },
    #[error("the fence on the source needs a right that we do not have")]
    NotPermitted { missing: Vec<Missing> },
    #[error("{} sessions on the source did not end", sessions.len())]
    SessionsRemain { sessions: Vec<String> },
    #[error("the fence on the source was lifted by somebody else")]
    FenceBroken,
    #[error("the source was written to behind the end position")]
    LateWrite { tables: Vec<(TableName, u64)> },
    #[error("sequence {} is missing on the target", tables(sequences))]
    SequenceMissing { sequences: Vec<TableName> },
    #[error("sequence {} differs on the target after it was set", tables(sequences))]
    SequenceDiffers { sequences: Vec<TableName> },
    #[error("cutover did not finish in {} s: it was at step \"{step}\"", timeout.as_secs())]
    TimedOut { step: &'static str, timeout: Duration },
    #[error("{}", .0.primary)]
    Step(Report),
}

fn names(gids: &[String]) -> String {
    gids.iter().map(|gid| format!("'{gid}'")).collect::<Vec<_>>().join(", ")
}

fn tables(names: &[TableName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    pub(super) fn source(what: &'static str) -> impl FnOnce(pg::Error) -> Self {
        move |source| Self::Source { what, source }
    }

    pub(super) fn target(what: &'static str) -> impl FnOnce(pg::Error) -> Self {
        move |source| Self::Target { what, source }
    }

    pub(super) fn connect(side: &'static str) -> impl FnOnce(pg::Error) -> Self {
        move |source| Self::Connect { side, source }
    }

    pub(super) fn illegal(now: &Attempt, step: Move) -> Self {
        let step = match step {
            Move::Begin => "beginning another",
            Move::Lift | Move::FinishLift => "lifting",
            Move::Open => "opening",
        };
        Self::Illegal { number: now.number, state: now.state, step }
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Source { source, .. }
            | Self::Target { source, .. }
            | Self::Connect { source, .. } => class_of(source),
            Self::Superseded { .. } => ErrorClass::Fenced,
            Self::Illegal { .. } => ErrorClass::Conflict,
            Self::SessionsRemain { .. } | Self::TimedOut { .. } | Self::FenceBroken => {
                ErrorClass::Definite
            }
            Self::PreparedTransaction { .. }
            | Self::NotPermitted { .. }
            | Self::LateWrite { .. }
            | Self::SequenceMissing { .. } => ErrorClass::Definite,
            Self::Record(_) | Self::SequenceDiffers { .. } => ErrorClass::Bug,
            Self::Step(report) => report.class,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Source { .. } => "CUTOVER_SOURCE_REFUSED",
            Self::Target { .. } => "CUTOVER_TARGET_REFUSED",
            Self::Connect { source, .. } => {
                source.failure().map_or("CONNECTION_FAILED", |failure| failure.reason())
            }
            Self::Superseded { .. } => "EPOCH_SUPERSEDED",
            Self::Illegal { .. } => "CUTOVER_STATE",
            Self::Record(_) => "CUTOVER_RECORD",
            Self::PreparedTransaction { .. } => "PREPARED_TRANSACTION_PENDING",
            Self::NotPermitted { .. } => "FENCE_NOT_PERMITTED",
            Self::SessionsRemain { .. } => "SESSIONS_REMAIN",
            Self::FenceBroken => "FENCE_LIFTED_BY_HAND",
            Self::LateWrite { .. } => "LATE_WRITE",
            Self::SequenceMissing { .. } => "SEQUENCE_MISSING",
            Self::SequenceDiffers { .. } => "SEQUENCE_DIFFERS",
            Self::TimedOut { .. } => "CUTOVER_TIMED_OUT",
            Self::Step(_) => "CUTOVER_STEP",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::NotPermitted { missing } => {
                let all: Vec<&str> = missing.iter().map(|one| one.what.as_str()).collect();
                format!("We may not {}.", all.join("; nor "))
            }
            Self::SessionsRemain { sessions } => format!("Left: {}.", sessions.join(", ")),
            Self::LateWrite { tables } => {
                let all: Vec<String> =
                    tables.iter().map(|(table, n)| format!("{table} ({n} changes)")).collect();
                format!("Tables: {}.", all.join(", "))
            }
            Self::PreparedTransaction { .. } => {
                "COMMIT PREPARED would pass the fence, and its changes would be lost.".to_owned()
            }
            Self::Step(report) => report.detail.clone(),
            Self::Source { .. }
            | Self::Target { .. }
            | Self::Connect { .. }
            | Self::Superseded { .. }
            | Self::Illegal { .. }
            | Self::Record(_)
            | Self::FenceBroken
            | Self::SequenceMissing { .. }
            | Self::SequenceDiffers { .. }
            | Self::TimedOut { .. } => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Connect { source, .. } => {
                source.failure().map(pg::connect::Failure::hint).unwrap_or_default()
            }
            Self::PreparedTransaction { gids } => {
                let both: Vec<String> = gids
                    .iter()
                    .map(|gid| {
                        let gid = pg::sql::quote_literal(gid);
                        format!("commit prepared {gid}; or rollback prepared {gid};")
                    })
                    .collect();
                format!("Run on the source: {} Then cut over again.", both.join(" "))
            }
            Self::NotPermitted { missing } => {
                let all: Vec<&str> = missing.iter().map(|one| one.statement.as_str()).collect();
                format!("Run on the source as superuser: {}", all.join(" "))
            }
            Self::SessionsRemain { .. } => {
                "Stop these clients, or give a longer --timeout, then cut over again.".to_owned()
            }
            Self::FenceBroken => "Cut over again when the source may be fenced.".to_owned(),
            Self::LateWrite { .. } => {
                "Nothing is lost: replication goes on. Stop the client that sets \
                 default_transaction_read_only off, then cut over again."
                    .to_owned()
            }
            Self::SequenceMissing { .. } => {
                "Create it on the target, or exclude it, then cut over again.".to_owned()
            }
            Self::TimedOut { .. } => {
                "Writes go on at the source. Cut over again when lag is lower, or give a longer \
                 --timeout."
                    .to_owned()
            }
            Self::Step(report) => report.hint.clone(),
            Self::Source { .. }
            | Self::Target { .. }
            | Self::Superseded { .. }
            | Self::Illegal { .. }
            | Self::Record(_)
            | Self::SequenceDiffers { .. } => String::new(),
        }
    }

    fn report(&self) -> Report {
        // A step of another component keeps its own words.
        if let Self::Step(report) = self {
            return report.clone();
        }
        let mut causes = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let mut detail = self.detail();
        if !causes.is_empty() {
            let chain = format!("Cause: {}.", causes.join(": "));
            detail = if detail.is_empty() { chain } else { format!("{detail} {chain}") };
        }
        Report {
            reason: self.reason().to_owned(),
            class: self.class(),
            primary: self.to_string(),
            detail,
            hint: self.hint(),
        }
    }
}
