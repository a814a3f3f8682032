//! PostgreSQL's client programs: which to take, and how they are run.
//!
//! In: the source's major version. Out: a directory with pg_dump and pg_restore of one version.
//! Promise: the source's own major version where it is installed (a newer pg_dump writes what
//! an older server's dump does not hold), else the next newer one; a child dies with us, also
//! when we are killed; connection settings go by environment, never by command line.

use super::error::{Error, Result};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Directory to look into before all others.
const OVERRIDE: &str = "SKEIN_PG_BINDIR";
/// More directories, separated by colons, beside those where distributions put them.
const MORE: &str = "SKEIN_PG_BIN_DIRS";

/// pg_dump and pg_restore of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clients {
    pub directory: PathBuf,
    pub major: u32,
    /// As pg_dump prints it, for example `15.20 (Debian ...)`.
    pub version: String,
}

impl Clients {
    /// The programs that fit a source of this major version.
    ///
    /// # Errors
    /// [`Error::ClientMissing`], with what was found.
    pub(crate) async fn find(source_major: u32) -> Result<Self> {
        Self::find_in(source_major, &[]).await
    }

    /// The same, looking into `first` first.
    ///
    /// # Errors
    /// As [`Clients::find`].
    pub(super) async fn find_in(source_major: u32, first: &[PathBuf]) -> Result<Self> {
        let mut found = Vec::new();
        for directory in first.iter().cloned().chain(directories()) {
            let Some(clients) = Self::look(&directory).await else { continue };
            let is_own = clients.major == source_major;
            found.push(clients);
            if is_own {
                break;
            }
        }
        choose(&found, source_major).cloned().ok_or_else(|| Error::ClientMissing {
            major: source_major,
            found: if found.is_empty() {
                "none".to_owned()
            } else {
                let each = |c: &Self| format!("{} in {}", c.version, c.directory.display());
                found.iter().map(each).collect::<Vec<_>>().join(", ")
            },
        })
    }

    async fn look(directory: &Path) -> Option<Self> {
        if !directory.join("pg_restore").exists() {
            return None;
        }
        let mut command = Command::new(directory.join("pg_dump"));
        let output = command.arg("--version").env("LC_ALL", "C").kill_on_drop(true).output();
        let text = String::from_utf8(output.await.ok()?.stdout).ok()?;
        let version = text.trim().strip_prefix("pg_dump (PostgreSQL) ")?.to_owned();
        let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
        let major = version[..digits].parse().ok()?;
        Some(Self { directory: directory.to_owned(), major, version })
    }

    /// A command that dies with us.
    pub(super) fn command(&self, program: &str) -> Command {
        let program = self.directory.join(program);
        let mut command = match death_signal() {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(std::process::Stdio::null());
        command
    }
}

/// setpriv (util-linux): asks the kernel to kill the program when the thread that started it
/// ends. That is a thread of the runtime, which lives as long as we do, provided that the
/// program is started by an ordinary task and not from `spawn_blocking`. Without setpriv a
/// pg_dump that outlives us ends at its next read or write, or by
/// [`super::dump`]'s ending of older sessions.
fn death_signal() -> Option<PathBuf> {
    ["/usr/bin/setpriv", "/bin/setpriv"].map(PathBuf::from).into_iter().find(|path| path.exists())
}

/// The source's own major version, else the next newer one; the first of equals.
fn choose(found: &[Clients], source_major: u32) -> Option<&Clients> {
    let mut best: Option<&Clients> = None;
    for clients in found.iter().filter(|clients| clients.major >= source_major) {
        if best.is_none_or(|best| clients.major < best.major) {
            best = Some(clients);
        }
    }
    best
}

/// Where distributions put them.
fn directories() -> Vec<PathBuf> {
    if let Some(directory) = std::env::var_os(OVERRIDE) {
        return vec![directory.into()];
    }
    let more = std::env::var_os(MORE).unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&more).collect();
    for (parent, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                let version = name.as_deref().and_then(|name| name.strip_prefix(prefix));
                version.is_some_and(|version| version.parse::<u32>().is_ok())
            })
            .map(|path| path.join("bin"))
            .collect();
        found.sort();
        directories.extend(found);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    directories.extend(std::env::split_paths(&path));
    directories.retain(|directory| directory.join("pg_dump").exists());
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_own_version_is_taken_else_the_next_newer_never_an_older() {
        let of = |major| Clients { directory: "/x".into(), major, version: major.to_string() };
        let found = [of(18), of(15), of(17)];
        assert_eq!(choose(&found, 15).map(|c| c.major), Some(15));
        assert_eq!(choose(&found, 16).map(|c| c.major), Some(17));
        assert_eq!(choose(&found[1..2], 16), None);
    }
}
