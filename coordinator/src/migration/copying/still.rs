//! Copies small tables that are rewritten faster than a worker comes to them.
//!
//! ```text
//! a TRUNCATE every 100 ms: snapshot -> rewritten before its chunk is read -> snapshot -> ...
//! here: snapshot -> lock, by the session that then copies -> rows and finished mark
//! ```
//! The same session, since a lock held for another one does not help: the waiting TRUNCATE
//! stands before everybody who asks for the table after it, our workers too. After the snapshot,
//! since its slot waits for every transaction that has written, and so for a TRUNCATE that waits
//! for us. Promise: whoever waits for us waits [`HELD`] at most; rows, mark and consistent point
//! are one target transaction; what does not succeed is left to the workers.

use crate::{
    migration::{connect::refused, context::Context, cutover::off_stream, replan},
    plan::{Leaf, chunk::BLOCK_BYTES},
    source::{catalog, holder},
    store::record::Snapshot,
    target,
};
use pg::{Error, Result, Session, Settings, Sql, sql};
use proto::status::Report;
use std::{collections::HashSet, sync::Arc, time::Duration};

/// A table that is copied in a second or so.
const SMALL_BYTES: u64 = 64 << 20;

/// How long the source's tables may be locked altogether.
const HELD: Duration = Duration::from_secs(10);

/// How long a lock may be waited for: everybody queues behind us meanwhile.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// A session that locks some tables on the source as soon as there is a snapshot.
#[derive(Debug)]
pub struct Still {
    session: Session,
    leaves: Vec<Arc<Leaf>>,
    /// Locked, under the snapshot.
    ready: bool,
}

impl Still {
    /// Whether a table may be copied this way.
    pub fn takes(leaf: &Leaf) -> bool {
        !leaf.through_root && leaf.condition.is_none() && leaf.blocks * BLOCK_BYTES <= SMALL_BYTES
    }

    /// Locks nothing yet.
    ///
    /// # Errors
    /// When the source cannot be reached.
    pub async fn open(context: &Context, leaves: Vec<Arc<Leaf>>) -> Result<Self, Report> {
        let settings = Settings::read(context.session_name("still", 0))
            .encoding(crate::migration::context::UTF_8)
            .lock_timeout(LOCK_TIMEOUT);
        let session = Session::connect(&context.source, &settings)
            .await
            .map_err(|error| refused("reach the source", &error))?;
        Ok(Self { session, leaves, ready: false })
    }

    /// Imports the snapshot and takes the locks. The server ends them by itself, too.
    pub async fn lock(&mut self, snapshot: &str) {
        let tables = self.leaves.iter().map(|leaf| sql!("only {}", leaf.source));
        let lock = sql!(
            "set local idle_in_transaction_session_timeout = {};
lock table {} in access share mode",
            u64::try_from(HELD.as_millis()).unwrap_or(u64::MAX),
            Sql::join(tables, ", ")
        );
        let locked = async {
            holder::begin_under(&self.session, snapshot).await?;
            self.session.batch(&lock).await
        };
        match locked.await {
            Ok(()) => self.ready = true,
            Err(error) => tracing::info!(%error, "tables are not held still"),
        }
    }

    /// Copies what was locked before it was rewritten. Returns what is in.
    pub async fn copy(
        self,
        context: &Context,
        target: &Session,
        snapshot: &Snapshot,
    ) -> HashSet<u32> {
        let mut copied = HashSet::new();
        if !self.ready {
            return copied;
        }
        let all = async {
            for leaf in &self.leaves {
                if self.copy_one(context, target, (leaf, snapshot)).await? {
                    copied.insert(leaf.relid);
                }
            }
            Ok::<(), Error>(())
        };
        match tokio::time::timeout(HELD, all).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "a table held still is left to the workers"),
            Err(_) => tracing::info!("tables are held still for too long, and left to the workers"),
        }
        copied
    }

    async fn copy_one(
        &self,
        context: &Context,
        target: &Session,
        (before, snapshot): (&Leaf, &Snapshot),
    ) -> Result<bool> {
        let now = sql!(
            "select to_regclass($1)::oid = $2 and pg_catalog.pg_relation_filenode($2) is not null,
       pg_catalog.pg_relation_filenode($2)"
        );
        let row =
            self.session.query_one(&now, &[&before.source.to_string(), &before.relid]).await?;
        let seen = catalog::leaf(&self.session, before.relid, "").await?;
        let Some(seen) = seen.filter(|seen| {
            // The file of now is the snapshot's, and stays it while we hold the lock.
            row.get::<_, Option<bool>>(0) == Some(true)
                && row.get::<_, Option<u32>>(1) == Some(seen.filenode)
                && (&seen.columns, &seen.types) == (&before.columns, &before.types)
        }) else {
            return Ok(false);
        };
        let leaf = Leaf { filenode: seen.filenode, blocks: seen.blocks, ..before.clone() };
        target.batch(&sql!("begin")).await?;
        if target.query_opt(&target::fence(context.epoch), &[]).await?.is_none() {
            target.batch(&sql!("rollback")).await?;
            return Ok(false);
        }
        target.batch(&replan::emptied(context, &leaf, snapshot)).await?;
        let rows =
            off_stream::copy_rows(context, (&self.session, target), &leaf, &Sql::from("")).await?;
        target
            .batch(&sql!(
                "update skein.task set finished_at = clock_timestamp(), rows = {}, bytes = size_bytes
 where relid = {} and kind = 'copy';
commit",
                rows,
                leaf.relid
            ))
            .await?;
        Ok(true)
    }
}
