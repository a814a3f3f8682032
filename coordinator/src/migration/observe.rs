//! Looks at the source about once a second: positions, retained WAL, who waits for us; ends
//! leases that were not renewed; takes samples for the rates.
//!
//! Promise: an ungranted lock request behind one of our chunks has that chunk handed back within
//! five seconds (rules, part 1). What it fails to see is only not shown.

use super::{context::Context, meter::Meter, shared::Shared};
use crate::source::{slot, watch};
use pg::{PgLsn, Session, sql};
use proto::v1;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// How often the slower questions are asked: each is a set query over activity and locks.
const SLOW_LOOK: Duration = Duration::from_secs(2);

/// Runs until cancelled.
pub async fn run(context: Context, shared: Arc<Shared>, token: CancellationToken) {
    let mut session: Option<Session> = None;
    let mut meter = Meter::new(&context.name);
    let mut slow_at = Instant::now();
    let mut state = v1::SourceState::default();
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if let Some(leases) = shared.leases() {
            for (task_id, worker) in leases.expire() {
                tracing::warn!(task_id, worker, "lease ended: its worker was not heard of");
            }
        }
        shared.sample();
        meter.record(&shared);
        if session.as_ref().is_none_or(Session::is_closed) {
            session = context.source_session("observe", 0).await.ok();
        }
        let Some(open) = &session else { continue };
        let slow = slow_at.elapsed() >= SLOW_LOOK;
        if slow {
            slow_at = Instant::now();
        }
        if look(&context, &shared, open, (slow, &mut state)).await.is_none() {
            session = None;
        }
    }
}

async fn look(
    context: &Context,
    shared: &Shared,
    session: &Session,
    (slow, state): (bool, &mut v1::SourceState),
) -> Option<()> {
    // A standby has no current position; preflight refuses one.
    let row = session.query_one(&sql!("select pg_current_wal_lsn()"), &[]).await.ok()?;
    let source_lsn: PgLsn = row.get(0);
    shared.change_stream(|stream| stream.source_lsn = source_lsn.into());
    if !slow {
        return Some(());
    }
    let ours = format!("skein/{}/", context.name);
    if let Some(found) = slot::inspect(session, &context.slot_name()).await.ok()? {
        state.retained_wal_bytes = found.retained_wal_bytes;
    }
    let oldest = slot::oldest_transaction(session).await.ok()?;
    state.oldest_transaction_age_s = oldest.as_ref().map_or(0, |oldest| oldest.age_s);
    state.oldest_transaction = oldest.map(|oldest| oldest.to_string()).unwrap_or_default();
    state.waiting_for_us = slot::waiting_for_us(session, &ours).await.ok()?;
    let record = shared.record();
    state.holder_count = if record.snapshots.is_empty() {
        0
    } else {
        let holders = crate::source::holder::sessions(session, &context.name).await.ok()?;
        u32::try_from(holders).unwrap_or(0)
    };
    for blocked in watch::blocked_by_us(session, &ours).await.ok()? {
        let task = task_of(&blocked.our_application);
        tracing::warn!(
            waiting_pid = blocked.waiting_pid,
            mode = blocked.mode,
            task_id = task,
            "a session waits for our lock; the chunk is handed back"
        );
        if let (Some(task_id), Some(leases)) = (task, shared.leases()) {
            leases.revoke(task_id);
        }
    }
    shared.set_source(state.clone());
    Some(())
}

/// Task id in `skein/NAME/EPOCH/read/TASK.TOKEN`.
fn task_of(application: &str) -> Option<u64> {
    let mut parts = application.split('/').skip(3);
    (parts.next()? == "read").then_some(())?;
    parts.next()?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_is_read_from_a_session_name() {
        assert_eq!(task_of("skein/shop/3/read/17.204"), Some(17));
        assert_eq!(task_of("skein/shop/3/holder/1"), None);
        assert_eq!(task_of("psql"), None);
    }
}
