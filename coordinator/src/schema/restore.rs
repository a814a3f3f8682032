//! Runs the entries of a stage on the target.
//!
//! ```text
//! mark (done: n) -> begin, fence -> entries n.. of a batch -> mark (done: m) -> commit
//!                         | refused
//!                         v
//!       begin, fence -> every entry left, each under a savepoint -> rollback -> all refused
//! ```
//! Promise: a batch and its mark commit together, so that a killed restore goes on at the batch
//! it was in; nothing that the target refuses is passed over; and the first refusal brings all
//! the others to light, those of later stages too (`rehearse`, on tables that are still empty).

use super::archive::Archive;
use super::entry::{Entry, Stage};
use super::error::{Error, Refused, Result, passes};
use super::{finish, step};
use crate::{migration::context::Context, target};
use pg::{Session, Sql, sql};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Entries in a transaction. Each takes a few lock slots; the server has
/// max_locks_per_transaction (64) times max_connections (100) by default.
const BATCH: usize = 200;

/// out_of_memory: "out of shared memory" when the lock table is full.
const OUT_OF_LOCKS: &str = "53200";

/// How far a stage got; `skein.step.detail` of `schema/STAGE`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Progress {
    /// Pieces of entries that are done.
    done: usize,
    /// Pieces done of the entry behind them, where it has several.
    #[serde(default)]
    within: usize,
    of: usize,
    /// Place of the last entry that is done.
    last: Option<usize>,
    /// Digest of the archive.
    archive: String,
}

const MAKE: &str = "make objects on the target";

/// One statement or several that are made together, and refused together.
#[derive(Clone, Debug)]
pub(super) struct Piece<'a> {
    pub(super) entry: &'a Entry,
    pub(super) statements: Sql,
}

/// A stage on its way to the target.
#[derive(Debug)]
pub(super) struct Restore<'a> {
    pub(super) context: &'a Context,
    pub(super) archive: &'a Archive,
    pub(super) stage: Stage,
}

impl Restore<'_> {
    /// Runs what is left of the stage.
    ///
    /// # Errors
    /// [`Error::Refused`] with every object that the target did not take.
    pub(super) async fn run(&self, session: &Session) -> Result<()> {
        let pieces = finish::pieces(self.archive, self.stage, self.context.target_version);
        let mut size = match self.stage {
            // A validation or a refresh takes as long as its table is large.
            Stage::AfterOpen | Stage::Refresh => 1,
            Stage::PreData | Stage::Build | Stage::AfterBuild | Stage::Cutover => BATCH,
        };
        loop {
            let failed = match self.batch(session, &pieces, size).await {
                Ok(Batch::Finished) => return Ok(()),
                Ok(Batch::Done) => continue,
                Ok(Batch::Crowded) if size > 1 => {
                    size /= 2;
                    continue;
                }
                Ok(Batch::Crowded) => Error::LocksExhausted { stage: self.stage },
                Ok(Batch::Refused { start }) => self.refused(session, &pieces[start..]).await?,
                Err(error) => error,
            };
            if !session.is_closed() {
                session.batch(&sql!("rollback")).await.map_err(Error::server(MAKE))?;
            }
            return Err(failed);
        }
    }

    /// The next batch, in one transaction with its mark.
    async fn batch(&self, session: &Session, pieces: &[Piece<'_>], size: usize) -> Result<Batch> {
        session.batch(&sql!("begin")).await.map_err(Error::server(MAKE))?;
        let fence = session.query_opt(&target::fence(self.context.epoch), &[]).await;
        if fence.map_err(Error::server(MAKE))?.is_none() {
            return Err(Error::Fenced);
        }
        let progress = step::claim::<Progress>(session, &self.step()).await?;
        let start = self.start(progress, pieces)?;
        let end = (start + size).min(pieces.len());
        let mut statements = joined(&pieces[start..end]);
        statements.push(step::mark(&self.step(), &self.progress(pieces, end)));
        match session.batch(&statements).await {
            Ok(()) => session.batch(&sql!("commit")).await.map_err(Error::server(MAKE))?,
            Err(error) if error.sqlstate() == Some(OUT_OF_LOCKS) => {
                session.batch(&sql!("rollback")).await.map_err(Error::server(MAKE))?;
                return Ok(Batch::Crowded);
            }
            Err(error) if passes(&error) => return Err(Error::server(MAKE)(error)),
            Err(_) => {
                session.batch(&sql!("rollback")).await.map_err(Error::server(MAKE))?;
                return Ok(Batch::Refused { start });
            }
        }
        Ok(if end == pieces.len() { Batch::Finished } else { Batch::Done })
    }

    /// The first piece that is not done.
    fn start(&self, progress: Option<Progress>, pieces: &[Piece<'_>]) -> Result<usize> {
        let Some(progress) = progress else { return Ok(0) };
        if progress.archive != self.archive.digest {
            return Err(Error::OtherArchive { stage: self.stage });
        }
        let start = pieces.partition_point(|piece| Some(piece.entry.place) <= progress.last);
        if start > progress.done {
            return Err(Error::FilterWidened { stage: self.stage });
        }
        Ok((start + progress.within).min(pieces.len()))
    }

    /// How far it is when the pieces before `end` are done.
    fn progress(&self, pieces: &[Piece<'_>], end: usize) -> Progress {
        let place = |at: usize| pieces.get(at).map(|piece| piece.entry.place);
        let mut done = end;
        while done > 0 && place(done - 1) == place(done) {
            done -= 1;
        }
        Progress {
            done,
            within: end - done,
            of: pieces.len(),
            last: done.checked_sub(1).and_then(place),
            archive: self.archive.digest.clone(),
        }
    }

    /// Tries every stage from this one on, on empty tables, and takes it back.
    ///
    /// # Errors
    /// [`Error::Refused`] when the target would refuse an object hours from now.
    pub(super) async fn rehearse(&self, session: &Session) -> Result<()> {
        let later = [Stage::Build, Stage::AfterBuild, Stage::Refresh, Stage::Cutover];
        let pieces: Vec<_> = later
            .into_iter()
            .filter(|stage| *stage >= self.stage)
            .flat_map(|stage| finish::pieces(self.archive, stage, self.context.target_version))
            // A view may read what only has rows at the end.
            .filter(|piece| piece.entry.kind != "MATERIALIZED VIEW DATA")
            .collect();
        let tried = self.try_each(session, &pieces).await?;
        if !tried.refused.is_empty() {
            return Err(tried.into_error());
        }
        if !tried.complete {
            tracing::warn!(
                objects = pieces.len(),
                "the target has too few lock slots (max_locks_per_transaction) to try all later \
                 objects at once: what it would refuse of the rest shows when it is made"
            );
        }
        Ok(())
    }

    async fn refused(&self, session: &Session, pieces: &[Piece<'_>]) -> Result<Error> {
        let tried = self.try_each(session, pieces).await?;
        if tried.refused.is_empty() {
            // It went through this time: the world changed in between. Try again.
            return Ok(Error::Client {
                program: "restore",
                message: "a batch was refused, its objects one by one were not".to_owned(),
                class: proto::status::ErrorClass::Transient,
            });
        }
        Ok(tried.into_error())
    }

    /// Runs each piece under a savepoint, then takes all back.
    async fn try_each(&self, session: &Session, pieces: &[Piece<'_>]) -> Result<Tried> {
        let server = || Error::server("try objects on the target one by one");
        session.batch(&sql!("begin")).await.map_err(server())?;
        if session
            .query_opt(&target::fence(self.context.epoch), &[])
            .await
            .map_err(server())?
            .is_none()
        {
            session.batch(&sql!("rollback")).await.map_err(server())?;
            return Err(Error::Fenced);
        }
        let mut tried = Tried { complete: true, ..Tried::default() };
        for piece in pieces {
            if tried.needs_refused(piece.entry) {
                continue;
            }
            session.batch(&sql!("savepoint object")).await.map_err(server())?;
            match session.batch(&piece.statements).await {
                Ok(()) => session.batch(&sql!("release object")).await.map_err(server())?,
                Err(pg::Error::Server(error)) if !is_fatal(&error.sqlstate) => {
                    session.batch(&sql!("rollback to object")).await.map_err(server())?;
                    // Out of lock slots: the trial's own size, not the object.
                    if error.sqlstate == OUT_OF_LOCKS {
                        tried.complete = false;
                        break;
                    }
                    tried.refuse(piece.entry, &error);
                }
                Err(error) => return Err(server()(error)),
            }
        }
        session.batch(&sql!("rollback")).await.map_err(server())?;
        Ok(tried)
    }

    fn step(&self) -> String {
        format!("schema/{}", self.stage)
    }
}

/// What became of a batch.
enum Batch {
    Done,
    /// It was the last.
    Finished,
    /// The target had no lock slots for so many; rolled back.
    Crowded,
    /// Rolled back; the pieces from `start` on are to be tried one by one.
    Refused {
        start: usize,
    },
}

/// The session is gone, not the statement.
fn is_fatal(sqlstate: &str) -> bool {
    sqlstate.starts_with("57P") || sqlstate.starts_with("08")
}

fn joined(pieces: &[Piece<'_>]) -> Sql {
    let mut statements = sql!("");
    for piece in pieces {
        statements.push(&piece.statements).push("\n;\n");
    }
    statements
}

/// What a trial brought to light.
#[derive(Debug, Default)]
struct Tried {
    refused: Vec<Refused>,
    /// Refused objects and what needs them, by dump id: index into `refused`.
    missing: HashMap<u32, usize>,
    complete: bool,
}

impl Tried {
    fn refuse(&mut self, entry: &Entry, error: &pg::error::ServerError) {
        self.missing.insert(entry.id, self.refused.len());
        self.refused.push(Refused {
            object: entry.label(),
            message: error.message.clone(),
            sqlstate: error.sqlstate.clone(),
            dependents: Vec::new(),
        });
    }

    /// Whether it needs a refused object; then it is noted there and not tried.
    fn needs_refused(&mut self, entry: &Entry) -> bool {
        let Some(&at) = entry.depends_on.iter().find_map(|id| self.missing.get(id)) else {
            return false;
        };
        self.missing.insert(entry.id, at);
        self.refused[at].dependents.push(entry.label());
        true
    }

    fn into_error(self) -> Error {
        let named: HashSet<&str> = self.refused.iter().map(|one| one.object.as_str()).collect();
        Error::Refused { count: named.len(), refused: self.refused, complete: self.complete }
    }
}
