//! What a server is to be, and its first start.

use super::{Postgres, template};
use crate::cluster::{During as _, Error, Result, port::Port, program::Installation};
use std::collections::BTreeMap;

/// Settings of every test server unless said otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_replication_slots", "20"),
    ("max_wal_senders", "20"),
    ("max_connections", "100"),
    ("max_prepared_transactions", "10"),
    ("shared_buffers", "32MB"),
    // The machine does not crash in a test; processes do, and what they wrote stays.
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("max_wal_size", "512MB"),
    ("lc_messages", "C"),
    ("log_line_prefix", "%m [%p] %q%a "),
    ("log_lock_waits", "on"),
];

/// What a server is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    major: u32,
    settings: BTreeMap<String, String>,
    initdb: Vec<String>,
    password: Option<String>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            major: 15,
            settings: DEFAULTS.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            initdb: Vec::new(),
            password: None,
        }
    }

    /// Major version; 15 unless said.
    #[must_use]
    pub fn major(mut self, major: u32) -> Self {
        self.major = major;
        self
    }

    /// A line of `postgresql.conf`; the value is quoted.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// `fsync`, `full_page_writes` and all: for tests of durability.
    #[must_use]
    pub fn durable(self) -> Self {
        self.setting("fsync", "on").setting("full_page_writes", "on")
    }

    /// Another argument for initdb, such as `--encoding=LATIN1`. Each set has its own template.
    #[must_use]
    pub fn initdb(mut self, argument: &str) -> Self {
        self.initdb.push(argument.to_owned());
        self
    }

    /// The superuser's password; over TCP it is then asked for (scram-sha-256).
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// # Errors
    /// [`Error::NotInstalled`], or the server did not come up: its log is in the text.
    pub fn start(self) -> Result<Postgres> {
        let installation = Installation::find(self.major)?;
        let port = Port::take()?;
        let template = template::prepare(&installation, self.major, &self.initdb)?;
        let directory = installation.temporary_directory().join(format!(
            "skein-pg-{}-{}",
            port.number(),
            std::process::id()
        ));
        std::fs::create_dir_all(&directory).during("make the server's directory")?;
        let mut server = Postgres {
            installation,
            major: self.major,
            port,
            directory,
            password: None,
            watchdog: None,
        };
        server.lay_out(&template, &self.settings)?;
        server.start_again()?;
        if let Some(password) = self.password {
            server.ask_for_password(password)?;
        }
        Ok(server)
    }

    /// Like `start`; None, and a line on stderr, where this version is not on the machine.
    ///
    /// # Errors
    /// Every reason other than that.
    pub fn start_or_skip(self) -> Result<Option<Postgres>> {
        match self.start() {
            Ok(server) => Ok(Some(server)),
            Err(error @ Error::NotInstalled { .. }) => {
                eprintln!("skipped: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
