//! A throw-away PostgreSQL server.
//!
//! ```text
//! builder -> template (initdb once, kept) -> copy -> postgresql.conf -> postmaster
//!                                                       ^ stop, kill9, start_again
//! ```
//! Promise: `start` returns when the server takes connections; it listens on the loopback and on
//! a Unix socket, on a port nobody else here has, as an ordinary user; it is killed and its files
//! are removed when the handle is dropped, or by its watchdog when our process dies.

mod builder;
mod template;
pub(super) mod watchdog;

pub use builder::Builder;

use super::{
    During as _, Error, Result,
    port::Port,
    program::{Installation, output_of},
    tail,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use watchdog::Watchdog;

/// Longest wait for a server to start, or to stop, on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How a server is stopped (`pg_ctl stop -m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Transactions are rolled back, a checkpoint is written.
    Fast,
    /// As in a crash: recovery at the next start.
    Immediate,
}

/// A server, running or stopped; gone with its files when dropped.
#[derive(Debug)]
pub struct Postgres {
    installation: Installation,
    major: u32,
    port: Port,
    directory: PathBuf,
    password: Option<String>,
    watchdog: Option<Watchdog>,
}

impl Postgres {
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub fn major(&self) -> u32 {
        self.major
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The connection string of the superuser over TCP.
    pub fn conninfo(&self, database: &str) -> String {
        self.conninfo_at(self.port(), database)
    }

    /// The same through another port: a proxy's.
    pub fn conninfo_at(&self, port: u16, database: &str) -> String {
        let password = self.password.as_ref().map(|p| format!(":{p}")).unwrap_or_default();
        format!("postgresql://postgres{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// The connection string of another role over TCP.
    pub fn conninfo_as(&self, role: &str, password: &str, database: &str) -> String {
        let port = self.port();
        format!("postgresql://{role}:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// Directory of the Unix socket.
    pub fn socket_directory(&self) -> PathBuf {
        self.directory.join("s")
    }

    /// The data directory, as this process sees it.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Client programs of the server's own version.
    pub fn client_bin(&self) -> PathBuf {
        self.installation.client_bin()
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Pid of the postmaster while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.watchdog.as_ref().map(Watchdog::server_pid)
    }

    /// Starts a stopped or killed server on the same port and data.
    ///
    /// # Errors
    /// It did not take connections in time; its log is in the text.
    pub fn start_again(&mut self) -> Result<()> {
        if self.watchdog.is_some() {
            return Ok(());
        }
        let mut words = self.installation.command_line("postgres");
        let data = self.installation.inside(&self.data_directory());
        words.extend(["-D".to_owned(), data.display().to_string()]);
        self.watchdog = Some(Watchdog::start(&words, &self.log_path(), &self.directory)?);
        let status = self.data_directory().join("postmaster.pid");
        let pid = self.pid().map(|pid| pid.to_string());
        let ready = || {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            // Line 1 is the postmaster, which may be a dead one's; line 8 its state
            // (utils/pidfile.h).
            text.lines().next() == pid.as_deref()
                && text.lines().nth(7).is_some_and(|line| line.trim() == "ready")
        };
        let begun = Instant::now();
        while !ready() {
            let ended = self.watchdog.as_mut().is_some_and(Watchdog::has_ended);
            if ended || begun.elapsed() > START_DEADLINE {
                self.kill9();
                return Err(self.expired("the server did not start"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Stops the server and waits until it is gone. A fast stop that hangs becomes an immediate one.
    ///
    /// # Errors
    /// It was still there after a minute.
    pub fn stop(&mut self, mode: Stop) -> Result<()> {
        let signal = match mode {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        let Some(watchdog) = self.watchdog.take() else { return Ok(()) };
        send(watchdog.server_pid(), signal);
        if !watchdog.wait(START_DEADLINE) {
            return Err(self.expired("the server did not stop"));
        }
        Ok(())
    }

    /// Kills the postmaster and all its processes with SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(watchdog) = self.watchdog.take() {
            let postmaster = watchdog.server_pid();
            // First the parent, or it would answer the children's death with a restart.
            let children = children_of(postmaster);
            send(postmaster, Signal::KILL);
            for child in children {
                send(child, Signal::KILL);
            }
            watchdog.wait(START_DEADLINE);
        }
    }

    /// Adds a line to `postgresql.conf`; `reload`, or a stop and start, makes it count.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.append("postgresql.conf", &format!("{name} = '{}'\n", value.replace('\'', "''")))
    }

    /// Has the server read its configuration again.
    pub fn reload(&self) {
        if let Some(pid) = self.pid() {
            send(pid, Signal::HUP);
        }
    }

    /// Puts lines in front of `pg_hba.conf` and has them read.
    ///
    /// # Errors
    /// The file could not be read or written.
    pub fn hba(&self, lines: &str) -> Result<()> {
        let path = self.data_directory().join("pg_hba.conf");
        let rest = std::fs::read_to_string(&path).during("read pg_hba.conf")?;
        std::fs::write(&path, format!("{lines}\n{rest}")).during("write pg_hba.conf")?;
        self.reload();
        Ok(())
    }

    /// Runs statements with psql, each on its own unless they say otherwise; unaligned rows come
    /// back, fields separated by `|`.
    ///
    /// # Errors
    /// The first statement that failed, with the server's message.
    pub fn psql(&self, database: &str, statements: &str) -> Result<String> {
        let mut command = self.client_program("psql", database);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        let input = tempfile::tempfile().during("make a file for psql")?;
        {
            use std::io::{Seek as _, Write as _};
            let mut input = &input;
            input.write_all(statements.as_bytes()).during("write psql's input")?;
            input.rewind().during("rewind psql's input")?;
        }
        command.stdin(input);
        Ok(output_of("psql", &mut command)?.trim_end().to_owned())
    }

    /// A client program of the server's version, set to connect here as superuser.
    pub fn client_program(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.client_bin().join(program));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", database)
            .env("PGSSLMODE", "disable")
            .env("LC_ALL", "C.UTF-8");
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password);
        }
        command
    }

    /// A session of ours as superuser, free to write.
    ///
    /// # Errors
    /// The server did not let us in.
    pub async fn client(&self, database: &str) -> pg::Result<pg::Session> {
        let conninfo = pg::Conninfo::parse(&self.conninfo(database))?;
        let settings = pg::Settings::write(pg::SessionName::of_role("loadtest"));
        pg::Session::connect(&conninfo, &settings).await
    }

    fn lay_out(&self, template: &Path, settings: &BTreeMap<String, String>) -> Result<()> {
        let sockets = self.socket_directory();
        std::fs::create_dir_all(&sockets).during("make the socket directory")?;
        std::fs::write(self.log_path(), "").during("make the log")?;
        if let Some(account) = self.installation.account() {
            std::os::unix::fs::chown(&sockets, Some(account.uid), Some(account.gid))
                .during("give the socket directory to the server")?;
        }
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(template).arg(self.data_directory());
        output_of("cp", &mut copy)?;
        let mut lines = format!(
            "\nport = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n",
            self.port(),
            self.installation.inside(&sockets).display()
        );
        for (name, value) in settings {
            let _ = writeln!(lines, "{name} = '{}'", value.replace('\'', "''"));
        }
        self.append("postgresql.conf", &lines)
    }

    fn ask_for_password(&mut self, password: String) -> Result<()> {
        let quoted = password.replace('\'', "''");
        self.psql("postgres", &format!("alter role postgres password '{quoted}'"))?;
        self.hba(
            "local all all trust\nhost all all all scram-sha-256\n\
                  host replication all all scram-sha-256",
        )?;
        self.password = Some(password);
        Ok(())
    }

    fn append(&self, file: &str, lines: &str) -> Result<()> {
        use std::io::Write as _;
        let path = self.data_directory().join(file);
        std::fs::File::options()
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .during(format!("write {file}"))
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn expired(&self, what: &str) -> Error {
        Error::Deadline {
            what: what.to_owned(),
            seconds: START_DEADLINE.as_secs(),
            path: self.log_path(),
            log: tail(&self.log(), 30),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of PostgreSQL on port {}\n{}", self.port(), tail(&self.log(), 60));
        }
        self.kill9();
        if std::env::var_os("SKEIN_TEST_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // Gone already is what was wanted.
        let _ = kill_process(pid, signal);
    }
}

/// Processes whose parent is `parent` (proc(5), `/proc/PID/stat`).
fn children_of(parent: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name stands in brackets and may hold blanks; state and parent come after it.
            let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
            after.split_whitespace().nth(1).and_then(|text| text.parse().ok()) == Some(parent)
        })
        .collect()
}
