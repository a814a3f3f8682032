//! Drives one migration: load, step, record; commands between the steps.
//!
//! ```text
//! requests --> +--------+  step(phase)   +------+   event    +-------------+   put_if
//!              | driver | -------------> | flow | ---------> | Phase::next | ---------> store
//!              +--------+ <------------- +------+            +-------------+
//!                 fault, or again after a pause
//! ```
//! Promise: a step may be dropped at any await, as a kill would: it finds out by itself what it
//! had done. A transient failure is tried again for ever, with a growing pause; a definite one
//! stands beside the phase until `resume`.

use super::{
    flow::Flow,
    meter,
    phase::{Event, Phase},
    shared::Shared,
    teardown,
};
use crate::{clock, fleet::Fleet, store::record::Stored};
use proto::status::{Classify as _, ErrorClass, Report};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// What an operator may ask of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Start,
    Pause,
    Resume,
    Cutover { fence: bool, timeout_s: u32, dry_run: bool },
    Abort { dry_run: bool },
    Cleanup { dry_run: bool },
}

/// A command and where its answer goes: lines for people.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub answer: oneshot::Sender<Result<Vec<String>, Report>>,
}

/// First and longest pause before a step that failed for a transient reason runs again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Attempts in a row that a server may refuse with a code that says nothing of why: some five
/// minutes, long enough for a catalog row that another session changed at the same time.
const UNKNOWN_ATTEMPTS: u32 = 20;

/// The driver of one migration.
#[derive(Debug)]
pub struct Driver {
    flow: Flow,
    pause: Duration,
    /// No step before this: the last one failed for a reason that may pass.
    not_before: Instant,
    /// Refusals in a row with a code that says nothing.
    unknown: u32,
    over: bool,
}

impl Driver {
    pub fn new(stored: Stored, shared: Arc<Shared>, fleet: Arc<Fleet>, dir: PathBuf) -> Self {
        Self {
            flow: Flow::new(stored, shared, fleet, dir),
            pause: FIRST_PAUSE,
            not_before: Instant::now(),
            unknown: 0,
            over: false,
        }
    }

    /// Runs until cancelled, or until the migration is cleaned up.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>, token: CancellationToken) {
        while !self.over {
            let held = self.flow.record().is_held();
            // 1 stop   2 command   3 work
            let outcome = tokio::select! { biased;
                () = token.cancelled() => break,
                request = requests.recv() => match request {
                    Some(request) => { self.handle(request).await; continue }
                    None => break,
                },
                outcome = work(&mut self.flow, held, self.not_before) => outcome,
            };
            if self.settle(outcome).await {
                break;
            }
        }
        self.flow.stop().await;
    }

    /// Records what a step came to. True: fenced, stop driving.
    async fn settle(&mut self, outcome: Result<Option<Event>, Report>) -> bool {
        let report = match outcome {
            Ok(None) => return false,
            Ok(Some(event)) => match self.advance(&event).await {
                Ok(()) => {
                    self.pause = FIRST_PAUSE;
                    self.unknown = 0;
                    return false;
                }
                Err(report) => report,
            },
            Err(report) => report,
        };
        self.unknown = if says_nothing(&report) { self.unknown + 1 } else { 0 };
        let report = if self.unknown > UNKNOWN_ATTEMPTS {
            self.unknown = 0;
            report.with_class(ErrorClass::Definite)
        } else {
            report
        };
        match report.class {
            ErrorClass::Transient | ErrorClass::Conflict => {
                tracing::warn!(error = %report.primary, detail = %report.detail, "trying again");
                self.flow.shared().set_activity(format!(
                    "{}; trying again in {:.0} s. {}",
                    report.primary,
                    self.pause.as_secs_f64().ceil(),
                    report.detail
                ));
                self.not_before = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                self.flow.disconnect_if_lost().await;
                false
            }
            ErrorClass::Fenced => {
                tracing::error!("a newer coordinator acts on this migration; standing back");
                self.flow.shared().set_activity("a newer coordinator acts on this migration");
                true
            }
            ErrorClass::Definite | ErrorClass::Bug => {
                tracing::error!(reason = %report.reason, error = %report.primary, detail = %report.detail, "stopped at a fault");
                self.flow.shared().set_activity(format!("stopped: {}", report.primary));
                meter::fault(&self.flow.record().spec.name, &report.reason);
                if let Err(error) = self.flow.change(|record| record.fault = Some(report)).await {
                    tracing::error!(error = %error.primary, "fault cannot be recorded");
                    self.not_before = Instant::now() + self.pause;
                }
                false
            }
        }
    }

    async fn advance(&mut self, event: &Event) -> Result<(), Report> {
        self.advance_over(&[event]).await
    }

    /// Over several events in one write.
    async fn advance_over(&mut self, events: &[&Event]) -> Result<(), Report> {
        let mut next = self.flow.record().phase.clone();
        for event in events {
            next = next.next(event).map_err(|error| {
                Report::definite("ILLEGAL_TRANSITION", error.to_string())
                    .with_class(ErrorClass::Bug)
            })?;
        }
        tracing::info!(from = %self.flow.record().phase, to = %next, "phase");
        self.flow
            .change(|record| {
                record.phase = next;
                record.phase_since = clock::now();
            })
            .await
    }

    async fn handle(&mut self, request: Request) {
        let answer = self.answer(request.command).await;
        // Who asked may have gone away; the command was carried out all the same.
        drop(request.answer.send(answer));
    }

    async fn answer(&mut self, command: Command) -> Result<Vec<String>, Report> {
        let phase = self.flow.record().phase.clone();
        match command {
            Command::Start | Command::Resume => {
                self.not_before = Instant::now();
                if self.flow.record().fault.is_some() {
                    self.flow.reconnect().await;
                }
                self.flow.forgive();
                self.pause = FIRST_PAUSE;
                self.flow
                    .change(|record| {
                        record.started = true;
                        record.paused = false;
                        record.fault = None;
                    })
                    .await?;
                Ok(Vec::new())
            }
            Command::Pause => {
                self.flow.hold();
                self.flow.change(|record| record.paused = true).await?;
                self.flow.shared().set_activity("paused; changes are still received");
                Ok(Vec::new())
            }
            Command::Cutover { fence, timeout_s, dry_run } => {
                if phase != Phase::Ready {
                    return Err(not_now("cut over", &phase, "Wait until its phase is ready."));
                }
                let plan = self.flow.cutover_plan(fence).await?;
                if !dry_run {
                    if self.flow.record().is_held() {
                        return Err(not_now("cut over", &phase, "Run: skein resume"));
                    }
                    let timeout_s = self.flow.cutover_timeout(timeout_s);
                    let attempt = self.flow.next_attempt().await?;
                    self.flow.change(|record| record.attempt = attempt).await?;
                    self.advance(&Event::CutoverRequested { attempt, fence, timeout_s }).await?;
                }
                Ok(plan)
            }
            Command::Abort { dry_run } => self.abort(&phase, dry_run).await,
            Command::Cleanup { dry_run } => {
                let unstarted = phase == Phase::Preflight;
                if !phase.is_final() && !unstarted {
                    return Err(not_now("clean up", &phase, "Abort it first: skein abort"));
                }
                let drops = self.flow.teardown_plan(teardown::Scope::Cleanup).await?;
                if !dry_run {
                    self.flow.clean_up().await?;
                    self.over = true;
                }
                Ok(drops)
            }
        }
    }

    async fn abort(&mut self, phase: &Phase, dry_run: bool) -> Result<Vec<String>, Report> {
        if matches!(phase, Phase::Aborted | Phase::Aborting) {
            return Ok(Vec::new());
        }
        let drops = self.flow.teardown_plan(teardown::Scope::Abort).await?;
        if !dry_run {
            match phase {
                // Nothing was made yet: neither server is needed.
                Phase::Preflight => {
                    self.flow.change(|record| record.started = false).await?;
                    self.advance_over(&[&Event::AbortRequested, &Event::TornDown]).await?;
                }
                // Nobody runs the attempt: it is lifted, where it did not win.
                Phase::CuttingOver { .. } if self.flow.record().is_held() => {
                    self.flow.lift_to_abort().await?;
                    self.advance_over(&[&Event::FenceLifted, &Event::AbortRequested]).await?;
                }
                _ => self.advance(&Event::AbortRequested).await.map_err(|_| {
                    let hint = "Wait until the cutover ended, or clean up.";
                    not_now("abort", phase, hint)
                })?,
            }
            // Without a start there is nothing that a cleanup would have to drop.
            let started = *phase != Phase::Preflight;
            self.flow
                .change(|record| {
                    record.started = started;
                    record.paused = false;
                    record.fault = None;
                })
                .await?;
        }
        Ok(drops)
    }
}

/// The step, once it may run.
async fn work(flow: &mut Flow, held: bool, not_before: Instant) -> Result<Option<Event>, Report> {
    tokio::time::sleep_until(not_before).await;
    flow.work(held).await
}

/// A server refused with a code that says neither that it may pass nor that it never will.
fn says_nothing(report: &Report) -> bool {
    let code = report.detail.split("SQLSTATE ").nth(1).and_then(|rest| rest.get(..5));
    report.class == ErrorClass::Transient && code.is_some_and(pg::sqlstate::is_unknown)
}

fn not_now(what: &str, phase: &Phase, hint: &str) -> Report {
    Report::definite("WRONG_PHASE", format!("could not {what} in phase {phase}")).with_hint(hint)
}

/// A store's refusal as the driver's.
pub fn not_stored(error: &crate::store::Error) -> Report {
    error.report()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unknown_code_is_counted() {
        let refused = |code: &str| {
            Report::definite("SERVER_REFUSED", "could not do it")
                .with_detail(format!("a message (SQLSTATE {code})."))
                .with_class(ErrorClass::Transient)
        };
        assert!(says_nothing(&refused("XX000")));
        assert!(!says_nothing(&refused("53100")));
        assert!(!says_nothing(&refused("XX000").with_class(ErrorClass::Definite)));
        assert!(!says_nothing(&Report::definite("R", "lost").with_class(ErrorClass::Transient)));
    }
}
