//! Renews leases, reports holders, and does what comes back.
//!
//! ```text
//! leases, holders --> Heartbeat --> fenced, revoked -> leases
//!                                   holds           -> holders
//!                                   rate, drain     -> copying, leasing
//! ```
//! Promise: a heartbeat that failed ends nothing; only a coordinator that was silent for the
//! whole orphan timeout does. Nothing is obeyed from one that does not know us.

use crate::{
    backoff::Backoff,
    lease::{Ending, Key},
    run::Shared,
};
use proto::{status::Report, v1};
use std::time::Duration;
use tracing::{info, warn};

/// Shortest pause between two heartbeats, whatever the coordinator asks for.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Fewest calls in a row that failed before a worker takes itself for an orphan.
const FAILURES_MIN: u32 = 3;

/// The coordinator was silent for too long.
#[derive(Debug)]
pub(crate) struct Orphaned;

/// Beats until the worker is orphaned.
pub(crate) async fn run(shared: &Shared) -> Orphaned {
    let mut interval = match register(shared).await {
        Ok(interval) => interval,
        Err(orphaned) => return orphaned,
    };
    let mut failures = 0;
    let mut backoff = Backoff::new();
    loop {
        let answer = shared.client.heartbeat(shared.leases.held(), shared.holders.held()).await;
        match answer {
            Ok(answer) if answer.unknown => match register(shared).await {
                Ok(again) => {
                    interval = again;
                    continue;
                }
                Err(orphaned) => return orphaned,
            },
            Ok(answer) => {
                if failures > 0 {
                    info!("the coordinator answers again");
                }
                failures = 0;
                backoff.reset();
                obey(shared, answer);
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = shared.holders.changed() => {}
                }
            }
            Err(report) => {
                if failures == 0 {
                    warn!(error = %report, "the coordinator does not answer; work goes on");
                }
                failures += 1;
                if is_orphaned(shared, failures) {
                    return Orphaned;
                }
                backoff.pause().await;
            }
        }
    }
}

/// Announces the worker until it is heard.
async fn register(shared: &Shared) -> Result<Duration, Orphaned> {
    let mut backoff = Backoff::new();
    let mut said: Option<Report> = None;
    let mut failures = 0;
    loop {
        match shared.client.register(shared.slots).await {
            Ok(interval) => {
                info!(interval_ms = interval.as_millis(), "registered with the coordinator");
                return Ok(interval.max(INTERVAL_MIN));
            }
            Err(report) => {
                failures += 1;
                if is_orphaned(shared, failures) {
                    return Err(Orphaned);
                }
                if said.as_ref() != Some(&report) {
                    warn!(error = %report, "could not register with the coordinator; trying on");
                    said = Some(report);
                }
                backoff.pause().await;
            }
        }
    }
}

/// One failed call is not enough: our own process may have been stopped for a while.
fn is_orphaned(shared: &Shared, failures: u32) -> bool {
    failures >= FAILURES_MIN && shared.client.silence() >= shared.orphan_timeout
}

fn obey(shared: &Shared, answer: v1::HeartbeatResponse) {
    for held in &answer.fenced {
        shared.leases.end(&Key::from(held), Ending::Fenced);
    }
    for held in &answer.revoked {
        shared.leases.end(&Key::from(held), Ending::Revoked);
    }
    if !answer.holds_unknown {
        shared.holders.keep(answer.holds);
    }
    shared.rate.limit(answer.rate_bytes_per_s);
    shared.draining.send_if_modified(|draining| {
        let changed = *draining != answer.drain;
        *draining = answer.drain;
        changed
    });
}
