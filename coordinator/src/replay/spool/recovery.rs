//! Making and opening a spool: what lies in the directory, and what of it counts.
//!
//! Promise: nothing is changed by opening. A tail that does not bear its checksum is passed over
//! in the last segment, where a crash may leave one; elsewhere it is [`Error::Corrupt`]. Whether
//! the tail held something confirmed is told by the source's `confirmed_flush_lsn`, which is
//! checked before the first [`super::Writer`] cuts it.

use super::{
    Durable, Error, Index, Segment, Shared, SpoolIdentity, TransactionFile,
    append::sync_dir,
    format::{
        BlockHeader, FLAG_REFERENCES, FLAG_RELATIONS, FLAG_SNAPSHOT, HEADER_BYTES, Kind,
        SEGMENT_HEADER_BYTES, parse_segment_header, segment_header, take_entry, take_reference,
    },
    meta, remove_file,
};
use bytes::Bytes;
use pg::PgLsn;
use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _},
    path::{Path, PathBuf},
};

/// Number of a new spool's segment.
pub(super) const FIRST_SEGMENT: u64 = 1;

pub(super) struct Found {
    pub(super) identity: SpoolIdentity,
    pub(super) durable: Durable,
    pub(super) index: Index,
    pub(super) bytes: u64,
    pub(super) next_generation: u64,
    pub(super) lock: File,
}

pub(super) fn segment_name(segment: u64) -> String {
    format!("{segment:016x}.seg")
}

pub(super) fn transaction_name(generation: u64, xid: u32) -> String {
    format!("{generation:08x}-{xid:08x}.txn")
}

pub(super) fn create(dir: &Path, identity: &SpoolIdentity) -> Result<(), Error> {
    // Rows lie in it: it is nobody else's to read, wherever it is.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| Error::io("create", dir, source))?;
    let _lock = meta::lock(dir)?;
    if meta::exists(dir) {
        return Err(Error::Exists { dir: dir.to_owned() });
    }
    // A creation that was cut short left no meta file, so nothing here counts.
    for path in spool_files(dir)? {
        remove_file(&path)?;
    }
    let path = dir.join(segment_name(FIRST_SEGMENT));
    File::create_new(&path)
        .and_then(|mut file| {
            file.write_all(&segment_header(FIRST_SEGMENT, identity.consistent_point))?;
            file.sync_all()
        })
        .map_err(|source| Error::io("create", &path, source))?;
    sync_dir(dir)?;
    meta::write(dir, identity)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

pub(super) fn remove(dir: &Path) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let _lock = meta::lock(dir)?;
    // First the meta file: a removal that is cut short leaves no spool.
    meta::remove(dir)?;
    spool_files(dir)?.iter().try_for_each(|path| remove_file(path))
}

pub(super) fn open(dir: &Path) -> Result<Found, Error> {
    if !meta::exists(dir) {
        return Err(Error::Missing { dir: dir.to_owned() });
    }
    let lock = meta::lock(dir)?;
    let identity = meta::read(dir)?;
    let mut scan = Scan { dir, index: Index::default(), last_generation: 0 };
    let numbers = segment_numbers(dir)?;
    let mut durable = None;
    for (i, segment) in numbers.iter().enumerate() {
        let is_last = i + 1 == numbers.len();
        match scan.segment(*segment, is_last)? {
            Some(end) => durable = Some(end),
            // The crash came while it was made: the one before is the last.
            None if durable.is_some() => {}
            None => return Err(Error::corrupt(&dir.join(segment_name(*segment)), 0)),
        }
    }
    let durable =
        durable.ok_or_else(|| Error::corrupt(&dir.join(segment_name(FIRST_SEGMENT)), 0))?;
    let index = scan.index;
    let bytes = index.segments.values().map(|segment| segment.bytes).sum::<u64>()
        + index.transactions.values().map(|file| file.bytes).sum::<u64>();
    Ok(Found { identity, durable, index, bytes, next_generation: scan.last_generation + 1, lock })
}

/// Numbers of the segments, ascending and without a gap: what lies before a gap was released,
/// and its removal not yet durable.
fn segment_numbers(dir: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers: Vec<u64> = spool_files(dir)?
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .filter_map(|path| u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok())
        .collect();
    numbers.sort_unstable();
    let gap = numbers.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    if let Some(before) = gap {
        numbers.drain(..=before);
    }
    Ok(numbers)
}

fn spool_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::io("read", dir, source);
    let ours = ["seg", "txn"].map(OsString::from);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|extension| ours.iter().any(|ours| ours == extension)) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Removes what is not durable: files of transactions without a reference, segments behind the
/// last. At the start of a connection.
pub(super) fn remove_strays(shared: &Shared, durable: Durable) -> Result<(), Error> {
    let mut index = shared.index();
    // A reference that did not become durable refers to nothing.
    index.transactions.retain(|end_lsn, _| *end_lsn <= durable.spooled_lsn);
    let mut known: HashSet<PathBuf> =
        index.transactions.values().map(|file| file.path.clone()).collect();
    known.extend(index.segments.keys().map(|segment| shared.segment_path(*segment)));
    drop(index);
    for path in spool_files(&shared.dir)? {
        if !known.contains(&path) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

struct Scan<'a> {
    dir: &'a Path,
    index: Index,
    last_generation: u64,
}

impl Scan<'_> {
    /// Looks through one segment: its end, or None when it has no header.
    fn segment(&mut self, segment: u64, is_last: bool) -> Result<Option<Durable>, Error> {
        let path = self.dir.join(segment_name(segment));
        let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        let read = |source| Error::io("read", &path, source);
        let file_bytes = file.metadata().map_err(read)?.len();
        let mut head = [0; SEGMENT_HEADER_BYTES];
        if !read_at(&file, &mut head, 0).map_err(read)? {
            return if is_last { Ok(None) } else { Err(Error::corrupt(&path, 0)) };
        }
        let Ok(base_lsn) = parse_segment_header(&head, segment) else {
            return if is_last { Ok(None) } else { Err(Error::corrupt(&path, 0)) };
        };
        // The latest relations are those of the last segment.
        self.index.relations.clear();
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        let mut spooled_lsn = base_lsn;
        while offset < file_bytes {
            match self.block(&file, offset, is_last).map_err(read)? {
                Some(header) => {
                    offset += HEADER_BYTES as u64 + u64::from(header.stored_bytes);
                    spooled_lsn = header.last_end_lsn;
                }
                None if is_last => {
                    tracing::warn!(path = %path.display(), offset, "spool has a torn tail");
                    break;
                }
                None => return Err(Error::corrupt(&path, offset)),
            }
        }
        let found = Segment { base_lsn, last_end_lsn: spooled_lsn, bytes: offset };
        self.index.segments.insert(segment, found);
        Ok(Some(Durable { segment, offset, spooled_lsn }))
    }

    /// Looks at one block; None when it is damaged. Payloads are read where they matter: in the
    /// last segment, whose tail may be torn, and where there are references.
    fn block(&mut self, file: &File, offset: u64, check: bool) -> io::Result<Option<BlockHeader>> {
        let mut head = [0; HEADER_BYTES];
        if !read_at(file, &mut head, offset)? {
            return Ok(None);
        }
        let Ok(header) = BlockHeader::parse(&head) else { return Ok(None) };
        let of_interest = FLAG_REFERENCES | FLAG_RELATIONS | FLAG_SNAPSHOT;
        if !check && header.flags & of_interest == 0 {
            return Ok(Some(header));
        }
        let mut stored = vec![0; header.stored_bytes as usize];
        if !read_at(file, &mut stored, offset + HEADER_BYTES as u64)? {
            return Ok(None);
        }
        let Ok(mut entries) = header.open(&stored) else { return Ok(None) };
        loop {
            match take_entry(&mut entries) {
                Ok(Some(entry)) if entry.kind == Kind::Reference => {
                    let Ok(reference) = take_reference(entry.payload) else { return Ok(None) };
                    self.last_generation = self.last_generation.max(reference.generation);
                    let end_lsn = reference.begin.end_lsn;
                    let name = transaction_name(reference.generation, reference.begin.xid);
                    self.transaction(self.dir.join(name), end_lsn, reference.stored_bytes);
                }
                Ok(Some(entry)) if matches!(entry.kind, Kind::Relation | Kind::Type) => {
                    self.relation(&entry.payload);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Some(header)),
                Err(_) => return Ok(None),
            }
        }
    }

    /// A file that is gone was released; a reader that needs it says so.
    fn transaction(&mut self, path: PathBuf, end_lsn: PgLsn, bytes: u64) {
        if path.exists() {
            self.index.transactions.insert(end_lsn, TransactionFile { path, bytes });
        }
    }

    fn relation(&mut self, message: &Bytes) {
        if let (Some(tag), Some(oid)) = (message.first(), message.get(1..5)) {
            let oid = oid.iter().fold(0, |oid, byte| oid << 8 | u32::from(*byte));
            self.index.relations.insert((*tag, oid), message.clone());
        }
    }
}

/// Fills `buffer` from `offset`; false when the file ends before.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
