//! Leases that were not renewed are ended, by the leader's own monotonic clock.

use super::{LEASE_TIME, Leases};
use tokio::time::Instant;

impl Leases {
    /// Makes tasks ready again whose worker was not heard of for [`LEASE_TIME`]. The next grant
    /// ends what is left of the old one in the target first.
    pub fn expire(&self) -> Vec<(u64, String)> {
        let mut state = self.state();
        let now = Instant::now();
        let expired: Vec<(u64, String)> = state
            .held
            .iter()
            .filter(|(_, lease)| now.duration_since(lease.renewed_at) >= LEASE_TIME)
            .map(|(task_id, lease)| (*task_id, lease.worker.clone()))
            .collect();
        for (task_id, _) in &expired {
            state.held.remove(task_id);
            state.queue.returned(*task_id);
        }
        drop(state);
        if !expired.is_empty() {
            self.tick();
        }
        expired
    }
}
