//! Runs `skein` and takes what it says.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// What a run said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Said {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// `skein --dir DIR WORDS`, in an environment that holds nothing of the developer's.
pub(crate) fn command(program: &Path, dir: &Path, words: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(words.split_whitespace())
        .arg("--dir")
        .arg(dir)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The program as it was built.
pub(crate) fn built() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_skein"))
}

/// Runs to the end.
pub(crate) fn skein(dir: &Path, words: &str) -> Said {
    command(&built(), dir, words).output().unwrap().into()
}

/// Takes what a started program said, when it ends.
pub(crate) fn said(child: Child) -> Said {
    child.wait_with_output().unwrap().into()
}
