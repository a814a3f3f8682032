//! Starts a coordinator on this machine, in a session of its own.
//!
//! ```text
//! skein migrate --spawn--> skein __launch --setsid, exec--> skein-coordinator --dir DIR
//! ```
//! `__launch` is this program again: it leaves our session, so that neither Ctrl-C nor a
//! hang-up reaches the coordinator, and then becomes it, so that its pid is our child's.
//! Promise: one coordinator at a time is started for a directory (DIR/launch.lock), and what
//! it said last is shown when it dies.

use crate::{
    connect::{self, Place},
    secret,
};
use proto::status::{Classify, ErrorClass};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use std::{
    collections::VecDeque,
    env,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Longest wait for a coordinator that was started: it reads its store and its spool, whose
/// open segments it checks (1 GiB at 200 MB/s is 5 s).
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks at it.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// Deaths within [`DEATH_WINDOW`] after which it is not started again.
const DEATHS_MAX: usize = 5;
const DEATH_WINDOW: Duration = Duration::from_secs(120);
/// Longest wait for a coordinator that was asked to end.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Exit code of a coordinator that found another one in its directory (EX_TEMPFAIL of
/// sysexits.h): that one does not serve yet, or is stopping, so it is tried again.
const ANOTHER_HOLDS: i32 = 75;
/// Pause before that.
const HOLDER_PAUSE: Duration = Duration::from_millis(500);
/// What is shown of its log.
const TAIL_LINES: usize = 15;
const TAIL_BYTES_MAX: u64 = 64 * 1024;

/// Why there is no coordinator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not make the state directory \"{}\"", path.display())]
    Directory { path: PathBuf, source: secret::Error },
    #[error("could not open \"{}\"", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("could not start \"{}\"", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("program skein-coordinator was not found")]
    NoProgram { beside: PathBuf },
    #[error("the coordinator ended as soon as it was started: {status}")]
    Died { status: ExitStatus, tail: String, log: PathBuf },
    #[error("the coordinator did not answer within {} s", START_DEADLINE.as_secs())]
    Silent { tail: String, log: PathBuf },
    #[error("another skein has been starting a coordinator here for {} s", START_DEADLINE.as_secs())]
    Locked { path: PathBuf },
    #[error("the coordinator died {DEATHS_MAX} times within {} s", DEATH_WINDOW.as_secs())]
    DiesAgain { tail: String, log: PathBuf },
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Directory { .. }
            | Self::File { .. }
            | Self::Spawn { .. }
            | Self::NoProgram { .. }
            | Self::Died { .. }
            | Self::DiesAgain { .. } => ErrorClass::Definite,
            Self::Silent { .. } | Self::Locked { .. } => ErrorClass::Transient,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Directory { .. } | Self::File { .. } => "STATE_DIRECTORY",
            Self::Spawn { .. } | Self::NoProgram { .. } => "COORDINATOR_PROGRAM",
            Self::Died { .. } | Self::DiesAgain { .. } => "COORDINATOR_DIED",
            Self::Silent { .. } | Self::Locked { .. } => "COORDINATOR_UNREACHABLE",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Died { tail, .. } | Self::Silent { tail, .. } | Self::DiesAgain { tail, .. } => {
                if tail.is_empty() {
                    "It said nothing.".to_owned()
                } else {
                    format!("It said last:\n{tail}")
                }
            }
            Self::NoProgram { beside } => {
                format!("It is neither in \"{}\" nor on PATH.", beside.display())
            }
            Self::Locked { path } => format!("It holds \"{}\".", path.display()),
            Self::Directory { .. } | Self::File { .. } | Self::Spawn { .. } => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Died { log, .. } | Self::Silent { log, .. } | Self::DiesAgain { log, .. } => {
                format!("Its whole log: {}", log.display())
            }
            Self::NoProgram { .. } => "Install skein-coordinator beside skein.".to_owned(),
            Self::Directory { .. } | Self::File { .. } => {
                "Check who owns the directory and whether its disk is full, or give --dir."
                    .to_owned()
            }
            Self::Locked { .. } => "Run the same command again.".to_owned(),
            Self::Spawn { .. } => String::new(),
        }
    }
}

/// Keeps a coordinator running for as long as someone is attached.
#[derive(Debug)]
pub(crate) struct Launcher {
    dir: PathBuf,
    child: Option<Child>,
    deaths: VecDeque<Instant>,
}

/// What [`Launcher::ensure`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    RanAlready,
    Now,
}

impl Launcher {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), child: None, deaths: VecDeque::new() }
    }

    /// The coordinator's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("coordinator.log")
    }

    /// A coordinator that serves: the one that runs, or one started now.
    ///
    /// # Errors
    /// [`Error`], with the end of its log where there is one.
    pub(crate) async fn ensure(&mut self) -> Result<(Channel, Started), Error> {
        let place = Place::Dir(self.dir.clone());
        if let Health::Serving(channel) = health(&place).await {
            return Ok((channel, Started::RanAlready));
        }
        secret::make_private_dir(&self.dir)
            .map_err(|source| Error::Directory { path: self.dir.clone(), source })?;
        let _held_to_the_end = self.lock().await?;
        let started = match health(&place).await {
            Health::Serving(channel) => return Ok((channel, Started::RanAlready)),
            // It is there, and not ready: wait for it, a second one would be refused.
            Health::NotServing => Started::RanAlready,
            Health::Nobody => {
                self.count_death()?;
                self.spawn()?;
                Started::Now
            }
        };
        let log_begin = std::fs::metadata(self.log()).map_or(0, |meta| meta.len());
        self.wait(&place, log_begin).await.map(|channel| (channel, started))
    }

    /// Ends the coordinator if we started it, for when it has nothing to do.
    pub(crate) async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && matches!(child.try_wait(), Ok(None))
        {
            let _dead_already = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            sleep(POLL_PAUSE).await;
        }
    }

    /// Lets go of the coordinator: it runs on.
    pub(crate) fn is_ours(&self) -> bool {
        self.child.is_some()
    }

    /// A second start within the window means that the first one died.
    fn count_death(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        self.deaths.retain(|at| now.saturating_duration_since(*at) < DEATH_WINDOW);
        if self.deaths.len() > DEATHS_MAX {
            return Err(Error::DiesAgain { tail: tail(&self.log(), 0), log: self.log() });
        }
        self.deaths.push_back(now);
        Ok(())
    }

    async fn lock(&self) -> Result<File, Error> {
        let path = self.dir.join("launch.lock");
        let file = private_append(&path)?;
        let deadline = Instant::now() + START_DEADLINE;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                return Err(Error::Locked { path });
            }
            sleep(POLL_PAUSE).await;
        }
        Ok(file)
    }

    fn spawn(&mut self) -> Result<(), Error> {
        let program = program()?;
        let log = private_append(&self.log())?;
        let log_again =
            log.try_clone().map_err(|source| Error::File { path: self.log(), source })?;
        let own = env::current_exe()
            .map_err(|source| Error::Spawn { program: program.clone(), source })?;
        let child = Command::new(own)
            .arg("__launch")
            .arg("--")
            .arg(&program)
            .arg("--dir")
            .arg(&self.dir)
            .arg("--exit-when-idle")
            // Moved into files already; what a process does not need it should not hold.
            .env_remove("SKEIN_SOURCE")
            .env_remove("SKEIN_TARGET")
            .env_remove("SKEIN_COORDINATOR")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_again)
            .spawn()
            .map_err(|source| Error::Spawn { program, source })?;
        if let Some(mut dead) = self.child.replace(child) {
            // Takes its exit status, so that it does not stay as a zombie.
            let _was_dead = dead.try_wait();
        }
        Ok(())
    }

    async fn wait(&mut self, place: &Place, log_begin: u64) -> Result<Channel, Error> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Health::Serving(channel) = health(place).await {
                return Ok(channel);
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                self.child = None;
                if status.code() == Some(ANOTHER_HOLDS) && Instant::now() < deadline {
                    sleep(HOLDER_PAUSE).await;
                    self.spawn()?;
                    continue;
                }
                let tail = tail(&self.log(), log_begin);
                return Err(Error::Died { status, tail, log: self.log() });
            }
            if Instant::now() >= deadline {
                return Err(Error::Silent { tail: tail(&self.log(), log_begin), log: self.log() });
            }
            sleep(POLL_PAUSE).await;
        }
    }
}

enum Health {
    Serving(Channel),
    NotServing,
    Nobody,
}

async fn health(place: &Place) -> Health {
    let Ok(channel) = connect::channel(place, &connect::Credentials::default()).await else {
        return Health::Nobody;
    };
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(5));
    match HealthClient::new(channel.clone()).check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {
            Health::Serving(channel)
        }
        // A coordinator without a health service serves as soon as it answers.
        Err(status) if status.code() == Code::Unimplemented => Health::Serving(channel),
        Ok(_) | Err(_) => Health::NotServing,
    }
}

fn private_append(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::File { path: path.to_owned(), source })
}

/// `skein-coordinator` beside this program, else on PATH.
fn program() -> Result<PathBuf, Error> {
    const NAME: &str = "skein-coordinator";
    let own = env::current_exe().unwrap_or_default();
    let beside = own.parent().unwrap_or(Path::new("/")).to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(beside.clone())
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(NAME))
        .find(|program| program.is_file())
        .ok_or(Error::NoProgram { beside })
}

/// Last lines of a log, from a byte on.
fn tail(log: &Path, begin: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(end.saturating_sub(TAIL_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// `skein __launch`: leaves the session and becomes the coordinator. Returns only to fail.
pub(crate) fn become_program(words: &[std::ffi::OsString]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no program was given");
    };
    if let Err(error) = rustix::process::setsid() {
        return error.into();
    }
    Command::new(program).args(arguments).exec()
}
