//! Runs statements on the target: indexes, constraints, refreshes.
//!
//! In: statements of the plan. Out: an open transaction with their effect and the mark.
//! Promise: as of a chunk: all of it and the mark, or nothing. How much memory and how many
//! helpers an index gets is the server's business.

use crate::{
    copy::fence::{self, Fence},
    error::{Error, Result},
    failpoint,
    run::{Outcome, Staged},
    sessions::Sessions,
    task::{Build, Task},
};
use pg::Sql;

/// Runs the statements up to the mark.
pub(crate) async fn stage(sessions: &mut Sessions, task: &Task, build: &Build) -> Result<Staged> {
    let target = sessions.write(task, "build").await?;
    failpoint::reach(failpoint::BEFORE_FENCE).await?;
    if let Fence::Finished { .. } = fence::take(&target, task).await? {
        return Ok(Staged::Finished(Outcome::Built));
    }
    for statement in &build.statements {
        let built = target.batch(&Sql::trusted(statement)).await;
        built.map_err(|source| Error::Build { object: build.object.clone(), source })?;
    }
    failpoint::reach(failpoint::BEFORE_MARK).await?;
    fence::mark(&target, task, 0, 0).await?;
    Ok(Staged::Open { target: Box::new(target), outcome: Outcome::Built })
}
