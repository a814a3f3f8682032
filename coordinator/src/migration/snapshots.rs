//! The snapshots a migration copies under: taken, held, found again, given up.
//!
//! ```text
//! first:  permanent slot --export--> 3 holders here, one in each worker
//! later:  temporary slot --export--> the same, a new snapshot epoch, for relations that need a
//!         new consistent point; the permanent slot, and so every change, stays
//! ```
//! Promise: a snapshot is given up only when no name of it imports and no holder session stands
//! on the source, or none has reported one for [`REPORT_WITHIN`].

use super::{connect::refused, context::Context, copying::still::Still, shared::Shared};
use crate::{
    clock,
    fleet::Fleet,
    source::{
        holder::{self, Holder},
        slot,
    },
    store::record::{Record, Snapshot},
};
use pg::{
    Session,
    walsender::{CreatedSlot, SlotFailover, SlotLifetime, Walsender},
};
use proto::{
    status::{Classify as _, ErrorClass, Report},
    v1,
};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::time::Instant;

/// Holder sessions of this coordinator, for each snapshot.
const HOLDERS: usize = 3;

/// How long a holder session on the source may stand without anybody reporting its name: a
/// worker that outlived a coordinator registers within two heartbeats.
const REPORT_WITHIN: Duration = Duration::from_secs(30);

/// How long the creation of a slot may wait for open transactions before it is tried anew.
const SLOT_DEADLINE: Duration = Duration::from_secs(600);

/// Holders of this process, by snapshot epoch.
#[derive(Debug, Default)]
pub struct Snapshots {
    holders: BTreeMap<u32, Vec<Holder>>,
    next_id: u32,
    silent_since: Option<Instant>,
}

/// A slot of which the snapshot is held, and the connection that made it.
#[derive(Debug)]
pub struct Taken {
    pub snapshot: Snapshot,
    pub system: pg::walsender::SystemId,
}

impl Snapshots {
    /// Creates a slot and holds its snapshot under `epoch`. What is to be held still is locked
    /// as soon as the snapshot is there.
    ///
    /// # Errors
    /// When the slot cannot be made, or no holder could import the snapshot.
    pub async fn take(
        &mut self,
        context: &Context,
        shared: &Shared,
        slot: &str,
        (lifetime, epoch, still): (SlotLifetime, u32, Option<&mut Still>),
    ) -> Result<Taken, Report> {
        let name = context.session_name("slot", epoch);
        let mut walsender = Walsender::connect(&context.source, &name, super::context::UTF_8)
            .await
            .map_err(|error| refused("open a replication connection to the source", &error))?;
        let system = walsender
            .identify_system()
            .await
            .map_err(|error| refused("identify the source", &error))?;
        let created = self.create(context, shared, &mut walsender, (slot, lifetime)).await?;
        if let Some(still) = still {
            still.lock(&created.snapshot).await;
        }
        let mut holders = Vec::new();
        for _ in 0..HOLDERS {
            self.next_id += 1;
            let holder = Holder::import(context, self.next_id, &created.snapshot)
                .await
                .map_err(|error| refused("hold the snapshot", &error))?;
            holders.push(holder);
        }
        let names = holders.iter().map(|holder| holder.name.clone()).collect();
        self.holders.insert(epoch, holders);
        let snapshot = Snapshot {
            epoch,
            consistent_point: created.consistent_point,
            names,
            taken_at: clock::now(),
        };
        Ok(Taken { snapshot, system })
    }

    /// Waits for the slot, and shows what it waits for.
    async fn create(
        &self,
        context: &Context,
        shared: &Shared,
        walsender: &mut Walsender,
        (slot, lifetime): (&str, SlotLifetime),
    ) -> Result<CreatedSlot, Report> {
        let observer = context
            .source_session("observe", "slot")
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let creation = walsender.create_slot(slot, lifetime, SlotFailover::Off);
        tokio::pin!(creation);
        let started = Instant::now();
        loop {
            tokio::select! {
                created = &mut creation => {
                    return created.map_err(|error| refused("create the replication slot", &error));
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            let blockers = slot::blockers(&observer).await.map_err(|error| error.report())?;
            let waits_for: Vec<String> = blockers.iter().map(ToString::to_string).collect();
            shared.set_activity(format!(
                "creating the replication slot, which waits for every open transaction: {}",
                waits_for.join("; ")
            ));
            if started.elapsed() > SLOT_DEADLINE {
                return Err(Report::definite(
                    "SLOT_WAITS",
                    "replication slot could not be created",
                )
                .with_class(ErrorClass::Transient)
                .with_detail(format!("It waits for: {}.", waits_for.join("; ")))
                .with_hint("End those transactions, or wait."));
            }
        }
    }

    /// Makes sure that every recorded snapshot is held here. Returns the epochs that are lost.
    ///
    /// # Errors
    /// When the source cannot be reached, or a holder that stands has not reported yet.
    pub async fn keep(
        &mut self,
        context: &Context,
        record: &Record,
        fleet: &Fleet,
    ) -> Result<Vec<u32>, Report> {
        let mut lost = Vec::new();
        self.holders.retain(|epoch, _| record.snapshots.iter().any(|s| s.epoch == *epoch));
        for snapshot in &record.snapshots {
            let holders = self.holders.entry(snapshot.epoch).or_default();
            holders.retain(Holder::is_alive);
            if holders.len() >= HOLDERS {
                continue;
            }
            let mut names: Vec<String> = holders.iter().map(|h| h.name.clone()).collect();
            names.extend(fleet.snapshots(&context.name, snapshot.epoch));
            names.extend(snapshot.names.iter().cloned());
            while holders.len() < HOLDERS {
                self.next_id += 1;
                let imported = holder::import_any(context, self.next_id, &names)
                    .await
                    .map_err(|error| refused("hold the snapshot", &error))?;
                match imported {
                    Some(holder) => holders.push(holder),
                    None => break,
                }
            }
            if holders.is_empty() {
                lost.push(snapshot.epoch);
            }
        }
        if lost.is_empty() {
            self.silent_since = None;
            return Ok(lost);
        }
        let session = context
            .source_session("observe", "holder")
            .await
            .map_err(|error| refused("reach the source", &error))?;
        let standing = holder::sessions(&session, &context.name)
            .await
            .map_err(|error| refused("look for snapshot holders", &error))?;
        let ours: usize = self.holders.values().map(Vec::len).sum();
        let silent_since = *self.silent_since.get_or_insert_with(Instant::now);
        let unreported = usize::try_from(standing).unwrap_or(0) > ours;
        if unreported && silent_since.elapsed() < REPORT_WITHIN {
            return Err(Report::definite(
                "HOLDER_UNREPORTED",
                "a snapshot holder stands on the source, its name is not known yet",
            )
            .with_class(ErrorClass::Transient)
            .with_detail("A worker that outlived the last coordinator will report it."));
        }
        self.silent_since = None;
        Ok(lost)
    }

    /// Names by which each snapshot can be imported now.
    pub fn names(&self, context: &Context, fleet: &Fleet) -> HashMap<u32, Vec<String>> {
        self.holders
            .iter()
            .map(|(epoch, holders)| {
                let mut names: Vec<String> =
                    holders.iter().filter(|h| h.is_alive()).map(|h| h.name.clone()).collect();
                names.extend(fleet.snapshots(&context.name, *epoch));
                (*epoch, names)
            })
            .collect()
    }

    /// What the workers should hold.
    pub fn holds(&self, context: &Context, fleet: &Fleet) -> Vec<v1::Hold> {
        self.names(context, fleet)
            .into_iter()
            .map(|(snapshot_epoch, snapshots)| v1::Hold {
                migration: context.name.clone(),
                epoch: context.epoch,
                snapshot_epoch,
                source: Some(v1::Endpoint {
                    conninfo: context.source.expose().to_owned(),
                    server_version: context.source_version,
                }),
                snapshots,
            })
            .collect()
    }

    /// A session inside a transaction that sees what the snapshot sees, for catalogs.
    ///
    /// # Errors
    /// When it cannot be imported.
    pub async fn session(
        &self,
        context: &Context,
        role: &str,
        epoch: u32,
    ) -> Result<Session, Report> {
        let failed = |error: pg::Error| refused("read under the snapshot", &error);
        let name = self.name(epoch)?;
        let session = context.source_session(role, epoch).await.map_err(failed)?;
        holder::begin_under(&session, &name).await.map_err(failed)?;
        Ok(session)
    }

    /// A name of this process that imports the snapshot.
    ///
    /// # Errors
    /// When none of its holders stands.
    pub fn name(&self, epoch: u32) -> Result<String, Report> {
        let holder = self
            .holders
            .get(&epoch)
            .and_then(|holders| holders.iter().find(|holder| holder.is_alive()));
        holder.map(|holder| holder.name.clone()).ok_or_else(|| {
            Report::definite("SNAPSHOT_LOST", "snapshot holders are gone")
                .with_class(ErrorClass::Transient)
        })
    }

    /// Holder sessions of this process.
    pub fn count(&self) -> usize {
        self.holders.values().flatten().filter(|holder| holder.is_alive()).count()
    }

    /// A sign of life from each; one that fails is dropped at the next `keep`.
    pub async fn ping(&self) {
        for holder in self.holders.values().flatten() {
            holder.ping().await;
        }
    }

    /// Lets go.
    pub fn release(&mut self) {
        self.holders.clear();
    }
}
