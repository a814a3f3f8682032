//! Catching up, ready, done: replay runs, and somebody decides when to cut over.

use super::{
    context::Context,
    flow::{Flow, LOOK},
    phase::Event,
    tables::Adding,
};
use crate::plan::REFRESH_STAGE;
use pg::PgLsn;
use proto::{status::Report, v1::CutoverMode};
use std::collections::HashMap;

impl Flow {
    /// Replays until the lag is small, then refreshes materialised views.
    pub(super) async fn catch_up(&mut self) -> Result<Event, Report> {
        let context = self.context().await?;
        self.ensure_receiving(&context).await?;
        let leases = self.leases(&context).await?;
        self.finish_copies(&context, &leases).await?;
        self.shared().set_activity("catching up");
        loop {
            self.follow(&context).await?;
            if self.is_caught_up() {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.shared().set_activity("refreshing materialised views");
        leases.open(HashMap::new());
        leases.allow_refresh();
        while leases.unfinished_through(i32::MAX) > 0 {
            self.follow(&context).await?;
            Self::faults_of(&leases.take_findings())?;
            tokio::time::sleep(LOOK).await;
        }
        debug_assert!(leases.unfinished_through(REFRESH_STAGE - 1) == 0);
        Ok(Event::CaughtUp)
    }

    /// Replays, and waits for a cutover: an operator's, or its own with `mode = auto`.
    pub(super) async fn ready(&mut self) -> Result<Event, Report> {
        let context = self.context().await?;
        self.ensure_receiving(&context).await?;
        let leases = self.leases(&context).await?;
        self.finish_copies(&context, &leases).await?;
        let cutover = self.record().spec.cutover.unwrap_or_default();
        let auto = cutover.mode() == CutoverMode::Auto;
        // An attempt that was lifted is not repeated by itself.
        let auto = auto && self.record().attempt == 0;
        loop {
            self.follow(&context).await?;
            self.shared().set_activity(if auto {
                "ready; cutting over when the lag is low"
            } else {
                "ready; waits for: skein cutover"
            });
            if auto && self.is_caught_up() {
                // What changed since the last survey would lift this attempt.
                self.survey.now();
                self.follow(&context).await?;
                let attempt = self.next_attempt().await?;
                let timeout_s = self.cutover_timeout(0);
                self.change(|record| record.attempt = attempt).await?;
                return Ok(Event::CutoverRequested {
                    attempt,
                    fence: !cutover.no_fence,
                    timeout_s,
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Keeps replay running, and follows tables that come and go on the source.
    async fn follow(&mut self, context: &Context) -> Result<(), Report> {
        self.ensure_replaying(context).await?;
        match self.check_stream() {
            // A partition that was made meanwhile: the survey knows it.
            Err(report) if report.reason == "UNKNOWN_RELATION" => {
                self.survey.now();
                let known = self.record().notices.len();
                self.watch_tables(context, Adding::All).await?;
                if self.record().notices.len() == known { Err(report) } else { Ok(()) }
            }
            Err(report) => Err(report),
            Ok(()) => self.watch_tables(context, Adding::All).await,
        }
    }

    /// The stream is read on for late writes, until cleanup.
    pub(super) async fn done(&mut self, end_position: PgLsn) -> Result<Event, Report> {
        let context = self.context().await?;
        self.ensure_receiving(&context).await?;
        self.watch_late_writes(&context, end_position).await?;
        self.after_open(&context).await?;
        self.shared().set_activity("done; the stream is read on for late writes until cleanup");
        loop {
            self.check_stream()?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Replay stands less than the allowed lag behind what the source has now.
    fn is_caught_up(&self) -> bool {
        let stream = self.shared().stream();
        stream.source_lsn > 0
            && stream.applied_lsn > 0
            && stream.source_lsn.saturating_sub(stream.applied_lsn) <= self.max_lag_bytes()
    }
}
