//! Whole transactions that go to the lanes together. Pure.
//!
//! In: transactions in commit order. Out: each lane's share. Promise: a lane skips what ends at or
//! before its own position, and nothing else.

use super::{route::Routing, row::Event, spool::Begin};
use pg::PgLsn;

/// Changes of one batch over all lanes. Large enough that COPY and one COMMIT are shared by many,
/// small enough that a batch takes well under a second and a lane sees the others' pace.
const BATCH_CHANGES: usize = 10_000;

/// Bytes of one batch over all lanes; with one batch waiting per lane and one under way, replay
/// holds about three times this.
pub(super) const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// What is gathered and not handed over.
#[derive(Debug, Default)]
pub struct Gathering {
    shares: Vec<Vec<Event>>,
    changes: usize,
    bytes: usize,
    end_lsn: Option<PgLsn>,
    pub commit_time_us: i64,
    pub transactions: u64,
}

impl Gathering {
    pub fn new(lanes: usize) -> Self {
        Self { shares: vec![Vec::new(); lanes], ..Self::default() }
    }

    /// Adds a transaction without barrier, each change to its lane's share.
    pub fn add(
        &mut self,
        begin: Begin,
        events: Vec<Event>,
        bytes: usize,
        (routing, positions): (&Routing, &[PgLsn]),
    ) {
        self.changes += events.len();
        self.bytes += bytes;
        self.end_lsn = Some(begin.end_lsn);
        self.commit_time_us = begin.commit_time_us;
        self.transactions += 1;
        for event in events {
            // Barriers run alone; what is no change has no lane of its own.
            let Event::Change(change) = &event else { continue };
            let lane = routing.lane(change);
            if begin.end_lsn > positions[lane] {
                self.shares[lane].push(event);
            }
        }
    }

    pub fn is_full(&self) -> bool {
        self.changes >= BATCH_CHANGES || self.bytes >= BATCH_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.end_lsn.is_none()
    }

    pub fn end_lsn(&self) -> Option<PgLsn> {
        self.end_lsn
    }

    /// Its end, if there is one; the shares are to be taken next.
    pub fn close(&mut self) -> Option<PgLsn> {
        (self.changes, self.bytes) = (0, 0);
        self.end_lsn.take()
    }

    pub fn share(&mut self, lane: usize) -> Vec<Event> {
        std::mem::take(&mut self.shares[lane])
    }
}
