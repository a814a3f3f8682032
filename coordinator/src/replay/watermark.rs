//! What counts as applied: committed and flushed on the target.
//!
//! ```text
//! lanes --Committed--> watermark --applied_lsn--> status, spool.release
//!                          ^ pg_current_wal_flush_lsn()
//! ```
//! Promise: no position counts before its commit is flushed (with synchronous_commit off a lane
//! said 2,000 and an immediate restart left 1,961; rules, part 5).

use super::{
    error::{Error, Result},
    lane::Committed,
};
use pg::{PgLsn, Session, sql};
use std::time::Duration;
use tokio::sync::mpsc;

/// Pause between two looks at the target's flush position. Its WAL writer flushes what was
/// committed asynchronously after at most three times wal_writer_delay (200 ms; manual, async commit).
const POLL: Duration = Duration::from_millis(50);

/// Positions of the lanes that are flushed, and commits that are not yet. Pure.
#[derive(Debug)]
pub struct Watermark {
    lanes: Vec<PgLsn>,
    waiting: Vec<Committed>,
}

impl Watermark {
    pub fn new(lanes: Vec<PgLsn>) -> Self {
        Self { lanes, waiting: Vec::new() }
    }

    pub fn committed(&mut self, committed: Committed) {
        self.waiting.push(committed);
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The target is flushed up to `flush_lsn`: the commits that count from now on.
    pub fn flushed(&mut self, flush_lsn: PgLsn) -> Vec<Committed> {
        let (counted, waiting): (Vec<Committed>, Vec<Committed>) =
            self.waiting.drain(..).partition(|committed| committed.target_lsn <= flush_lsn);
        self.waiting = waiting;
        for committed in &counted {
            for lane in committed.lanes.clone() {
                self.lanes[lane] = self.lanes[lane].max(committed.end_lsn);
            }
        }
        counted
    }

    /// Lowest position over all lanes.
    pub fn applied_lsn(&self) -> PgLsn {
        self.lanes.iter().copied().min().unwrap_or(PgLsn::from(0))
    }
}

/// Follows the lanes until they are gone; `moved` hears the watermark and what was counted.
///
/// # Errors
/// When the target's session fails: positions are to be read again.
pub async fn follow(
    session: Session,
    mut watermark: Watermark,
    mut commits: mpsc::Receiver<Committed>,
    moved: impl Fn(PgLsn, &[Committed]) + Send,
) -> Result<()> {
    moved(watermark.applied_lsn(), &[]);
    let mut open = true;
    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while open || watermark.is_waiting() {
        // 1 a look at the target   2 commits
        tokio::select! { biased;
            _ = poll.tick(), if watermark.is_waiting() => {}
            committed = commits.recv(), if open => {
                match committed {
                    Some(committed) => watermark.committed(committed),
                    None => open = false,
                }
                continue;
            }
        }
        let row = session
            .query_one(&sql!("select pg_current_wal_flush_lsn()"), &[])
            .await
            .map_err(Error::target("read its flush position"))?;
        let counted = watermark.flushed(row.get(0));
        if !counted.is_empty() {
            moved(watermark.applied_lsn(), &counted);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(lane: usize, end: u64, target: u64) -> Committed {
        Committed {
            lanes: lane..lane + 1,
            end_lsn: PgLsn::from(end),
            target_lsn: PgLsn::from(target),
            transactions: 1,
            changes: 1,
            commit_time_us: 0,
        }
    }

    #[test]
    fn only_what_is_flushed_counts() {
        let mut watermark = Watermark::new(vec![PgLsn::from(10), PgLsn::from(10)]);
        watermark.committed(commit(0, 20, 100));
        watermark.committed(commit(1, 20, 200));
        assert_eq!(watermark.flushed(PgLsn::from(150)).len(), 1);
        assert_eq!(watermark.applied_lsn(), PgLsn::from(10));
        assert_eq!(watermark.flushed(PgLsn::from(200)).len(), 1);
        assert_eq!(watermark.applied_lsn(), PgLsn::from(20));
        assert!(!watermark.is_waiting());
    }
}
