//! Messages of one connection to transactions of the spool.
//!
//! ```text
//! Begin .. Commit                      one whole transaction
//! Stream Start .. Stop, many times     pieces by xid, beside others; then Stream Commit or Abort
//! keepalive outside of both            position
//! ```
//! Promise: positions come from Commit, Stream Commit and keepalives alone; an aborted
//! subtransaction's changes are left out; what has no commit on this connection is dropped with
//! it, since the server sends it again, whole perhaps. Blocking; on a thread of its own.

use super::Error;
use crate::replay::spool::{Delivery, Pending, Writer};
use bytes::Bytes;
use pg::{
    PgLsn,
    pgoutput::{self, Commit, Message, tag},
    walsender::Frame,
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// While changes keep coming, they are made durable at least this often: the delay that a
/// sync adds to a transaction, against the number of syncs.
const SYNC_INTERVAL: Duration = Duration::from_millis(20);

/// Positions alone may wait this long: while an idle or unpublished source writes WAL, the
/// server tells one after the other, and nobody waits for them.
const POSITION_INTERVAL: Duration = Duration::from_millis(200);

/// And after this much, so that a sync is short.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// Pause between two looks at an idle stream; only to wake up now and then.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// Puts one connection's messages together.
pub(super) struct Assembler {
    slot: String,
    writer: Writer,
    /// Between Begin and Commit.
    whole: Option<Pending>,
    /// Between Stream Start and Stop.
    block: Option<u32>,
    streamed: HashMap<u32, Pending>,
    last_sync: Instant,
    /// Transactions wait for the next sync.
    has_commits: bool,
}

impl Assembler {
    pub(super) fn new(slot: &str, writer: Writer) -> Self {
        Self {
            slot: slot.to_owned(),
            writer,
            whole: None,
            block: None,
            streamed: HashMap::new(),
            last_sync: Instant::now(),
            has_commits: false,
        }
    }

    /// Takes in frames as long as they are not many; blocks while the spool is full.
    pub(super) fn frames(&mut self, frames: Vec<Frame>) -> Result<(), Error> {
        self.writer.wait_for_space()?;
        for frame in frames {
            match frame {
                Frame::XLogData { payload, .. } => self.message(&payload)?,
                Frame::Keepalive { wal_end, .. } => self.keepalive(wal_end)?,
            }
        }
        let is_due =
            self.last_sync.elapsed() >= SYNC_INTERVAL || self.writer.unsynced_bytes() >= SYNC_BYTES;
        if is_due { self.sync() } else { Ok(()) }
    }

    /// Nothing comes in: transactions are made durable at once, positions when they are due.
    /// How long to wait for more.
    pub(super) fn idle(&mut self) -> Result<Duration, Error> {
        let since = self.last_sync.elapsed();
        if self.has_commits || since >= POSITION_INTERVAL {
            self.sync()?;
        }
        let is_clean = self.writer.unsynced_bytes() == 0;
        Ok(if is_clean { IDLE_WAIT } else { POSITION_INTERVAL.saturating_sub(since) })
    }

    /// Makes every committed transaction durable.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        self.writer.sync()?;
        self.last_sync = Instant::now();
        self.has_commits = false;
        Ok(())
    }

    fn keepalive(&mut self, wal_end: PgLsn) -> Result<(), Error> {
        if self.whole.is_none() && self.block.is_none() {
            self.writer.position(wal_end)?;
        }
        Ok(())
    }

    fn message(&mut self, payload: &Bytes) -> Result<(), Error> {
        let tag = *payload.first().ok_or_else(|| self.out_of_order("empty message"))?;
        match tag {
            tag::RELATION
            | tag::TYPE
            | tag::INSERT
            | tag::UPDATE
            | tag::DELETE
            | tag::TRUNCATE
            | tag::MESSAGE => self.change(tag, payload),
            // Where a change was made first does not matter here: loops are refused by preflight.
            tag::ORIGIN => Ok(()),
            _ => self.control(payload),
        }
    }

    fn control(&mut self, payload: &Bytes) -> Result<(), Error> {
        let message = pgoutput::decode(payload, false).map_err(|error| self.malformed(error))?;
        match message {
            Message::Begin(begin) if self.whole.is_none() && self.block.is_none() => {
                self.whole = Some(Pending::new(begin.xid, Delivery::Whole));
                Ok(())
            }
            Message::Commit(commit) => {
                let pending =
                    self.whole.take().ok_or_else(|| self.out_of_order("commit without begin"))?;
                self.commit(pending, &commit)
            }
            Message::StreamStart(start) if self.whole.is_none() && self.block.is_none() => {
                self.block = Some(start.xid);
                self.streamed
                    .entry(start.xid)
                    .or_insert_with(|| Pending::new(start.xid, Delivery::Streamed));
                Ok(())
            }
            Message::StreamStop => {
                let xid =
                    self.block.take().ok_or_else(|| self.out_of_order("stream stop alone"))?;
                match self.streamed.get_mut(&xid) {
                    Some(pending) => Ok(pending.pause(&self.writer)?),
                    None => Ok(()),
                }
            }
            Message::StreamCommit(stream) => {
                // A transaction whose every change was filtered out has no block.
                match self.streamed.remove(&stream.xid) {
                    Some(pending) => self.commit(pending, &stream.commit),
                    None => Ok(self.writer.position(stream.commit.end_lsn)?),
                }
            }
            Message::StreamAbort(abort) if abort.xid == abort.sub_xid => {
                match self.streamed.remove(&abort.xid) {
                    Some(pending) => Ok(pending.discard(&self.writer)?),
                    None => Ok(()),
                }
            }
            Message::StreamAbort(abort) => {
                if let Some(pending) = self.streamed.get_mut(&abort.xid) {
                    pending.abort(abort.sub_xid);
                }
                Ok(())
            }
            _ => Err(self.out_of_order("a transaction begins inside another")),
        }
    }

    fn commit(&mut self, pending: Pending, commit: &Commit) -> Result<(), Error> {
        self.writer.commit(pending, commit)?;
        self.has_commits = true;
        Ok(())
    }

    fn change(&mut self, tag: u8, payload: &Bytes) -> Result<(), Error> {
        let Some(block) = self.block else {
            let body = payload.slice(1..);
            return match &mut self.whole {
                Some(pending) => Ok(pending.push(&self.writer, pending.xid(), (tag, &body))?),
                // Outside of any transaction: a message that is not transactional.
                None if tag == tag::MESSAGE => Ok(()),
                None => Err(self.out_of_order("change outside of a transaction")),
            };
        };
        let parts = pgoutput::stream_xid(payload).map_err(|error| self.malformed(error))?;
        if let (Some((tag, xid, body)), Some(pending)) = (parts, self.streamed.get_mut(&block)) {
            pending.push(&self.writer, xid, (tag, &body))?;
        }
        Ok(())
    }

    fn out_of_order(&self, what: &'static str) -> Error {
        Error::OutOfOrder { slot: self.slot.clone(), what }
    }

    fn malformed(&self, source: pg::Error) -> Error {
        Error::Stream { slot: self.slot.clone(), source }
    }
}
