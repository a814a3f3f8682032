//! Where a migration stands, and the only function that changes it. Pure: no IO, no clock.
#![deny(clippy::wildcard_enum_match_arm)]

use pg::PgLsn;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a migration stands.
///
/// ```text
/// Preflight -> Provisioning -> Copying -> CatchingUp -> Ready <-> CuttingOver -> Done
///      \____________\____________\____________\_________\-> Aborting -> Aborted
/// ```
/// Every phase is written to the store before its step runs, by the acting coordinator only,
/// so that a restart runs the same step again. A fault stands beside the phase, not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Set at creation. Waits for StartMigration; changes nothing on either server.
    Preflight,
    /// Set when preflight passed. Identity, publications, slot, snapshot, schema.
    Provisioning,
    /// Set when slot, snapshot, target schema and plan exist.
    Copying {
        #[serde(with = "lsn")]
        consistent_point: PgLsn,
    },
    /// Set when the last chunk and index is in. Replay runs.
    CatchingUp {
        #[serde(with = "lsn")]
        consistent_point: PgLsn,
    },
    /// Set when lag is under the limit. Waits for a cutover.
    Ready,
    /// Set by a cutover request; a lifted fence leads back to `Ready`.
    CuttingOver {
        attempt: u32,
        fence: bool,
        timeout_s: u32,
    },
    /// Set when the target was opened. The stream is read on for late writes until cleanup.
    Done {
        #[serde(with = "lsn")]
        end_position: PgLsn,
    },
    /// Set by an abort. Takes back what stands on the source.
    Aborting,
    Aborted,
}

/// What happened in a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    PreflightPassed,
    Provisioned { consistent_point: PgLsn },
    Copied,
    CaughtUp,
    CutoverRequested { attempt: u32, fence: bool, timeout_s: u32 },
    FenceLifted,
    Opened { end_position: PgLsn },
    AbortRequested,
    TornDown,
}

/// An event that the phase does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible in phase {phase}")]
pub struct IllegalTransition {
    pub phase: String,
    pub event: String,
}

impl Phase {
    /// The phase after `event`.
    ///
    /// # Errors
    /// [`IllegalTransition`] when this phase does not know the event.
    pub fn next(&self, event: &Event) -> Result<Self, IllegalTransition> {
        let next = match (self, event) {
            (Self::Preflight, Event::PreflightPassed) => Self::Provisioning,
            (Self::Provisioning, Event::Provisioned { consistent_point }) => {
                Self::Copying { consistent_point: *consistent_point }
            }
            (Self::Copying { consistent_point }, Event::Copied) => {
                Self::CatchingUp { consistent_point: *consistent_point }
            }
            (Self::CatchingUp { .. }, Event::CaughtUp)
            | (Self::CuttingOver { .. }, Event::FenceLifted) => Self::Ready,
            (Self::Ready, Event::CutoverRequested { attempt, fence, timeout_s }) => {
                Self::CuttingOver { attempt: *attempt, fence: *fence, timeout_s: *timeout_s }
            }
            (Self::CuttingOver { .. }, Event::Opened { end_position }) => {
                Self::Done { end_position: *end_position }
            }
            (
                Self::Preflight
                | Self::Provisioning
                | Self::Copying { .. }
                | Self::CatchingUp { .. }
                | Self::Ready,
                Event::AbortRequested,
            ) => Self::Aborting,
            (Self::Aborting, Event::TornDown) => Self::Aborted,
            (phase, event) => {
                return Err(IllegalTransition {
                    phase: phase.name().to_owned(),
                    event: format!("{event:?}"),
                });
            }
        };
        Ok(next)
    }

    /// As `skein status --json` names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Provisioning => "provisioning",
            Self::Copying { .. } => "copying",
            Self::CatchingUp { .. } => "catching_up",
            Self::Ready => "ready",
            Self::CuttingOver { .. } => "cutting_over",
            Self::Done { .. } => "done",
            Self::Aborting => "aborting",
            Self::Aborted => "aborted",
        }
    }

    /// Nothing more happens by itself, but for reading late writes.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Aborted)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `PgLsn` as its usual text.
pub mod lsn {
    use pg::PgLsn;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(lsn: &PgLsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PgLsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom("not a WAL position"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_straight_way_ends_in_done() {
        let point = PgLsn::from(16);
        let events = [
            Event::PreflightPassed,
            Event::Provisioned { consistent_point: point },
            Event::Copied,
            Event::CaughtUp,
            Event::CutoverRequested { attempt: 1, fence: true, timeout_s: 60 },
            Event::FenceLifted,
            Event::CutoverRequested { attempt: 2, fence: true, timeout_s: 60 },
            Event::Opened { end_position: point },
        ];
        let last = events.iter().fold(Phase::Preflight, |phase, event| phase.next(event).unwrap());
        assert_eq!(last, Phase::Done { end_position: point });
    }

    #[test]
    fn a_cutover_under_way_is_not_aborted_and_done_is_final() {
        let cutting = Phase::CuttingOver { attempt: 1, fence: true, timeout_s: 60 };
        assert!(cutting.next(&Event::AbortRequested).is_err());
        assert!(Phase::Done { end_position: PgLsn::from(1) }.next(&Event::AbortRequested).is_err());
    }

    #[test]
    fn a_phase_survives_its_record() {
        let phase = Phase::Copying { consistent_point: "16/B374D848".parse().unwrap() };
        let json = serde_json::to_string(&phase).unwrap();
        assert_eq!(json, r#"{"phase":"copying","consistent_point":"16/B374D848"}"#);
        assert_eq!(serde_json::from_str::<Phase>(&json).unwrap(), phase);
    }
}
