//! What replay and schema do within a cutover: drain, the last stage, taking it back.
//!
//! In: replay's status and end position. Out: [`Parts`]. Promise: each may run twice, and may be
//! dropped in its midst.

use crate::{
    migration::{
        connect, context::Context, cutover, cutover::Parts, replan, shared::Shared, tables,
    },
    replay::run::ReplayStatus,
    schema::{OriginalIdentity, Schema, Stage},
    source::identity::{Originals, Setting},
};
use pg::{PgLsn, TableName};
use proto::status::{Classify as _, ErrorClass, Report};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// What replay and schema do within a cutover.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) context: Context,
    pub(super) replay: watch::Receiver<ReplayStatus>,
    pub(super) end_position: watch::Sender<Option<PgLsn>>,
    pub(super) shared: Arc<Shared>,
    pub(super) originals: Originals,
    pub(super) not_moved: Arc<Mutex<Vec<String>>>,
}

impl Ours {
    fn note(&self, notes: Vec<String>) {
        self.not_moved.lock().unwrap_or_else(PoisonError::into_inner).extend(notes);
    }

    fn original_identities(&self) -> Vec<(TableName, OriginalIdentity)> {
        self.originals
            .0
            .iter()
            .map(|one| {
                let identity = match (&one.setting, &one.index) {
                    (Setting::Index, Some(index)) => OriginalIdentity::Index(index.clone()),
                    (Setting::Nothing, _) => OriginalIdentity::Nothing,
                    (Setting::Full, _) => OriginalIdentity::Full,
                    (Setting::Default | Setting::Index, _) => OriginalIdentity::Default,
                };
                (one.table.clone(), identity)
            })
            .collect()
    }
}

impl Parts for Ours {
    async fn drain(&mut self, end_position: PgLsn) -> Result<(), Report> {
        tables::unchanged(&self.context).await?;
        self.end_position.send_replace(Some(end_position));
        loop {
            let status = self.replay.borrow_and_update().clone();
            // Drained may be of an attempt before, until replay has seen the new end.
            let reached = status.applied_lsn.is_some_and(|applied| applied >= end_position);
            if status.drained && reached {
                return Ok(());
            }
            let fault = status.fault.filter(|fault| {
                matches!(fault.class, ErrorClass::Definite | ErrorClass::Bug | ErrorClass::Fenced)
            });
            if let Some(fault) = fault {
                return Err(fault);
            }
            if self.replay.changed().await.is_err() {
                return Err(Report::definite(
                    "REPLAY_ENDED",
                    "replay ended before the end position",
                )
                .with_class(ErrorClass::Transient));
            }
        }
    }

    async fn restore(&mut self) -> Result<(), Report> {
        let schema = Schema::new(self.context.clone());
        let (archive, _) = schema.archive().await.map_err(|error| error.report())?;
        // Before what would fire on these rows, or check them, is made.
        let copied = cutover::off_stream::copy(&self.context)
            .await
            .map_err(|error| connect::refused("copy unlogged tables again", &error))?;
        if !copied {
            return Err(replan::fenced_out());
        }
        let mut notes =
            schema.restore(Stage::Cutover, &archive).await.map_err(|error| error.report())?;
        schema
            .replica_identities(&self.original_identities())
            .await
            .map_err(|error| error.report())?;
        notes.extend(schema.sync_large_objects().await.map_err(|error| error.report())?);
        notes.extend(
            schema.database_settings(Stage::Cutover).await.map_err(|error| error.report())?,
        );
        self.note(notes);
        Ok(())
    }

    async fn undo_restore(&mut self) -> Result<(), Report> {
        let schema = Schema::new(self.context.clone());
        schema.undo_cutover().await.map_err(|error| error.report())
    }

    fn late_writes(&mut self) -> Vec<(TableName, u64)> {
        self.replay.borrow().late_writes.clone()
    }

    fn tell(&mut self, step: &'static str) {
        self.shared.set_activity(format!("cutting over: {step}"));
    }
}
