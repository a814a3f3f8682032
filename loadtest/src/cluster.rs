//! Throw-away servers and processes on this machine.
//!
//! Promise: what is started here is stopped when its handle is dropped, and dies with the process
//! that started it, kill -9 included; nothing is left in the temporary directory.

pub mod certificate;
pub mod collector;
pub mod etcd;
pub mod port;
pub mod postgres;
pub mod process;
pub mod program;
pub mod proxy;

use std::{io, path::PathBuf};

/// A server or process could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("PostgreSQL {major} is not on this machine: {hint}")]
    NotInstalled { major: u32, hint: &'static str },
    #[error("could not {action}: {source}")]
    Io { action: String, source: io::Error },
    #[error("{program} failed ({status}): {output}")]
    Program { program: String, status: String, output: String },
    #[error("no free port between {first} and {last}")]
    NoPort { first: u16, last: u16 },
    #[error("{what} within {seconds} s; the end of {}:\n{log}", .path.display())]
    Deadline { what: String, seconds: u64, path: PathBuf, log: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names what was being done when the machine refused.
pub(crate) trait During<T> {
    fn during(self, action: impl Into<String>) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { action: action.into(), source })
    }
}

/// The last lines of a log, for an error text.
pub(crate) fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Where files of servers are kept between runs; a server inside a chroot sees only that.
fn cache_of_account(installation: &program::Installation) -> Result<PathBuf> {
    let place = match installation {
        program::Installation::Native { .. } => program::cache_directory().join("template"),
        program::Installation::Chroot { root, .. } => root.join("var/lib/skein-template"),
    };
    std::fs::create_dir_all(&place).during(format!("make {}", place.display()))?;
    if let Some(account) = installation.account() {
        std::os::unix::fs::chown(&place, Some(account.uid), Some(account.gid))
            .during("give the templates to the servers' account")?;
    }
    Ok(place)
}
