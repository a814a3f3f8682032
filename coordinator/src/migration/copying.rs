//! Copying: waits for the last chunk and the last index, and mends what happens meanwhile.
//!
//! ```text
//! leases open under the live snapshots -> workers -> finished marks
//!     relation rewritten, snapshot lost -> new snapshot epoch -> those relations begin again
//! last chunk in -> snapshots dropped; last index in -> what needs them -> Copied
//! ```
//! Promise: finished relations are never copied again; unfinished ones begin again only where
//! their snapshot is lost or their file is another one; the stream is never broken.

use super::{
    connect::refused,
    context::Context,
    flow::{Flow, LOOK},
    phase::Event,
    provision::plan_leaves,
    replan, shape,
    tables::Adding,
};
use crate::{
    lease::{Finding, Leases},
    plan::{COPY_STAGE, REFRESH_STAGE, chunk::BLOCK_BYTES},
    schema::{Schema, Stage},
};
use pg::{Session, Settings, Sql, TableName, sql};
use proto::status::{Classify as _, Report};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// Pause between two looks at the holders: a sign of life goes to each as well.
const KEEP_SNAPSHOTS: Duration = Duration::from_secs(5);

/// A table that is copied in a second or so.
const SMALL_BYTES: u64 = 64 << 20;

/// How long a small table is kept from being rewritten.
const STILL: Duration = Duration::from_secs(10);

impl Flow {
    pub(super) async fn copying(&mut self) -> Result<Event, Report> {
        let context = self.context().await?;
        self.ensure_receiving(&context).await?;
        let leases = self.leases(&context).await?;
        self.finish_copies(&context, &leases).await?;
        self.shared().set_activity("making what needs the indexes");
        let schema = Schema::new(context.clone());
        let (archive, _) = schema.archive().await.map_err(|error| error.report())?;
        let not_moved =
            schema.restore(Stage::AfterBuild, &archive).await.map_err(|error| error.report())?;
        self.note_not_moved(not_moved).await?;
        Ok(Event::Copied)
    }

    /// Waits until every copy and build is finished. Nothing to do is soon done: later phases
    /// call it for tables that were added.
    pub(super) async fn finish_copies(
        &mut self,
        context: &Context,
        leases: &Leases,
    ) -> Result<(), Report> {
        loop {
            self.copy_once(context, leases).await?;
            self.drop_snapshots(context, leases).await?;
            // A table that was altered behind its last chunk has begun again.
            if leases.unfinished_through(REFRESH_STAGE - 1) == 0 {
                return Ok(());
            }
        }
    }

    async fn copy_once(&mut self, context: &Context, leases: &Leases) -> Result<(), Report> {
        if leases.unfinished_through(REFRESH_STAGE - 1) > 0 {
            self.shared().set_activity("copying");
            self.keep_snapshots(context, leases, true).await?;
        }
        let mut kept_at = Instant::now();
        while leases.unfinished_through(REFRESH_STAGE - 1) > 0 {
            self.check_stream()?;
            let findings = leases.take_findings();
            Self::faults_of(&findings)?;
            let rewritten = rewritten(&findings);
            if !rewritten.is_empty() {
                self.begin_again(context, leases, rewritten, &[]).await?;
            }
            let asked = findings.iter().any(|found| matches!(found, Finding::SnapshotLost { .. }));
            if asked || kept_at.elapsed() >= KEEP_SNAPSHOTS {
                kept_at = Instant::now();
                self.keep_snapshots(context, leases, false).await?;
            }
            self.watch_tables(context, Adding::Nothing).await?;
            if let Some(report) = replaced(&findings) {
                self.survey.now();
                let notices = self.record().notices.len();
                Box::pin(self.watch_tables(context, Adding::Replaced)).await?;
                if self.record().notices.len() == notices {
                    return Err(report);
                }
            }
            self.let_wait_end().await;
            let copies_left = leases.unfinished_through(COPY_STAGE);
            if copies_left == 0 {
                self.drop_snapshots(context, leases).await?;
            }
            let what = if copies_left == 0 { "building indexes" } else { "copying" };
            self.shared().set_activity(match leases.trouble() {
                Some(trouble) => format!("{what}; tried again: {trouble}"),
                None => what.to_owned(),
            });
            tokio::time::sleep(LOOK).await;
        }
        self.still = None;
        Ok(())
    }

    /// Holds every snapshot that unfinished relations need; relations whose snapshot is lost, or
    /// that were left half replanned by a killed coordinator, begin again under a new one.
    async fn keep_snapshots(
        &mut self,
        context: &Context,
        leases: &Leases,
        first: bool,
    ) -> Result<(), Report> {
        let unfinished = leases.unfinished_relations();
        if unfinished.is_empty() {
            leases.open(HashMap::new());
            return Ok(());
        }
        self.change(|record| {
            record.snapshots.retain(|one| unfinished.values().any(|epoch| *epoch == one.epoch));
        })
        .await?;
        let record = self.record().clone();
        self.snapshots.ping().await;
        let lost = self.snapshots.keep(context, &record, &self.fleet).await?;
        let live: Vec<u32> = record
            .snapshots
            .iter()
            .map(|snapshot| snapshot.epoch)
            .filter(|epoch| !lost.contains(epoch))
            .collect();
        let orphans: Vec<u32> = unfinished
            .iter()
            .filter(|(_, epoch)| !live.contains(epoch))
            .map(|(relid, _)| *relid)
            .collect();
        if !orphans.is_empty() {
            return self.begin_again(context, leases, orphans, &lost).await;
        }
        let names = self.snapshots.names(context, &self.fleet);
        let recorded = self.recorded_names(&names);
        // A name that a worker holds is worth recording: a killed coordinator finds it there.
        self.change(|record| {
            for snapshot in &mut record.snapshots {
                if let Some(names) = recorded.get(&snapshot.epoch) {
                    snapshot.names.clone_from(names);
                }
            }
        })
        .await?;
        if first {
            tracing::info!(snapshots = names.len(), relations = unfinished.len(), "copying");
        }
        leases.open(names);
        self.publish_snapshots(context);
        Ok(())
    }

    fn recorded_names(&self, live: &HashMap<u32, Vec<String>>) -> HashMap<u32, Vec<String>> {
        live.iter().filter(|(_, names)| !names.is_empty()).map(|(e, n)| (*e, n.clone())).collect()
    }

    /// Takes a new snapshot for `relids` and copies them again, from nothing, under it.
    async fn begin_again(
        &mut self,
        context: &Context,
        leases: &Leases,
        relids: Vec<u32>,
        lost: &[u32],
    ) -> Result<(), Report> {
        leases.close();
        self.still = None;
        let names: Vec<String> = leases
            .leaves()
            .iter()
            .filter(|leaf| relids.contains(&leaf.relid))
            .map(|leaf| leaf.source.to_string())
            .collect();
        tracing::warn!(tables = ?names, ?lost, "copied again under a new snapshot");
        let notice = format!("Copied again from its beginning: {}.", names.join(", "));
        let snapshot = self.next_snapshot(context, lost).await?;
        self.hold_still(context, leases, &relids).await?;
        let session = self.snapshots.session(context, "plan", snapshot.epoch).await?;
        let target = self.target(context, "plan").await?;
        let now = plan_leaves(context, &session, &target).await?;
        let mut leaves = Vec::new();
        for before in leases.leaves().iter().filter(|leaf| relids.contains(&leaf.relid)) {
            let same = shape::on_both(before, &now, &target).await?;
            leaves.push(same);
        }
        replan::begin_again(context, &target, &leaves, &snapshot).await?;
        leases.reload().await.map_err(|error| error.report())?;
        self.change(|record| {
            record.notices.push(notice);
        })
        .await?;
        leases.open(self.snapshots.names(context, &self.fleet));
        Ok(())
    }

    /// A small table that is rewritten faster than it is copied (a TRUNCATE every second) is
    /// locked in ACCESS SHARE mode from its second time on, from right after the new snapshot
    /// until its copy is in, for [`STILL`] at most. Not from before it: a TRUNCATE that waits for
    /// our lock has a transaction id, and the slot would wait for that. One that falls between
    /// costs another attempt.
    async fn hold_still(
        &mut self,
        context: &Context,
        leases: &Leases,
        relids: &[u32],
    ) -> Result<(), Report> {
        for relid in relids {
            *self.rewrites.entry(*relid).or_default() += 1;
        }
        let small: Vec<TableName> = leases
            .leaves()
            .iter()
            .filter(|leaf| {
                relids.contains(&leaf.relid)
                    && self.rewrites.get(&leaf.relid).is_some_and(|count| *count > 1)
                    && leaf.blocks * BLOCK_BYTES <= SMALL_BYTES
            })
            .map(|leaf| leaf.source.clone())
            .collect();
        if small.is_empty() {
            return Ok(());
        }
        let settings = Settings::read(context.session_name("still", 0))
            .encoding(super::context::UTF_8)
            .lock_timeout(Duration::from_secs(2));
        let session = Session::connect(&context.source, &settings)
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let list = Sql::join(small.iter().map(|table| sql!("only {}", table)), ", ");
        session
            .batch(&sql!("begin; lock table {} in access share mode", list))
            .await
            .map_err(|error| refused("hold a table still on the source", &error))?;
        self.still = Some((session, Instant::now()));
        Ok(())
    }

    /// Lets go of tables held still: in the end, and as soon as somebody waits for them, since our
    /// own copy would then wait behind him.
    async fn let_wait_end(&mut self) {
        let Some((session, since)) = &self.still else { return };
        let waited_for = sql!(
            "select exists (select from pg_catalog.pg_locks
  where not granted and pg_backend_pid() = any(pg_blocking_pids(pid)))"
        );
        let waits = session.query_one(&waited_for, &[]).await.map(|row| row.get::<_, bool>(0));
        if since.elapsed() > STILL || waits.unwrap_or(true) {
            self.still = None;
        }
    }

    /// Dropped when the last chunk is read, not at cutover: a held snapshot holds back vacuum
    /// and CREATE INDEX CONCURRENTLY on the source.
    async fn drop_snapshots(&mut self, context: &Context, leases: &Leases) -> Result<(), Report> {
        if self.record().snapshots.is_empty() {
            return Ok(());
        }
        let altered = shape::altered_since_copied(context, leases).await?;
        if !altered.is_empty() {
            // What a rewrite puts into old rows is not in the stream.
            return self.begin_again(context, leases, altered, &[]).await;
        }
        self.change(|record| record.snapshots.clear()).await?;
        self.snapshots.release();
        self.shared().set_holds(Vec::new());
        Ok(())
    }
}

fn rewritten(findings: &[Finding]) -> Vec<u32> {
    let mut relids: Vec<u32> = findings
        .iter()
        .filter_map(|found| match found {
            Finding::Rewritten { relid } => Some(*relid),
            Finding::Replaced(_) | Finding::SnapshotLost { .. } | Finding::Fault(_) => None,
        })
        .collect();
    relids.sort_unstable();
    relids.dedup();
    relids
}

fn replaced(findings: &[Finding]) -> Option<Report> {
    findings.iter().find_map(|found| match found {
        Finding::Replaced(report) => Some(report.clone()),
        Finding::Rewritten { .. } | Finding::SnapshotLost { .. } | Finding::Fault(_) => None,
    })
}
