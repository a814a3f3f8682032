//! Copying: waits for the last chunk and the last index, and mends what happens meanwhile.
//!
//! ```text
//! leases open under the live snapshots -> workers -> finished marks
//!     relation rewritten, snapshot lost -> new snapshot epoch -> those relations begin again
//! last chunk in -> snapshots dropped; last index in -> what needs them -> Copied
//! ```
//! Promise: finished relations are never copied again; unfinished ones begin again only where
//! their snapshot is lost or their file is another one; the stream is never broken.

pub mod still;

use super::{
    context::Context,
    flow::{Flow, LOOK},
    phase::Event,
    provision::plan_leaves,
    replan, shape,
    tables::Adding,
};
use crate::{
    lease::{Finding, Leases},
    plan::{COPY_STAGE, Leaf, REFRESH_STAGE},
    schema::{Schema, Stage},
    store::record::Snapshot,
};
use pg::TableName;
use proto::status::{Classify as _, Report};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use still::Still;
use tokio::time::Instant;

/// Pause between two looks at the holders: a sign of life goes to each as well.
const KEEP_SNAPSHOTS: Duration = Duration::from_secs(5);

impl Flow {
    pub(super) async fn copying(&mut self) -> Result<Event, Report> {
        let context = self.context().await?;
        self.receive_or_wait(&context).await?;
        let leases = self.leases(&context).await?;
        self.finish_copies(&context, &leases).await?;
        // The archive of the schema lies beside the spool: from here on nothing goes without.
        self.ensure_receiving(&context).await?;
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
            // Into a table that is being copied nothing is replayed.
            if let Some(stream) = &mut self.stream {
                stream.stop_replay().await;
            }
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
        let mut relids = with_siblings(leases, relids);
        self.hold_still(context, leases, &relids).await?;
        let names: Vec<String> = leases
            .leaves()
            .iter()
            .filter(|leaf| relids.contains(&leaf.relid))
            .map(|leaf| leaf.source.to_string())
            .collect();
        tracing::warn!(tables = ?names, ?lost, "copied again under a new snapshot");
        let notice = format!("Copied again from its beginning: {}.", names.join(", "));
        let snapshot = self.next_snapshot(context, lost).await?;
        if let Some(still) = self.still.take() {
            let target = self.target(context, "still").await?;
            let copied = still.copy(context, &target, &snapshot).await;
            relids.retain(|relid| !copied.contains(relid));
        }
        if let Err(report) = self.plan_again(context, leases, (&relids, &snapshot)).await {
            // Not held for nothing while a person mends what it is.
            self.change(|record| record.snapshots.retain(|one| one.epoch != snapshot.epoch))
                .await?;
            return Err(report);
        }
        leases.reload().await.map_err(|error| error.report())?;
        self.change(|record| {
            // One that is truncated for hours is named once.
            if !record.notices.contains(&notice) {
                record.notices.push(notice);
            }
        })
        .await?;
        leases.open(self.snapshots.names(context, &self.fleet));
        Ok(())
    }

    /// Empties them on the target and plans them as the snapshot shows them.
    async fn plan_again(
        &self,
        context: &Context,
        leases: &Leases,
        (relids, snapshot): (&HashSet<u32>, &Snapshot),
    ) -> Result<(), Report> {
        if relids.is_empty() {
            return Ok(());
        }
        let session = self.snapshots.session(context, "plan", snapshot.epoch).await?;
        let target = self.target(context, "plan").await?;
        let mut now: HashMap<u32, Leaf> = plan_leaves(context, &session, &target)
            .await?
            .into_iter()
            .map(|leaf| (leaf.relid, leaf))
            .collect();
        let mut leaves = Vec::new();
        for before in leases.leaves().iter().filter(|leaf| relids.contains(&leaf.relid)) {
            leaves.push(shape::on_both(before, now.remove(&before.relid), &target).await?);
        }
        replan::begin_again(context, &target, &leaves, snapshot).await
    }

    /// From its second time on a small table is copied by the session that locks it, see [`Still`].
    async fn hold_still(
        &mut self,
        context: &Context,
        leases: &Leases,
        relids: &HashSet<u32>,
    ) -> Result<(), Report> {
        for relid in relids {
            *self.rewrites.entry(*relid).or_default() += 1;
        }
        self.still = None;
        let again = |leaf: &Leaf| self.rewrites.get(&leaf.relid).is_some_and(|times| *times > 1);
        let leaves: Vec<Arc<Leaf>> = leases
            .leaves()
            .into_iter()
            .filter(|leaf| relids.contains(&leaf.relid) && again(leaf) && Still::takes(leaf))
            .collect();
        if leaves.is_empty() {
            return Ok(());
        }
        let target = self.target(context, "plan").await?;
        let ended: Vec<u32> = leaves.iter().map(|leaf| leaf.relid).collect();
        replan::end_copies(context, &target, &ended).await?;
        self.still = Some(Still::open(context, leaves).await?);
        Ok(())
    }

    /// What was altered meanwhile is copied again. Else snapshots are dropped when the last chunk
    /// is read, not at cutover: a held one holds back vacuum and CREATE INDEX CONCURRENTLY on the
    /// source.
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

/// Leaves whose rows go through one root are emptied together, and so copied together.
fn with_siblings(leases: &Leases, relids: Vec<u32>) -> HashSet<u32> {
    let mut relids: HashSet<u32> = relids.into_iter().collect();
    let leaves = leases.leaves();
    let through_root = || leaves.iter().filter(|leaf| leaf.through_root);
    let roots: HashSet<&TableName> = through_root()
        .filter(|leaf| relids.contains(&leaf.relid))
        .map(|leaf| &leaf.target)
        .collect();
    let siblings = through_root().filter(|leaf| roots.contains(&leaf.target));
    relids.extend(siblings.map(|leaf| leaf.relid));
    relids
}
