//! `spool.meta`: whose changes a spool holds. Written once, last, so a spool without it is none.

use super::Error;
use pg::PgLsn;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

/// Format of the files; another one is refused.
const FORMAT: u32 = 1;

/// A reader of ours that was just dropped may still finish its last block on another thread.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

const META_NAME: &str = "spool.meta";
const LOCK_NAME: &str = "spool.lock";

/// Whose changes these are. Compared with the source before each stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolIdentity {
    /// Random; the migration record names it, since confirmations rest on this spool alone.
    pub spool_id: String,
    pub system_id: String,
    pub timeline: i32,
    pub slot: String,
    pub database: String,
    /// The slot's; the spool begins here.
    pub consistent_point: PgLsn,
}

impl SpoolIdentity {
    /// An identity with a new random `spool_id`.
    pub fn new(source: &pg::walsender::SystemId, slot: &pg::walsender::CreatedSlot) -> Self {
        Self {
            spool_id: format!("{:032x}", rand::random::<u128>()),
            system_id: source.system_id.clone(),
            timeline: source.timeline,
            slot: slot.name.clone(),
            database: source.database.clone(),
            consistent_point: slot.consistent_point,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Meta {
    format: u32,
    spool_id: String,
    system_id: String,
    timeline: i32,
    slot: String,
    database: String,
    consistent_point: String,
}

pub(super) fn exists(dir: &Path) -> bool {
    dir.join(META_NAME).exists()
}

/// Takes the lock on the directory; let go when the file is dropped, or the process dies.
pub(super) fn lock(dir: &Path) -> Result<File, Error> {
    use rustix::fs::{FlockOperation, flock};
    let path = dir.join(LOCK_NAME);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| Error::io("open", &path, source))?;
    for attempt in 1.. {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if attempt < LOCK_ATTEMPTS => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::Locked { dir: dir.to_owned() });
            }
            Err(errno) => return Err(Error::io("lock", &path, errno.into())),
        }
    }
    Ok(file)
}

pub(super) fn write(dir: &Path, identity: &SpoolIdentity) -> Result<(), Error> {
    let meta = Meta {
        format: FORMAT,
        spool_id: identity.spool_id.clone(),
        system_id: identity.system_id.clone(),
        timeline: identity.timeline,
        slot: identity.slot.clone(),
        database: identity.database.clone(),
        consistent_point: identity.consistent_point.to_string(),
    };
    let text = serde_json::to_vec_pretty(&meta)
        .map_err(|source| Error::Meta { dir: dir.to_owned(), source })?;
    let (temporary, path) = (dir.join("spool.meta.new"), dir.join(META_NAME));
    let written = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    written().map_err(|source| Error::io("write", &path, source))
}

pub(super) fn read(dir: &Path) -> Result<SpoolIdentity, Error> {
    let path = dir.join(META_NAME);
    let text = fs::read(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { dir: dir.to_owned() },
        _ => Error::io("read", &path, source),
    })?;
    let unreadable = |source| Error::Meta { dir: dir.to_owned(), source };
    let meta: Meta = serde_json::from_slice(&text).map_err(unreadable)?;
    if meta.format != FORMAT {
        return Err(Error::Version { dir: dir.to_owned(), found: meta.format, supported: FORMAT });
    }
    let consistent_point = meta
        .consistent_point
        .parse()
        .map_err(|_| unreadable(serde::de::Error::custom("consistent_point is not a position")))?;
    Ok(SpoolIdentity {
        spool_id: meta.spool_id,
        system_id: meta.system_id,
        timeline: meta.timeline,
        slot: meta.slot,
        database: meta.database,
        consistent_point,
    })
}

/// Removes the meta file durably: from here on the directory holds no spool.
pub(super) fn remove(dir: &Path) -> Result<(), Error> {
    let path = dir.join(META_NAME);
    super::remove_file(&path)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| Error::io("sync", dir, source))
}
