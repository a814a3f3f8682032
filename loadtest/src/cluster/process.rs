//! Skein's own programs as processes, so that kill -9 is real.
//!
//! ```text
//! Run (directory, mark in the environment) -> start -> Process: kill9, pause, wait
//!        \-> processes("skein-coordinator"): those that a program of ours started, too
//! ```
//! `skein migrate` starts a coordinator in a session of its own, and that starts workers: a
//! variable that all inherit finds them, whoever their parent is.
//! Promise: all of them are killed, and the directory goes, when the [`Run`] is dropped or our
//! process dies.

use super::{During as _, Error, Result, tail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The variable by which processes of a run are found (`/proc/PID/environ`).
const MARK: &str = "SKEIN_TEST_RUN";

/// Kills what carries the mark once its standard input ends, and removes the directory.
const WATCHDOG: &str = r#"
read word && exit
for file in $(grep -lazs "$1" /proc/[0-9]*/environ); do
    pid=${file#/proc/}; kill -9 "${pid%/environ}" 2>/dev/null
done
[ -n "$SKEIN_TEST_KEEP" ] || rm -rf "$2"
"#;

/// One use of the product: its state directory, its processes, their logs.
#[derive(Debug)]
pub struct Run {
    binaries: PathBuf,
    directory: PathBuf,
    mark: String,
    environment: Vec<(String, String)>,
    started: AtomicU32,
    // Dropped without a word: the watchdog ends what is left.
    watchdog: Option<(Child, ChildStdin)>,
}

/// How a finished program ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Run {
    /// # Errors
    /// The programs were not built, or no directory could be made.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("skein-run-{}-{number:04}", std::process::id());
        let directory = Path::new("/tmp").join(&name);
        std::fs::create_dir_all(&directory).during("make the run's directory")?;
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &format!("{MARK}={name}")])
            .arg(&directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .during("start a watchdog")?;
        let watchdog = watchdog.stdin.take().map(|pipe| (watchdog, pipe));
        Ok(Self {
            binaries: binaries()?,
            directory,
            mark: name,
            environment: Vec::new(),
            started: AtomicU32::new(0),
            watchdog,
        })
    }

    /// Adds a variable to all programs started from now on.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// For `--dir`.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// A place for files of the test itself, gone with the run.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command for one of our programs, ready but not started.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command
            .args(arguments)
            .env(MARK, &self.mark)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Starts a program; its output goes to a log file.
    ///
    /// # Errors
    /// It was not built or could not be started.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.directory.join(format!("{number:02}-{program}.log"));
        let file = File::create(&log).during("make a log")?;
        let errors = file.try_clone().during("make a log")?;
        let child = self
            .command(program, arguments)
            .stdout(file)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .during(format!("start {program}"))?;
        Ok(Process { child, program: program.to_owned(), log })
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It could not be started, or went on past the deadline: then it is killed.
    pub fn finish(
        &self,
        program: &str,
        arguments: &[&str],
        deadline: Duration,
    ) -> Result<Finished> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let path = |stream: &str| self.directory.join(format!("{number:02}-{program}.{stream}"));
        let (stdout, stderr) = (path("out.log"), path("err.log"));
        let child = self
            .command(program, arguments)
            .stdout(File::create(&stdout).during("make a log")?)
            .stderr(File::create(&stderr).during("make a log")?)
            .spawn()
            .during(format!("start {program}"))?;
        let mut process = Process { child, program: program.to_owned(), log: stderr.clone() };
        let status = process.wait(deadline)?;
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        Ok(Finished { status, stdout: read(&stdout), stderr: read(&stderr) })
    }

    /// Pids of the running processes of this run with that program name, whoever started them.
    pub fn processes(&self, program: &str) -> Vec<i32> {
        let wanted = self.binaries.join(program);
        let is_program = |pid: &i32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let first = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
            let first = PathBuf::from(String::from_utf8_lossy(first).into_owned());
            // pg_dump and pg_restore are started by their whole paths, wherever they lie.
            first == wanted || first.file_name().is_some_and(|name| name == program)
        };
        self.marked().into_iter().filter(is_program).collect()
    }

    /// Kills them with SIGKILL and says how many there were.
    pub fn kill9(&self, program: &str) -> usize {
        let pids = self.processes(program);
        for pid in &pids {
            signal(*pid, Signal::KILL);
        }
        pids.len()
    }

    /// Ends of all logs below the run's directory, for a failing test's message.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for path in files_below(&self.directory) {
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                text.push_str(&format!("--- {}\n{}\n", path.display(), tail(&log, 60)));
            }
        }
        text
    }

    /// Every line at ERROR in the logs. Row values and passwords must not be in any line.
    pub fn all_log_text(&self) -> String {
        files_below(&self.directory)
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect()
    }

    fn marked(&self) -> Vec<i32> {
        let mark = format!("{MARK}={}", self.mark);
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
            })
            .collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // Twice, since one that is killed may just have started another.
        for _ in 0..2 {
            for pid in self.marked() {
                signal(pid, Signal::KILL);
            }
        }
        if let Some((mut watchdog, pipe)) = self.watchdog.take() {
            drop(pipe);
            let _ = watchdog.wait();
        }
    }
}

/// A program of ours, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    program: String,
    log: PathBuf,
}

impl Process {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(-1)
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP: it stands still and keeps its connections.
    pub fn pause(&self) {
        signal(self.pid(), Signal::STOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        signal(self.pid(), Signal::CONT);
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        signal(self.pid(), Signal::TERM);
    }

    /// SIGINT.
    pub fn interrupt(&self) {
        signal(self.pid(), Signal::INT);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Deadline`], with the end of its log; it is killed.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().during("wait for a program")? {
                return Ok(status);
            }
            if begun.elapsed() > deadline {
                self.kill9();
                return Err(Error::Deadline {
                    what: format!("{} did not end", self.program),
                    seconds: deadline.as_secs(),
                    path: self.log.clone(),
                    log: tail(&self.output(), 40),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Sends a signal to a process of a run.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // Gone already is no failure.
        let _ = kill_process(pid, signal);
    }
}

/// The directory with our programs: `SKEIN_TEST_BIN`, or where this program was built.
fn binaries() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("SKEIN_TEST_BIN") {
        return Ok(directory.into());
    }
    let ours = std::env::current_exe().during("find our own program")?;
    // A test stands in target/debug/deps, a program in target/debug.
    ours.ancestors()
        .skip(1)
        .take(2)
        .find(|directory| directory.join("skein").is_file())
        .map(Path::to_owned)
        .ok_or_else(|| Error::Program {
            program: "skein".to_owned(),
            status: "not built".to_owned(),
            output: "run cargo build --workspace first".to_owned(),
        })
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
        .into_iter()
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}
