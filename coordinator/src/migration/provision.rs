//! Provisioning: everything that must stand before the first row is copied.
//!
//! ```text
//! identities (written down on the target first) -> publications -> slot, snapshot, spool
//!   -> receiving -> roles, schema before data -> plan -> large objects
//! ```
//! Promise: each line leaves a mark or can be seen on the server, so that a kill anywhere goes on
//! there. A slot without a recorded holder was never confirmed: it is dropped and made anew
//! (rules, part 3).

use super::{
    connect::refused,
    context::Context,
    flow::Flow,
    phase::Event,
    replan::{self, build_task, copy_tasks},
};
use crate::{
    filter::Filter,
    plan::{ANALYZE_ROOTS_STAGE, Leaf, TABLE_BUILD_STAGE, Task},
    replay::spool::{Spool, SpoolIdentity},
    schema::{
        SNAPSHOT_OUTDATED, Schema, Stage, build_tasks, extension_config_tables, refresh_tasks,
    },
    source::{
        catalog,
        identity::{self, Choices, Decision, Originals, Publish},
        publication, slot, watch,
    },
    store::record::{Snapshot, Stream},
    target,
};
use pg::{Session, Settings, TableName, sql, sql::Literal, walsender::SlotLifetime};
use proto::status::{Classify as _, Report};
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

/// How long the tables' locks for REPLICA IDENTITY may take altogether.
const IDENTITY_DEADLINE: Duration = Duration::from_secs(600);

/// Snapshots taken in a row for one schema, where a table is dropped under each.
const SNAPSHOTS_FOR_SCHEMA: u32 = 5;

/// Bytes the spool may hold when the spec says nothing.
const DEFAULT_SPOOL_BYTES: u64 = 64 << 30;

/// Step under which the replaced replica identities are written down.
pub const ORIGINALS: &str = "source/identity_originals";
/// Step under which the published tables are written down.
pub const KNOWN: &str = "source/known";

impl Flow {
    pub(super) async fn provision(&mut self) -> Result<Event, Report> {
        let context = self.context().await?;
        let session = self.target(&context, "provision").await?;
        if self.record().stream.is_none() {
            self.publish(&context, &session).await?;
            self.open_stream(&context).await?;
        }
        self.ensure_receiving(&context).await?;
        let mut snapshot = self.ensure_snapshot(&context).await?;
        let mut again = SNAPSHOTS_FOR_SCHEMA;
        while let Err(report) = self.restore_schema(&context, &snapshot).await {
            again -= 1;
            if report.reason != SNAPSHOT_OUTDATED || again == 0 {
                return Err(report);
            }
            snapshot = self.next_snapshot(&context, &[snapshot.epoch]).await?;
        }
        self.plan(&context, &session, &snapshot).await?;
        let stream = self.record().stream.clone();
        let consistent_point =
            stream.map_or(snapshot.consistent_point, |stream| stream.consistent_point);
        Ok(Event::Provisioned { consistent_point })
    }

    /// Identities, then publications, each committed before the next.
    async fn publish(&mut self, context: &Context, target: &Session) -> Result<(), Report> {
        self.shared().set_activity("making the publications on the source");
        let filter = filter_of(context)?;
        let settings = Settings::write(context.session_name("publish", 0))
            .encoding(crate::migration::context::UTF_8);
        let source = Session::connect(&context.source, &settings)
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let survey = identity::survey(&source, &filter).await.map_err(report)?;
        let decisions = decide(context, &survey)?;
        // Written down before the first change, and never forgotten by a second run, which sees
        // FULL where the first one set it.
        let known: Originals = read_step(target, ORIGINALS).await?.unwrap_or_default();
        let originals = known.merged_with(identity::originals(&survey, &decisions));
        write_step(context, target, ORIGINALS, &originals).await?;
        identity::set_identities(&source, &originals, IDENTITY_DEADLINE).await.map_err(report)?;
        publication::create(&source, context, &decisions).await.map_err(report)?;
        write_step(context, target, KNOWN, &watch::known(&survey, &decisions)).await
    }

    /// Slot, snapshot, holders, spool; then the record that names them.
    async fn open_stream(&mut self, context: &Context) -> Result<(), Report> {
        self.shared().set_activity("creating the replication slot");
        let session = context
            .source_session("slot", "check")
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let ours = format!("skein/{}/", context.name);
        slot::drop(&session, &context.slot_name(), &ours).await.map_err(report)?;
        let shared = std::sync::Arc::clone(self.shared());
        let taken = self
            .snapshots
            .take(context, &shared, &context.slot_name(), (SlotLifetime::Permanent, 1, None))
            .await?;
        let dir = self.spool_dir();
        let spool_failed = |error: crate::replay::spool::Error| error.report();
        Spool::remove(&dir).map_err(spool_failed)?;
        let identity = SpoolIdentity {
            spool_id: format!("{:032x}", rand::random::<u128>()),
            system_id: taken.system.system_id.clone(),
            timeline: taken.system.timeline,
            slot: context.slot_name(),
            database: taken.system.database.clone(),
            consistent_point: taken.snapshot.consistent_point,
        };
        Spool::create(&dir, identity.clone(), spool_limit(context)).map_err(spool_failed)?;
        self.change(|record| {
            record.stream = Some(Stream {
                slot: identity.slot,
                spool_id: identity.spool_id,
                system_id: identity.system_id,
                timeline: identity.timeline,
                database: identity.database,
                consistent_point: identity.consistent_point,
            });
            record.snapshot_epoch = taken.snapshot.epoch;
            record.snapshots = vec![taken.snapshot];
        })
        .await?;
        self.publish_snapshots(context);
        Ok(())
    }

    /// Where the spool lies.
    pub(super) fn spool_dir(&self) -> PathBuf {
        self.dir().join("spool")
    }

    /// The newest snapshot, held; a new one where it was lost before the plan was written.
    async fn ensure_snapshot(&mut self, context: &Context) -> Result<Snapshot, Report> {
        let record = self.record().clone();
        let lost = self.snapshots.keep(context, &record, &self.fleet).await?;
        if lost.is_empty()
            && let Some(snapshot) = record.snapshots.last()
        {
            self.publish_snapshots(context);
            return Ok(snapshot.clone());
        }
        self.next_snapshot(context, &lost).await
    }

    /// A new snapshot epoch; `lost` ones are forgotten.
    pub(super) async fn next_snapshot(
        &mut self,
        context: &Context,
        lost: &[u32],
    ) -> Result<Snapshot, Report> {
        let epoch = self.record().snapshot_epoch + 1;
        // A number is used once: the slot of an attempt that was stopped may still be waiting on
        // the source for open transactions, and its name is taken until it is gone.
        self.change(|record| record.snapshot_epoch = epoch).await?;
        self.shared().set_activity(format!("taking snapshot {epoch}"));
        let name = format!("{}_{epoch}", context.slot_name());
        let shared = std::sync::Arc::clone(self.shared());
        let still = self.still.as_mut();
        let taken = self
            .snapshots
            .take(context, &shared, &name, (SlotLifetime::Temporary, epoch, still))
            .await?;
        let snapshot = taken.snapshot.clone();
        tracing::warn!(snapshot_epoch = epoch, ?lost, "new snapshot");
        self.change(|record| {
            record.snapshots.retain(|known| !lost.contains(&known.epoch));
            record.snapshots.push(taken.snapshot);
        })
        .await?;
        self.publish_snapshots(context);
        Ok(snapshot)
    }

    async fn restore_schema(
        &mut self,
        context: &Context,
        snapshot: &Snapshot,
    ) -> Result<(), Report> {
        let schema = Schema::new(context.clone());
        self.shared().set_activity("reading the schema (pg_dump)");
        let name = self.snapshots.name(snapshot.epoch)?;
        schema.dump(&name, snapshot.epoch).await.map_err(report)?;
        let (archive, not_moved) = schema.archive().await.map_err(report)?;
        self.note_not_moved(not_moved).await?;
        self.shared().set_activity("making roles and the schema on the target");
        let mut not_moved = schema.roles().await.map_err(report)?;
        not_moved.extend(schema.restore(Stage::PreData, &archive).await.map_err(report)?);
        not_moved.extend(schema.database_settings(Stage::PreData).await.map_err(report)?);
        self.shared().set_activity("copying large objects");
        not_moved.extend(schema.large_objects(&name).await.map_err(report)?);
        self.note_not_moved(not_moved).await
    }

    /// Adds what is not known yet.
    pub(super) async fn note_not_moved(&mut self, notes: Vec<String>) -> Result<(), Report> {
        self.change(|record| {
            for note in notes {
                if !record.not_moved.contains(&note) {
                    record.not_moved.push(note);
                }
            }
        })
        .await
    }

    async fn plan(
        &mut self,
        context: &Context,
        target: &Session,
        snapshot: &Snapshot,
    ) -> Result<(), Report> {
        self.shared().set_activity("planning");
        let session = self.snapshots.session(context, "plan", snapshot.epoch).await?;
        let leaves = plan_leaves(context, &session, target).await?;
        let (archive, _) = Schema::new(context.clone()).archive().await.map_err(report)?;
        let mut tasks: Vec<Task> = Vec::new();
        for leaf in &leaves {
            tasks.extend(copy_tasks(context, leaf, snapshot.epoch));
        }
        let builds = build_tasks(&archive).into_iter().chain(refresh_tasks(&archive));
        tasks.extend(
            builds.map(|plan| build_task(plan.table_oid, plan.stage, plan.object, plan.statements)),
        );
        tasks.extend(analyzes(&leaves));
        replan::write_plan(context, target, &leaves, (&tasks, snapshot)).await
    }
}

/// Every leaf with its target side, as the snapshot shows it.
pub(super) async fn plan_leaves(
    context: &Context,
    session: &Session,
    target: &Session,
) -> Result<Vec<Leaf>, Report> {
    let failed = |error: pg::Error| refused("read the source's tables", &error);
    let filter = filter_of(context)?;
    let mut leaves = catalog::leaves(session, &filter).await.map_err(failed)?;
    let through_root = catalog::enum_hashed_leaves(session).await.map_err(failed)?;
    let known: Vec<watch::Known> = read_step(target, KNOWN).await?.unwrap_or_default();
    let append_only: HashMap<u32, bool> =
        known.iter().map(|one| (one.oid, one.publish == Publish::AppendOnly)).collect();
    let configured = extension_config_tables(session).await.map_err(|error| error.report())?;
    for table in configured.iter().filter(|table| !table.sequence) {
        let condition = without_where(&table.condition);
        leaves.extend(catalog::leaf(session, table.relid, condition).await.map_err(failed)?);
    }
    for leaf in &mut leaves {
        if let Some(root) = through_root.get(&leaf.relid) {
            leaf.target = root.clone();
            leaf.through_root = true;
        }
        leaf.append_only = append_only.get(&leaf.relid).copied().unwrap_or(false);
    }
    Ok(leaves)
}

/// ANALYZE of each table once its rows are in, and of each partition root once all are: without
/// statistics replay and, after the cutover, the application would scan.
fn analyzes(leaves: &[Leaf]) -> Vec<Task> {
    let analyze = |relid: u32, stage: i32, table: &TableName| {
        let statement = sql!("analyze {}", table).as_str().to_owned();
        build_task(relid, stage, format!("ANALYZE {table}"), vec![statement])
    };
    let roots: BTreeSet<&TableName> = leaves.iter().filter_map(|leaf| leaf.root.as_ref()).collect();
    leaves
        .iter()
        .filter(|leaf| leaf.blocks > 0 && !leaf.through_root)
        .map(|leaf| analyze(leaf.relid, TABLE_BUILD_STAGE, &leaf.target))
        .chain(roots.into_iter().map(|root| analyze(0, ANALYZE_ROOTS_STAGE, root)))
        .collect()
}

/// An extension gives its condition with the word WHERE.
fn without_where(condition: &str) -> &str {
    let trimmed = condition.trim();
    match trimmed.get(..5) {
        Some(word) if word.eq_ignore_ascii_case("where") => trimmed[5..].trim_start(),
        _ => trimmed,
    }
}

/// The operator's filter.
pub(super) fn filter_of(context: &Context) -> Result<Filter, Report> {
    Filter::try_from(context.spec.filter.as_ref())
}

pub(super) fn decide(
    context: &Context,
    survey: &identity::Survey,
) -> Result<Vec<Decision>, Report> {
    let choices = Choices::try_from(context.spec.identity.as_ref())?;
    identity::decide(survey, &choices).map_err(|missing| {
        let tables: Vec<String> = missing.iter().map(|one| one.table.to_string()).collect();
        Report::definite("REPLICA_IDENTITY_MISSING", "tables have no replica identity")
            .with_detail(format!("UPDATE and DELETE would fail on: {}.", tables.join(", ")))
            .with_hint(
                "Choose for all: --replica-identity full|append-only, or per table in the file.",
            )
    })
}

fn spool_limit(context: &Context) -> u64 {
    match context.spec.replay.as_ref().map_or(0, |replay| replay.spool_limit_bytes) {
        0 => DEFAULT_SPOOL_BYTES,
        bytes => bytes,
    }
}

pub(super) fn limit_of(context: &Context) -> u64 {
    spool_limit(context)
}

/// An error of a component as a report.
fn report<E: proto::status::Classify>(error: E) -> Report {
    error.report()
}

/// What a step wrote down on the target.
pub(super) async fn read_step<T: serde::de::DeserializeOwned>(
    session: &Session,
    step: &str,
) -> Result<Option<T>, Report> {
    let row = session
        .query_opt(&sql!("select detail::text from skein.step where step = $1"), &[&step])
        .await
        .map_err(|error| refused("read schema skein", &error))?;
    let Some(text) = row.and_then(|row| row.get::<_, Option<String>>(0)) else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Report::definite("STEP_UNREADABLE", format!("mark \"{step}\" cannot be read"))
            .with_detail(format!("{error}."))
    })
}

pub(super) async fn write_step<T: serde::Serialize>(
    context: &Context,
    session: &Session,
    step: &str,
    detail: &T,
) -> Result<(), Report> {
    let text = serde_json::to_string(detail).unwrap_or_default();
    let statement = sql!(
        "insert into skein.step (step, detail) values ({}, {}::jsonb)
 on conflict (step) do update set detail = excluded.detail",
        Literal(step),
        Literal(&text)
    );
    match target::fenced(session, context.epoch, &statement).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(replan::fenced_out()),
        Err(error) => Err(refused("write schema skein", &error)),
    }
}
