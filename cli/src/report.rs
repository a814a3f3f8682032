//! How a command ends: a [`Report`] for people, an exit code for scripts.
//!
//! In: errors of this crate, statuses of the coordinator. Out: [`Failure`]. Promise: exit
//! codes are stable; they stand in `skein --help` and in the README.

use proto::status::{Classify, ErrorClass, Report};
use std::process::ExitCode;
use tonic::{Code, Status};

/// Exit codes, as promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    /// A difference, a failed check, a fault, a cutover that was lifted.
    Found,
    Usage,
    NotFound,
    Unreachable,
    Refused,
    Internal,
    /// Failed for now; the same command may succeed later.
    Transient,
    /// Ctrl-C, hang-up or SIGTERM; what was started goes on.
    Interrupted,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Found => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unreachable => 4,
            Self::Refused => 5,
            Self::Internal => 6,
            Self::Transient => 7,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table of `skein --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a difference, a failed check, a fault, a lifted cutover, an aborted migration
  2    wrong usage or configuration
  3    no such migration
  4    no coordinator answers
  5    refused: a precondition is not met, or you did not confirm
  6    internal error
  7    failed for now: the same command may succeed later
  130  Ctrl-C, hang-up or SIGTERM: what was started goes on in the background";

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
#[error("{report}")]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    // Boxed: a failure is rare, and every result carries room for it.
    pub(crate) report: Box<Report>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, report: Report) -> Self {
        Self { exit, report: Box::new(report) }
    }

    pub(crate) fn usage(reason: &str, primary: impl Into<String>) -> Self {
        Self::new(Exit::Usage, Report::definite(reason, primary))
    }

    #[must_use]
    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.report.detail = detail.into();
        self
    }

    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.report.hint = hint.into();
        self
    }

    /// An error of one of our own components.
    pub(crate) fn of(exit: Exit, error: &impl Classify) -> Self {
        Self::new(exit, error.report())
    }
}

/// Key under which the coordinator sends its own report (see error.proto). A status without
/// it was made by the transport or by tonic.
const REPORT_KEY: &str = "skein-error-bin";

/// Nobody answered: the call never reached a coordinator, or its answer never came back.
pub(crate) fn is_connection_lost(status: &Status) -> bool {
    let transport = match status.code() {
        Code::Unavailable | Code::Cancelled => true,
        // tonic's word for a broken HTTP/2 stream.
        Code::Unknown | Code::Internal => {
            std::error::Error::source(status).is_some() || status.message().contains("h2 protocol")
        }
        _ => false,
    };
    transport && status.metadata().get_bin(REPORT_KEY).is_none()
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let report = Report::from(&status);
        let exit = if is_connection_lost(&status) || status.code() == Code::DeadlineExceeded {
            Exit::Unreachable
        } else {
            exit_of(status.code(), report.class)
        };
        let failure = Self::new(exit, report);
        if exit != Exit::Unreachable {
            return failure;
        }
        let primary = match status.code() {
            Code::DeadlineExceeded => "the coordinator did not answer in time",
            _ => "the connection to the coordinator was lost",
        };
        let cause = failure.report.primary.clone();
        Self::new(
            Exit::Unreachable,
            Report::definite("COORDINATOR_UNREACHABLE", primary)
                .with_class(ErrorClass::Transient)
                .with_detail(format!("Cause: {cause}."))
                .with_hint(
                    "The work it has begun goes on when it is back; run the same command again.",
                ),
        )
    }
}

fn exit_of(code: Code, class: ErrorClass) -> Exit {
    match code {
        Code::NotFound => Exit::NotFound,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::AlreadyExists | Code::FailedPrecondition | Code::PermissionDenied => Exit::Refused,
        Code::Unauthenticated => Exit::Refused,
        Code::Unavailable | Code::Aborted | Code::ResourceExhausted => Exit::Transient,
        _ => match class {
            ErrorClass::Transient | ErrorClass::Conflict => Exit::Transient,
            ErrorClass::Fenced | ErrorClass::Definite => Exit::Refused,
            ErrorClass::Bug => Exit::Internal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinators_report_keeps_its_words_and_chooses_the_exit_code() {
        let report = Report::definite("CUTOVER_NOT_READY", "the migration is not ready");
        let failure = Failure::from(Status::from(report.clone()));
        assert_eq!((failure.exit, &*failure.report), (Exit::Refused, &report));
        let missing = Failure::from(Status::from(Report::definite("NOT_FOUND", "no migration")));
        assert_eq!(missing.exit, Exit::NotFound);
        let later = Report::definite("SOURCE_DOWN", "could not connect to the source")
            .with_class(ErrorClass::Transient);
        assert_eq!(Failure::from(Status::from(later)).exit, Exit::Transient);
    }

    #[test]
    fn silence_is_told_from_an_answer() {
        let silence = Failure::from(Status::unavailable("tcp connect error"));
        assert_eq!(silence.exit, Exit::Unreachable);
        assert_eq!(silence.report.reason, "COORDINATOR_UNREACHABLE");
        assert_eq!(Failure::from(Status::invalid_argument("name")).exit, Exit::Usage);
        assert_eq!(Failure::from(Status::internal("oops")).exit, Exit::Internal);
    }

    #[test]
    fn help_lists_every_exit_code() {
        let exits = [
            Exit::Ok,
            Exit::Found,
            Exit::Usage,
            Exit::NotFound,
            Exit::Unreachable,
            Exit::Refused,
            Exit::Internal,
            Exit::Transient,
            Exit::Interrupted,
        ];
        for exit in exits {
            let listed = EXIT_CODES.lines().any(|line| {
                line.split_whitespace().next() == Some(exit.code().to_string().as_str())
            });
            assert!(listed, "{exit:?} is not in the help");
        }
    }
}
