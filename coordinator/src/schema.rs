//! Everything of a database that is not rows: taken from the source, made on the target.
//!
//! ```text
//! dump (pg_dump, snapshot) -> archive -> choice -> restore(PreData) -> [copy] -> build_tasks
//!     -> restore(AfterBuild) -> refresh_tasks -> restore(Cutover) -> [open] -> restore(AfterOpen)
//! roles, database settings, large objects: beside the archive, by our own statements
//! ```
//! Promise: each step may run twice and be killed anywhere, since what it made and its mark in
//! `skein.step` commit together behind the fence; whatever does not arrive is refused object by
//! object, or named in the `not_moved` that each step gives back.

pub mod archive;
mod attempt;
mod beside;
pub mod build;
mod choice;
mod client;
mod database;
mod dump;
pub mod entry;
pub mod error;
pub mod extension;
mod finish;
mod identity;
mod large_object;
mod restore;
mod role;
mod setting;
mod statement;
mod step;
mod undo;

pub use archive::Archive;
pub use beside::LeafKey;
pub use build::{BuildPlan, build_tasks, refresh_tasks};
pub use dump::Dumped;
pub use entry::{Entry, Stage};
pub use error::{Error, Refused, Result, SNAPSHOT_OUTDATED};
pub use extension::{ConfigTable, extension_config_tables};
pub use identity::OriginalIdentity;

use crate::{filter::Filter, migration::context::Context};
use choice::Choice;
pub(crate) use client::Clients;
use pg::TableName;

use restore::Restore;
use std::path::{Path, PathBuf};

/// What did not arrive, and why; sentences for the operator.
pub type NotMoved = Vec<String>;

/// The schema of one migration.
#[derive(Clone, Debug)]
pub struct Schema {
    pub context: Context,
    /// Where pg_dump and pg_restore are looked for before the usual places.
    pub client_directories: Vec<PathBuf>,
}

/// Mark of the rehearsal.
const REHEARSED: &str = "schema/rehearsed";

impl Schema {
    pub fn new(context: Context) -> Self {
        Self { context, client_directories: Vec::new() }
    }

    /// Takes the schema from the source under `snapshot`. Keeps an archive that is there, if it
    /// is of the same snapshot epoch or the target was begun with it.
    ///
    /// # Errors
    /// When pg_dump is missing or fails; see [`Error`].
    pub async fn dump(&self, snapshot: &str, snapshot_epoch: u32) -> Result<Dumped> {
        if let Some(dumped) = dump::recorded(&self.context).await?
            && (dumped.snapshot_epoch == snapshot_epoch || self.is_begun().await?)
        {
            return Ok(dumped);
        }
        let clients = self.clients().await?;
        dump::run(&self.context, &clients, snapshot, snapshot_epoch).await
    }

    async fn is_begun(&self) -> Result<bool> {
        let session = step::target_session(&self.context, "begun").await?;
        let mark = format!("schema/{}", Stage::PreData);
        Ok(step::read::<serde_json::Value>(&session, &mark).await?.is_some())
    }

    /// The archive as the filter leaves it, and what it leaves out.
    ///
    /// # Errors
    /// [`Error::ArchiveMissing`] before [`Schema::dump`].
    pub async fn archive(&self) -> Result<(Archive, NotMoved)> {
        let path = dump::archive_path(&self.context);
        let Some(dumped) = dump::recorded(&self.context).await? else {
            return Err(Error::ArchiveMissing(path));
        };
        let filter = self.filter()?;
        let clients = self.clients().await?;
        let parsed = read(&clients, &path, &filter).await?;
        let choice = Choice {
            filter: &filter,
            own_prefix: &format!("{}_", self.context.slot_name()),
            odd_names: &dumped.odd_names,
        };
        let (entries, mut not_moved) = choice.choose(parsed.entries)?;
        not_moved.extend(dumped.warnings);
        Ok((Archive::of(entries).with(dumped.digest, dumped.leaf_keys), not_moved))
    }

    /// Makes the source's roles on the target, but for those that are there.
    ///
    /// # Errors
    /// When a server does not answer; a refused role or attribute is no error, but said.
    pub async fn roles(&self) -> Result<NotMoved> {
        role::restore(&self.context, &self.filter()?).await
    }

    /// Owner, grants, comment and settings of the database: at [`Stage::Cutover`] for good, at
    /// [`Stage::PreData`] a trial that says what the target would refuse. The source is read the
    /// first time alone.
    ///
    /// # Errors
    /// As [`Schema::roles`].
    pub async fn database_settings(&self, stage: Stage) -> Result<NotMoved> {
        database::restore(&self.context, &self.filter()?, stage).await
    }

    /// Copies the large objects that `snapshot` sees.
    ///
    /// # Errors
    /// [`Error::LargeObject`] when one cannot be read or written.
    pub async fn large_objects(&self, snapshot: &str) -> Result<NotMoved> {
        large_object::copy(&self.context, &self.filter()?, snapshot).await
    }

    /// Brings new, changed and deleted large objects to the target: at cutover, when nobody
    /// writes to the source.
    ///
    /// # Errors
    /// As [`Schema::large_objects`].
    pub async fn sync_large_objects(&self) -> Result<NotMoved> {
        large_object::sync(&self.context, &self.filter()?).await
    }

    /// Gives tables of the target the replica identity that they had on the source before
    /// Skein: at [`Stage::Cutover`], behind it.
    ///
    /// # Errors
    /// When the target refuses.
    pub async fn replica_identities(
        &self,
        originals: &[(TableName, OriginalIdentity)],
    ) -> Result<()> {
        identity::restore(&self.context, originals).await
    }

    async fn clients(&self) -> Result<Clients> {
        Clients::find_in(self.context.source_version / 10_000, &self.client_directories).await
    }

    /// Takes [`Stage::Cutover`] back after a lifted fence.
    ///
    /// # Errors
    /// As [`Schema::restore`].
    pub async fn undo_cutover(&self) -> Result<()> {
        undo::undo(&self.context).await
    }

    fn filter(&self) -> Result<Filter> {
        Filter::try_from(self.context.spec.filter.as_ref()).map_err(Error::Filter)
    }

    /// Makes the objects of a stage on the target. After the first stage, all others are tried
    /// on the empty tables and taken back, so that what would be refused at cutover is refused
    /// now.
    ///
    /// # Errors
    /// [`Error::Refused`] with every object; [`Error::Fenced`] when a newer epoch acts.
    pub async fn restore(&self, stage: Stage, archive: &Archive) -> Result<NotMoved> {
        let session = match stage {
            Stage::AfterOpen => step::quiet_session(&self.context, stage.as_str()).await?,
            _ => step::target_session(&self.context, stage.as_str()).await?,
        };
        let restore = Restore { context: &self.context, archive, stage };
        restore.run(&session).await?;
        if stage == Stage::PreData
            && step::read::<serde_json::Value>(&session, REHEARSED).await?.is_none()
        {
            restore.rehearse(&session).await?;
            let mark = step::mark(REHEARSED, &archive.digest);
            let kept = crate::target::fenced(&session, self.context.epoch, &mark).await;
            if !kept.map_err(Error::server("mark the rehearsal"))? {
                return Err(Error::Fenced);
            }
        }
        let mut not_moved = NotMoved::new();
        if stage == Stage::PreData {
            let source = step::source_session(&self.context, "public").await?;
            not_moved.extend(beside::public_create(&source, &session).await?);
        }
        if stage == Stage::Cutover {
            for entry in archive.entries.iter().filter(|entry| entry.kind == "SUBSCRIPTION") {
                not_moved.push(format!(
                    "{}: made disabled and without a slot; set its slot and enable it when the \
                     source no longer has it",
                    entry.label()
                ));
            }
        }
        Ok(not_moved)
    }
}

/// Prints the archive and its lists with pg_restore, and reads them.
async fn read(clients: &Clients, path: &Path, filter: &Filter) -> Result<Archive> {
    let print = async |arguments: &[&str]| {
        let mut command = clients.command("pg_restore");
        command.args(arguments);
        if filter.leaves_out(crate::filter::Kind::Owners) {
            command.arg("--no-owner");
        }
        let output = command.arg(path).output().await;
        let output =
            output.map_err(|source| Error::Run { program: "pg_restore".to_owned(), source })?;
        if !output.status.success() {
            return Err(Error::Client {
                program: "pg_restore",
                message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                class: if output.status.code().is_none() {
                    proto::status::ErrorClass::Transient
                } else {
                    proto::status::ErrorClass::Definite
                },
            });
        }
        String::from_utf8(output.stdout)
            .map_err(|_| Error::Archive("it holds text that is not UTF-8".to_owned()))
    };
    // Verbose: the headers with numbers and dependencies. Its progress goes to stderr.
    let (script, pre_data, post_data) = tokio::try_join!(
        print(&["--verbose", "--file=-"]),
        print(&["--list", "--section=pre-data"]),
        print(&["--list", "--section=post-data"]),
    )?;
    Archive::parse(&script, &pre_data, &post_data)
}
