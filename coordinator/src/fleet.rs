//! The workers that speak to this coordinator, and the processes it supervises itself.

pub mod supervise;

use proto::v1;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Pause between two heartbeats of a worker: with `observe::SLOW_LOOK` it bounds how long a session
/// of the application waits for a lock of ours.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// A worker is forgotten when it was silent for this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Member {
    announced: v1::RegisterWorkerRequest,
    seen_at: Instant,
    running: u32,
    holders: Vec<v1::Holder>,
}

/// Who is there.
#[derive(Debug, Default)]
pub struct Fleet {
    members: Mutex<HashMap<String, Member>>,
    /// Workers are asked to finish and leave.
    draining: std::sync::atomic::AtomicBool,
    /// Another coordinator may have led, and may hold a spool.
    several: std::sync::atomic::AtomicBool,
}

impl Fleet {
    /// A worker announced itself.
    pub fn register(&self, request: v1::RegisterWorkerRequest) {
        let member = Member {
            seen_at: Instant::now(),
            running: 0,
            holders: Vec::new(),
            announced: request.clone(),
        };
        self.members().insert(request.worker_id, member);
    }

    /// A sign of life. False: it is not known here, and must register.
    pub fn heard(&self, request: &v1::HeartbeatRequest) -> bool {
        let mut members = self.members();
        members.retain(|_, member| member.seen_at.elapsed() < FORGOTTEN_AFTER);
        let Some(member) = members.get_mut(&request.worker_id) else { return false };
        member.seen_at = Instant::now();
        member.running = u32::try_from(request.leases.len()).unwrap_or(u32::MAX);
        member.holders.clone_from(&request.holders);
        true
    }

    /// Snapshot names that living workers export for a migration.
    pub fn snapshots(&self, migration: &str, snapshot_epoch: u32) -> Vec<String> {
        let mut names: Vec<String> = self
            .members()
            .values()
            .filter(|member| member.seen_at.elapsed() < HEARTBEAT * 5)
            .flat_map(|member| &member.holders)
            .filter(|holder| {
                holder.migration == migration && holder.snapshot_epoch == snapshot_epoch
            })
            .map(|holder| holder.snapshot.clone())
            .collect();
        names.sort();
        names
    }

    /// As `skein workers` shows them.
    pub fn list(&self) -> Vec<v1::Worker> {
        let draining = self.is_draining();
        let mut workers: Vec<v1::Worker> = self
            .members()
            .values()
            .map(|member| v1::Worker {
                worker_id: member.announced.worker_id.clone(),
                host: member.announced.host.clone(),
                pid: member.announced.pid,
                slots: member.announced.slots,
                running: member.running,
                seen_at: Some(crate::clock::timestamp_before(member.seen_at.elapsed())),
                draining,
                version: member.announced.version.clone(),
            })
            .collect();
        workers.sort_by(|a, b| a.worker_id.cmp(&b.worker_id));
        workers
    }

    /// Nothing needs workers any more, or something does again.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether this coordinator is one of several.
    pub fn set_several(&self, several: bool) {
        self.several.store(several, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn has_several(&self) -> bool {
        self.several.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn members(&self) -> MutexGuard<'_, HashMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
