//! A worker says that it is alive, and which leases it holds.

use super::{Lease, Leases};
use proto::v1;
use tokio::time::Instant;

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
        verdict
    }
}

/// Whether the lease is this worker's, under this token.
pub(super) fn is_of(lease: &Lease, worker: &str, token: u64) -> bool {
    lease.token == token && lease.worker == worker
}
