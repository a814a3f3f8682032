//! The last step: the target is open, and the attempt can no longer be lifted.
//!
//! Between drain and open stand sequences and the last stage of the schema (foreign keys,
//! triggers, policies, large objects). After it the source stays fenced, so that a late writer
//! meets an error there and not a server that nobody reads from any more.

use super::{
    Error,
    attempt::{self, Move, step_name},
    fence::{self, Before},
};
use crate::migration::context::Context;
use pg::{PgLsn, Session, sql, sql::Literal};
use serde::Serialize;

/// Mark that `restore` may have left something on the target.
pub(super) const RESTORE_BEGUN: &str = "restore begun";

/// One step and what it took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CutoverStep {
    pub name: String,
    pub seconds: f64,
}

/// A cutover that is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    pub attempt: u32,
    pub end_position: PgLsn,
    pub steps: Vec<CutoverStep>,
    /// From the fence to the opened target, by the target's clock.
    pub writes_stopped_s: f64,
    /// Statements that would take the fence off the source; empty without one.
    pub unfence_sql: String,
}

/// Opens the target, by compare-and-set. Safe to repeat.
///
/// # Errors
/// [`Error::Illegal`] where lifting has won, or no end position is fixed.
pub async fn open(target: &Session, context: &Context, attempt: u32) -> Result<(), Error> {
    attempt::advance(target, context.epoch, attempt, Move::Open).await
}

/// Remembers that a step is done and what it took; the first time counts.
///
/// # Errors
/// [`Error::Superseded`]; when the target cannot be written.
pub(super) async fn mark(
    target: &Session,
    context: &Context,
    (attempt, name): (u32, &str),
    seconds: f64,
) -> Result<(), Error> {
    let detail = format!("{{\"seconds\": {seconds:.3}}}");
    let statement = sql!(
        "insert into skein.step (step, detail, finished_at) \
         values ({}, {}::jsonb, clock_timestamp()) on conflict do nothing",
        Literal(&step_name(attempt, name)),
        Literal(&detail)
    );
    let done = crate::target::fenced(target, context.epoch, &statement).await;
    match done.map_err(Error::target("a step of the cutover"))? {
        true => Ok(()),
        false => Err(Error::Superseded { epoch: context.epoch }),
    }
}

/// Whether a step left its mark.
pub(super) async fn is_marked(target: &Session, attempt: u32, name: &str) -> Result<bool, Error> {
    let statement = sql!("select 1 from skein.step where step = $1");
    let found = target.query_opt(&statement, &[&step_name(attempt, name)]).await;
    Ok(found.map_err(Error::target("a step of the cutover"))?.is_some())
}

/// What a finished attempt was, from the target alone.
///
/// # Errors
/// When it cannot be read.
pub async fn opened(target: &Session, context: &Context) -> Result<Opened, Error> {
    let now = attempt::read(target).await?;
    let (before, _): (Before, _) = attempt::before(target, now.number).await?;
    let prefix = step_name(now.number, "");
    let read = async {
        let rows = target
            .query(
                &sql!(
                    "select substr(step, length($1) + 1), (detail->>'seconds')::float8,
                            extract(epoch from finished_at - first_value(finished_at)
                              over (order by finished_at))::float8
                       from skein.step
                      where starts_with(step, $1) and step <> $1 || $2 order by finished_at"
                ),
                &[&prefix, &RESTORE_BEGUN],
            )
            .await?;
        let mut steps = Vec::new();
        let mut writes_stopped_s = 0.0;
        for row in rows {
            let seconds: Option<f64> = row.try_get(1)?;
            let Some(seconds) = seconds else { continue };
            steps.push(CutoverStep { name: row.try_get(0)?, seconds });
            writes_stopped_s = row.try_get(2)?;
        }
        Ok((steps, writes_stopped_s))
    };
    let (steps, writes_stopped_s) = read.await.map_err(Error::target("the cutover's steps"))?;
    Ok(Opened {
        attempt: now.number,
        end_position: now.end_position.unwrap_or(PgLsn::from(0)),
        steps,
        writes_stopped_s,
        unfence_sql: fence::lift_sql(context.source.database(), &before),
    })
}
