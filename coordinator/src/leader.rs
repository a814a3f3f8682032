//! Campaigns for leadership of a cluster of coordinators, and acts on what comes of it.
//!
//! ```text
//! standby --key free, campaign won--> leading --lease gone--> standby
//!    |  answers from the store           |  drives the migrations
//!    +-- LEADER_ELSEWHERE --> client     +-- SIGTERM: resigns, the next takes over at once
//! ```
//! Promise: nobody stops work because a renewal failed, only because the lease is over. While it
//! is not renewed nothing is granted ([`Registry::is_confirmed`]). Two that both think they lead
//! do no harm: the target's epoch fences the older one.

use crate::{
    registry::Registry,
    store::{
        self,
        etcd::{
            Etcd,
            election::{Campaign, Lease, Renewal},
        },
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Between two renewals: four of them fit into a lease.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Between two looks of a standby at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Campaigns until `token` is cancelled; then resigns.
pub async fn run(etcd: Etcd, registry: Arc<Registry>, address: String, token: CancellationToken) {
    while !token.is_cancelled() {
        let round = stand_by(&etcd, &registry, &address);
        let won = tokio::select! {
            won = round => won,
            () = token.cancelled() => return,
        };
        let (lease, until) = match won {
            Ok(won) => won,
            Err(error) => {
                tracing::warn!(%error, "could not campaign; trying again");
                tokio::select! {
                    () = sleep(LOOK_EVERY) => continue,
                    () = token.cancelled() => return,
                }
            }
        };
        tracing::info!(%address, "leading");
        registry.confirm(until);
        let over = lead(&etcd, &registry, lease);
        tokio::select! {
            () = over => {
                tracing::warn!("the lease is over; standing by");
                registry.stand_by(None).await;
            }
            () = token.cancelled() => {
                registry.stand_by(None).await;
                etcd.resign(lease).await;
            }
        }
    }
}

/// Waits until nobody leads, and campaigns.
async fn stand_by(
    etcd: &Etcd,
    registry: &Registry,
    address: &str,
) -> Result<(Lease, Instant), store::Error> {
    loop {
        if let Some(leader) = etcd.leader().await? {
            // Our own address: that of the process before this one, whose lease runs out.
            registry.follow((leader != address).then_some(leader));
            sleep(LOOK_EVERY).await;
            continue;
        }
        match etcd.campaign(address).await? {
            Campaign::Won { lease, until } => return Ok((lease, until)),
            Campaign::Lost { leader } => registry.follow(Some(leader)),
        }
    }
}

/// Renews and drives, until the lease is over.
async fn lead(etcd: &Etcd, registry: &Registry, lease: Lease) {
    let renewing = async {
        loop {
            match etcd.renew(lease).await {
                Ok(Renewal::Until(until)) => registry.confirm(until),
                Ok(Renewal::Gone) => return,
                Err(error) => tracing::warn!(%error, "lease was not renewed; trying again"),
            }
            sleep(RENEW_EVERY).await;
        }
    };
    let driving = async {
        while let Err(error) = registry.lead().await {
            tracing::warn!(%error, "could not read the migrations; trying again");
            sleep(LOOK_EVERY).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = renewing => {}
        () = driving => {}
    }
}
