//! Settings of a coordinator: built-in default, file, environment; checked once.

pub mod network;
pub mod store;

use network::{Listen, TlsSettings};
use proto::status::Report;
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

/// As the operator writes it. Every field optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// State directory: store, socket, logs, spools. 0700.
    pub dir: PathBuf,
    /// Address of a TCP listener beside the socket. Off loopback: with TLS and tokens only.
    pub listen: Option<SocketAddr>,
    /// What workers and operators show on TCP: `env:NAME` or `file:PATH`.
    pub worker_token: Option<String>,
    pub operator_token: Option<String>,
    pub tls: Option<TlsSettings>,
    /// Where workers and operators reach this one of several coordinators.
    pub advertise_url: Option<String>,
    pub store: store::Settings,
    /// Worker processes that this coordinator starts and supervises. None: what the migrations
    /// ask for (`copy.workers`, 2). 0: none, workers come from elsewhere.
    pub workers: Option<u32>,
    /// Program of those workers. Default: `skein-worker` beside this program.
    pub worker_program: Option<PathBuf>,
}

/// The reference file, printed by `--print-default-config`.
pub const DEFAULT_FILE: &str = "\
# State directory: store, socket, logs, spools. Default: $XDG_STATE_HOME/skein.
# dir = \"/var/lib/skein\"

# A TCP listener beside the socket DIR/coordinator.sock. Off loopback only with [tls] and both
# tokens, which workers and operators show: env:NAME or file:PATH.
# listen = \"127.0.0.1:7450\"
# worker_token = \"file:/etc/skein/worker.token\"
# operator_token = \"file:/etc/skein/operator.token\"

# With a store in etcd: where others reach this coordinator, to be sent here while it leads.
# Default: its socket, which is enough where it is the only one.
# advertise_url = \"https://coordinator1:7450\"

# Worker processes to start. Default: what the migrations ask for; 0 starts none.
# workers = 2

# Program of those workers. Default: skein-worker beside this program.
# worker_program = \"/usr/bin/skein-worker\"

# Certificate and key of the TCP listener, PEM. With client_ca_file clients show a certificate, too.
# [tls]
# cert_file = \"/etc/skein/server.crt\"
# key_file = \"/etc/skein/server.key\"
# client_ca_file = \"/etc/skein/clients.crt\"

# Where the records of migrations are kept: \"embedded\" is a file in the state directory.
[store]
kind = \"embedded\"

# With kind = \"etcd\"; one prefix per cluster of coordinators, password as env:NAME or file:PATH.
# [store.etcd]
# endpoints = [\"https://etcd1:2379\", \"https://etcd2:2379\", \"https://etcd3:2379\"]
# prefix = \"/skein/main\"
# user = \"skein\"
# password = \"file:/etc/skein/etcd.password\"
# ca_file = \"/etc/skein/etcd-ca.crt\"
# cert_file = \"/etc/skein/etcd-client.crt\"
# key_file = \"/etc/skein/etcd-client.key\"
";

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub dir: PathBuf,
    pub listen: Option<Listen>,
    pub store: store::Config,
    pub advertise_url: String,
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
        let listen = Listen::checked(
            settings.listen,
            settings.tls,
            settings.worker_token,
            settings.operator_token,
        )?;
        let store = store::Config::try_from(settings.store)?;
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
        let worker_program = settings
            .worker_program
            .or_else(|| beside.map(|folder| folder.join("skein-worker")))
            .unwrap_or_else(|| PathBuf::from("skein-worker"));
        let advertise_url = settings
            .advertise_url
            .unwrap_or_else(|| format!("unix:{}", dir.join(SOCKET).display()));
        Ok(Self {
            advertise_url,
            dir,
            listen,
            store,
            workers: settings.workers,
            worker_program,
            exit_when_idle: false,
        })
    }

    /// The socket that `skein` and the workers of this machine use.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }
}

/// Its file in the state directory.
const SOCKET: &str = "coordinator.sock";

fn invalid(primary: impl Into<String>) -> Report {
    Report::definite("CONFIG_INVALID", primary)
        .with_hint("Compare with: skein-coordinator --print-default-config")
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
    fn every_line_of_the_default_file_is_a_setting() {
        let text: String = DEFAULT_FILE
            .lines()
            .filter(|line| !line.starts_with("kind"))
            .filter_map(|line| {
                let line = line.strip_prefix("# ").unwrap_or(line);
                let key = line.split(" = ").next().unwrap_or_default();
                let is_setting = line.contains(" = ") && !key.contains([' ', ',']);
                (is_setting || line.starts_with('[')).then(|| format!("{line}\n"))
            })
            .collect();
        let settings: Settings = toml::from_str(&text).unwrap();
        assert_eq!(settings.store.etcd.unwrap().endpoints.len(), 3);
        assert!(settings.tls.unwrap().client_ca_file.is_some());
        assert!(settings.worker_token.is_some());
    }

    #[test]
    fn the_default_file_says_the_defaults() {
        let config = Config::load(DEFAULT_FILE, Some("/d".into())).unwrap();
        assert!(config.listen.is_none());
        assert!(matches!(config.store, store::Config::Embedded));
        assert_eq!(config.workers, None);
        assert_eq!(config.socket(), PathBuf::from("/d/coordinator.sock"));
    }
}
