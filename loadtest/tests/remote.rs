//! Off loopback: TLS and a token on every connection to a coordinator, or nothing.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::cluster::{
    certificate::Authority,
    port::Port,
    process::{Finished, Process},
};
use std::{path::PathBuf, time::Duration};

const WORKER_TOKEN: &str = "worker-7f3a9c51d0e84b26";
const OPERATOR_TOKEN: &str = "operator-1b8e44d2c97f05aa";

/// A coordinator on every address of this machine, with TLS and tokens.
struct Remote {
    scenario: Scenario,
    authority: Authority,
    port: Port,
    _coordinator: Process,
}

impl Remote {
    fn start(client_certificates: bool) -> Self {
        let scenario = Scenario::new();
        let authority = Authority::new().unwrap();
        authority.issue("server", "DNS:localhost,IP:127.0.0.1").unwrap();
        authority.issue("client", "DNS:client").unwrap();
        let port = Port::take().unwrap();
        let (worker, operator) = (authority.path("worker"), authority.path("operator"));
        std::fs::write(&worker, format!("{WORKER_TOKEN}\n")).unwrap();
        std::fs::write(&operator, format!("{OPERATOR_TOKEN}\n")).unwrap();
        let mut config = format!(
            "listen = \"0.0.0.0:{}\"\nworkers = 0\nworker_token = \"file:{}\"\n\
             operator_token = \"file:{}\"\n[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
            port.number(),
            worker.display(),
            operator.display(),
            authority.path("server.crt").display(),
            authority.path("server.key").display(),
        );
        if client_certificates {
            let authorities = authority.path("root.crt");
            config.push_str(&format!("client_ca_file = \"{}\"\n", authorities.display()));
        }
        let file = scenario.run.directory().join("coordinator.toml");
        std::fs::write(&file, config).unwrap();
        let (file, state) = (text(file), text(scenario.run.state_directory()));
        let coordinator =
            scenario.run.start("skein-coordinator", &["--config", &file, "--dir", &state]).unwrap();
        let remote = Self { scenario, authority, port, _coordinator: coordinator };
        super::wait_for("the coordinator listens", || {
            std::net::TcpStream::connect(("127.0.0.1", remote.port.number())).is_ok()
        });
        remote
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port.number())
    }

    fn file(&self, name: &str) -> String {
        text(self.authority.path(name))
    }

    /// `skein list` at `url` with these flags.
    fn list(&self, url: &str, flags: &[&str]) -> Finished {
        let mut words = vec!["list", "--coordinator", url];
        words.extend(flags);
        self.scenario.run.finish("skein", &words, DEADLINE).unwrap()
    }

    fn worker(&self, id: &str, flags: &[&str]) -> Process {
        let url = self.url("https");
        let mut words = vec!["--coordinator", &url, "--id", id];
        words.extend(flags);
        self.scenario.run.start("skein-worker", &words).unwrap()
    }

    fn assert_no_token_in_logs(&self) {
        let logs = self.scenario.run.all_log_text();
        assert!(!logs.contains(WORKER_TOKEN) && !logs.contains(OPERATOR_TOKEN));
    }
}

fn text(path: PathBuf) -> String {
    path.display().to_string()
}

#[test]
fn without_the_right_token_and_authority_nothing_is_served() {
    let remote = Remote::start(false);
    let (url, root) = (remote.url("https"), remote.file("root.crt"));
    let (operator, worker) =
        (format!("file:{}", remote.file("operator")), format!("file:{}", remote.file("worker")));
    let trusting = |token: &str| remote.list(&url, &["--ca-file", &root, "--token", token]);

    let right = trusting(&operator);
    assert_eq!(right.code(), Some(0), "{}\n{}", right.stderr, remote.scenario.run.logs());
    // A worker's token opens the worker's service alone.
    let of_worker = trusting(&worker);
    assert!(of_worker.stderr.contains("TOKEN_REFUSED"), "{}", of_worker.stderr);
    assert_eq!(of_worker.code(), Some(5), "{}", of_worker.stderr);
    std::fs::write(remote.authority.path("wrong"), "another-token-0123456789").unwrap();
    let wrong = trusting(&format!("file:{}", remote.file("wrong")));
    assert!(wrong.stderr.contains("TOKEN_REFUSED"), "{}", wrong.stderr);
    let none = remote.list(&url, &["--ca-file", &root]);
    assert!(none.stderr.contains("TOKEN_REFUSED"), "{}", none.stderr);

    let other = Authority::new().unwrap();
    let stranger =
        remote.list(&url, &["--ca-file", &text(other.path("root.crt")), "--token", &operator]);
    assert_eq!(stranger.code(), Some(4), "{}", stranger.stderr);
    // In the clear: this port speaks TLS alone, and off this machine it is not even tried.
    let clear = remote.list(&remote.url("http"), &["--token", &operator]);
    assert_eq!(clear.code(), Some(4), "{}", clear.stderr);
    let clear = remote.list("http://skein.example:7450", &["--token", &operator]);
    assert_eq!(clear.code(), Some(2), "{}", clear.stderr);
    assert!(clear.stderr.contains("COORDINATOR_ADDRESS"), "{}", clear.stderr);

    let refused = remote.worker("intruder", &["--ca-file", &root, "--token", &operator]);
    super::wait_for("the worker is refused", || refused.output().contains("no token, or another"));
    let workers = ["workers", "--json", "--coordinator", &url, "--ca-file", &root];
    let listed = |token: &str| {
        let mut words = workers.to_vec();
        words.extend(["--token", token]);
        remote.scenario.run.finish("skein", &words, DEADLINE).unwrap().stdout
    };
    assert!(!listed(&operator).contains("intruder"));
    let _admitted = remote.worker("copier", &["--ca-file", &root, "--token", &worker]);
    super::wait_for("the worker registers", || listed(&operator).contains("copier"));
    remote.assert_no_token_in_logs();
}

#[test]
fn a_client_certificate_is_wanted_where_the_configuration_says_so() {
    let remote = Remote::start(true);
    let (url, root) = (remote.url("https"), remote.file("root.crt"));
    let operator = format!("file:{}", remote.file("operator"));
    let mut flags = vec!["--ca-file", root.as_str(), "--token", operator.as_str()];
    let without = remote.list(&url, &flags);
    assert_eq!(without.code(), Some(4), "{}", without.stderr);
    let (certificate, key) = (remote.file("client.crt"), remote.file("client.key"));
    flags.extend(["--cert-file", &certificate, "--key-file", &key]);
    let with = remote.list(&url, &flags);
    assert_eq!(with.code(), Some(0), "{}", with.stderr);
}

#[test]
fn an_open_port_without_tls_is_refused_at_start() {
    let run = loadtest::cluster::process::Run::new().unwrap();
    let file = run.directory().join("coordinator.toml");
    std::fs::write(&file, "listen = \"0.0.0.0:41999\"\n").unwrap();
    let words = ["--config", &text(file), "--dir", &text(run.state_directory())];
    let refused = run.finish("skein-coordinator", &words, Duration::from_secs(30)).unwrap();
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr.contains("not a loopback address"), "{}", refused.stderr);
}

#[test]
fn a_database_moves_by_workers_over_tls() {
    let remote = Remote::start(false);
    let scenario = &remote.scenario;
    let running = scenario.under_load();
    let (url, root) = (remote.url("https"), remote.file("root.crt"));
    let worker = format!("file:{}", remote.file("worker"));
    let operator = format!("file:{}", remote.file("operator"));
    let _workers: Vec<Process> = ["one", "two"]
        .map(|id| remote.worker(id, &["--ca-file", &root, "--token", &worker]))
        .into_iter()
        .collect();
    let (source, target) = (scenario.source.conninfo("shop"), scenario.target.conninfo("shop"));
    for (name, conninfo) in [("source", &source), ("target", &target)] {
        std::fs::write(remote.authority.path(name), conninfo).unwrap();
    }
    let config = text(scenario.run.directory().join("skein.toml"));
    let migrate = scenario
        .run
        .start(
            "skein",
            &[
                "migrate",
                "--coordinator",
                &url,
                "--ca-file",
                &root,
                "--token",
                &operator,
                "--source",
                &format!("file:{}", remote.file("source")),
                "--target",
                &format!("file:{}", remote.file("target")),
                "--name",
                NAME,
                "--config",
                &config,
                "--cutover",
                "auto",
            ],
        )
        .unwrap();
    scenario.wait_for_end(migrate);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
    remote.assert_no_token_in_logs();
}
