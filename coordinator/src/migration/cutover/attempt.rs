//! One attempt at a cutover: its number, its state, its end position.
//!
//! ```text
//! none --begin--> fenced --open--> opened
//!   ^               |  \--lift--> lifting --finish--> lifted --begin (next number)--> fenced
//! ```
//! Kept in the one row of `skein.migration`, so that lifting and opening are each won by a
//! compare-and-set there and never both (rules, part 8). Promise: a number is used once, an
//! end position is fixed once per number, and only the newest epoch changes either.

use super::{Error, fence::Before};
use pg::{PgLsn, Session, Sql, sql, sql::Literal};
use std::{fmt, time::Duration};

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No attempt was made yet.
    None,
    /// Begun: what is set on the source is written down, and set or about to be.
    Fenced,
    /// Being taken back; the target can no longer be opened by this attempt.
    Lifting,
    Lifted,
    /// The target is open; the fence stays on the source.
    Opened,
}

/// What is to become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Begin,
    Lift,
    FinishLift,
    Open,
}

impl State {
    /// The state after `step`; None where that is not allowed. Repeating a move is allowed, but
    /// for `Begin`, whose repetition is a question of the number.
    pub fn next(self, step: Move) -> Option<Self> {
        match (self, step) {
            (Self::None | Self::Lifted, Move::Begin) => Some(Self::Fenced),
            (Self::Fenced | Self::Lifting, Move::Lift) => Some(Self::Lifting),
            (Self::Lifting | Self::Lifted, Move::FinishLift) => Some(Self::Lifted),
            (Self::Fenced | Self::Opened, Move::Open) => Some(Self::Opened),
            (Self::Fenced | Self::Lifting | Self::Opened, Move::Begin)
            | (Self::None | Self::Lifted | Self::Opened, Move::Lift)
            | (Self::None | Self::Fenced | Self::Opened, Move::FinishLift)
            | (Self::None | Self::Lifting | Self::Lifted, Move::Open) => None,
        }
    }

    /// As the table has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fenced => "fenced",
            Self::Lifting => "lifting",
            Self::Lifted => "lifted",
            Self::Opened => "opened",
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        [Self::None, Self::Fenced, Self::Lifting, Self::Lifted, Self::Opened]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The newest attempt as the target has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// 0 before the first.
    pub number: u32,
    pub state: State,
    /// Fixed once: replay stops here; exclusive.
    pub end_position: Option<PgLsn>,
    /// Time until the deadline by the target's clock; zero when it is over.
    pub remaining: Duration,
}

impl Attempt {
    /// Fenced, and its deadline is over: whoever leads lifts it.
    pub fn is_overdue(&self) -> bool {
        self.state == State::Fenced && self.remaining.is_zero()
    }
}

const COLUMNS: &str = "cutover_attempt, cutover_state, end_position,
    greatest(extract(epoch from cutover_deadline - clock_timestamp()), 0)::float8";

/// The newest attempt.
///
/// # Errors
/// When the target cannot be read.
pub async fn read(target: &Session) -> Result<Attempt, Error> {
    let statement = sql!("select {} from skein.migration", COLUMNS);
    let row = target.query_one(&statement, &[]).await;
    from_row(&row.map_err(Error::target("the cutover attempt"))?)
}

fn from_row(row: &tokio_postgres::Row) -> Result<Attempt, Error> {
    let read = || -> Result<_, tokio_postgres::Error> {
        let remaining_s: Option<f64> = row.try_get(3)?;
        Ok((
            row.try_get::<_, i32>(0)?,
            row.try_get::<_, String>(1)?,
            row.try_get(2)?,
            Duration::try_from_secs_f64(remaining_s.unwrap_or(0.0)).unwrap_or_default(),
        ))
    };
    let (number, state, end_position, remaining) =
        read().map_err(|error| Error::target("the cutover attempt")(error.into()))?;
    Ok(Attempt {
        number: u32::try_from(number).unwrap_or(0),
        state: State::from_text(&state).unwrap_or(State::None),
        end_position,
        remaining,
    })
}

/// Number of the attempt that would come next.
///
/// # Errors
/// When the target cannot be read.
pub async fn next_number(target: &Session) -> Result<u32, Error> {
    Ok(read(target).await?.number + 1)
}

/// Writes down attempt `number` with its deadline and what the source had before. Nothing is
/// set on the source before this is committed.
///
/// # Errors
/// [`Error::Superseded`]; [`Error::Illegal`] where another attempt stands in the way.
pub async fn begin(
    target: &Session,
    epoch: u64,
    number: u32,
    timeout: Duration,
    before: &Before,
) -> Result<(), Error> {
    let before = serde_json::to_string(before).map_err(|error| Error::Record(error.to_string()))?;
    change(target, epoch, |now| {
        if now.number >= number || now.state.next(Move::Begin).is_none() {
            return Err(Error::illegal(now, Move::Begin));
        }
        Ok(sql!(
            "update skein.migration set cutover_attempt = {}, cutover_state = 'fenced', \
             cutover_epoch = {}, end_position = null, \
             cutover_deadline = clock_timestamp() + make_interval(secs => {}); \
             insert into skein.step (step, detail, finished_at) \
             values ({}, {}::jsonb, clock_timestamp())",
            number,
            epoch,
            timeout.as_secs(),
            Literal(&step_name(number, "before")),
            Literal(&before),
        ))
    })
    .await
}

/// What the source had before attempt `number`, and how long ago that was, in seconds.
///
/// # Errors
/// When it cannot be read.
pub async fn before(target: &Session, number: u32) -> Result<(Before, f64), Error> {
    let statement = sql!(
        "select detail::text, extract(epoch from clock_timestamp() - finished_at)::float8 \
         from skein.step where step = $1"
    );
    let name = step_name(number, "before");
    let row = target
        .query_one(&statement, &[&name])
        .await
        .map_err(Error::target("the settings from before the fence"))?;
    let text: String = row.get(0);
    let before = serde_json::from_str(&text).map_err(|error| Error::Record(error.to_string()))?;
    Ok((before, row.get(1)))
}

/// Fixes the end position of attempt `number`; the one fixed first stays and is returned.
///
/// # Errors
/// [`Error::Superseded`]; [`Error::Illegal`] once the attempt is being lifted.
pub async fn fix_end_position(
    target: &Session,
    epoch: u64,
    number: u32,
    end_position: PgLsn,
) -> Result<PgLsn, Error> {
    let mut fixed = end_position;
    change(target, epoch, |now| {
        if now.number != number || now.state != State::Fenced {
            return Err(Error::illegal(now, Move::Open));
        }
        if let Some(first) = now.end_position {
            fixed = first;
            return Ok(sql!("select"));
        }
        Ok(sql!("update skein.migration set end_position = {}", end_position))
    })
    .await?;
    Ok(fixed)
}

/// Moves attempt `number` on, by compare-and-set. A repetition is a success.
///
/// # Errors
/// [`Error::Superseded`]; [`Error::Illegal`] where the other side has won.
pub async fn advance(target: &Session, epoch: u64, number: u32, step: Move) -> Result<(), Error> {
    change(target, epoch, |now| {
        let next = now.state.next(step).filter(|_| now.number == number && step != Move::Begin);
        let Some(next) = next else { return Err(Error::illegal(now, step)) };
        if step == Move::Open && now.end_position.is_none() {
            return Err(Error::illegal(now, step));
        }
        Ok(sql!(
            "update skein.migration set cutover_state = {}, cutover_epoch = {}",
            Literal(next.as_str()),
            epoch
        ))
    })
    .await
}

/// Reads the row under its lock, asks `decide`, runs what it says, commits.
async fn change(
    target: &Session,
    epoch: u64,
    decide: impl FnOnce(&Attempt) -> Result<Sql, Error>,
) -> Result<(), Error> {
    let failed = || Error::target("the cutover attempt");
    target.batch(&sql!("begin")).await.map_err(failed())?;
    let done = async {
        let row = target
            .query_opt(
                &sql!("select {} from skein.migration where epoch = {} for update", COLUMNS, epoch),
                &[],
            )
            .await
            .map_err(failed())?;
        let now = from_row(&row.ok_or(Error::Superseded { epoch })?)?;
        target.batch(&decide(&now)?).await.map_err(failed())?;
        target.batch(&sql!("commit")).await.map_err(failed())
    }
    .await;
    if done.is_err() && !target.is_closed() {
        target.batch(&sql!("rollback")).await.map_err(failed())?;
    }
    done
}

/// `cutover/NUMBER/NAME`.
pub(super) fn step_name(number: u32, name: &str) -> String {
    format!("cutover/{number}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] =
        [State::None, State::Fenced, State::Lifting, State::Lifted, State::Opened];
    const MOVES: [Move; 4] = [Move::Begin, Move::Lift, Move::FinishLift, Move::Open];

    #[test]
    fn what_is_open_is_never_lifted_and_what_is_lifting_is_never_opened() {
        for state in STATES {
            for first in MOVES {
                let Some(next) = state.next(first) else { continue };
                match next {
                    State::Opened => {
                        assert_eq!(next.next(Move::Lift), None);
                        assert_eq!(next.next(Move::Begin), None);
                    }
                    State::Lifting => assert_eq!(next.next(Move::Open), None),
                    State::None | State::Fenced | State::Lifted => {}
                }
            }
        }
    }

    #[test]
    fn every_move_but_begin_may_be_repeated() {
        for state in STATES {
            for step in [Move::Lift, Move::FinishLift, Move::Open] {
                if let Some(next) = state.next(step) {
                    assert_eq!(next.next(step), Some(next));
                }
            }
        }
    }

    #[test]
    fn a_state_reads_back() {
        for state in STATES {
            assert_eq!(State::from_text(state.as_str()), Some(state));
        }
    }
}
