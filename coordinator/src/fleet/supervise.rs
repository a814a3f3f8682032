//! Worker processes of this machine: started, and started again.
//!
//! A worker holds a lock on its file for its life, and outlives a killed coordinator, so that
//! copying and snapshot holders go on. The next coordinator sees the lock and leaves it be.

use crate::config::Config;
use rustix::process::{Pid, Signal, kill_process};
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{process::Command, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

/// Exit code of a worker whose lock is held (EX_TEMPFAIL of sysexits.h).
const ALREADY_RUNNING: i32 = 75;

/// Pause before a worker that ended is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// How long a worker may take to finish or hand back what it does.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Keeps `count` worker processes running until `token` is cancelled; they are then asked to
/// end (SIGTERM) and given a moment.
#[derive(Debug)]
pub struct Supervisor {
    config: Config,
    processes: JoinSet<()>,
    token: CancellationToken,
    count: u32,
}

impl Supervisor {
    pub fn new(config: Config, token: CancellationToken) -> Self {
        Self { config, processes: JoinSet::new(), token, count: 0 }
    }

    /// Starts workers up to `count`, each of `slots` tasks at once. There are never fewer than
    /// before: an idle one costs little.
    pub fn grow(&mut self, count: u32, slots: u32) {
        while self.count < count {
            self.count += 1;
            let worker = Process {
                program: self.config.worker_program.clone(),
                dir: self.config.dir.clone(),
                socket: self.config.socket(),
                number: self.count,
                slots,
            };
            let token = self.token.child_token();
            self.processes.spawn(async move { worker.keep_running(token).await });
        }
    }

    /// Waits until every process ended.
    pub async fn stopped(mut self) {
        while self.processes.join_next().await.is_some() {}
    }
}

#[derive(Debug)]
struct Process {
    program: PathBuf,
    dir: PathBuf,
    socket: PathBuf,
    number: u32,
    slots: u32,
}

impl Process {
    async fn keep_running(self, token: CancellationToken) {
        while !token.is_cancelled() {
            if self.is_running() {
                tokio::select! {
                    () = token.cancelled() => return self.end_adopted().await,
                    () = sleep(RESTART_AFTER) => continue,
                }
            }
            match self.run_once(&token).await {
                Ok(Some(ALREADY_RUNNING)) => {}
                Ok(Some(0)) => tracing::info!(worker = self.number, "worker ended"),
                Ok(code) => tracing::warn!(worker = self.number, ?code, "worker ended, restarting"),
                Err(error) => {
                    tracing::error!(worker = self.number, program = %self.program.display(), %error, "worker cannot be started");
                }
            }
            tokio::select! {
                () = token.cancelled() => return,
                () = sleep(RESTART_AFTER) => {}
            }
        }
    }

    /// Asks a worker that is not our child to end, and waits for it.
    async fn end_adopted(&self) {
        let pid = || std::fs::read_to_string(self.lock()).ok()?.trim().parse().ok();
        for (signal, patience) in [(Signal::TERM, END_WITHIN), (Signal::KILL, RESTART_AFTER)] {
            let Some(pid) = pid().and_then(Pid::from_raw) else { return };
            if let Err(error) = kill_process(pid, signal) {
                tracing::debug!(%error, "worker is gone already");
            }
            let deadline = tokio::time::Instant::now() + patience;
            while tokio::time::Instant::now() < deadline {
                if !self.is_running() {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Whether a worker that outlived an earlier coordinator holds the lock.
    fn is_running(&self) -> bool {
        let Ok(lock) = std::fs::File::options().write(true).open(self.lock()) else { return false };
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&lock, operation) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    fn lock(&self) -> PathBuf {
        self.dir.join(format!("worker-{}.lock", self.number))
    }

    /// Its exit code; None when a signal ended it.
    async fn run_once(&self, token: &CancellationToken) -> std::io::Result<Option<i32>> {
        let name = format!("worker-{}", self.number);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{name}.log")))?;
        let mut child = Command::new(&self.program)
            .arg("--coordinator")
            .arg(format!("unix:{}", self.socket.display()))
            .args(["--id", &name, "--slots", &self.slots.to_string(), "--lock"])
            .arg(self.lock())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        tokio::select! {
            status = child.wait() => return Ok(status?.code()),
            () = token.cancelled() => {}
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Some(pid) = Pid::from_raw(pid)
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            tracing::debug!(%error, "worker is gone already");
        }
        if tokio::time::timeout(END_WITHIN, child.wait()).await.is_err() {
            child.kill().await?;
        }
        Ok(Some(0))
    }
}
