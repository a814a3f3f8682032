//! The reading end: durable transactions after a position, in commit order.
//!
//! ```text
//! segment -> block -> entries -> items       a Reference: transaction file -> block -> items
//! ```
//! Promise: only what is durable; `end_lsn` strictly increases; a transaction file is read
//! block by block, so a huge transaction needs no more memory than a small one; changes of
//! aborted subtransactions are left out.

use super::{
    Durable, Error, Item, Shared,
    format::{
        BlockHeader, Damaged, Entry, FLAG_RELATIONS, FLAG_SNAPSHOT, HEADER_BYTES, Kind, Reference,
        SEGMENT_HEADER_BYTES, parse_segment_header, take_begin, take_entry, take_lsn,
        take_reference,
    },
    recovery::{FIRST_SEGMENT, read_at, transaction_name},
};
use bytes::Bytes;
use pg::PgLsn;
use std::{
    collections::{HashSet, VecDeque},
    fmt,
    fs::File,
    path::PathBuf,
    sync::Arc,
};
use tokio::{sync::watch, task::JoinHandle};

/// The reading end of a spool.
pub struct Reader {
    durable: watch::Receiver<Durable>,
    /// Read, and not yet given out.
    ready: VecDeque<Item>,
    state: State,
}

enum State {
    Idle(Box<Cursor>),
    /// On a blocking thread. Kept here, so that a cancelled `next` loses nothing.
    Reading(JoinHandle<Read>),
    /// A thread of ours panicked.
    Broken,
}

/// The cursor comes back with what it read.
type Read = (Box<Cursor>, Result<VecDeque<Item>, Error>);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} items ready)", self.ready.len())
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, after: PgLsn) -> Self {
        let durable = shared.durable.subscribe();
        let cursor = Cursor {
            shared,
            after,
            segment: None,
            block: Bytes::new(),
            is_skipping: false,
            transaction: None,
        };
        Self { durable, ready: VecDeque::new(), state: State::Idle(Box::new(cursor)) }
    }

    /// The next item; waits for more. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Released`]; what the file system refused.
    pub async fn next(&mut self) -> Result<Item, Error> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            match &mut self.state {
                State::Idle(cursor) => {
                    let until = *self.durable.borrow_and_update();
                    if cursor.is_at(until) && self.durable.changed().await.is_err() {
                        return Err(Error::Stopped);
                    }
                    self.read_ahead();
                }
                State::Reading(task) => {
                    let read = task.await;
                    self.state = State::Broken;
                    let Ok((cursor, outcome)) = read else { continue };
                    self.state = State::Idle(cursor);
                    self.ready = outcome?;
                    self.read_ahead();
                }
                State::Broken => return Err(Error::Stopped),
            }
        }
    }

    /// Starts reading what comes next, if there is anything.
    fn read_ahead(&mut self) {
        let until = *self.durable.borrow();
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(mut cursor) if !cursor.is_at(until) => {
                State::Reading(tokio::task::spawn_blocking(move || {
                    let items = cursor.read(until);
                    (cursor, items)
                }))
            }
            other => other,
        };
    }
}

/// Where a reader stands. Blocking.
struct Cursor {
    shared: Arc<Shared>,
    /// Transactions and positions at or below it are skipped.
    after: PgLsn,
    segment: Option<OpenSegment>,
    /// Rest of the block that is being read.
    block: Bytes,
    /// Within a transaction at or below `after`.
    is_skipping: bool,
    transaction: Option<OpenTransaction>,
}

struct OpenSegment {
    number: u64,
    file: File,
    path: PathBuf,
    offset: u64,
    /// Of the file, once a later segment is durable: then all of it is.
    sealed_bytes: Option<u64>,
    /// The first one read: its Relation messages are news.
    is_first: bool,
}

/// A transaction file that is being read.
struct OpenTransaction {
    file: File,
    path: PathBuf,
    offset: u64,
    reference: Reference,
    aborted: HashSet<u32>,
}

impl Cursor {
    fn is_at(&self, until: Durable) -> bool {
        self.transaction.is_none()
            && self.block.is_empty()
            && self.segment.as_ref().is_some_and(|segment| {
                segment.number == until.segment && segment.offset == until.offset
            })
    }

    /// Items of the next block; empty at the end of what is durable.
    fn read(&mut self, until: Durable) -> Result<VecDeque<Item>, Error> {
        let mut items = VecDeque::new();
        while items.is_empty() {
            if let Some(transaction) = &mut self.transaction {
                if transaction.read(&mut items)? {
                    items.push_back(Item::Commit { end_lsn: self.after });
                    self.transaction = None;
                }
            } else if !self.block.is_empty() {
                self.read_entries(&mut items)?;
            } else if !self.next_block(until)? {
                break;
            }
        }
        Ok(items)
    }

    /// Loads the next block of interest; false at the end of what is durable.
    fn next_block(&mut self, until: Durable) -> Result<bool, Error> {
        let Some(segment) = &mut self.segment else {
            self.open_first()?;
            return Ok(true);
        };
        let end = if segment.number == until.segment {
            until.offset
        } else {
            match segment.sealed_bytes {
                Some(bytes) => bytes,
                None => *segment.sealed_bytes.insert(segment.file_bytes()?),
            }
        };
        if segment.offset >= end {
            if segment.number == until.segment {
                return Ok(false);
            }
            let next = segment.number + 1;
            self.open(next, false)?;
            return Ok(true);
        }
        let (header, start) = segment.header()?;
        segment.offset = start + u64::from(header.stored_bytes);
        let is_repeated = header.flags & FLAG_SNAPSHOT != 0 && !segment.is_first;
        let has_news = header.last_end_lsn > self.after || header.flags & FLAG_RELATIONS != 0;
        if has_news && !is_repeated {
            self.block = load(&segment.file, start, &header)
                .map_err(|_| Error::corrupt(&segment.path, start))?;
        }
        Ok(true)
    }

    /// Opens the segment that holds the first transaction after `after`.
    fn open_first(&mut self) -> Result<(), Error> {
        let index = self.shared.index();
        let from = index.segments.iter().rfind(|(_, segment)| segment.base_lsn <= self.after);
        let first = index.segments.first_key_value();
        let number = match (from, first) {
            (Some((number, _)), _) => *number,
            // Nothing was ever removed: all there is lies after `after`.
            (None, Some((number, _))) if *number == FIRST_SEGMENT => *number,
            (None, first) => {
                let base = first.map_or(PgLsn::from(0), |(_, segment)| segment.base_lsn);
                return Err(Error::Released { after: self.after, base });
            }
        };
        drop(index);
        self.open(number, true)
    }

    fn open(&mut self, number: u64, is_first: bool) -> Result<(), Error> {
        let path = self.shared.segment_path(number);
        let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        let mut head = [0; SEGMENT_HEADER_BYTES];
        let is_whole = read_at(&file, &mut head, 0)
            .map_err(|source| Error::io("read", &path, source))?
            && parse_segment_header(&head, number).is_ok();
        if !is_whole {
            return Err(Error::corrupt(&path, 0));
        }
        let offset = SEGMENT_HEADER_BYTES as u64;
        self.segment =
            Some(OpenSegment { number, file, path, offset, sealed_bytes: None, is_first });
        Ok(())
    }

    /// Turns entries into items, up to a reference or the block's end.
    fn read_entries(&mut self, items: &mut VecDeque<Item>) -> Result<(), Error> {
        while let Some(entry) =
            take_entry(&mut self.block).map_err(|damaged| self.damaged(damaged))?
        {
            match entry.kind {
                Kind::Reference => {
                    let reference = take_reference(entry.payload).map_err(|d| self.damaged(d))?;
                    if reference.begin.end_lsn > self.after {
                        self.after = reference.begin.end_lsn;
                        items.push_back(Item::Begin(reference.begin));
                        self.transaction = Some(OpenTransaction::open(&self.shared, reference)?);
                        return Ok(());
                    }
                }
                Kind::Begin => {
                    let mut payload = entry.payload;
                    let begin = take_begin(&mut payload).map_err(|d| self.damaged(d))?;
                    self.is_skipping = begin.end_lsn <= self.after;
                    if !self.is_skipping {
                        self.after = begin.end_lsn;
                        items.push_back(Item::Begin(begin));
                    }
                }
                Kind::Commit => {
                    let end_lsn = take_lsn(entry.payload).map_err(|d| self.damaged(d))?;
                    if !self.is_skipping {
                        items.push_back(Item::Commit { end_lsn });
                    }
                    self.is_skipping = false;
                }
                Kind::Position => {
                    let position = take_lsn(entry.payload).map_err(|d| self.damaged(d))?;
                    if position > self.after {
                        self.after = position;
                        items.push_back(Item::Position(position));
                    }
                }
                Kind::Change if self.is_skipping => {}
                Kind::Change | Kind::Relation | Kind::Type => items.push_back(message(entry)),
            }
        }
        Ok(())
    }

    fn damaged(&self, _: Damaged) -> Error {
        match &self.segment {
            Some(segment) => Error::corrupt(&segment.path, segment.offset),
            None => Error::corrupt(&self.shared.dir, 0),
        }
    }
}

fn message(entry: Entry) -> Item {
    match entry.kind {
        Kind::Relation => Item::Relation(entry.payload),
        Kind::Type => Item::Type(entry.payload),
        Kind::Change | Kind::Begin | Kind::Commit | Kind::Position | Kind::Reference => {
            Item::Change(entry.payload)
        }
    }
}

impl OpenSegment {
    fn file_bytes(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(|source| Error::io("read", &self.path, source))?.len())
    }

    /// The header at `offset`, and where its payload begins.
    fn header(&self) -> Result<(BlockHeader, u64), Error> {
        let header = block_header(&self.file, self.offset)
            .map_err(|_| Error::corrupt(&self.path, self.offset))?;
        Ok((header, self.offset + HEADER_BYTES as u64))
    }
}

impl OpenTransaction {
    fn open(shared: &Shared, reference: Reference) -> Result<Self, Error> {
        let path = shared.dir.join(transaction_name(reference.generation, reference.begin.xid));
        let file = File::open(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt(&path, 0),
            _ => Error::io("open", &path, source),
        })?;
        let aborted = reference.aborted.iter().copied().collect();
        Ok(Self { file, path, offset: 0, reference, aborted })
    }

    /// Items of the next block; true after the last.
    fn read(&mut self, items: &mut VecDeque<Item>) -> Result<bool, Error> {
        if self.offset < self.reference.stored_bytes {
            let read = self.read_block(items);
            read.map_err(|Damaged| Error::corrupt(&self.path, self.offset))?;
        }
        Ok(self.offset >= self.reference.stored_bytes)
    }

    fn read_block(&mut self, items: &mut VecDeque<Item>) -> Result<(), Damaged> {
        let header = block_header(&self.file, self.offset)?;
        let start = self.offset + HEADER_BYTES as u64;
        let mut entries = load(&self.file, start, &header)?;
        while let Some(entry) = take_entry(&mut entries)? {
            if !self.aborted.contains(&entry.xid) {
                items.push_back(message(entry));
            }
        }
        self.offset = start + u64::from(header.stored_bytes);
        Ok(())
    }
}

fn block_header(file: &File, offset: u64) -> Result<BlockHeader, Damaged> {
    let mut head = [0; HEADER_BYTES];
    match read_at(file, &mut head, offset) {
        Ok(true) => BlockHeader::parse(&head),
        Ok(false) | Err(_) => Err(Damaged),
    }
}

fn load(file: &File, start: u64, header: &BlockHeader) -> Result<Bytes, Damaged> {
    let mut stored = vec![0; header.stored_bytes as usize];
    match read_at(file, &mut stored, start) {
        Ok(true) => header.open(&stored),
        Ok(false) | Err(_) => Err(Damaged),
    }
}
