//! A data directory made once by initdb, and copied for each server.
//!
//! Promise: a template in its place is whole; two processes that want the same one wait for each
//! other.

use super::super::{During as _, Result, cache_of_account};
use crate::cluster::program::Installation;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::PathBuf,
};

/// Arguments of every initdb. The superuser is `postgres`; a locale that is on every Debian.
const ARGUMENTS: &[&str] =
    &["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"];

/// The template's directory, made if it is missing.
pub(super) fn prepare(
    installation: &Installation,
    major: u32,
    extra: &[String],
) -> Result<PathBuf> {
    let mut arguments: Vec<String> = ARGUMENTS.iter().map(|&word| word.to_owned()).collect();
    arguments.extend_from_slice(extra);
    let mut hasher = DefaultHasher::new();
    (&arguments, installation.command_line("initdb")).hash(&mut hasher);
    let place = cache_of_account(installation)?;
    let template = place.join(format!("template-{major}-{:016x}", hasher.finish()));

    let lock = File::create(place.join("template.lock")).during("lock the templates")?;
    flock(&lock, FlockOperation::LockExclusive).map_err(Into::into).during("lock the templates")?;
    if !template.exists() {
        let unfinished = place.join("template.new");
        let _ = std::fs::remove_dir_all(&unfinished);
        arguments.push(format!("--pgdata={}", installation.inside(&unfinished).display()));
        installation.run("initdb", &arguments)?;
        std::fs::rename(&unfinished, &template).during("put the template in its place")?;
    }
    Ok(template)
}
