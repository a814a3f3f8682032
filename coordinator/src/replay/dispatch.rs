//! Forms batches of whole transactions and hands them to the lanes.
//!
//! ```text
//! items -> transaction -> batch -> lanes 0..n, each its share
//!              |  barrier, or too large to hold
//!              +--> all lanes reached the one before -> alone on lane 0, writes all positions
//! ```
//! Promise: a lane gets whole transactions in commit order, each once: it skips `end_lsn <=` its own
//! position and nothing else. Memory is bounded: batches by changes and bytes, channels by one
//! batch, a larger transaction goes piece by piece into one transaction of the target.
//!
//! Nothing that ends after `end_position` is applied; it is counted as a late write.

use super::{
    error::{Error, Result},
    lane::{Alone, Batch, Piece, Work},
    route::Routing,
    row::Event,
    spool::{Begin, Item},
    transaction::Decoder,
};
use bytes::Bytes;
use pg::{PgLsn, TableName};
use proto::status::{Classify as _, ErrorClass};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// Changes of one batch over all lanes. Large enough that COPY and one COMMIT are shared by many,
/// small enough that a batch takes well under a second and a lane sees the others' pace.
const BATCH_CHANGES: usize = 10_000;

/// Bytes of one batch over all lanes; with one batch waiting per lane and one under way, replay
/// holds about three times this.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Changes of one piece of a transaction that runs alone.
const PIECE_CHANGES: usize = 20_000;

/// How often lanes follow the stream's position while nothing happens: a write on the target each.
const POSITION_INTERVAL: Duration = Duration::from_secs(2);

/// How the dispatcher ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Another end position: what was dropped is to be read again.
    EndMoved,
}

/// Spreads transactions over lanes.
#[derive(Debug)]
pub struct Dispatcher {
    pub decoder: Decoder,
    pub routing: Routing,
    pub lanes: Vec<mpsc::Sender<Work>>,
    /// Where each lane stands once it did what it was given.
    pub positions: Vec<PgLsn>,
    pub end_position: watch::Receiver<Option<PgLsn>>,
    pub paused: watch::Receiver<bool>,
    /// Up to here changes go one by one: a large transaction failed in bulk.
    pub one_by_one_until: Option<PgLsn>,
    pub late: watch::Sender<BTreeMap<TableName, u64>>,
    pub state: State,
}

/// What is gathered and not handed over.
#[derive(Debug, Default)]
pub struct State {
    current: Current,
    /// The next transaction runs alone: a table changed before it.
    barrier_next: bool,
    batch: Gathered,
    shares: Vec<Vec<Event>>,
    batch_end: Option<PgLsn>,
    batch_commit_time_us: i64,
    batch_transactions: u64,
    /// Everything that ends at or before it was seen.
    seen: Option<PgLsn>,
    /// The end position by which changes were dropped.
    dropped_by: Option<PgLsn>,
    positions_moved: Option<Instant>,
}

#[derive(Debug, Default)]
struct Gathered {
    changes: usize,
    bytes: usize,
}

/// The transaction under way.
#[derive(Debug, Default)]
enum Current {
    #[default]
    None,
    /// All lanes have it.
    Skipped,
    /// After the end position: counted.
    Late,
    Held {
        begin: Begin,
        events: Vec<Event>,
        bytes: usize,
        is_barrier: bool,
    },
    /// Runs alone; pieces go to lane 0.
    Alone {
        begin: Begin,
        events: Vec<Event>,
        bytes: usize,
        pieces: mpsc::Sender<Piece>,
    },
}

impl Dispatcher {
    /// Takes items until there is a reason to begin again.
    ///
    /// # Errors
    /// A change that the target cannot take, or a lane that is gone.
    pub async fn run(mut self, mut chunks: mpsc::Receiver<Vec<Item>>) -> Result<Outcome> {
        self.state.shares = self.lanes.iter().map(|_| Vec::new()).collect();
        self.state.seen = self.positions.iter().copied().min();
        let mut items: VecDeque<Item> = VecDeque::new();
        loop {
            if items.is_empty()
                && let Ok(chunk) = chunks.try_recv()
            {
                items.extend(chunk);
            }
            if let Some(item) = items.pop_front() {
                self.take(item).await?;
                if self.end_moved() {
                    return Ok(Outcome::EndMoved);
                }
                continue;
            }
            if matches!(self.state.current, Current::None) {
                self.flush().await?;
                self.stop_at_end().await?;
            }
            // 1 another end   2 more items
            tokio::select! { biased;
                () = changed(&mut self.end_position) => {}
                chunk = chunks.recv() => items.extend(chunk.ok_or(Error::Lost("reader"))?),
            }
            if self.end_moved() {
                return Ok(Outcome::EndMoved);
            }
        }
    }

    fn end(&self) -> Option<PgLsn> {
        *self.end_position.borrow()
    }

    fn end_moved(&self) -> bool {
        self.state.dropped_by.is_some() && self.state.dropped_by != self.end()
    }

    async fn take(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Type(_) => Ok(()),
            Item::Relation(bytes) => {
                if self.decoder.relation(&bytes)? {
                    match &mut self.state.current {
                        Current::Held { is_barrier, .. } => *is_barrier = true,
                        Current::None | Current::Skipped | Current::Late => {
                            self.state.barrier_next = true;
                        }
                        Current::Alone { .. } => {}
                    }
                }
                Ok(())
            }
            Item::Begin(begin) => self.begin(begin).await,
            Item::Change(bytes) => {
                let taken = self.change(&bytes).await;
                if taken.as_ref().is_err_and(|error| error.class() == ErrorClass::Definite) {
                    // A person mends the target for this change: what was before it is in.
                    self.flush().await?;
                    self.quiesce().await?;
                }
                taken
            }
            Item::Commit { end_lsn } => self.commit(end_lsn).await,
            Item::Position(position) => self.position(position).await,
        }
    }

    async fn begin(&mut self, begin: Begin) -> Result<()> {
        self.hold_while_paused().await?;
        let end = self.end();
        self.state.current = if end.is_some_and(|end| begin.end_lsn > end) {
            self.state.seen = self.state.seen.max(end);
            self.flush().await?;
            self.stop_at_end().await?;
            self.state.dropped_by = end;
            Current::Late
        } else if self.positions.iter().all(|&position| begin.end_lsn <= position) {
            Current::Skipped
        } else {
            let is_barrier = std::mem::take(&mut self.state.barrier_next);
            Current::Held { begin, events: Vec::new(), bytes: 0, is_barrier }
        };
        Ok(())
    }

    async fn change(&mut self, message: &Bytes) -> Result<()> {
        match &mut self.state.current {
            Current::None => Err(Error::Stream("a change outside of a transaction".to_owned())),
            Current::Skipped => Ok(()),
            Current::Late => {
                if let Some(table) = self.decoder.table_of(message)? {
                    self.late.send_modify(|late| *late.entry(table).or_default() += 1);
                }
                Ok(())
            }
            Current::Held { begin, events, bytes, is_barrier } => {
                let Some(decoded) = self.decoder.event(message, begin.end_lsn)? else {
                    return Ok(());
                };
                *is_barrier |= decoded.is_barrier;
                *bytes += size_bytes(&decoded.event);
                events.push(decoded.event);
                if *bytes >= BATCH_BYTES || events.len() >= PIECE_CHANGES {
                    self.run_alone().await?;
                    self.send_piece().await?;
                }
                Ok(())
            }
            Current::Alone { begin, events, bytes, .. } => {
                let Some(decoded) = self.decoder.event(message, begin.end_lsn)? else {
                    return Ok(());
                };
                *bytes += size_bytes(&decoded.event);
                events.push(decoded.event);
                if *bytes >= BATCH_BYTES || events.len() >= PIECE_CHANGES {
                    self.send_piece().await?;
                }
                Ok(())
            }
        }
    }

    async fn commit(&mut self, end_lsn: PgLsn) -> Result<()> {
        if let Current::Held { is_barrier: true, .. } = self.state.current {
            self.run_alone().await?;
        }
        if matches!(self.state.current, Current::Alone { .. }) {
            self.send_piece().await?;
        }
        match std::mem::take(&mut self.state.current) {
            Current::None => {
                return Err(Error::Stream("a commit outside of a transaction".to_owned()));
            }
            Current::Skipped | Current::Late => return Ok(()),
            Current::Held { begin, events, bytes, .. } => {
                if begin.end_lsn != end_lsn {
                    return Err(Error::Stream("a transaction has two ends".to_owned()));
                }
                self.gather(begin, events, bytes);
                let full = self.state.batch.changes >= BATCH_CHANGES
                    || self.state.batch.bytes >= BATCH_BYTES;
                if full || self.is_one_by_one(end_lsn) {
                    self.flush().await?;
                }
            }
            Current::Alone { pieces, .. } => {
                pieces.send(Piece::Last).await.map_err(|_| Error::Lost("lane"))?;
                drop(pieces);
                self.quiesce().await?;
                self.positions.fill(end_lsn);
            }
        }
        self.state.seen = self.state.seen.max(Some(end_lsn));
        Ok(())
    }

    async fn position(&mut self, position: PgLsn) -> Result<()> {
        self.hold_while_paused().await?;
        self.state.seen = self.state.seen.max(Some(position));
        if self.end().is_some() {
            self.flush().await?;
            return self.stop_at_end().await;
        }
        let rested = self.state.positions_moved.is_none_or(|at| at.elapsed() >= POSITION_INTERVAL);
        if rested && self.state.batch_end.is_none() {
            self.level(position).await?;
        }
        Ok(())
    }

    /// Adds a transaction to the batch, each change to its lane's share.
    fn gather(&mut self, begin: Begin, events: Vec<Event>, bytes: usize) {
        self.state.batch.changes += events.len();
        self.state.batch.bytes += bytes;
        self.state.batch_end = Some(begin.end_lsn);
        self.state.batch_commit_time_us = begin.commit_time_us;
        self.state.batch_transactions += 1;
        for event in events {
            let lane = match &event {
                Event::Change(change) => self.routing.lane(change),
                // Barriers run alone.
                Event::Truncate(_) => 0,
            };
            if begin.end_lsn > self.positions[lane] {
                self.state.shares[lane].push(event);
            }
        }
    }

    /// Hands the batch to the lanes; waits while they are busy.
    async fn flush(&mut self) -> Result<()> {
        let Some(end_lsn) = self.state.batch_end.take() else { return Ok(()) };
        self.state.batch = Gathered::default();
        self.hand_over(end_lsn).await
    }

    async fn hand_over(&mut self, end_lsn: PgLsn) -> Result<()> {
        let mut transactions = std::mem::take(&mut self.state.batch_transactions);
        let one_by_one = self.is_one_by_one(end_lsn);
        let flush = self.end().is_some();
        for (lane, sender) in self.lanes.iter().enumerate() {
            let events = std::mem::take(&mut self.state.shares[lane]);
            if end_lsn <= self.positions[lane] {
                continue;
            }
            let batch = Batch {
                previous: self.positions[lane],
                end_lsn,
                events,
                one_by_one,
                flush,
                transactions: std::mem::take(&mut transactions),
                commit_time_us: self.state.batch_commit_time_us,
            };
            sender.send(Work::Batch(batch)).await.map_err(|_| Error::Lost("lane"))?;
            self.positions[lane] = end_lsn;
        }
        Ok(())
    }

    /// Moves lanes on where nothing came: an idle lane's position moves with the others.
    async fn level(&mut self, position: PgLsn) -> Result<()> {
        if self.positions.iter().any(|&at| at < position) {
            self.state.positions_moved = Some(Instant::now());
            self.hand_over(position).await?;
        }
        Ok(())
    }

    /// Everything up to the end position was seen: the lanes go there.
    async fn stop_at_end(&mut self) -> Result<()> {
        if let (Some(end), Some(seen)) = (self.end(), self.state.seen)
            && seen >= end
        {
            self.level(end).await?;
        }
        Ok(())
    }

    /// All lanes reached the transaction before; the current one goes to lane 0 piece by piece.
    async fn run_alone(&mut self) -> Result<()> {
        self.flush().await?;
        self.quiesce().await?;
        let Current::Held { begin, events, bytes, .. } = std::mem::take(&mut self.state.current)
        else {
            return Err(Error::Stream("no transaction is held".to_owned()));
        };
        let (pieces, received) = mpsc::channel(1);
        let alone = Alone {
            previous: self.positions.clone(),
            end_lsn: begin.end_lsn,
            commit_time_us: begin.commit_time_us,
            one_by_one: self.is_one_by_one(begin.end_lsn),
            flush: self.end().is_some(),
            pieces: received,
        };
        self.lanes[0].send(Work::Alone(alone)).await.map_err(|_| Error::Lost("lane"))?;
        self.state.current = Current::Alone { begin, events, bytes, pieces };
        Ok(())
    }

    async fn send_piece(&mut self) -> Result<()> {
        if let Current::Alone { events, bytes, pieces, .. } = &mut self.state.current {
            let piece = Piece::Events(std::mem::take(events));
            *bytes = 0;
            pieces.send(piece).await.map_err(|_| Error::Lost("lane"))?;
        }
        Ok(())
    }

    /// Waits until every lane did what it was given.
    async fn quiesce(&self) -> Result<()> {
        let mut reached = Vec::with_capacity(self.lanes.len());
        for lane in &self.lanes {
            let (tell, told) = oneshot::channel();
            lane.send(Work::Reached(tell)).await.map_err(|_| Error::Lost("lane"))?;
            reached.push(told);
        }
        for told in reached {
            told.await.map_err(|_| Error::Lost("lane"))?;
        }
        Ok(())
    }

    async fn hold_while_paused(&mut self) -> Result<()> {
        if !*self.paused.borrow() {
            return Ok(());
        }
        self.flush().await?;
        while *self.paused.borrow_and_update() {
            changed(&mut self.paused).await;
        }
        Ok(())
    }

    fn is_one_by_one(&self, end_lsn: PgLsn) -> bool {
        self.one_by_one_until.is_some_and(|until| end_lsn <= until)
    }
}

/// Waits for a change; for ever when nobody can make one.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn size_bytes(event: &Event) -> usize {
    match event {
        Event::Change(change) => change.size_bytes(),
        Event::Truncate(_) => 0,
    }
}
