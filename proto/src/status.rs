//! An error as a person reads it, on its way through gRPC.
//!
//! In: a component's error through [`Classify`]. Out: a [`Report`], a [`tonic::Status`], and
//! back. Promise: class, reason, detail and hint survive the wire; one map each way.

use crate::v1;
use prost::Message as _;
use std::fmt;
use tonic::{Code, Status, metadata::MetadataValue};

/// What the caller may do about a failure. Nothing else decides a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The same call may succeed later: retry with backoff.
    Transient,
    /// Someone changed the record first: read again, then decide.
    Conflict,
    /// A newer holder exists: stop work at once, never retry.
    Fenced,
    /// A person has to change something.
    Definite,
    /// We broke our own invariant.
    Bug,
}

/// An error that knows what may be done about it.
pub trait Classify: std::error::Error {
    /// What the caller may do.
    fn class(&self) -> ErrorClass;
    /// Upper-case word by which operators search.
    fn reason(&self) -> &'static str;
    /// Sentences for a person; empty when the primary says it all.
    fn detail(&self) -> String {
        String::new()
    }
    /// What to do; empty when nothing can be said.
    fn hint(&self) -> String {
        String::new()
    }

    /// The error and its chain of sources, as told to people and kept as a fault.
    fn report(&self) -> Report
    where
        Self: Sized,
    {
        let mut causes = Vec::new();
        let mut source = self.source();
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

/// Primary, detail and hint, as PostgreSQL words its errors.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    pub reason: String,
    pub class: ErrorClass,
    pub primary: String,
    pub detail: String,
    pub hint: String,
}

impl Report {
    /// A definite error made on the spot.
    pub fn definite(reason: &str, primary: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            class: ErrorClass::Definite,
            primary: primary.into(),
            detail: String::new(),
            hint: String::new(),
        }
    }

    /// The same with a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same in another class.
    #[must_use]
    pub fn with_class(mut self, class: ErrorClass) -> Self {
        self.class = class;
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.primary)
    }
}

impl std::error::Error for Report {}

impl Classify for Report {
    fn class(&self) -> ErrorClass {
        self.class
    }
    fn reason(&self) -> &'static str {
        "REPORTED"
    }
    fn report(&self) -> Report {
        self.clone()
    }
}

impl From<ErrorClass> for v1::ErrorClass {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Transient => Self::Transient,
            ErrorClass::Conflict => Self::Conflict,
            ErrorClass::Fenced => Self::Fenced,
            ErrorClass::Definite => Self::Definite,
            ErrorClass::Bug => Self::Bug,
        }
    }
}

impl From<v1::ErrorClass> for ErrorClass {
    fn from(class: v1::ErrorClass) -> Self {
        match class {
            v1::ErrorClass::Unspecified | v1::ErrorClass::Transient => Self::Transient,
            v1::ErrorClass::Conflict => Self::Conflict,
            v1::ErrorClass::Fenced => Self::Fenced,
            v1::ErrorClass::Definite => Self::Definite,
            v1::ErrorClass::Bug => Self::Bug,
        }
    }
}

impl From<Report> for v1::ErrorDetail {
    fn from(report: Report) -> Self {
        Self {
            reason: report.reason,
            class: v1::ErrorClass::from(report.class).into(),
            primary: report.primary,
            detail: report.detail,
            hint: report.hint,
        }
    }
}

impl From<v1::ErrorDetail> for Report {
    fn from(detail: v1::ErrorDetail) -> Self {
        Self {
            class: detail.class().into(),
            reason: detail.reason,
            primary: detail.primary,
            detail: detail.detail,
            hint: detail.hint,
        }
    }
}

/// Metadata key under which the detail travels.
const DETAIL_KEY: &str = "skein-error-bin";

impl From<Report> for Status {
    fn from(report: Report) -> Self {
        let code = match (report.class, report.reason.as_str()) {
            (_, "NOT_FOUND") => Code::NotFound,
            (_, "ALREADY_EXISTS") => Code::AlreadyExists,
            (_, "TOKEN_REFUSED") => Code::Unauthenticated,
            (ErrorClass::Transient, _) => Code::Unavailable,
            (ErrorClass::Conflict, _) => Code::Aborted,
            (ErrorClass::Fenced | ErrorClass::Definite, _) => Code::FailedPrecondition,
            (ErrorClass::Bug, _) => Code::Internal,
        };
        let mut status = Self::new(code, report.primary.clone());
        let bytes = v1::ErrorDetail::from(report).encode_to_vec();
        status.metadata_mut().insert_bin(DETAIL_KEY, MetadataValue::from_bytes(&bytes));
        status
    }
}

impl From<&Status> for Report {
    fn from(status: &Status) -> Self {
        let carried = status
            .metadata()
            .get_bin(DETAIL_KEY)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| v1::ErrorDetail::decode(bytes).ok());
        if let Some(detail) = carried {
            return detail.into();
        }
        let class = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                ErrorClass::Transient
            }
            Code::Aborted => ErrorClass::Conflict,
            Code::Internal => ErrorClass::Bug,
            _ => ErrorClass::Definite,
        };
        Self {
            reason: format!("{:?}", status.code()).to_uppercase(),
            class,
            primary: status.message().to_owned(),
            detail: String::new(),
            hint: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_wire() {
        let report = Report::definite("REPLICA_IDENTITY_MISSING", "table has no identity")
            .with_detail("It has no primary key.")
            .with_hint("Run: alter table t replica identity full;");
        let status = Status::from(report.clone());
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(Report::from(&status), report);
    }

    #[test]
    fn an_endpoint_does_not_print_its_secret() {
        let endpoint =
            v1::Endpoint { conninfo: "postgres://u:hunter2@h/db".into(), server_version: 150_018 };
        let task = v1::Task { source: Some(endpoint), ..Default::default() };
        assert!(!format!("{task:?}").contains("hunter2"));
    }
}
