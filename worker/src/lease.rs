//! The leases this worker holds: what it reports, and how each is ended.
//!
//! ```text
//! run --hold--> Lease <--end-- heartbeat (fenced, revoked), drain
//! ```
//! Promise: a lease is in the table from its grant until its completion or release was
//! acknowledged (or its holder was dropped); being fenced or revoked ends the work, a missed
//! heartbeat does not (rules, part 9).

use proto::v1;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;

/// Which grant of which task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) migration: String,
    pub(crate) task: u64,
    pub(crate) token: u64,
}

/// Why work on a task was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The lease is no longer ours.
    Fenced,
    /// The coordinator wants it back: a pause, or a session waits for our lock.
    Revoked,
    /// This worker stops.
    Drained,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fenced => "its lease is another worker's",
            Self::Revoked => "the coordinator asked for it",
            Self::Drained => "the worker stops",
        })
    }
}

#[derive(Debug)]
struct Entry {
    bytes: Arc<AtomicU64>,
    ending: watch::Sender<Option<Ending>>,
}

/// All leases of this worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases(Arc<Mutex<HashMap<Key, Entry>>>);

impl Leases {
    /// Puts a granted lease into the table.
    pub(crate) fn hold(&self, key: Key) -> Lease {
        let bytes = Arc::new(AtomicU64::new(0));
        let (ending, ended) = watch::channel(None);
        let entry = Entry { bytes: Arc::clone(&bytes), ending };
        self.lock().insert(key.clone(), entry);
        Lease { key, bytes, ended, leases: self.clone() }
    }

    /// Ends the work under one lease; one that is not held is passed over.
    pub(crate) fn end(&self, key: &Key, ending: Ending) {
        if let Some(entry) = self.lock().get(key) {
            entry.ending.send_replace(Some(ending));
        }
    }

    /// Ends the work under all of them.
    pub(crate) fn end_all(&self, ending: Ending) {
        for entry in self.lock().values() {
            entry.ending.send_replace(Some(ending));
        }
    }

    /// As reported in a heartbeat.
    pub(crate) fn held(&self) -> Vec<v1::HeldLease> {
        let leases = self.lock();
        leases.iter().map(|(key, entry)| key.held(entry.bytes.load(Ordering::Relaxed))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    fn held(&self, bytes: u64) -> v1::HeldLease {
        v1::HeldLease {
            migration: self.migration.clone(),
            task_id: self.task,
            fencing_token: self.token,
            bytes,
        }
    }
}

impl From<&v1::HeldLease> for Key {
    fn from(held: &v1::HeldLease) -> Self {
        Self { migration: held.migration.clone(), task: held.task_id, token: held.fencing_token }
    }
}

/// One held lease; leaves the table when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: Key,
    bytes: Arc<AtomicU64>,
    ended: watch::Receiver<Option<Ending>>,
    leases: Leases,
}

impl Lease {
    /// Counts COPY bytes read from the source.
    pub(crate) fn read(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// COPY bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until the work is to end, and says why.
    pub(crate) async fn ended(&self) -> Ending {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|ending| *ending) {
            Ok(Some(ending)) => ending,
            // The table's entry went away: nobody can end it any more.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(token: u64) -> Key {
        Key { migration: "m".to_owned(), task: 1, token }
    }

    #[tokio::test]
    async fn an_older_grant_of_the_same_task_is_ended_alone() {
        let leases = Leases::default();
        let (old, new) = (leases.hold(key(1)), leases.hold(key(2)));
        leases.end(&key(1), Ending::Fenced);
        assert_eq!(old.ended().await, Ending::Fenced);
        assert!(futures::FutureExt::now_or_never(new.ended()).is_none());
        leases.end_all(Ending::Drained);
        assert_eq!(new.ended().await, Ending::Drained);
    }

    #[test]
    fn a_dropped_lease_is_no_longer_reported() {
        let leases = Leases::default();
        let lease = leases.hold(key(1));
        lease.read(10);
        assert_eq!(leases.held()[0].bytes, 10);
        drop(lease);
        assert!(leases.held().is_empty());
    }
}
