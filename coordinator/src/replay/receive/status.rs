//! Status updates: what we tell the slot, and when.
//!
//! Promise: they wait for nobody; what is confirmed is durable here, and never goes back.

use super::{Error, Receiver, Retain, State};
use crate::replay::spool::Space;
use pg::{
    PgLsn,
    walsender::{Reply, StatusSender},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::MissedTickBehavior};

/// Longest pause between two updates. `wal_sender_timeout` is 60 s by default (manual,
/// runtime-config-replication); where it is shorter, a quarter of it.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// What the reading side tells the answering side.
#[derive(Debug, Default)]
pub(super) struct Heard {
    received_lsn: AtomicU64,
    reply_wanted: Notify,
}

impl Heard {
    pub(super) fn starting_at(lsn: PgLsn) -> Arc<Self> {
        Arc::new(Self { received_lsn: AtomicU64::new(lsn.into()), reply_wanted: Notify::new() })
    }

    pub(super) fn received(&self, lsn: PgLsn) {
        self.received_lsn.fetch_max(lsn.into(), Ordering::Relaxed);
    }

    pub(super) fn reply_wanted(&self) {
        self.reply_wanted.notify_one();
    }

    fn received_lsn(&self) -> PgLsn {
        self.received_lsn.load(Ordering::Relaxed).into()
    }
}

/// Pause between two updates under this server's `wal_sender_timeout`.
pub(super) fn interval(wal_sender_timeout: Duration) -> Duration {
    if wal_sender_timeout.is_zero() {
        STATUS_INTERVAL
    } else {
        STATUS_INTERVAL.min(wal_sender_timeout / 4).max(Duration::from_millis(10))
    }
}

/// Sends updates for ever: by the timer, after each sync, and when the server asks.
pub(super) async fn run(
    receiver: &Receiver,
    mut sender: StatusSender,
    heard: &Heard,
    interval: Duration,
) -> Result<(), Error> {
    let mut timer = tokio::time::interval(interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut spooled = receiver.spool.watch();
    let mut space = receiver.spool.space();
    let mut applied = receiver.applied.clone();
    let mut reply = Reply::NotNeeded;
    loop {
        let spooled_lsn = *spooled.borrow_and_update();
        let applied_lsn = *applied.borrow_and_update();
        let flush_lsn = match receiver.config.retain {
            Retain::Spool => spooled_lsn,
            Retain::Source => spooled_lsn.min(applied_lsn),
        };
        let received_lsn = heard.received_lsn();
        sender
            .status(received_lsn, flush_lsn, applied_lsn, reply)
            .await
            .map_err(|source| Error::Stream { slot: receiver.slot(), source })?;
        let state = match *space.borrow_and_update() {
            Space::Free | Space::Exceeded => State::Streaming,
            Space::Full | Space::DiskFull => State::SpoolFull,
        };
        receiver.state.send_modify(|seen| {
            seen.received_lsn = received_lsn.max(spooled_lsn);
            seen.confirmed_flush_lsn = flush_lsn;
            seen.state = state;
            seen.fault = None;
        });
        // 1 the server asks   2 synced   3 space   4 time   (the watermark goes along)
        reply = tokio::select! { biased;
            () = heard.reply_wanted.notified() => Reply::NotNeeded,
            Ok(()) = spooled.changed() => Reply::NotNeeded,
            Ok(()) = space.changed() => Reply::NotNeeded,
            // An idle server says how far it is when asked, else only every half timeout.
            _ = timer.tick() => Reply::Requested,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_come_several_times_in_a_wal_sender_timeout() {
        assert_eq!(interval(Duration::from_secs(60)), Duration::from_secs(10));
        assert_eq!(interval(Duration::from_secs(2)), Duration::from_millis(500));
        assert_eq!(interval(Duration::ZERO), Duration::from_secs(10));
    }
}
