//! Keeps snapshots alive on the source.
//!
//! ```text
//! heartbeat --holds--> Holders --one session each--> import, export again, `select 1`
//!     ^                   |
//!     +------ names ------+
//! ```
//! Promise: a held snapshot's session does nothing else (a failed statement would drop it); one
//! that is no longer listed is let go; a lost one is imported again from any live name.

use crate::{backoff::Backoff, snapshot};
use pg::{Conninfo, Session, SessionName, Settings, sql};
use proto::v1;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tracing::{info, warn};

/// Pause between two signs of life (rules, part 2).
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// An idle session answers at once; TCP gives up a dead peer after about ten seconds.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// How soon a closed session is noticed.
const CLOSED_INTERVAL: Duration = Duration::from_millis(500);

/// Migration and snapshot epoch.
type Key = (String, u32);

/// All snapshots held here.
#[derive(Clone, Debug)]
pub(crate) struct Holders {
    worker_id: Arc<str>,
    wanted: watch::Sender<Vec<v1::Hold>>,
    held: Arc<Mutex<BTreeMap<Key, String>>>,
    changed: Arc<Notify>,
}

impl Holders {
    pub(crate) fn new(worker_id: &str) -> Self {
        Self {
            worker_id: worker_id.into(),
            wanted: watch::Sender::new(Vec::new()),
            held: Arc::default(),
            changed: Arc::default(),
        }
    }

    /// Hold exactly these from now on.
    pub(crate) fn keep(&self, holds: Vec<v1::Hold>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != holds;
            *wanted = holds;
            changed
        });
    }

    /// As reported in a heartbeat.
    pub(crate) fn held(&self) -> Vec<v1::Holder> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter()
            .map(|((migration, snapshot_epoch), snapshot)| v1::Holder {
                migration: migration.clone(),
                snapshot_epoch: *snapshot_epoch,
                snapshot: snapshot.clone(),
            })
            .collect()
    }

    /// Returns when a snapshot was taken or lost since it last returned.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Holds what is wanted, for ever.
    pub(crate) async fn run(&self) {
        let mut wanted = self.wanted.subscribe();
        let mut sessions = JoinSet::new();
        let mut running: HashMap<Key, (watch::Sender<v1::Hold>, AbortHandle)> = HashMap::new();
        loop {
            let holds = wanted.borrow_and_update().clone();
            running.retain(|key, (_, session)| {
                let keep = holds.iter().any(|hold| key_of(hold) == *key) && !session.is_finished();
                if !keep {
                    session.abort();
                    self.forget(key);
                }
                keep
            });
            for hold in holds {
                match running.get(&key_of(&hold)) {
                    Some((names, _)) => {
                        names.send_replace(hold);
                    }
                    None => {
                        let key = key_of(&hold);
                        let (names, listed) = watch::channel(hold);
                        let session = sessions.spawn(self.clone().hold(listed));
                        running.insert(key, (names, session));
                    }
                }
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                Some(_) = sessions.join_next() => {}
            }
        }
    }

    /// Holds one snapshot until aborted.
    async fn hold(self, listed: watch::Receiver<v1::Hold>) {
        let mut backoff = Backoff::new();
        let mut said = false;
        loop {
            let hold = listed.borrow().clone();
            let (migration, snapshot_epoch) = key_of(&hold);
            match self.take(&hold).await {
                Ok(Some((session, name))) => {
                    info!(migration, snapshot_epoch, snapshot = name, "snapshot held");
                    self.remember(&hold, name);
                    backoff.reset();
                    said = false;
                    outlive(&session).await;
                    self.forget(&key_of(&hold));
                    warn!(migration, snapshot_epoch, "the session that held a snapshot was lost");
                }
                Ok(None) if !said => {
                    warn!(migration, snapshot_epoch, "no live snapshot to hold");
                    said = true;
                }
                Err(error) if !said => {
                    warn!(migration, snapshot_epoch, %error, "could not hold a snapshot");
                    said = true;
                }
                Ok(None) | Err(_) => {}
            }
            backoff.pause().await;
        }
    }

    /// Imports one of the listed snapshots and exports it again.
    async fn take(&self, hold: &v1::Hold) -> pg::Result<Option<(Session, String)>> {
        let conninfo = hold.source.as_ref().map_or("", |source| source.conninfo.as_str());
        let conninfo = Conninfo::parse(conninfo)?;
        let name = SessionName::new(&hold.migration, hold.epoch, "holder", &self.worker_id);
        let session = Session::connect(&conninfo, &Settings::read(name)).await?;
        if !snapshot::import(&session, &hold.snapshots).await? {
            return Ok(None);
        }
        let row = session.query_one(&sql!("select pg_export_snapshot()"), &[]).await?;
        let name = row.get(0);
        Ok(Some((session, name)))
    }

    fn remember(&self, hold: &v1::Hold, name: String) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(key_of(hold), name);
        self.changed.notify_one();
    }

    fn forget(&self, key: &Key) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.changed.notify_one();
    }
}

fn key_of(hold: &v1::Hold) -> Key {
    (hold.migration.clone(), hold.snapshot_epoch)
}

/// Returns when the session is gone.
async fn outlive(session: &Session) {
    let mut pinged_at = Instant::now();
    while !session.is_closed() {
        tokio::time::sleep(CLOSED_INTERVAL).await;
        if pinged_at.elapsed() < PING_INTERVAL {
            continue;
        }
        pinged_at = Instant::now();
        let ping = tokio::time::timeout(PING_TIMEOUT, session.batch(&sql!("select 1"))).await;
        if !matches!(ping, Ok(Ok(()))) {
            return;
        }
    }
}
