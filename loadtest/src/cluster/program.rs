//! Where PostgreSQL's programs are on this machine, and as whom its servers run.
//!
//! ```text
//! major -> Installation: Native (a bin directory) | Chroot (a Debian made by prepare-pg17)
//! ```
//! Looked for in this order: `SKEIN_TEST_PG_BIN_<major>`, `/usr/lib/postgresql/<major>/bin`,
//! `PATH`, and for 17 the Debian in `SKEIN_TEST_CACHE`.

use super::{Error, Result};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// A PostgreSQL that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installation {
    /// Programs in this directory run as they are.
    Native { bin: PathBuf },
    /// Programs run inside this root directory; only root may.
    Chroot { root: PathBuf, bin: PathBuf },
}

/// User and group of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

/// Root of what tests keep between runs: `SKEIN_TEST_CACHE`, or a place by who we are.
pub fn cache_directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("SKEIN_TEST_CACHE") {
        return directory.into();
    }
    if is_root() {
        return "/var/cache/skein-test".into();
    }
    format!("/tmp/skein-test-{}", rustix::process::geteuid().as_raw()).into()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Installation {
    /// # Errors
    /// [`Error::NotInstalled`], with what to do.
    pub fn find(major: u32) -> Result<Self> {
        let named = std::env::var_os(format!("SKEIN_TEST_PG_BIN_{major}")).map(PathBuf::from);
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        if let Some(bin) = named.into_iter().chain([debian]).find(|bin| has_server(bin)) {
            return Ok(Self::Native { bin });
        }
        if let Some(bin) = path_directories().into_iter().find(|bin| is_major(bin, major)) {
            return Ok(Self::Native { bin });
        }
        let root = cache_directory().join("trixie");
        let bin = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let within = root.join(bin.strip_prefix("/").unwrap_or(&bin));
        match (is_root(), has_server(&within)) {
            (true, true) => Ok(Self::Chroot { root, bin }),
            _ if major == 17 => Err(Error::NotInstalled {
                major,
                hint: "run `make prepare-pg17` as root, and the tests as root",
            }),
            _ => Err(Error::NotInstalled {
                major,
                hint: "install its Debian package, or set SKEIN_TEST_PG_BIN_<major>",
            }),
        }
    }

    /// Client programs of this major version that run outside any chroot.
    pub fn client_bin(&self) -> PathBuf {
        match self {
            Self::Native { bin } => bin.clone(),
            Self::Chroot { .. } => cache_directory().join("pg17/bin"),
        }
    }

    /// Directory for data directories: inside the chroot, where there is one.
    pub(crate) fn temporary_directory(&self) -> PathBuf {
        match self {
            Self::Native { .. } => {
                std::env::var_os("SKEIN_TEST_TMP").map_or_else(|| "/tmp".into(), PathBuf::from)
            }
            Self::Chroot { root, .. } => root.join("tmp"),
        }
    }

    /// `path` as the server sees it.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        match self {
            Self::Native { .. } => path.to_owned(),
            Self::Chroot { root, .. } => match path.strip_prefix(root) {
                Ok(rest) => Path::new("/").join(rest),
                Err(_) => path.to_owned(),
            },
        }
    }

    /// As whom servers run: ourselves, or an ordinary user when we are root.
    pub(crate) fn account(&self) -> Option<Account> {
        if !is_root() {
            return None;
        }
        let root = match self {
            Self::Native { .. } => Path::new("/"),
            Self::Chroot { root, .. } => root,
        };
        let passwd = std::fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
        account_of(&passwd, "postgres").or_else(|| account_of(&passwd, "nobody"))
    }

    /// The command line, up to the program's arguments, that runs `program` as its account.
    /// Every word replaces itself with the next (exec), so that the process stays the same.
    pub(crate) fn command_line(&self, program: &str) -> Vec<String> {
        let mut words = Vec::new();
        match (self, self.account()) {
            (Self::Native { .. }, Some(Account { uid, gid })) => words.extend([
                "setpriv".to_owned(),
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
                "--clear-groups".to_owned(),
                "--".to_owned(),
            ]),
            (Self::Chroot { root, .. }, Some(Account { uid, gid })) => words.extend([
                "chroot".to_owned(),
                format!("--userspec={uid}:{gid}"),
                root.display().to_string(),
            ]),
            (_, None) => {}
        }
        let (Self::Native { bin } | Self::Chroot { bin, .. }) = self;
        words.push(bin.join(program).display().to_string());
        words
    }

    /// Runs a program to its end as the servers' account.
    pub(crate) fn run(&self, program: &str, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
        let words = self.command_line(program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments).env("LC_ALL", "C.UTF-8").current_dir("/");
        output_of(program, &mut command)
    }
}

/// Standard output of a command that must succeed.
pub(crate) fn output_of(program: &str, command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .map_err(|source| Error::Io { action: format!("run {program}"), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(Error::Program {
        program: program.to_owned(),
        status: output.status.to_string(),
        output: format!("{text}{}", String::from_utf8_lossy(&output.stderr)).trim().to_owned(),
    })
}

fn has_server(bin: &Path) -> bool {
    bin.join("postgres").is_file() && bin.join("initdb").is_file()
}

fn path_directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|bin| has_server(bin)).collect()
}

fn is_major(bin: &Path, major: u32) -> bool {
    output_of("postgres", Command::new(bin.join("postgres")).arg("--version"))
        .is_ok_and(|text| text.contains(&format!("PostgreSQL) {major}.")))
}

fn account_of(passwd: &str, user: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:105:113:PostgreSQL:/var:/bin/bash\n";
        assert_eq!(account_of(passwd, "postgres"), Some(Account { uid: 105, gid: 113 }));
        assert_eq!(account_of(passwd, "nobody"), None);
    }
}
