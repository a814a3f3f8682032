//! All lanes, as the dispatcher sees them.
//!
//! ```text
//! add, flush --> each lane its share     alone --> all reached the one before, then lane 0 for all
//! ```
//! Promise: each lane's position is known here once it did what it was given, so that the next piece
//! of work names where the lane stands before. Channels hold one piece: a busy lane holds back.

use super::{
    batch::Gathering,
    error::{Error, Result},
    lane::{Alone, Batch, Piece, Work},
    route::Routing,
    row::Event,
    spool::Begin,
};
use pg::PgLsn;
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// How often lanes without a share move on: the watermark waits for the lowest, each move is a
/// small transaction on the target.
pub(super) const LEVEL_INTERVAL: Duration = Duration::from_millis(200);

/// The lanes' inputs and where each stands.
#[derive(Debug)]
pub struct Lanes {
    routing: Routing,
    senders: Vec<mpsc::Sender<Work>>,
    /// Where each lane stands once it did what it was given.
    positions: Vec<PgLsn>,
    batch: Gathering,
    /// Each lane has its share of everything that ends at or before it.
    handed_over: Option<PgLsn>,
    /// When every lane was moved last.
    leveled: Option<Instant>,
    /// Up to here changes go one by one: a large transaction failed in bulk.
    one_by_one_until: Option<PgLsn>,
}

impl Lanes {
    pub fn new(
        routing: Routing,
        senders: Vec<mpsc::Sender<Work>>,
        positions: Vec<PgLsn>,
        one_by_one_until: Option<PgLsn>,
    ) -> Self {
        let batch = Gathering::new(senders.len());
        let (handed_over, leveled) = (None, None);
        Self { routing, senders, positions, batch, handed_over, leveled, one_by_one_until }
    }

    pub fn lowest(&self) -> Option<PgLsn> {
        self.positions.iter().copied().min()
    }

    pub fn all_have(&self, end_lsn: PgLsn) -> bool {
        self.positions.iter().all(|&position| end_lsn <= position)
    }

    /// A transaction that some lane has was spread over lanes when it was first seen, and is so
    /// again.
    pub fn none_has(&self, end_lsn: PgLsn) -> bool {
        self.positions.iter().all(|&position| position < end_lsn)
    }

    /// Some lane was left behind, having no share.
    pub fn are_uneven(&self) -> bool {
        self.handed_over.is_some_and(|end_lsn| !self.all_have(end_lsn))
    }

    /// Adds a transaction to the batch.
    pub fn add(&mut self, begin: Begin, events: Vec<Event>, bytes: usize) {
        self.batch.add(begin, events, bytes, (&self.routing, &self.positions));
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// The batch is to be handed over: for its size, or since its transaction goes one by one.
    pub fn is_full(&self) -> bool {
        let last = self.batch.end_lsn();
        self.batch.is_full() || last.is_some_and(|end_lsn| self.is_one_by_one(end_lsn))
    }

    /// Hands the batch over. `near_end`: its commits are awaited until flushed.
    ///
    /// # Errors
    /// [`Error::Lost`] when a lane is gone.
    pub async fn flush(&mut self, near_end: bool) -> Result<()> {
        let Some(end_lsn) = self.batch.close() else { return Ok(()) };
        let everyone = near_end || self.leveled.is_none_or(|at| at.elapsed() >= LEVEL_INTERVAL);
        self.hand_over(end_lsn, everyone, near_end).await
    }

    /// Moves every lane to where the batches ended; nothing may be gathered.
    ///
    /// # Errors
    /// As [`Lanes::flush`].
    pub async fn level(&mut self) -> Result<()> {
        match self.handed_over {
            Some(end_lsn) => self.hand_over(end_lsn, true, false).await,
            None => Ok(()),
        }
    }

    /// Moves every lane on to `position`, up to which there is nothing more; nothing may be gathered.
    ///
    /// # Errors
    /// As [`Lanes::flush`].
    pub async fn move_to(&mut self, position: PgLsn, near_end: bool) -> Result<()> {
        self.hand_over(position, true, near_end).await
    }

    /// A lane without a share moves on later, with its next share or with `everyone`: it has
    /// nothing in between.
    async fn hand_over(&mut self, end_lsn: PgLsn, everyone: bool, flush: bool) -> Result<()> {
        let one_by_one = self.is_one_by_one(end_lsn);
        for (lane, sender) in self.senders.iter().enumerate() {
            let events = self.batch.share(lane);
            if end_lsn <= self.positions[lane] || events.is_empty() && !everyone {
                continue;
            }
            let batch = Batch {
                previous: self.positions[lane],
                end_lsn,
                events,
                one_by_one,
                flush,
                transactions: std::mem::take(&mut self.batch.transactions),
                commit_time_us: self.batch.commit_time_us,
            };
            sender.send(Work::Batch(batch)).await.map_err(|_| Error::Lost("lane"))?;
            self.positions[lane] = end_lsn;
        }
        self.handed_over = Some(end_lsn);
        if everyone {
            self.leveled = Some(Instant::now());
        }
        Ok(())
    }

    /// Begins a transaction that runs alone, once all lanes reached the one before.
    ///
    /// # Errors
    /// As [`Lanes::flush`].
    pub async fn alone(&mut self, begin: Begin, near_end: bool) -> Result<mpsc::Sender<Piece>> {
        self.flush(near_end).await?;
        self.quiesce().await?;
        let (sender, pieces) = mpsc::channel(1);
        let alone = Alone {
            previous: self.positions.clone(),
            end_lsn: begin.end_lsn,
            commit_time_us: begin.commit_time_us,
            one_by_one: self.is_one_by_one(begin.end_lsn),
            flush: near_end,
            pieces,
        };
        self.senders[0].send(Work::Alone(alone)).await.map_err(|_| Error::Lost("lane"))?;
        Ok(sender)
    }

    /// All of it was sent: waits for its commit, which moved every lane.
    ///
    /// # Errors
    /// As [`Lanes::flush`].
    pub async fn alone_ended(&mut self, end_lsn: PgLsn) -> Result<()> {
        self.quiesce().await?;
        self.positions.fill(end_lsn);
        self.handed_over = Some(end_lsn);
        Ok(())
    }

    /// Waits until every lane did what it was given.
    ///
    /// # Errors
    /// As [`Lanes::flush`].
    pub async fn quiesce(&self) -> Result<()> {
        let mut reached = Vec::with_capacity(self.senders.len());
        for sender in &self.senders {
            let (tell, told) = oneshot::channel();
            sender.send(Work::Reached(tell)).await.map_err(|_| Error::Lost("lane"))?;
            reached.push(told);
        }
        for told in reached {
            told.await.map_err(|_| Error::Lost("lane"))?;
        }
        Ok(())
    }

    fn is_one_by_one(&self, end_lsn: PgLsn) -> bool {
        self.one_by_one_until.is_some_and(|until| end_lsn <= until)
    }
}
