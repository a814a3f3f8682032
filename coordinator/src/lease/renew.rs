//! A worker says that it is alive, and which leases it holds.

use super::{Lease, Leases};
use proto::v1;
use std::time::Duration;
use tokio::time::Instant;

/// How long a lease may be missing from its worker's heartbeats: the answer that grants it and the
/// next heartbeat may cross.
const SILENT: Duration = Duration::from_secs(6);

/// What a worker must do about its leases.
#[derive(Debug, Default)]
pub struct Verdict {
    pub fenced: Vec<v1::HeldLease>,
    pub revoked: Vec<v1::HeldLease>,
}

impl Leases {
    /// Renews those of `leases` that are this worker's; says which are not, and which are
    /// wanted back.
    pub fn renew(&self, worker: &str, leases: &[v1::HeldLease]) -> Verdict {
        let mut state = self.state();
        let mut verdict = Verdict::default();
        let now = Instant::now();
        for held in leases.iter().filter(|held| held.migration == self.context.name) {
            match state.held.get_mut(&held.task_id) {
                Some(lease) if is_of(lease, worker, held.fencing_token) => {
                    lease.renewed_at = now;
                    lease.bytes = held.bytes;
                    if lease.revoked {
                        verdict.revoked.push(held.clone());
                    }
                }
                // Finished and its report not yet seen by the worker, or another's now.
                _ => verdict.fenced.push(held.clone()),
            }
        }
        // What it does not speak of it does not have: its process is a new one, or the answer
        // that granted it was lost.
        let silent: Vec<u64> = state
            .held
            .iter()
            .filter(|(task_id, lease)| {
                lease.worker == worker
                    && now.duration_since(lease.renewed_at) >= SILENT
                    && !leases.iter().any(|held| held.task_id == **task_id)
            })
            .map(|(task_id, _)| *task_id)
            .collect();
        for task_id in silent {
            state.held.remove(&task_id);
            state.queue.returned(task_id);
        }
        verdict
    }
}

/// Whether the lease is this worker's, under this token.
pub(super) fn is_of(lease: &Lease, worker: &str, token: u64) -> bool {
    lease.token == token && lease.worker == worker
}
