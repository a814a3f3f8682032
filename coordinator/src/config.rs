//! Settings of a coordinator: built-in default, file, environment; checked once.

use proto::status::Report;
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

/// As the operator writes it. Every field optional.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// State directory: store, socket, logs, spools. 0700.
    pub dir: PathBuf,
    /// Address of a TCP listener beside the socket. Loopback only, until TLS is set up.
    pub listen: Option<SocketAddr>,
    /// Worker processes that this coordinator starts and supervises. None: what the migrations
    /// ask for (`copy.workers`, 2). 0: none, workers come from elsewhere.
    pub workers: Option<u32>,
    /// Program of those workers. Default: `skein-worker` beside this program.
    pub worker_program: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { dir: PathBuf::new(), listen: None, workers: None, worker_program: None }
    }
}

/// The reference file, printed by `--print-default-config`.
pub const DEFAULT_FILE: &str = "\
# State directory: store, socket, logs, spools. Default: $XDG_STATE_HOME/skein.
# dir = \"/var/lib/skein\"

# A TCP listener beside the socket DIR/coordinator.sock. Loopback only.
# listen = \"127.0.0.1:7450\"

# Worker processes to start. Default: what the migrations ask for; 0 starts none.
# workers = 2

# Program of those workers. Default: skein-worker beside this program.
# worker_program = \"/usr/bin/skein-worker\"
";

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub dir: PathBuf,
    pub listen: Option<SocketAddr>,
    pub workers: Option<u32>,
    pub worker_program: PathBuf,
    /// End when there was no migration for a while: a coordinator that `skein migrate` started.
    pub exit_when_idle: bool,
}

impl Config {
    /// From a file's text, and `dir` when the command line gave one.
    ///
    /// # Errors
    /// `CONFIG_INVALID`, naming key and what is allowed.
    pub fn load(text: &str, dir: Option<PathBuf>) -> Result<Self, Report> {
        let settings: Settings = toml::from_str(text).map_err(|error| {
            Report::definite("CONFIG_INVALID", "configuration file cannot be read")
                .with_detail(error.to_string())
                .with_hint("Compare with: skein-coordinator --print-default-config")
        })?;
        let dir = dir
            .or_else(|| (!settings.dir.as_os_str().is_empty()).then_some(settings.dir))
            .or_else(default_dir)
            .ok_or_else(|| {
                Report::definite("CONFIG_INVALID", "no state directory is set")
                    .with_hint("Give --dir DIR, or set XDG_STATE_HOME or HOME.")
            })?;
        if let Some(listen) = settings.listen
            && !listen.ip().is_loopback()
        {
            return Err(Report::definite(
                "CONFIG_INVALID",
                format!("listen = \"{listen}\" is not a loopback address"),
            )
            .with_detail("Off loopback nothing is served without TLS and a token.")
            .with_hint("Listen on 127.0.0.1, and reach it through an SSH tunnel."));
        }
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
        let worker_program = settings
            .worker_program
            .or_else(|| beside.map(|folder| folder.join("skein-worker")))
            .unwrap_or_else(|| PathBuf::from("skein-worker"));
        Ok(Self {
            dir,
            listen: settings.listen,
            workers: settings.workers,
            worker_program,
            exit_when_idle: false,
        })
    }

    /// The socket that `skein` and the workers of this machine use.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("coordinator.sock")
    }
}

fn default_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("skein"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let refused = Config::load("lisen = \"127.0.0.1:1\"", None).unwrap_err();
        assert!(refused.detail.contains("lisen"), "{}", refused.detail);
    }

    #[test]
    fn an_open_port_beyond_loopback_is_refused() {
        let refused = Config::load("listen = \"0.0.0.0:7450\"", Some("/d".into())).unwrap_err();
        assert_eq!(refused.reason, "CONFIG_INVALID");
    }

    #[test]
    fn the_default_file_says_the_defaults() {
        let config = Config::load(DEFAULT_FILE, Some("/d".into())).unwrap();
        assert_eq!((config.listen, config.workers), (None, None));
        assert_eq!(config.socket(), PathBuf::from("/d/coordinator.sock"));
    }
}
