//! Who leads, by a lease in etcd: the key `/leader` stands as long as its holder renews.
//!
//! Promise: at most one lease holds the key; a lease that was not renewed for [`TTL`] while etcd
//! could count is gone. That gives liveness; safety is the target's fence (rules, part 9).

use super::{Error, Etcd, EtcdError, TRY, Trouble};
use crate::store::key;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use std::time::Duration;
use tokio::time::Instant;

/// How long a leader that fell silent stays one.
pub const TTL: Duration = Duration::from_secs(5);

/// A lease that holds the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(i64);

/// What a campaign came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Campaign {
    /// Ours, and until when at least.
    Won { lease: Lease, until: Instant },
    /// Someone else leads, at this address.
    Lost { leader: String },
}

/// What a renewal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    Until(Instant),
    /// It is over: someone else may lead.
    Gone,
}

impl Etcd {
    /// The address of who leads.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn leader(&self) -> Result<Option<String>, Error> {
        let full = self.key(key::LEADER);
        let answer = self
            .answered(|client| {
                let full = full.clone();
                async move { client.kv_client().get(full, None).await }
            })
            .await?;
        Ok(answer.kvs().first().map(|kv| String::from_utf8_lossy(kv.value()).into_owned()))
    }

    /// Takes the key, if nobody holds it.
    ///
    /// # Errors
    /// When etcd does not answer; a lease that was taken all the same ends by itself.
    pub async fn campaign(&self, address: &str) -> Result<Campaign, Error> {
        let asked_at = Instant::now();
        let ttl_s = i64::try_from(TTL.as_secs()).unwrap_or(i64::MAX);
        let granted = self
            .answered(|client| async move { client.lease_client().grant(ttl_s, None).await })
            .await?;
        let lease = granted.id();
        let full = self.key(key::LEADER);
        let put = TxnOp::put(full.clone(), address, Some(PutOptions::new().with_lease(lease)));
        let txn = Txn::new()
            .when([Compare::create_revision(full.clone(), CompareOp::Equal, 0)])
            .and_then([put])
            .or_else([TxnOp::get(full, None)]);
        let answer = self
            .answered(|client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?;
        let won = Campaign::Won { lease: Lease(lease), until: asked_at + TTL };
        if answer.succeeded() {
            return Ok(won);
        }
        let held = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().cloned(),
            _ => None,
        });
        // An earlier try of ours whose answer was lost.
        if held.as_ref().is_some_and(|held| held.lease() == lease) {
            return Ok(won);
        }
        self.resign(Lease(lease)).await;
        let leader = held.map(|held| String::from_utf8_lossy(held.value()).into_owned());
        Ok(Campaign::Lost { leader: leader.unwrap_or_default() })
    }

    /// Renews once; no second try, the next renewal is that.
    ///
    /// # Errors
    /// When etcd does not answer: the lease may live on.
    pub async fn renew(&self, lease: Lease) -> Result<Renewal, Error> {
        let asked_at = Instant::now();
        let renewed = async { self.client().await?.lease_client().keep_alive(lease.0).await };
        match tokio::time::timeout(TRY, renewed).await {
            Ok(Ok(_)) => Ok(Renewal::Until(asked_at + TTL)),
            Ok(Err(EtcdError::LeaseKeepAliveError(reason))) if reason == LEASE_NOT_FOUND => {
                Ok(Renewal::Gone)
            }
            Ok(Err(error)) => Err(Trouble::Unanswered(error.to_string()).into()),
            Err(_) => Err(Trouble::Unanswered("no answer".to_owned()).into()),
        }
    }

    /// Gives the key back at once. Where that fails, the lease runs out.
    pub async fn resign(&self, lease: Lease) {
        let revoked = async { self.client().await?.lease_client().revoke(lease.0).await };
        match tokio::time::timeout(TRY, revoked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "lease is left to run out"),
            Err(_) => tracing::debug!("lease is left to run out"),
        }
    }
}

/// etcd-client's word for a renewal of a lease that is over.
const LEASE_NOT_FOUND: &str = "lease not found";
