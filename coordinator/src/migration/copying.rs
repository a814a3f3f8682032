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
    replan,
    tables::Adding,
};
use crate::{
    lease::{Finding, Leases},
    plan::{COPY_STAGE, Leaf, REFRESH_STAGE, chunk::BLOCK_BYTES},
    schema::{Schema, Stage},
    source::catalog,
};
use pg::{Session, Settings, Sql, TableName, sql};
use proto::status::{Classify as _, Report};
use std::{collections::HashMap, sync::Arc, time::Duration};
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
            if self.still.as_ref().is_some_and(|(_, since)| since.elapsed() > STILL) {
                self.still = None;
            }
            let copies_left = leases.unfinished_through(COPY_STAGE);
            if copies_left == 0 {
                self.drop_snapshots(context, leases).await?;
            }
            self.shared().set_activity(if copies_left == 0 {
                "building indexes"
            } else {
                "copying"
            });
            tokio::time::sleep(LOOK).await;
        }
        self.still = None;
        self.drop_snapshots(context, leases).await
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
            leaves.push(same_shape(before, &now)?);
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

    /// Compares the files of all copied relations once more after the last chunk. A rewrite that
    /// left the columns as they were (VACUUM FULL) does no harm then, since each chunk was read
    /// under a lock with the right file.
    async fn shape_after_copy(&self, context: &Context, leases: &Leases) -> Result<(), Report> {
        let session = context
            .source_session("plan", "filenodes")
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let leaves = leases.leaves();
        let relids: Vec<u32> = leaves.iter().map(|leaf| leaf.relid).collect();
        let files = catalog::filenodes(&session, &relids)
            .await
            .map_err(|error| refused("compare the tables' files", &error))?;
        let filter = super::provision::filter_of(context)?;
        let now: HashMap<u32, Leaf> = catalog::leaves(&session, &filter)
            .await
            .map_err(|error| refused("compare the tables", &error))?
            .into_iter()
            .map(|leaf| (leaf.relid, leaf))
            .collect();
        for leaf in &leaves {
            let changed = now
                .get(&leaf.relid)
                .is_some_and(|now| now.columns != leaf.columns || now.types != leaf.types);
            let rewritten = files.get(&leaf.relid) != Some(&leaf.filenode);
            if leaf.condition.is_none() && rewritten && changed {
                return Err(schema_changed(leaf));
            }
        }
        Ok(())
    }

    /// Dropped when the last chunk is read, not at cutover: a held snapshot holds back vacuum
    /// and CREATE INDEX CONCURRENTLY on the source.
    async fn drop_snapshots(&mut self, context: &Context, leases: &Leases) -> Result<(), Report> {
        if self.record().snapshots.is_empty() {
            return Ok(());
        }
        self.shape_after_copy(context, leases).await?;
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

/// The leaf as the new snapshot shows it, if its columns are still those of the target.
fn same_shape(before: &Arc<Leaf>, now: &[Leaf]) -> Result<Leaf, Report> {
    let Some(found) = now.iter().find(|leaf| leaf.relid == before.relid) else {
        return Err(Report::definite(
            "RELATION_REPLACED",
            format!("table {} is gone on the source", before.source),
        )
        .with_detail("It was dropped after the plan was made.")
        .with_hint("Abort this migration and begin again without the table: skein abort"));
    };
    if found.columns != before.columns
        || found.types != before.types
        || found.source != before.source
    {
        return Err(schema_changed(before));
    }
    Ok(found.clone())
}

fn schema_changed(leaf: &Leaf) -> Report {
    Report::definite("SCHEMA_CHANGED", format!("table {} was altered on the source", leaf.source))
        .with_detail("Its columns or their types are not those of the target any more.")
        .with_hint(format!(
            "Alter {} on the target in the same way and run: skein resume. Or undo it on the source.",
            leaf.target
        ))
}
