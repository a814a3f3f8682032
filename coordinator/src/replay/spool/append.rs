//! A file that only grows, and what to do when the disk is full.

use super::{Error, Shared, Space};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Pause between two looks at a full disk, or a full spool that nobody has released from.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// Bytes read and written at once when a file is written again.
const PIECE_BYTES: usize = 1024 * 1024;

/// While transactions in progress fill the spool, committed ones may take this part of its limit:
/// twice what a segment does, since the current one is not given back.
const COMMITTED_PART: u64 = 4;

/// A file of this name in the spool's directory makes each sync fail: for a test.
#[cfg(test)]
pub(super) const FAIL_SYNC: &str = "fail-sync";

/// A file open for appending.
#[derive(Debug)]
pub(super) struct AppendFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl AppendFile {
    /// A new file; one that is there already is an error.
    pub(super) fn create(path: PathBuf) -> Result<Self, Error> {
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| Error::io("create", &path, source))?;
        Ok(Self { file, path, len: 0 })
    }

    /// Opens a file to go on at `len`; what stands behind is cut off.
    pub(super) fn reopen(path: PathBuf, len: u64) -> Result<Self, Error> {
        let file = File::options()
            .write(true)
            .open(&path)
            .map_err(|source| Error::io("open", &path, source))?;
        file.set_len(len).map_err(|source| Error::io("cut", &path, source))?;
        Ok(Self { file, path, len })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends all of `bytes`, or nothing. While the disk is full it waits, and tries the same
    /// bytes at the same place again: nothing was synced, so nothing is lost by that.
    pub(super) fn append(
        &mut self,
        bytes: &[u8],
        shared: &Shared,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        loop {
            match self.file.write_all_at(bytes, self.len) {
                Ok(()) => break,
                Err(source) if is_full(&source) => {
                    self.cut()?;
                    wait_for_room(shared, stop)?;
                }
                Err(source) => {
                    self.cut()?;
                    return Err(Error::io("write", &self.path, source));
                }
            }
        }
        self.len += bytes.len() as u64;
        shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes what it holds once more. A process before this one may have been killed ahead of its
    /// sync, or right after one that failed: then the kernel takes these pages for clean and a
    /// sync says nothing of them.
    pub(super) fn write_again(&self) -> Result<(), Error> {
        let failed = |source| Error::io("rewrite", &self.path, source);
        let reader = File::open(&self.path).map_err(failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = 0;
        while at < self.len {
            let left = usize::try_from(self.len - at).unwrap_or(PIECE_BYTES);
            let piece = &mut piece[..left.min(PIECE_BYTES)];
            reader.read_exact_at(piece, at).map_err(failed)?;
            self.file.write_all_at(piece, at).map_err(failed)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes data and length durable. A failure is final for this file: see [`Error::Sync`].
    pub(super) fn sync(&self) -> Result<(), Error> {
        #[cfg(test)]
        if self.path.with_file_name(FAIL_SYNC).exists() {
            let source = io::Error::other("told to fail");
            return Err(Error::Sync { path: self.path.clone(), source });
        }
        self.file.sync_data().map_err(|source| Error::Sync { path: self.path.clone(), source })
    }

    fn cut(&self) -> Result<(), Error> {
        self.file.set_len(self.len).map_err(|source| Error::io("cut", &self.path, source))
    }
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| Error::Sync { path: dir.to_owned(), source })
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn wait_for_room(shared: &Shared, stop: &CancellationToken) -> Result<(), Error> {
    if stop.is_cancelled() {
        return Err(Error::Stopped);
    }
    if *shared.space.borrow() != Space::DiskFull {
        tracing::warn!(dir = %shared.dir.display(), "disk of the spool is full, waiting for room");
        shared.space.send_replace(Space::DiskFull);
    }
    let index = shared.index();
    drop(shared.released.wait_timeout(index, FULL_PAUSE));
    Ok(())
}

/// Waits while the spool is over its limit and waiting can help. Gives up when stopped.
pub(super) fn wait_below_limit(shared: &Shared, stop: &CancellationToken) -> Result<(), Error> {
    let mut now = space(shared);
    while now == Space::Full {
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        tell(shared, now);
        let index = shared.index();
        drop(shared.released.wait_timeout(index, FULL_PAUSE));
        now = space(shared);
    }
    tell(shared, now);
    Ok(())
}

/// Whether it takes more now, the disk aside.
pub(super) fn space(shared: &Shared) -> Space {
    if shared.bytes.load(Ordering::Relaxed) < shared.limit_bytes {
        Space::Free
    } else if shared.committed_bytes() <= shared.limit_bytes / COMMITTED_PART {
        Space::Exceeded
    } else {
        Space::Full
    }
}

fn tell(shared: &Shared, space: Space) {
    if *shared.space.borrow() == space {
        return;
    }
    let limit_bytes = shared.limit_bytes;
    match space {
        Space::Full => tracing::warn!(limit_bytes, "spool is full, receiving stops"),
        Space::Exceeded => tracing::warn!(
            limit_bytes,
            "spool is over its limit by transactions in progress on the source, receiving goes on"
        ),
        Space::Free | Space::DiskFull => {}
    }
    shared.space.send_replace(space);
}
