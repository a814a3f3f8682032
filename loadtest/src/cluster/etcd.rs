//! Throw-away etcd on the loopback: one node or several.
//!
//! ```text
//! Etcd::start(&Options) -> nodes, each a process in a directory of its own
//!      kill9, pause, go_on, restart (of one node);  leader();  endpoints()
//! ```
//! Promise: every node answers when [`Etcd::start`] returns; all end, and their directories go,
//! when the handle is dropped or our process dies. Data on tmpfs where there is one: an fsync of
//! a busy disk is longer than an election's patience.

use super::{
    During as _, Error, Result, port::Port, postgres::watchdog::Watchdog, process::signal, tail,
};
use rustix::process::Signal;
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A loaded machine takes seconds to elect a leader.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// After SIGKILL nothing is left to do but to be reaped.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// What the cluster is to be.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// 0 means 1.
    pub nodes: usize,
    /// Certificate, its key, and the authority of clients' certificates: PEM files. Clients
    /// without a certificate are refused then.
    pub tls: Option<(PathBuf, PathBuf, PathBuf)>,
}

#[derive(Debug)]
struct Node {
    name: String,
    client: Port,
    peer: Port,
    directory: tempfile::TempDir,
    process: Option<Watchdog>,
}

/// Running etcd.
#[derive(Debug)]
pub struct Etcd {
    nodes: Vec<Node>,
    options: Options,
}

/// Where Debian's `etcd-server` has it, or on the PATH.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin".into()])
        .map(|directory| directory.join("etcd"))
        .find(|program| program.is_file())
}

impl Etcd {
    /// None, and a line that says so, where etcd is not installed.
    ///
    /// # Errors
    /// It did not start.
    pub fn start(options: &Options) -> Result<Option<Self>> {
        if program().is_none() {
            eprintln!("skipped: etcd is not on this machine; install etcd-server");
            return Ok(None);
        }
        let shared = Path::new("/dev/shm");
        let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let mut nodes = Vec::new();
        for number in 0..options.nodes.max(1) {
            let directory = tempfile::Builder::new()
                .prefix("skein-etcd-")
                .tempdir_in(&place)
                .during("make a directory for etcd")?;
            let (client, peer) = (Port::take()?, Port::take()?);
            nodes.push(Node { name: format!("n{number}"), client, peer, directory, process: None });
        }
        let mut etcd = Self { nodes, options: options.clone() };
        for number in 0..etcd.nodes.len() {
            etcd.launch(number)?;
        }
        for number in 0..etcd.nodes.len() {
            etcd.wait_until_ready(number)?;
        }
        Ok(Some(etcd))
    }

    fn scheme(&self) -> &'static str {
        if self.options.tls.is_some() { "https" } else { "http" }
    }

    /// For the clients, in the order of the nodes.
    pub fn endpoints(&self) -> Vec<String> {
        let url = |node: &Node| format!("{}://127.0.0.1:{}", self.scheme(), node.client.number());
        self.nodes.iter().map(url).collect()
    }

    fn launch(&mut self, number: usize) -> Result<()> {
        let members: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{}=http://127.0.0.1:{}", node.name, node.peer.number()))
            .collect();
        let endpoint = self.endpoints()[number].clone();
        let node = &mut self.nodes[number];
        let peer = format!("http://127.0.0.1:{}", node.peer.number());
        let data = node.directory.path().join("data").display().to_string();
        let etcd = program().unwrap_or_else(|| "etcd".into()).display().to_string();
        let mut words: Vec<String> = [
            etcd.as_str(),
            "--name",
            &node.name,
            "--data-dir",
            &data,
            "--listen-client-urls",
            &endpoint,
            "--advertise-client-urls",
            &endpoint,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &members.join(","),
            "--initial-cluster-state",
            "new",
            "--logger",
            "zap",
            "--log-outputs",
            "stderr",
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some((certificate, key, authority)) = &self.options.tls {
            for (flag, path) in
                [("cert-file", certificate), ("key-file", key), ("trusted-ca-file", authority)]
            {
                words.extend([format!("--{flag}"), path.display().to_string()]);
            }
            words.push("--client-cert-auth".to_owned());
        }
        let log = node.directory.path().join("log");
        node.process = Some(Watchdog::start(&words, &log, node.directory.path())?);
        Ok(())
    }

    fn wait_until_ready(&mut self, number: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            let ready = if self.options.tls.is_some() {
                // Its HTTP is behind TLS, too; who asks next tries until it answers.
                TcpStream::connect((Ipv4Addr::LOCALHOST, self.nodes[number].client.number()))
                    .is_ok()
            } else {
                self.http(number, "GET", "/health", "")
                    .is_some_and(|answer| answer.contains("\"true\""))
            };
            if ready {
                return Ok(());
            }
            let node = &mut self.nodes[number];
            let ended = node.process.as_mut().is_none_or(Watchdog::has_ended);
            if ended || begun.elapsed() > READY_WITHIN {
                let path = node.directory.path().join("log");
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(Error::Deadline {
                    what: "etcd did not answer".to_owned(),
                    seconds: READY_WITHIN.as_secs(),
                    path,
                    log: tail(&log, 20),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One call of etcd's JSON gateway; None when it does not answer with success.
    fn http(&self, number: usize, method: &str, path: &str, body: &str) -> Option<String> {
        let address = (Ipv4Addr::LOCALHOST, self.nodes[number].client.number());
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.lines().next()?.contains(" 200 ").then_some(answer)
    }

    /// Turns on users and passwords: `root` with this one.
    ///
    /// # Errors
    /// etcd refused.
    pub fn require_password(&self, password: &str) -> Result<()> {
        let user = format!(r#"{{"name":"root","password":"{password}"}}"#);
        for (path, body) in [
            ("/v3/auth/user/add", user.as_str()),
            ("/v3/auth/role/add", r#"{"name":"root"}"#),
            ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
            ("/v3/auth/enable", "{}"),
        ] {
            self.http(0, "POST", path, body).ok_or_else(|| Error::Program {
                program: "etcd".to_owned(),
                status: "refused".to_owned(),
                output: path.to_owned(),
            })?;
        }
        Ok(())
    }

    /// The node that leads, as the others see it; None while there is none.
    pub fn leader(&self) -> Option<usize> {
        let field = |answer: &str, name: &str| {
            let (_, rest) = answer.split_once(&format!("\"{name}\":\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        (0..self.nodes.len()).find(|number| {
            self.nodes[*number].process.is_some()
                && self.http(*number, "POST", "/v3/maintenance/status", "{}").is_some_and(
                    |answer| {
                        let leader = field(&answer, "leader");
                        leader.is_some() && leader == field(&answer, "member_id")
                    },
                )
        })
    }

    fn signal(&self, number: usize, which: Signal) {
        if let Some(process) = &self.nodes[number].process {
            signal(process.server_pid(), which);
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self, number: usize) {
        self.signal(number, Signal::KILL);
        if let Some(process) = self.nodes[number].process.take() {
            process.wait(GONE_WITHIN);
        }
    }

    /// SIGSTOP: it stands still and keeps its connections.
    pub fn pause(&self, number: usize) {
        self.signal(number, Signal::STOP);
    }

    /// SIGCONT.
    pub fn go_on(&self, number: usize) {
        self.signal(number, Signal::CONT);
    }

    /// Starts a node that was killed, on the data that it had.
    ///
    /// # Errors
    /// It did not start.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.launch(number)?;
        self.wait_until_ready(number)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.nodes.len() {
            self.kill9(number);
        }
    }
}
