//! The ways out: cutover, abort, cleanup.

use super::{flow::Flow, phase::Event};
use proto::status::Report;

/// How much a teardown takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What stands on the source.
    Abort,
    /// That, and schema `skein` on the target.
    Cleanup,
}

fn not_built() -> Report {
    Report::definite("NOT_BUILT", "this step is not part of this build yet")
}

impl Flow {
    pub(super) async fn cutover_plan(&mut self, _fence: bool) -> Result<Vec<String>, Report> {
        self.context().await?;
        Err(not_built())
    }

    pub(super) async fn teardown_plan(&mut self, _scope: Scope) -> Result<Vec<String>, Report> {
        self.let_go().await;
        Err(not_built())
    }

    pub(super) async fn clean_up(&mut self) -> Result<(), Report> {
        self.forget().await
    }

    pub(super) async fn cut_over(
        &mut self,
        _attempt: u32,
        _fence: bool,
        _timeout_s: u32,
    ) -> Result<Event, Report> {
        self.context().await?;
        Err(not_built())
    }

    pub(super) async fn tear_down(&mut self) -> Result<Event, Report> {
        self.context().await?;
        Err(not_built())
    }
}
