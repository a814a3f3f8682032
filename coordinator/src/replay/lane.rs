//! One apply lane: an ordered stream of target transactions.
//!
//! ```text
//! dispatch --Work--> lane: begin; move position; changes; commit --Committed--> watermark
//! ```
//! Promise: changes and position commit together, and only from the position and under the epoch
//! that this coordinator left (the first statement of each transaction, rules part 5). A batch that
//! fails in bulk is rolled back and tried again one by one, so that the error names the change.

use super::{
    apply::Applier,
    compact::compact,
    error::{Error, Result},
    row::Event,
};
use pg::{PgLsn, Sql, sql};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::SimpleQueryMessage;

/// What a lane is given to do.
#[derive(Debug)]
pub enum Work {
    Batch(Batch),
    /// One transaction on this lane for all lanes, which wait.
    Alone(Alone),
    /// Answered when everything before it is committed.
    Reached(oneshot::Sender<()>),
}

/// This lane's share of whole source transactions.
#[derive(Debug)]
pub struct Batch {
    /// Where this lane stands before.
    pub previous: PgLsn,
    pub end_lsn: PgLsn,
    pub events: Vec<Event>,
    pub one_by_one: bool,
    /// The commit is awaited until flushed: the end is near.
    pub flush: bool,
    pub transactions: u64,
    pub commit_time_us: i64,
}

/// A transaction that runs alone: with a barrier, or too large to be held.
#[derive(Debug)]
pub struct Alone {
    /// Where each lane stands before.
    pub previous: Vec<PgLsn>,
    pub end_lsn: PgLsn,
    pub commit_time_us: i64,
    pub one_by_one: bool,
    pub flush: bool,
    pub pieces: mpsc::Receiver<Piece>,
}

/// A part of it, in order.
#[derive(Debug)]
pub enum Piece {
    Events(Vec<Event>),
    /// All of it came; without this nothing is committed.
    Last,
}

/// A commit that the target acknowledged; it counts once flushed.
#[derive(Clone, Debug)]
pub struct Committed {
    pub lanes: std::ops::Range<usize>,
    pub end_lsn: PgLsn,
    /// Insert position of the target after the commit; zero where the commit was awaited until
    /// flushed: others may have written since, and nobody may flush that for a while.
    pub target_lsn: PgLsn,
    pub transactions: u64,
    pub changes: u64,
    pub commit_time_us: i64,
}

/// A lane with its session.
#[derive(Debug)]
pub struct Lane {
    pub lane: usize,
    pub epoch: u64,
    pub applier: Applier,
    pub work: mpsc::Receiver<Work>,
    pub committed: mpsc::Sender<Committed>,
}

impl Lane {
    /// Works until there is no more.
    ///
    /// # Errors
    /// The first that failed; nothing of its transaction is kept.
    pub async fn run(mut self) -> Result<()> {
        while let Some(work) = self.work.recv().await {
            match work {
                Work::Batch(batch) => self.batch(batch).await?,
                Work::Alone(alone) => self.alone(alone).await?,
                Work::Reached(reached) => {
                    // Who asked may be gone; then there is nobody to tell.
                    let _ = reached.send(());
                }
            }
        }
        Ok(())
    }

    #[tracing::instrument(level = "debug", skip_all, fields(lane = self.lane,
        end_lsn = %batch.end_lsn, changes = batch.events.len()))]
    async fn batch(&mut self, batch: Batch) -> Result<()> {
        let changes = u64::try_from(batch.events.len()).unwrap_or(u64::MAX);
        let (moves, end_lsn) = ([(self.lane, batch.previous)], batch.end_lsn);
        let target_lsn = if batch.one_by_one || batch.events.is_empty() {
            self.begin(&moves, end_lsn, batch.flush).await?;
            let applied = self.applier.one_by_one(&batch.events).await;
            self.end(applied, end_lsn).await?
        } else {
            self.begin(&moves, end_lsn, batch.flush).await?;
            let applied = match compact(batch.events.clone()) {
                Ok(steps) => self.applier.bulk(steps, end_lsn).await,
                Err(error) => Err(error),
            };
            match self.end(applied, end_lsn).await {
                Ok(target_lsn) => target_lsn,
                Err(error) if error.is_of_bulk() => {
                    tracing::debug!(lane = self.lane, %end_lsn, %error, "batch tried one by one");
                    self.begin(&moves, end_lsn, batch.flush).await?;
                    let applied = self.applier.one_by_one(&batch.events).await;
                    self.end(applied, end_lsn).await?
                }
                Err(error) => return Err(error),
            }
        };
        let target_lsn = if batch.flush { PgLsn::from(0) } else { target_lsn };
        let lanes = self.lane..self.lane + 1;
        let (transactions, commit_time_us) = (batch.transactions, batch.commit_time_us);
        self.tell(Committed { lanes, end_lsn, target_lsn, transactions, changes, commit_time_us })
            .await
    }

    #[tracing::instrument(level = "debug", skip_all, fields(lane = self.lane,
        end_lsn = %alone.end_lsn))]
    async fn alone(&mut self, mut alone: Alone) -> Result<()> {
        let moves: Vec<(usize, PgLsn)> = alone.previous.iter().copied().enumerate().collect();
        self.begin(&moves, alone.end_lsn, alone.flush).await?;
        let mut changes = 0;
        let applied = self.pieces(&mut alone, &mut changes).await;
        let applied = self.end(applied, alone.end_lsn).await;
        let target_lsn = applied.map_err(|error| {
            if error.is_of_bulk() && !alone.one_by_one {
                Error::Bulk { end_lsn: alone.end_lsn, source: Box::new(error) }
            } else {
                error
            }
        })?;
        let target_lsn = if alone.flush { PgLsn::from(0) } else { target_lsn };
        self.tell(Committed {
            lanes: 0..alone.previous.len(),
            end_lsn: alone.end_lsn,
            target_lsn,
            transactions: 1,
            changes,
            commit_time_us: alone.commit_time_us,
        })
        .await
    }

    async fn pieces(&mut self, alone: &mut Alone, changes: &mut u64) -> Result<()> {
        loop {
            let events = match alone.pieces.recv().await {
                Some(Piece::Events(events)) => events,
                Some(Piece::Last) => return Ok(()),
                None => return Err(Error::Lost("reader of a transaction")),
            };
            *changes += u64::try_from(events.len()).unwrap_or(u64::MAX);
            if alone.one_by_one {
                self.applier.one_by_one(&events).await?;
            } else {
                self.applier.bulk(compact(events)?, alone.end_lsn).await?;
            }
        }
    }

    /// Begins a transaction and moves the positions, which takes their rows.
    async fn begin(&mut self, moves: &[(usize, PgLsn)], end: PgLsn, flush: bool) -> Result<()> {
        let synchronous_commit = if flush { "on" } else { "off" };
        let mut begin = sql!(
            "begin; set constraints all deferred; set local synchronous_commit = {}",
            synchronous_commit
        );
        for &(lane, previous) in moves {
            begin.push("; ").push(position_move(lane, self.epoch, previous, end));
        }
        let session = self.applier.session();
        let answers =
            session.simple(&begin).await.map_err(Error::target("move a lane's position"))?;
        let counts: Vec<u64> = answers.iter().filter_map(row_count).collect();
        // The last answers are those of the moves.
        let first_move = counts.len().saturating_sub(moves.len());
        for (&(lane, _), &moved) in moves.iter().zip(&counts[first_move..]) {
            if moved != 1 {
                return Err(self.lost(lane).await);
            }
        }
        Ok(())
    }

    /// Commits, or rolls back what failed. The target's insert position after it.
    async fn end(&mut self, applied: Result<()>, end_lsn: PgLsn) -> Result<PgLsn> {
        let committed = match applied {
            Ok(()) => self.commit(end_lsn).await,
            Err(error) => Err(error),
        };
        if committed.is_err() && !self.applier.session().is_closed() {
            // The first error is the one to tell; a failed rollback ends the session.
            let _ = self.applier.session().batch(&sql!("rollback")).await;
        }
        let ended = self.applier.ended(committed.is_ok()).await;
        let target_lsn = committed?;
        ended?;
        Ok(target_lsn)
    }

    async fn commit(&self, end_lsn: PgLsn) -> Result<PgLsn> {
        let answers = self
            .applier
            .session()
            .simple(&sql!("commit; select pg_catalog.pg_current_wal_insert_lsn()"))
            .await
            .map_err(|source| Error::Commit { end_lsn, source })?;
        answers
            .iter()
            .find_map(|answer| match answer {
                SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
                _ => None,
            })
            .ok_or(Error::Lost("target's position"))
    }

    /// The position was not where we left it: who moved it?
    async fn lost(&self, lane: usize) -> Error {
        let session = self.applier.session();
        let read = async {
            session.batch(&sql!("rollback")).await?;
            let lane = i32::try_from(lane).unwrap_or(i32::MAX);
            session
                .query_opt(&sql!("select epoch from skein.lane where lane = {}", lane), &[])
                .await
        };
        match read.await {
            Ok(row) => {
                let epoch = row.map_or(0, |row| row.get::<_, i64>(0));
                if u64::try_from(epoch).unwrap_or(0) > self.epoch {
                    Error::Fenced { epoch: self.epoch }
                } else {
                    Error::Moved { lane }
                }
            }
            Err(source) => Error::Target { action: "read a lane's position", source },
        }
    }

    async fn tell(&self, committed: Committed) -> Result<()> {
        self.committed.send(committed).await.map_err(|_| Error::Lost("watermark"))
    }
}

fn row_count(answer: &SimpleQueryMessage) -> Option<u64> {
    match answer {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    }
}

/// Takes the lane's row and moves it, if it stands where and under whom we left it.
fn position_move(lane: usize, epoch: u64, previous: PgLsn, end_lsn: PgLsn) -> Sql {
    sql!(
        "update skein.lane set end_lsn = {} where lane = {} and epoch = {} and end_lsn = {}",
        end_lsn,
        lane,
        epoch,
        previous
    )
}
