//! The spool: what was received and is durable here, until it is applied.
//!
//! ```text
//! dir/spool.meta            whose changes these are; spool.lock: one process at a time
//! dir/0000000000000007.seg  main log: blocks of committed transactions, in commit order
//! dir/00000002-000004d1.txn one large or streamed transaction: (connection generation, xid)
//!
//! Pending --commit--> Writer --sync--> spooled_lsn --> Reader (transactions after a position)
//!                                                       release(applied) removes whole files
//! ```
//! A small transaction waits in memory for its Commit and is written into the log. A larger one,
//! and one that is streamed while in progress, goes to a file of its own, and the log gets a
//! reference at its Commit, after that file was synced. Each segment begins with the Relation and
//! Type messages known so far, so that a reader may start at any.
//!
//! Promise: `spooled_lsn` moves after file and directory were synced, never before; a failed
//! sync is not tried again, the log is cut back to the last that succeeded; a torn tail is cut
//! when writing begins, so after the check of `confirmed_flush_lsn`; files nobody refers to are
//! removed then, and what an earlier process left is synced once more before it counts; a reader's `end_lsn` strictly increases.

mod append;
mod error;
mod format;
mod meta;
mod pending;
mod reader;
mod recovery;
mod writer;

pub use error::Error;
pub use meta::SpoolIdentity;
pub use pending::{Delivery, Pending};
pub use reader::Reader;
pub use writer::Writer;

use bytes::Bytes;
use pg::PgLsn;
use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One step of a reader. Changes are plain pgoutput messages without a stream's xid:
/// `pg::pgoutput::decode(&bytes, false)` reads them all.
#[derive(Clone, PartialEq, Eq)]
pub enum Item {
    /// A table as it is from here on; may come again, and outside of a transaction.
    Relation(Bytes),
    Type(Bytes),
    Begin(Begin),
    /// Insert, Update, Delete, Truncate, transactional Message.
    Change(Bytes),
    Commit {
        end_lsn: PgLsn,
    },
    /// Nothing of interest up to here: an idle source goes on.
    Position(PgLsn),
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relation(bytes) => write!(f, "Relation({} bytes)", bytes.len()),
            Self::Type(bytes) => write!(f, "Type({} bytes)", bytes.len()),
            Self::Begin(begin) => begin.fmt(f),
            Self::Change(bytes) => write!(f, "Change({} bytes)", bytes.len()),
            Self::Commit { end_lsn } => write!(f, "Commit({end_lsn})"),
            Self::Position(lsn) => write!(f, "Position({lsn})"),
        }
    }
}

/// A committed transaction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    pub xid: u32,
    /// First byte after the commit record.
    pub end_lsn: PgLsn,
    pub commit_lsn: PgLsn,
    /// Microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// Bytes of its messages, changes of aborted subtransactions included.
    pub bytes: u64,
}

/// Whether the spool takes more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    #[default]
    Free,
    /// The limit is reached; goes on when transactions were applied.
    Full,
    /// The limit is reached, by transactions in progress on the source alone: goes on, since they
    /// are applied, and their room given back, only after their commit.
    Exceeded,
    /// The disk is full; goes on when there is room.
    DiskFull,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spool({}, {})", self.0.dir.display(), self.spooled_lsn())
    }
}

/// End of what is durable in the main log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Durable {
    segment: u64,
    /// Bytes of that segment.
    offset: u64,
    spooled_lsn: PgLsn,
}

struct Shared {
    dir: PathBuf,
    identity: SpoolIdentity,
    limit_bytes: u64,
    durable: watch::Sender<Durable>,
    spooled: watch::Sender<PgLsn>,
    space: watch::Sender<Space>,
    bytes: AtomicU64,
    /// Next connection generation.
    generation: AtomicU64,
    is_writing: AtomicBool,
    /// What was found when it was opened is durable.
    is_settled: AtomicBool,
    index: Mutex<Index>,
    /// Told when files were removed.
    released: Condvar,
    /// Held for as long as the spool is open.
    _lock: File,
}

/// What lies in the directory. Rebuilt at open.
#[derive(Debug, Default)]
struct Index {
    segments: BTreeMap<u64, Segment>,
    /// Committed transactions in files of their own, by `end_lsn`.
    transactions: BTreeMap<PgLsn, TransactionFile>,
    /// What was released last: a segment that is closed later than that is released then.
    released_lsn: Option<PgLsn>,
    /// Latest Relation and Type messages, by tag and OID.
    relations: BTreeMap<(u8, u32), Bytes>,
}

/// Transactions of a segment: `base_lsn < end_lsn <= last_end_lsn`.
#[derive(Clone, Copy, Debug)]
struct Segment {
    base_lsn: PgLsn,
    last_end_lsn: PgLsn,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct TransactionFile {
    path: PathBuf,
    bytes: u64,
}

impl Spool {
    /// Makes an empty spool that begins at `identity.consistent_point`.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one; what the file system refused.
    pub fn create(dir: &Path, identity: SpoolIdentity, limit_bytes: u64) -> Result<Self, Error> {
        recovery::create(dir, &identity)?;
        Self::open(dir, limit_bytes)
    }

    /// Opens the spool in `dir`, and looks through it.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Locked`], [`Error::Corrupt`].
    pub fn open(dir: &Path, limit_bytes: u64) -> Result<Self, Error> {
        let found = recovery::open(dir)?;
        Ok(Self(Arc::new(Shared {
            dir: dir.to_owned(),
            identity: found.identity,
            limit_bytes,
            durable: watch::Sender::new(found.durable),
            spooled: watch::Sender::new(found.durable.spooled_lsn),
            space: watch::Sender::new(Space::Free),
            bytes: AtomicU64::new(found.bytes),
            generation: AtomicU64::new(found.next_generation),
            is_writing: AtomicBool::new(false),
            is_settled: AtomicBool::new(false),
            index: Mutex::new(found.index),
            released: Condvar::new(),
            _lock: found.lock,
        })))
    }

    /// Whose changes these are.
    pub fn identity(&self) -> &SpoolIdentity {
        &self.0.identity
    }

    /// End of the last transaction, or position, that is durable here.
    pub fn spooled_lsn(&self) -> PgLsn {
        *self.0.spooled.borrow()
    }

    /// [`Spool::spooled_lsn`] as it moves.
    pub fn watch(&self) -> watch::Receiver<PgLsn> {
        self.0.spooled.subscribe()
    }

    /// Whether it takes more.
    pub fn space(&self) -> watch::Receiver<Space> {
        self.0.space.subscribe()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Bytes at which receiving stops.
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }

    /// Transactions with `end_lsn > after`, durable ones only, in commit order.
    pub fn reader(&self, after: PgLsn) -> Reader {
        Reader::new(Arc::clone(&self.0), after)
    }

    /// Begins writing behind what is durable, under a new connection generation: whatever was
    /// not durable, and files of transactions that never committed, are gone.
    ///
    /// # Errors
    /// [`Error::Busy`] while another writes; what the file system refused.
    pub fn writer(&self, stop: CancellationToken) -> Result<Writer, Error> {
        Writer::start(Arc::clone(&self.0), stop)
    }

    /// Everything up to `applied` is in the target: whole segments and files of transactions at
    /// or below it are removed.
    pub fn release(&self, applied: PgLsn) {
        let mut index = self.0.index();
        index.released_lsn = index.released_lsn.max(Some(applied));
        drop(index);
        self.0.release();
    }

    /// Removes the spool in `dir`, if there is one. What it holds exists nowhere else.
    ///
    /// # Errors
    /// [`Error::Locked`] while it is open; what the file system refused.
    pub fn remove(dir: &Path) -> Result<(), Error> {
        recovery::remove(dir)
    }

    /// Writes items as if they were received, and makes them durable. For tests.
    ///
    /// # Errors
    /// As [`Spool::writer`].
    #[doc(hidden)]
    pub fn append(&self, items: &[Item]) -> Result<(), Error> {
        self.writer(CancellationToken::new())?.append_items(items)
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic elsewhere leaves the index whole: each change of it is one statement.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of committed transactions, which are given back once they are applied.
    fn committed_bytes(&self) -> u64 {
        let index = self.index();
        index.segments.values().map(|segment| segment.bytes).sum::<u64>()
            + index.transactions.values().map(|file| file.bytes).sum::<u64>()
    }

    fn segment_path(&self, segment: u64) -> PathBuf {
        self.dir.join(recovery::segment_name(segment))
    }

    /// Publishes what is durable now.
    fn publish(&self, durable: Durable) {
        self.durable.send_replace(durable);
        self.spooled.send_if_modified(|spooled| {
            let moved = *spooled < durable.spooled_lsn;
            *spooled = durable.spooled_lsn;
            moved
        });
    }

    /// Removes what was released and is closed.
    fn release(&self) {
        let current = self.durable.borrow().segment;
        let mut index = self.index();
        let Some(applied) = index.released_lsn else { return };
        let mut freed = 0;
        while let Some(entry) = index.transactions.first_entry() {
            if *entry.key() > applied || remove_file(&entry.get().path).is_err() {
                break;
            }
            freed += entry.remove().bytes;
        }
        while let Some(entry) = index.segments.first_entry() {
            let is_done = *entry.key() < current && entry.get().last_end_lsn <= applied;
            if !is_done || remove_file(&self.segment_path(*entry.key())).is_err() {
                break;
            }
            freed += entry.remove().bytes;
        }
        if freed > 0 {
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
            self.released.notify_all();
        }
    }
}

/// Removes a file; one that is gone already is fine.
fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %source, "spool file not removed");
            Err(Error::io("remove", path, source))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
