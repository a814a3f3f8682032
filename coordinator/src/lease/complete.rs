//! A task's end: the mark is in the target, or it is given back.

use super::{Error, Finding, Leases, MAX_ATTEMPTS, renew::is_of};
use crate::plan::Work;
use pg::sql;
use proto::{
    status::{ErrorClass, Report},
    v1,
};
use std::time::Duration;
use tokio::time::Instant;

/// How long a table that somebody has locked is left alone: longer than a chunk waits for its lock.
const TABLE_LOCKED: Duration = Duration::from_secs(5);

/// How long the last trouble is shown: a little longer than the longest pause between two tries.
const TROUBLE_STANDS: Duration = Duration::from_secs(40);

impl Leases {
    /// The worker says that the mark is committed: believed when the target shows it.
    ///
    /// # Errors
    /// When the target cannot be read; the worker says it again.
    pub async fn complete(&self, request: &v1::CompleteTaskRequest) -> Result<(), Error> {
        let task_id = request.task_id;
        if self.state().queue.get(task_id).is_none() {
            return Ok(());
        }
        let marked = {
            let mut slot = self.session().await?;
            let session = slot.as_mut().ok_or(Error::Fenced)?;
            session
                .query_opt(
                    &sql!(
                        "select coalesce(rows, 0), coalesce(bytes, 0) from skein.task
 where task_id = $1 and finished_at is not null"
                    ),
                    &[&i64::try_from(task_id).unwrap_or(i64::MAX)],
                )
                .await
                .map_err(|source| Error::Target { task_id, source })?
        };
        let Some(row) = marked else {
            self.give_back(request.task_id, &request.worker_id, request.fencing_token);
            return Ok(());
        };
        let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        let bytes = u64::try_from(row.get::<_, i64>(1)).unwrap_or(0);
        self.finish(task_id, Some((rows, bytes)));
        Ok(())
    }

    /// Takes a finished task out of the plan in memory.
    pub(super) fn finish(&self, task_id: u64, amount: Option<(u64, u64)>) {
        let mut state = self.state();
        state.held.remove(&task_id);
        state.waiting.remove(&task_id);
        if let Some(task) = state.queue.remove(task_id) {
            let (rows, bytes) = amount.unwrap_or_default();
            state.totals.tasks_done += 1;
            state.totals.builds_done += u64::from(!matches!(task.work, Work::Copy(_)));
            state.totals.bytes_done += task.size_bytes;
            state.totals.rows_done += rows;
            state.totals.copied_bytes += bytes;
        }
        drop(state);
        self.tick();
    }

    fn give_back(&self, task_id: u64, worker: &str, token: u64) -> bool {
        let mut state = self.state();
        let ours = state.held.get(&task_id).is_some_and(|lease| is_of(lease, worker, token));
        if ours {
            state.held.remove(&task_id);
            state.queue.returned(task_id);
        }
        drop(state);
        self.tick();
        ours
    }

    /// Why a task is tried again, as long as it is.
    pub fn trouble(&self) -> Option<String> {
        let state = self.state();
        state
            .trouble
            .as_ref()
            .filter(|(since, _)| since.elapsed() < TROUBLE_STANDS)
            .map(|(_, trouble)| trouble.clone())
    }

    /// The worker gives a task back.
    pub fn release(&self, request: &v1::ReleaseTaskRequest) {
        if !self.give_back(request.task_id, &request.worker_id, request.fencing_token) {
            return;
        }
        let task_id = request.task_id;
        let mut state = self.state();
        let Some(task) = state.queue.get(task_id).cloned() else { return };
        let object = state.leaves.get(&task.relid).map(|leaf| leaf.source.to_string());
        let object = object.unwrap_or_else(|| format!("task {task_id}"));
        let report: Option<Report> = request.error.clone().map(Into::into);
        match request.cause() {
            v1::ReleaseCause::Unspecified
            | v1::ReleaseCause::HandedBack
            | v1::ReleaseCause::Fenced => {
                // A moment, so that who waited for our lock gets it first.
                state.waiting.insert(task_id, (Instant::now() + Duration::from_secs(1), 0));
                if report.as_ref().is_some_and(|report| report.reason == "SOURCE_TABLE_LOCKED") {
                    // Its other chunks would wait for the same lock in every slot there is, and no
                    // other table would be copied.
                    let until = Instant::now() + TABLE_LOCKED;
                    let chunks: Vec<u64> = state
                        .queue
                        .iter()
                        .filter(|other| other.relid == task.relid)
                        .map(|other| other.task_id)
                        .collect();
                    state.waiting.extend(chunks.into_iter().map(|chunk| (chunk, (until, 0))));
                }
            }
            v1::ReleaseCause::Rewritten => {
                state.waiting.insert(task_id, (Instant::now() + Duration::from_secs(2), 0));
                state.find(Finding::Rewritten { relid: task.relid });
            }
            v1::ReleaseCause::Replaced => {
                state.waiting.insert(task_id, (Instant::now() + Duration::from_secs(5), 0));
                state.find(Finding::Replaced(
                    Report::definite(
                        "RELATION_REPLACED",
                        format!("table {object} is gone, or its name means another table now"),
                    )
                    .with_detail(
                        "It was dropped or renamed on the source after the plan was made; the \
                         stream does not say so.",
                    )
                    .with_hint(
                        "Name it back and run: skein resume. Or abort, and begin again without it.",
                    ),
                ));
            }
            v1::ReleaseCause::SnapshotLost => {
                state.waiting.insert(task_id, (Instant::now() + Duration::from_secs(1), 0));
                let snapshot_epoch = task.snapshot_epoch;
                state.find(Finding::SnapshotLost { snapshot_epoch });
            }
            v1::ReleaseCause::Failed => {
                // A server that does not answer says nothing of the task: it is waited for.
                let unreachable =
                    report.as_ref().is_some_and(|report| report.reason.ends_with("_UNREACHABLE"));
                let before = state.waiting.get(&task_id).map_or(0, |(_, count)| *count);
                let attempts = before + u32::from(!unreachable);
                let definite = report.as_ref().is_some_and(|report| {
                    matches!(report.class, ErrorClass::Definite | ErrorClass::Bug)
                });
                let pause = Duration::from_millis(500 << attempts.min(6));
                state.waiting.insert(task_id, (Instant::now() + pause, attempts));
                if let Some(report) = &report {
                    let text = format!("{}. {} {}", report.primary, report.detail, report.hint);
                    state.trouble = Some((Instant::now(), text.trim_end().to_owned()));
                }
                if definite || attempts >= MAX_ATTEMPTS {
                    state.stopped.insert(task_id);
                    let report = report.unwrap_or_else(|| {
                        Report::definite("TASK_FAILED", format!("could not finish {object}"))
                    });
                    state.find(Finding::Fault(report));
                }
            }
        }
        drop(state);
        self.tick();
    }
}
