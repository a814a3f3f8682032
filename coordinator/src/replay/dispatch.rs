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
    batch::BATCH_BYTES,
    error::{Error, Result},
    lane::Piece,
    lanes::{LEVEL_INTERVAL, Lanes},
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
    sync::{mpsc, watch},
    time::Instant,
};

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

/// What a dispatcher works with.
#[derive(Debug)]
pub struct Parts {
    pub decoder: Decoder,
    pub lanes: Lanes,
    pub end_position: watch::Receiver<Option<PgLsn>>,
    pub paused: watch::Receiver<bool>,
    pub late: watch::Sender<BTreeMap<TableName, u64>>,
}

/// Spreads transactions over lanes.
#[derive(Debug)]
pub struct Dispatcher {
    parts: Parts,
    state: State,
}

/// What is gathered and not handed over.
#[derive(Debug, Default)]
struct State {
    current: Current,
    /// The next transaction runs alone: a table changed before it.
    barrier_next: bool,
    /// Everything that ends at or before it was seen.
    seen: Option<PgLsn>,
    /// The end position by which changes were dropped.
    dropped_by: Option<PgLsn>,
    positions_moved: Option<Instant>,
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
    pub fn new(parts: Parts) -> Self {
        let state = State { seen: parts.lanes.lowest(), ..State::default() };
        Self { parts, state }
    }

    /// Takes items until there is a reason to begin again.
    ///
    /// # Errors
    /// A change that the target cannot take, or a lane that is gone.
    pub async fn run(mut self, mut chunks: mpsc::Receiver<Vec<Item>>) -> Result<Outcome> {
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
            // 1 another end   2 more items   3 idle lanes
            tokio::select! { biased;
                () = changed(&mut self.parts.end_position) => {}
                () = tokio::time::sleep(LEVEL_INTERVAL), if self.parts.lanes.are_uneven() => {
                    self.parts.lanes.level().await?;
                }
                chunk = chunks.recv() => items.extend(chunk.ok_or(Error::Lost("reader"))?),
            }
            if self.end_moved() {
                return Ok(Outcome::EndMoved);
            }
        }
    }

    fn end(&self) -> Option<PgLsn> {
        *self.parts.end_position.borrow()
    }

    fn end_moved(&self) -> bool {
        self.state.dropped_by.is_some() && self.state.dropped_by != self.end()
    }

    async fn take(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Type(_) => Ok(()),
            Item::Relation(bytes) => {
                if self.parts.decoder.relation(&bytes)? {
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
                let is_definite =
                    taken.as_ref().is_err_and(|error| error.class() == ErrorClass::Definite);
                // Of one that runs alone nothing stays, and the others were waited for.
                if is_definite && !matches!(self.state.current, Current::Alone { .. }) {
                    // A person mends the target for this change: what was before it is in.
                    self.flush().await?;
                    self.parts.lanes.quiesce().await?;
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
        } else if self.parts.lanes.all_have(begin.end_lsn) {
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
                if let Some(table) = self.parts.decoder.table_of(message)? {
                    self.parts.late.send_modify(|late| *late.entry(table).or_default() += 1);
                }
                Ok(())
            }
            Current::Held { begin, events, bytes, is_barrier } => {
                let Some(decoded) = self.parts.decoder.event(message, begin.end_lsn)? else {
                    return Ok(());
                };
                *is_barrier |= decoded.is_barrier;
                *bytes += size_bytes(&decoded.event);
                events.push(decoded.event);
                let is_large = *bytes >= BATCH_BYTES || events.len() >= PIECE_CHANGES;
                if is_large && self.parts.lanes.none_has(begin.end_lsn) {
                    self.run_alone().await?;
                    self.send_piece().await?;
                }
                Ok(())
            }
            Current::Alone { begin, events, bytes, .. } => {
                let Some(decoded) = self.parts.decoder.event(message, begin.end_lsn)? else {
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
        if let Current::Held { is_barrier: true, .. } = self.state.current
            && self.parts.lanes.none_has(end_lsn)
        {
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
                self.parts.lanes.add(begin, events, bytes);
                if self.parts.lanes.is_full() {
                    self.flush().await?;
                }
            }
            Current::Alone { pieces, .. } => {
                pieces.send(Piece::Last).await.map_err(|_| Error::Lost("lane"))?;
                drop(pieces);
                self.parts.lanes.alone_ended(end_lsn).await?;
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
        if rested && self.parts.lanes.is_empty() {
            self.move_to(position).await?;
        }
        Ok(())
    }

    /// Hands the batch to the lanes; waits while they are busy.
    async fn flush(&mut self) -> Result<()> {
        let near_end = self.end().is_some();
        self.parts.lanes.flush(near_end).await
    }

    /// Moves lanes on where nothing came: an idle lane's position moves with the others.
    async fn move_to(&mut self, position: PgLsn) -> Result<()> {
        if !self.parts.lanes.all_have(position) {
            self.state.positions_moved = Some(Instant::now());
            let near_end = self.end().is_some();
            self.parts.lanes.move_to(position, near_end).await?;
        }
        Ok(())
    }

    /// Everything up to the end position was seen: the lanes go there.
    async fn stop_at_end(&mut self) -> Result<()> {
        if let (Some(end), Some(seen)) = (self.end(), self.state.seen)
            && seen >= end
        {
            self.move_to(end).await?;
        }
        Ok(())
    }

    /// The current transaction goes to one lane piece by piece, when all reached the one before.
    async fn run_alone(&mut self) -> Result<()> {
        let near_end = self.end().is_some();
        let Current::Held { begin, events, bytes, .. } = std::mem::take(&mut self.state.current)
        else {
            return Err(Error::Stream("no transaction is held".to_owned()));
        };
        let pieces = self.parts.lanes.alone(begin, near_end).await?;
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

    async fn hold_while_paused(&mut self) -> Result<()> {
        if !*self.parts.paused.borrow() {
            return Ok(());
        }
        self.flush().await?;
        while *self.parts.paused.borrow_and_update() {
            changed(&mut self.parts.paused).await;
        }
        Ok(())
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
