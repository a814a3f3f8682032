//! Cutover: from the fence on the source to the open target.
//!
//! ```text
//! check -> begin (written down, with its deadline) -> fence -> end position -> drain
//!       -> sequences -> restore (foreign keys, triggers, policies) -> open
//!   deadline or failure: lift -> restore undone -> lifted: replication goes on
//! ```
//! In: a [`Request`] and the [`Parts`] that replay and schema bring. Out: [`Outcome`].
//! Promise: each step may run twice and may be killed anywhere; another coordinator that runs
//! the same attempt goes on where it was, or lifts it once its deadline is over; an attempt is
//! opened or lifted, never both (`attempt`); nothing is set on the source that was not written
//! down on the target first (`fence`).

pub mod attempt;
mod error;
pub mod fence;
pub mod off_stream;
pub mod open;
pub mod sequence;

pub use attempt::{Attempt, State};
pub use error::Error;
use open::RESTORE_BEGUN;
pub use open::{CutoverStep, Opened};

use super::context::Context;
use crate::filter::Filter;
use attempt::Move;
use fence::Before;
use pg::{PgLsn, Session, TableName};
use proto::status::{Classify as _, ErrorClass, Report};
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// Pause before a step is tried again after a failure that may pass.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// How long lifting may take to end the sessions that began behind the fence.
const LIFT_TIMEOUT: Duration = Duration::from_secs(10);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// From [`attempt::next_number`], fixed in the phase before this runs.
    pub attempt: u32,
    /// False: stopping the writers is left to the operator.
    pub fence: bool,
    /// From the beginning of the attempt; then the fence is lifted.
    pub timeout: Duration,
}

/// How it ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    Opened(Opened),
    /// The source is as before, and replication goes on.
    NotOpened {
        cause: Report,
    },
}

/// What others do within a cutover.
pub trait Parts: Send {
    /// Returns once every transaction that ends at or before `end_position` is applied and
    /// flushed on the target. Cancel safe.
    fn drain(&mut self, end_position: PgLsn) -> impl Future<Output = Result<(), Report>> + Send;

    /// Brings the schema's last stage: foreign keys, triggers, policies, large objects. May run
    /// twice, and may be dropped in its midst.
    fn restore(&mut self) -> impl Future<Output = Result<(), Report>> + Send;

    /// Takes back of `restore` what would disturb replay (triggers that fire in the replica
    /// role, rules). May run twice.
    fn undo_restore(&mut self) -> impl Future<Output = Result<(), Report>> + Send;

    /// Changes seen behind the end position, by table.
    fn late_writes(&mut self) -> Vec<(TableName, u64)>;

    /// What is going on, for `status`.
    fn tell(&mut self, step: &'static str);
}

/// One run over an attempt.
#[derive(Debug)]
pub struct Cutover<'a, P> {
    context: &'a Context,
    filter: &'a Filter,
    request: Request,
    parts: P,
    /// Where it is, for the message of a timeout.
    step: &'static str,
}

/// Sessions of one pass; a new pass after a failure has new ones.
struct Ends {
    source: Session,
    target: Session,
}

impl<'a, P: Parts> Cutover<'a, P> {
    pub fn new(context: &'a Context, filter: &'a Filter, request: Request, parts: P) -> Self {
        Self { context, filter, request, parts, step: "begin" }
    }

    /// Runs the attempt to its end, from wherever it is.
    ///
    /// # Errors
    /// [`Error::Superseded`]: stop. Transient: run it again, nothing is decided. A failure that
    /// is decided is an [`Outcome`].
    pub async fn run(mut self) -> Result<Outcome, Error> {
        loop {
            let error = match Box::pin(self.pass()).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            match error.class() {
                // Read again: somebody else, or our own lost answer, moved it.
                ErrorClass::Transient | ErrorClass::Conflict => {
                    tracing::info!(step = self.step, error = %error, "cutover tried again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                ErrorClass::Fenced | ErrorClass::Definite | ErrorClass::Bug => return Err(error),
            }
        }
    }

    /// Lifts what stands of the attempt, since `cause` keeps it from running.
    ///
    /// # Errors
    /// As [`Cutover::run`].
    pub async fn give_up(mut self, cause: Report) -> Result<Outcome, Error> {
        let target = self.context.target_session("cutover", 0).await;
        let target = target.map_err(Error::connect("target"))?;
        let now = attempt::read(&target).await?;
        if now.number < self.request.attempt {
            return Ok(Outcome::NotOpened { cause });
        }
        self.lift(&target, &now, cause).await
    }

    async fn pass(&mut self) -> Result<Outcome, Error> {
        let target = self.context.target_session("cutover", 0).await;
        let target = target.map_err(Error::connect("target"))?;
        let mut now = attempt::read(&target).await?;
        let number = self.request.attempt;
        if matches!(now.state, State::None | State::Lifted) && now.number < number {
            let source = self.source().await?;
            if let Err(error) = self.begin(&source, &target).await {
                return self.not_begun(error);
            }
            now = attempt::read(&target).await?;
        }
        match now.state {
            State::Opened => Ok(Outcome::Opened(open::opened(&target, self.context).await?)),
            State::Fenced if now.number == number && !now.is_overdue() => {
                self.go_on(target, &now).await
            }
            State::Fenced => {
                let step = self.step;
                let cause = Error::TimedOut { step, timeout: self.request.timeout };
                self.lift(&target, &now, cause.report()).await
            }
            State::Lifting | State::Lifted | State::None => {
                let cause = Report::definite(
                    "CUTOVER_LIFTED",
                    format!("cutover attempt {} was lifted", now.number),
                );
                self.lift(&target, &now, cause).await
            }
        }
    }

    /// A refusal before anything was set leaves nothing to lift.
    fn not_begun(&self, error: Error) -> Result<Outcome, Error> {
        match error.class() {
            ErrorClass::Definite => Ok(Outcome::NotOpened { cause: error.report() }),
            ErrorClass::Transient | ErrorClass::Conflict | ErrorClass::Fenced | ErrorClass::Bug => {
                Err(error)
            }
        }
    }

    async fn source(&self) -> Result<Session, Error> {
        fence::session(self.context).await.map_err(Error::connect("source"))
    }

    /// Checks, reads what is there, writes it down with the deadline.
    async fn begin(&mut self, source: &Session, target: &Session) -> Result<(), Error> {
        self.at("check");
        let plan = fence::plan(source, self.context, self.request.fence).await?;
        if !plan.missing.is_empty() {
            return Err(Error::NotPermitted { missing: plan.missing });
        }
        if !plan.prepared.is_empty() {
            return Err(Error::PreparedTransaction { gids: plan.prepared });
        }
        let before = fence::read_before(source, self.request.fence).await?;
        let Request { attempt, timeout, .. } = self.request;
        attempt::begin(target, self.context.epoch, attempt, timeout, &before).await
    }

    /// From a written-down attempt to the open target, or to a lifted fence.
    async fn go_on(&mut self, target: Session, now: &Attempt) -> Result<Outcome, Error> {
        let deadline = Instant::now() + now.remaining;
        let forward = async {
            let ends = Ends { source: self.source().await?, target };
            Box::pin(self.forward(&ends, now, deadline)).await
        };
        let error = match tokio::time::timeout_at(deadline, forward).await {
            Ok(Ok(opened)) => return Ok(Outcome::Opened(opened)),
            Ok(Err(error)) => error,
            Err(_) => Error::TimedOut { step: self.step, timeout: self.request.timeout },
        };
        match error.class() {
            ErrorClass::Transient | ErrorClass::Conflict | ErrorClass::Fenced => Err(error),
            ErrorClass::Definite | ErrorClass::Bug => {
                let target = self.context.target_session("cutover", 0).await;
                let target = target.map_err(Error::connect("target"))?;
                self.lift(&target, now, error.report()).await
            }
        }
    }

    async fn forward(
        &mut self,
        ends: &Ends,
        now: &Attempt,
        deadline: Instant,
    ) -> Result<Opened, Error> {
        let (before, _) = attempt::before(&ends.target, now.number).await?;
        let begun = self.at("fence");
        let end_position = match now.end_position {
            Some(fixed) => fixed,
            None => self.fence(ends, &before, deadline).await?,
        };
        self.finish(ends, begun).await?;

        let begun = self.at("drain");
        self.parts.drain(end_position).await.map_err(Error::Step)?;
        self.finish(ends, begun).await?;

        let begun = self.at("sequences");
        let values = sequence::read(&ends.source, self.filter).await?;
        sequence::set(&ends.target, self.context, &values).await?;
        self.finish(ends, begun).await?;

        let begun = self.at("restore");
        let attempt = self.request.attempt;
        open::mark(&ends.target, self.context, (attempt, RESTORE_BEGUN), 0.0).await?;
        self.parts.restore().await.map_err(Error::Step)?;
        self.finish(ends, begun).await?;

        let begun = self.at("open");
        let tables = self.parts.late_writes();
        if !tables.is_empty() && before.fence {
            return Err(Error::LateWrite { tables });
        }
        if before.fence && !fence::stands(&ends.source).await? {
            return Err(Error::FenceBroken);
        }
        open::open(&ends.target, self.context, attempt).await?;
        self.finish(ends, begun).await?;
        open::opened(&ends.target, self.context).await
    }

    /// Raises the fence and fixes the end position.
    async fn fence(&self, ends: &Ends, before: &Before, deadline: Instant) -> Result<PgLsn, Error> {
        let (attempt, epoch) = (self.request.attempt, self.context.epoch);
        fence::raise(&ends.source, self.context, before, deadline).await?;
        let end = fence::mark_end(&ends.source, attempt).await?;
        attempt::fix_end_position(&ends.target, epoch, attempt, end).await
    }

    /// Wins the attempt for lifting, takes the fence off, closes the attempt.
    async fn lift(
        &mut self,
        target: &Session,
        now: &Attempt,
        cause: Report,
    ) -> Result<Outcome, Error> {
        self.parts.tell("lift");
        let source = self.source().await?;
        if lift(&source, target, self.context).await? == Lifted::TargetIsOpen {
            return Ok(Outcome::Opened(open::opened(target, self.context).await?));
        }
        if open::is_marked(target, now.number, RESTORE_BEGUN).await? {
            self.parts.undo_restore().await.map_err(Error::Step)?;
        }
        if now.state != State::None {
            attempt::advance(target, self.context.epoch, now.number, Move::FinishLift).await?;
        }
        Ok(Outcome::NotOpened { cause })
    }

    fn at(&mut self, step: &'static str) -> Instant {
        self.step = step;
        self.parts.tell(step);
        Instant::now()
    }

    async fn finish(&self, ends: &Ends, begun: Instant) -> Result<(), Error> {
        let key = (self.request.attempt, self.step);
        open::mark(&ends.target, self.context, key, begun.elapsed().as_secs_f64()).await
    }
}

/// Takes the fence off once its deadline is over, while nobody runs the attempt (paused, or
/// stopped at a fault). The attempt stays `lifting`; who runs it next finishes it.
///
/// # Errors
/// As [`lift`].
pub async fn lift_overdue(context: &Context) -> Result<(), Error> {
    let target = context.target_session("cutover", 0).await.map_err(Error::connect("target"))?;
    if attempt::read(&target).await?.is_overdue() {
        let source = fence::session(context).await.map_err(Error::connect("source"))?;
        lift(&source, &target, context).await?;
    }
    Ok(())
}

/// How a person lifts the fence that stands, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiftByHand {
    pub sql: String,
    /// Until whoever leads lifts it.
    pub remaining: Duration,
}

/// What lifts the fence by hand: from what was written down, where it was; from the source as
/// it is, before an attempt begins with `timeout`.
///
/// # Errors
/// When a server cannot be read.
pub async fn lift_by_hand(
    source: &Session,
    target: &Session,
    context: &Context,
    timeout: Duration,
) -> Result<LiftByHand, Error> {
    let now = attempt::read(target).await?;
    let (before, remaining) = match now.state {
        State::Fenced | State::Lifting => {
            (attempt::before(target, now.number).await?.0, now.remaining)
        }
        State::None | State::Lifted | State::Opened => {
            (fence::read_before(source, true).await?, timeout)
        }
    };
    Ok(LiftByHand { sql: fence::lift_sql(context.source.database(), &before), remaining })
}

/// What lifting found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifted {
    /// The source is as before the attempt.
    Done,
    /// Opening has won: the fence stays.
    TargetIsOpen,
}

/// Takes the fence of the newest attempt off the source, whoever raised it; the attempt is
/// `lifting` then. Safe to repeat, and without a fence it does nothing.
///
/// # Errors
/// Transient: run it again, the fence may still stand.
pub async fn lift(source: &Session, target: &Session, context: &Context) -> Result<Lifted, Error> {
    let now = attempt::read(target).await?;
    match now.state {
        State::None => return Ok(Lifted::Done),
        State::Opened => return Ok(Lifted::TargetIsOpen),
        State::Lifted => {}
        State::Fenced | State::Lifting => {
            match attempt::advance(target, context.epoch, now.number, Move::Lift).await {
                Ok(()) => {}
                Err(Error::Illegal { state: State::Opened, .. }) => {
                    return Ok(Lifted::TargetIsOpen);
                }
                Err(error) => return Err(error),
            }
            let (before, _) = attempt::before(target, now.number).await?;
            let deadline = Instant::now() + LIFT_TIMEOUT;
            fence::lower(source, context, &before, deadline).await?;
        }
    }
    Ok(Lifted::Done)
}
