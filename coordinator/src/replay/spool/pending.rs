//! A transaction that has not committed yet: in memory while small, in a file of its own after.

use super::{
    Error,
    append::AppendFile,
    format::{BLOCK_BYTES, Kind, put_entry, seal_block, take_entry},
    remove_file,
    writer::Writer,
};
use bytes::{Buf as _, Bytes};
use pg::{PgLsn, pgoutput::tag};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::atomic::Ordering,
};

/// How a transaction comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Between Begin and Commit, alone.
    Whole,
    /// In blocks while it is in progress, beside others.
    Streamed,
}

/// A whole transaction stays in memory up to this; beyond, it goes to a file. There is one at a
/// time, and reading it back needs as much.
const WHOLE_MEMORY_BYTES: usize = 4 * 1024 * 1024;

/// A streamed transaction keeps at most this in memory between its blocks: there may be
/// thousands at a time.
const PAUSED_MEMORY_BYTES: usize = 64 * 1024;

/// A transaction that has not committed yet.
pub struct Pending {
    xid: u32,
    delivery: Delivery,
    /// Entries that are not in the file.
    buffer: Vec<u8>,
    /// Bytes of all its messages.
    bytes: u64,
    /// Subtransactions that were rolled back.
    aborted: BTreeSet<u32>,
    /// Its latest Relation and Type messages, by tag and OID, with their subtransaction: known
    /// to all at its commit.
    relations: BTreeMap<(u8, u32), (u32, Bytes)>,
    spilled: Option<Spilled>,
}

struct Spilled {
    path: PathBuf,
    len: u64,
    /// None between two blocks of a stream.
    file: Option<AppendFile>,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending(xid {}, {} bytes)", self.xid, self.bytes)
    }
}

impl Pending {
    pub fn new(xid: u32, delivery: Delivery) -> Self {
        Self {
            xid,
            delivery,
            buffer: Vec::new(),
            bytes: 0,
            aborted: BTreeSet::new(),
            relations: BTreeMap::new(),
            spilled: None,
        }
    }

    pub fn xid(&self) -> u32 {
        self.xid
    }

    /// Bytes of its messages so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds one message of (sub)transaction `xid`: its tag, and what follows it (and the xid).
    ///
    /// # Errors
    /// When it could not be written to its file.
    pub fn push(&mut self, writer: &Writer, xid: u32, message: (u8, &Bytes)) -> Result<(), Error> {
        let (tag, body) = message;
        let kind = kind_of(tag);
        put_entry(&mut self.buffer, kind, xid, &[&[tag], body]);
        self.bytes += body.len() as u64 + 1;
        if kind != Kind::Change {
            let oid = body.clone().try_get_u32().unwrap_or(0);
            self.relations.insert((tag, oid), (xid, [&[tag], &body[..]].concat().into()));
        }
        let limit = match (self.delivery, &self.spilled) {
            (Delivery::Whole, None) => WHOLE_MEMORY_BYTES,
            (Delivery::Whole | Delivery::Streamed, _) => BLOCK_BYTES,
        };
        if self.buffer.len() >= limit { self.spill(writer) } else { Ok(()) }
    }

    /// A subtransaction was rolled back: its changes are left out, and its Relation messages
    /// (the server sends them again).
    pub fn abort(&mut self, sub_xid: u32) {
        self.aborted.insert(sub_xid);
        self.relations.retain(|_, (xid, _)| *xid != sub_xid);
    }

    /// A block of the stream ended: little stays in memory, and no file open.
    ///
    /// # Errors
    /// When it could not be written to its file.
    pub fn pause(&mut self, writer: &Writer) -> Result<(), Error> {
        if self.buffer.len() >= PAUSED_MEMORY_BYTES {
            self.spill(writer)?;
            self.buffer = Vec::new();
        }
        if let Some(spilled) = &mut self.spilled {
            spilled.file = None;
        }
        Ok(())
    }

    /// It was rolled back: nothing of it stays.
    ///
    /// # Errors
    /// When its file could not be removed.
    pub fn discard(self, writer: &Writer) -> Result<(), Error> {
        if let Some(spilled) = self.spilled {
            remove_file(&spilled.path)?;
            writer.shared.bytes.fetch_sub(spilled.len, Ordering::Relaxed);
        }
        Ok(())
    }

    fn spill(&mut self, writer: &Writer) -> Result<(), Error> {
        let mut file = match self.spilled.take() {
            None => AppendFile::create(writer.transaction_path(self.xid))?,
            Some(Spilled { file: Some(file), .. }) => file,
            Some(Spilled { path, len, file: None }) => AppendFile::reopen(path, len)?,
        };
        let block = seal_block(&self.buffer, 0, PgLsn::from(0), PgLsn::from(0));
        let appended = file.append(&block, &writer.shared, &writer.stop);
        self.spilled =
            Some(Spilled { path: file.path().to_owned(), len: file.len(), file: Some(file) });
        appended?;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the file durable, if there is one: its path and length.
    pub(super) fn sync(&mut self, writer: &Writer) -> Result<Option<(PathBuf, u64)>, Error> {
        if self.spilled.is_none() {
            return Ok(None);
        }
        // Opens the file again, too: a sync needs one.
        self.spill(writer)?;
        let Some(Spilled { path, len, file: Some(file) }) = &self.spilled else { return Ok(None) };
        file.sync()?;
        Ok(Some((path.clone(), *len)))
    }

    /// Entries in memory, those of aborted subtransactions left out.
    pub(super) fn put_live_entries(&self, out: &mut Vec<u8>) {
        if self.aborted.is_empty() {
            out.extend_from_slice(&self.buffer);
            return;
        }
        let mut rest = Bytes::copy_from_slice(&self.buffer);
        while let Ok(Some(entry)) = take_entry(&mut rest) {
            if !self.aborted.contains(&entry.xid) {
                put_entry(out, entry.kind, entry.xid, &[&entry.payload]);
            }
        }
    }

    pub(super) fn aborted(&self) -> Vec<u32> {
        self.aborted.iter().copied().collect()
    }

    /// Its Relation and Type messages, Types first, as a Relation may use them.
    pub(super) fn relations(&self) -> Vec<((u8, u32), Bytes)> {
        let mut relations: Vec<_> =
            self.relations.iter().map(|(key, (_, bytes))| (*key, bytes.clone())).collect();
        relations.sort_by_key(|((tag, _), _)| *tag != tag::TYPE);
        relations
    }
}

/// Kind of the entry that a pgoutput message becomes.
pub(super) fn kind_of(tag: u8) -> Kind {
    match tag {
        tag::RELATION => Kind::Relation,
        tag::TYPE => Kind::Type,
        _ => Kind::Change,
    }
}
