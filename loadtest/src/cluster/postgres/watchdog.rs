//! A shell beside each server that outlives nobody.
//!
//! ```text
//! us --pipe--> sh: server &; read   "stop": wait for the server's end
//!                                   end of file (we died): kill it, remove its directory
//! ```
//! Promise: when our process ends in any way, the server ends and its files go. A signal to our
//! process group does not reach the two.

use super::super::{During as _, Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

/// $1 is the log, $2 the directory to remove, the rest the server. A shell starts a background
/// job with SIGINT ignored; the postmaster sets its own handlers.
const SCRIPT: &str = r#"
log=$1; directory=$2; shift 2
"$@" >>"$log" 2>&1 </dev/null &
pid=$!
echo $pid
exec >/dev/null 2>&1
if read word; then
    wait $pid
else
    kill -QUIT $pid; wait $pid
    [ -n "$SKEIN_TEST_KEEP" ] || rm -rf "$directory"
fi
"#;

#[derive(Debug)]
pub(in crate::cluster) struct Watchdog {
    shell: Child,
    pipe: ChildStdin,
    server_pid: i32,
}

impl Watchdog {
    pub(in crate::cluster) fn start(
        words: &[String],
        log: &Path,
        directory: &Path,
    ) -> Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "watchdog"])
            .arg(log)
            .arg(directory)
            .args(words)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PGPORT")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .during("start a server")?;
        let (Some(pipe), Some(output)) = (shell.stdin.take(), shell.stdout.take()) else {
            return Err(Error::Program {
                program: "sh".to_owned(),
                status: "no pipe".to_owned(),
                output: String::new(),
            });
        };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).during("read a server's pid")?;
        let server_pid = line.trim().parse().map_err(|_| Error::Program {
            program: "sh".to_owned(),
            status: "no pid".to_owned(),
            output: line,
        })?;
        Ok(Self { shell, pipe, server_pid })
    }

    pub(in crate::cluster) fn server_pid(&self) -> i32 {
        self.server_pid
    }

    /// Whether the server is gone. It is the shell's child, so it stays a zombie until waited for.
    pub(in crate::cluster) fn has_ended(&mut self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.server_pid));
        let after = |stat: String| stat.rsplit_once(')').map(|(_, after)| after.to_owned());
        stat.ok().and_then(after).is_none_or(|after| after.trim_start().starts_with('Z'))
    }

    /// Waits for the end of a server that was told to end; false when it is killed at the deadline.
    pub(in crate::cluster) fn wait(mut self, deadline: Duration) -> bool {
        let _ = self.pipe.write_all(b"stop\n");
        let begun = Instant::now();
        loop {
            if let Ok(Some(_)) = self.shell.try_wait() {
                return true;
            }
            if begun.elapsed() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(pid) = Pid::from_raw(self.server_pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.shell.wait();
        false
    }
}
