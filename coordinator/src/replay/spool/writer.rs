//! The writing end: transactions in commit order, blocks, segments, syncs.
//!
//! ```text
//! commit, position, relation -> block in memory -> segment file -> sync -> spooled_lsn
//! ```
//! Promise: one writer at a time; blocking calls, for a thread of its own; after a failed sync
//! it is of no use, and the next one begins at what was durable.

use super::{
    Begin, Durable, Error, Item, Pending, Segment, Shared, Space, TransactionFile,
    append::{self, AppendFile, sync_dir, wait_below_limit},
    format::{
        BLOCK_BYTES, FLAG_REFERENCES, FLAG_RELATIONS, FLAG_SNAPSHOT, Kind, Reference, put_begin,
        put_entry, put_reference, seal_block, segment_header,
    },
    pending::{Delivery, kind_of},
    recovery,
};
use bytes::Bytes;
use pg::{PgLsn, pgoutput::Commit, pgoutput::tag};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};
use tokio_util::sync::CancellationToken;

/// A segment is closed at this length: the unit in which space is given back.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// A small spool has at least this many segments, so that space comes back in time.
const SEGMENTS_IN_LIMIT: u64 = 8;

/// The writing end of a spool.
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
    generation: u64,
    segment: u64,
    file: AppendFile,
    block: Vec<u8>,
    block_flags: u32,
    block_first_end_lsn: Option<PgLsn>,
    /// End of what was appended, durable or not.
    written_lsn: PgLsn,
    /// Bytes of the file at the last sync.
    synced_bytes: u64,
    /// A sync failed: what was written since the one before may be nowhere.
    is_broken: bool,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer(generation {}, {})", self.generation, self.written_lsn)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.is_writing.store(false, Ordering::Release);
    }
}

impl Writer {
    pub(super) fn start(shared: Arc<Shared>, stop: CancellationToken) -> Result<Self, Error> {
        if shared.is_writing.swap(true, Ordering::AcqRel) {
            return Err(Error::Busy);
        }
        let opened = Self::open(&shared);
        let (durable, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                shared.is_writing.store(false, Ordering::Release);
                return Err(error);
            }
        };
        let generation = shared.generation.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            shared,
            stop,
            generation,
            segment: durable.segment,
            synced_bytes: file.len(),
            file,
            block: Vec::new(),
            block_flags: 0,
            block_first_end_lsn: None,
            written_lsn: durable.spooled_lsn,
            is_broken: false,
        })
    }

    fn open(shared: &Shared) -> Result<(Durable, AppendFile), Error> {
        let durable = *shared.durable.borrow();
        let file = AppendFile::reopen(shared.segment_path(durable.segment), durable.offset)?;
        if !shared.is_settled.load(Ordering::Acquire) {
            // It was found in the kernel's memory, perhaps; from here on it is confirmed.
            file.write_again()?;
            file.sync()?;
            sync_dir(&shared.dir)?;
            shared.is_settled.store(true, Ordering::Release);
        }
        recovery::remove_strays(shared, durable)?;
        let mut index = shared.index();
        if let Some(segment) = index.segments.get_mut(&durable.segment) {
            segment.bytes = durable.offset;
            segment.last_end_lsn = durable.spooled_lsn;
        }
        let bytes = index.segments.values().map(|segment| segment.bytes).sum::<u64>()
            + index.transactions.values().map(|file| file.bytes).sum::<u64>();
        shared.bytes.store(bytes, Ordering::Relaxed);
        Ok((durable, file))
    }

    /// End of what was taken in, durable or not.
    pub fn written_lsn(&self) -> PgLsn {
        self.written_lsn
    }

    /// Bytes that the next sync makes durable.
    pub fn unsynced_bytes(&self) -> u64 {
        self.file.len() - self.synced_bytes + self.block.len() as u64
    }

    /// Waits while the spool is over its limit; what is here is made durable first, so that it
    /// can be applied and released.
    ///
    /// # Errors
    /// [`Error::Stopped`]; what a sync meets.
    pub fn wait_for_space(&mut self) -> Result<(), Error> {
        if append::space(&self.shared) == Space::Full {
            self.sync()?;
            self.roll()?;
        }
        wait_below_limit(&self.shared, &self.stop)
    }

    /// Takes in a committed transaction. `false`: it was here already.
    ///
    /// # Errors
    /// What the file system refused.
    pub fn commit(&mut self, mut pending: Pending, commit: &Commit) -> Result<bool, Error> {
        let relations = pending.relations();
        if commit.end_lsn <= self.written_lsn {
            // The server counts its relations as sent, though.
            for (_, bytes) in &relations {
                self.relation(bytes)?;
            }
            pending.discard(self)?;
            return Ok(false);
        }
        let begin = Begin {
            xid: pending.xid(),
            end_lsn: commit.end_lsn,
            commit_lsn: commit.commit_lsn,
            commit_time_us: commit.commit_time_us,
            bytes: pending.bytes(),
        };
        self.block_first_end_lsn.get_or_insert(commit.end_lsn);
        if let Some((path, stored_bytes)) = pending.sync(self)? {
            sync_dir(&self.shared.dir)?;
            let reference = Reference {
                begin,
                generation: self.generation,
                stored_bytes,
                aborted: pending.aborted(),
            };
            let mut payload = Vec::new();
            put_reference(&mut payload, &reference);
            put_entry(&mut self.block, Kind::Reference, begin.xid, &[&payload]);
            self.block_flags |= FLAG_REFERENCES;
            let file = TransactionFile { path, bytes: stored_bytes };
            self.shared.index().transactions.insert(commit.end_lsn, file);
            for (_, bytes) in &relations {
                put_entry(&mut self.block, kind_of(bytes[0]), 0, &[bytes]);
            }
        } else {
            let mut payload = Vec::new();
            put_begin(&mut payload, &begin);
            put_entry(&mut self.block, Kind::Begin, begin.xid, &[&payload]);
            pending.put_live_entries(&mut self.block);
            let end_lsn = u64::from(commit.end_lsn).to_be_bytes();
            put_entry(&mut self.block, Kind::Commit, begin.xid, &[&end_lsn]);
        }
        if !relations.is_empty() {
            self.block_flags |= FLAG_RELATIONS;
            self.shared.index().relations.extend(relations);
        }
        self.written_lsn = commit.end_lsn;
        if self.block.len() >= BLOCK_BYTES { self.write_block() } else { Ok(()) }?;
        Ok(true)
    }

    /// Takes in a Relation or Type message outside of a transaction.
    ///
    /// # Errors
    /// What the file system refused.
    pub fn relation(&mut self, message: &Bytes) -> Result<(), Error> {
        let (Some(tag), Some(oid)) = (message.first(), message.get(1..5)) else { return Ok(()) };
        let oid = oid.iter().fold(0, |oid, byte| oid << 8 | u32::from(*byte));
        put_entry(&mut self.block, kind_of(*tag), 0, &[message]);
        self.block_flags |= FLAG_RELATIONS;
        self.shared.index().relations.insert((*tag, oid), message.clone());
        Ok(())
    }

    /// Takes in a position outside of a transaction: everything before it was received.
    ///
    /// # Errors
    /// What the file system refused.
    pub fn position(&mut self, lsn: PgLsn) -> Result<(), Error> {
        if lsn > self.written_lsn {
            self.block_first_end_lsn.get_or_insert(lsn);
            put_entry(&mut self.block, Kind::Position, 0, &[&u64::from(lsn).to_be_bytes()]);
            self.written_lsn = lsn;
        }
        Ok(())
    }

    /// Makes everything taken in durable, and tells the readers.
    ///
    /// # Errors
    /// [`Error::Sync`]: this writer is of no use any more.
    pub fn sync(&mut self) -> Result<(), Error> {
        if self.is_broken {
            return Err(Error::Stopped);
        }
        self.write_block()?;
        if self.file.len() > self.synced_bytes {
            self.is_broken = true;
            self.file.sync()?;
            self.is_broken = false;
            self.publish();
        }
        let segment_bytes = SEGMENT_BYTES.min(self.shared.limit_bytes / SEGMENTS_IN_LIMIT);
        if self.file.len() >= segment_bytes { self.roll() } else { Ok(()) }
    }

    fn publish(&mut self) {
        self.synced_bytes = self.file.len();
        let mut index = self.shared.index();
        if let Some(segment) = index.segments.get_mut(&self.segment) {
            segment.bytes = self.synced_bytes;
            segment.last_end_lsn = self.written_lsn;
        }
        drop(index);
        self.shared.publish(Durable {
            segment: self.segment,
            offset: self.synced_bytes,
            spooled_lsn: self.written_lsn,
        });
    }

    fn write_block(&mut self) -> Result<(), Error> {
        if self.block.is_empty() {
            return Ok(());
        }
        let first = self.block_first_end_lsn.unwrap_or(self.written_lsn);
        let block = seal_block(&self.block, self.block_flags, first, self.written_lsn);
        self.file.append(&block, &self.shared, &self.stop)?;
        self.block.clear();
        self.block_flags = 0;
        self.block_first_end_lsn = None;
        Ok(())
    }

    /// Begins a new segment, if there is a transaction or position in this one. What came
    /// before is durable.
    fn roll(&mut self) -> Result<(), Error> {
        let base_lsn = self.shared.index().segments.get(&self.segment).map(|s| s.base_lsn);
        if base_lsn == Some(self.written_lsn) {
            return Ok(());
        }
        let segment = self.segment + 1;
        let path = self.shared.segment_path(segment);
        // A crash, or a failed sync, may have left one there with nothing durable in it.
        super::remove_file(&path)?;
        let mut file = AppendFile::create(path)?;
        file.append(&segment_header(segment, self.written_lsn), &self.shared, &self.stop)?;
        for block in self.relation_blocks() {
            file.append(&block, &self.shared, &self.stop)?;
        }
        file.sync()?;
        sync_dir(&self.shared.dir)?;
        self.shared.index().segments.insert(
            segment,
            Segment {
                base_lsn: self.written_lsn,
                last_end_lsn: self.written_lsn,
                bytes: file.len(),
            },
        );
        self.file = file;
        self.segment = segment;
        self.publish();
        self.shared.release();
        Ok(())
    }

    /// Blocks with every Relation and Type message known.
    fn relation_blocks(&self) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        let mut raw = Vec::new();
        let seal = |raw: &[u8]| {
            let flags = FLAG_SNAPSHOT | FLAG_RELATIONS;
            seal_block(raw, flags, self.written_lsn, self.written_lsn)
        };
        let index = self.shared.index();
        // Types first: a Relation may use them.
        let types = index.relations.iter().filter(|((tag, _), _)| *tag == tag::TYPE);
        let others = index.relations.iter().filter(|((tag, _), _)| *tag != tag::TYPE);
        for (_, message) in types.chain(others) {
            put_entry(&mut raw, kind_of(message[0]), 0, &[message]);
            if raw.len() >= BLOCK_BYTES {
                blocks.push(seal(&raw));
                raw.clear();
            }
        }
        if !raw.is_empty() {
            blocks.push(seal(&raw));
        }
        blocks
    }

    pub(super) fn transaction_path(&self, xid: u32) -> PathBuf {
        self.shared.dir.join(recovery::transaction_name(self.generation, xid))
    }

    /// As [`super::Spool::append`].
    pub(super) fn append_items(&mut self, items: &[Item]) -> Result<(), Error> {
        let mut open: Option<(Pending, Begin)> = None;
        for item in items {
            match (item, &mut open) {
                (Item::Begin(begin), _) => {
                    open = Some((Pending::new(begin.xid, Delivery::Whole), *begin));
                }
                (
                    Item::Relation(bytes) | Item::Type(bytes) | Item::Change(bytes),
                    Some((pending, begin)),
                ) => pending.push(self, begin.xid, (bytes[0], &bytes.slice(1..)))?,
                (Item::Relation(bytes) | Item::Type(bytes), None) => self.relation(bytes)?,
                (Item::Commit { .. }, _) => {
                    if let Some((pending, begin)) = open.take() {
                        let commit = Commit {
                            commit_lsn: begin.commit_lsn,
                            end_lsn: begin.end_lsn,
                            commit_time_us: begin.commit_time_us,
                        };
                        self.commit(pending, &commit)?;
                    }
                }
                (Item::Position(lsn), _) => self.position(*lsn)?,
                (Item::Change(_), None) => {}
            }
        }
        self.sync()
    }
}
