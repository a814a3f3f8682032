//! Where each lane stands, kept in `skein.lane`.
//!
//! In: the start position and the routing wanted. Out: [`Positions`]: positions, and the routing in
//! force. Promise: taken under our epoch and behind every transaction that an older session still
//! had open; lanes and routing change only where all positions are equal (rules, part 5).

use super::{
    error::{Error, Result},
    route::Routing,
};
use crate::target;
use pg::{PgLsn, Session, sql, sql::Literal};

/// Positions of all lanes and the routing they rest on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    pub lanes: Vec<PgLsn>,
    pub routing: Routing,
}

/// Reads the positions under `epoch`; makes them at `start` where there are none.
///
/// # Errors
/// [`Error::Fenced`] when a newer epoch acts.
pub async fn take(
    session: &Session,
    epoch: u64,
    start: PgLsn,
    wanted: &Routing,
) -> Result<Positions> {
    let taken = take_inside(session, epoch, start, wanted).await;
    let end = if taken.is_ok() { sql!("commit") } else { sql!("rollback") };
    if taken.is_ok() || !session.is_closed() {
        session.batch(&end).await.map_err(Error::target("take the lanes"))?;
    }
    taken
}

/// Waits for what is open and makes every commit before it durable: locking a row writes WAL, and
/// this commit is awaited.
///
/// # Errors
/// When the session fails.
pub async fn settle(session: &Session) -> Result<()> {
    session
        .batch(&sql!(
            "begin; set local synchronous_commit = on; \
             select from skein.lane order by lane for update; commit"
        ))
        .await
        .map_err(Error::target("settle the lanes"))
}

async fn take_inside(
    session: &Session,
    epoch: u64,
    start: PgLsn,
    wanted: &Routing,
) -> Result<Positions> {
    let failed = || Error::target("take the lanes");
    session.batch(&sql!("begin; set local synchronous_commit = on")).await.map_err(failed())?;
    if session.query_opt(&target::fence(epoch), &[]).await.map_err(failed())?.is_none() {
        return Err(Error::Fenced { epoch });
    }
    session
        .batch(&sql!("update skein.lane set epoch = {} where epoch < {}", epoch, epoch))
        .await
        .map_err(failed())?;
    // Waits for what an older session of ours has open.
    let rows = session
        .query(
            &sql!("select end_lsn, epoch, routing::text from skein.lane order by lane for update"),
            &[],
        )
        .await
        .map_err(failed())?;
    let mut lanes: Vec<PgLsn> = Vec::new();
    let mut recorded = None;
    for row in &rows {
        if u64::try_from(row.get::<_, i64>(1)).unwrap_or(u64::MAX) != epoch {
            return Err(Error::Fenced { epoch });
        }
        lanes.push(row.get(0));
        if recorded.is_none() {
            let text: String = row.get(2);
            let routing: Routing =
                serde_json::from_str(&text).map_err(|error| Error::Routing(error.to_string()))?;
            recorded = Some(routing);
        }
    }
    let level = lanes.windows(2).all(|pair| pair[0] == pair[1]);
    if let Some(routing) = recorded
        && (routing == *wanted || !level)
    {
        if routing.hash != wanted.hash || usize::from(routing.lanes) != lanes.len() {
            return Err(Error::Routing(format!(
                "hash {} over {} lanes, {} rows",
                routing.hash,
                routing.lanes,
                lanes.len()
            )));
        }
        return Ok(Positions { lanes, routing });
    }
    let at = lanes.first().copied().unwrap_or(start);
    let text = serde_json::to_string(wanted).map_err(|error| Error::Routing(error.to_string()))?;
    session
        .batch(&sql!(
            "delete from skein.lane;
             insert into skein.lane (lane, epoch, end_lsn, routing)
             select lane, {}, {}, {}::jsonb from generate_series(0, {}) as lane",
            epoch,
            at,
            Literal(&text),
            wanted.lanes - 1
        ))
        .await
        .map_err(failed())?;
    Ok(Positions { lanes: vec![at; usize::from(wanted.lanes)], routing: wanted.clone() })
}
