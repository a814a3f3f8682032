//! Two coordinators on one etcd: one leads, the other takes over, and nothing is lost or twice.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::cluster::{
    etcd::{Etcd, Options},
    port::Port,
    process::{Finished, Process},
};
use std::time::Instant;

/// A coordinator of the cluster, and where it is.
struct Coordinator {
    process: Option<Process>,
    port: Port,
    config: String,
    directory: String,
}

struct Cluster {
    scenario: Scenario,
    coordinators: Vec<Coordinator>,
    _workers: Vec<Process>,
    _etcd: Etcd,
}

impl Cluster {
    /// The first one leads, and its directory is the scenario's. None where etcd is missing.
    fn start() -> Option<Self> {
        let etcd = Etcd::start(&Options::default()).unwrap()?;
        let scenario = Scenario::new();
        let first = scenario.run.state_directory();
        let directories = [first, scenario.run.directory().join("second")];
        let coordinators = directories
            .iter()
            .map(|directory| {
                let port = Port::take().unwrap();
                let number = port.number();
                let config = directory.with_extension("toml");
                let text = format!(
                    "listen = \"127.0.0.1:{number}\"\nworkers = 0\n\
                     advertise_url = \"http://127.0.0.1:{number}\"\n\
                     [store]\nkind = \"etcd\"\netcd.endpoints = {:?}\n",
                    etcd.endpoints()
                );
                std::fs::write(&config, text).unwrap();
                let (config, directory) =
                    (config.display().to_string(), directory.display().to_string());
                Coordinator { process: None, port, config, directory }
            })
            .collect();
        let mut cluster = Self { scenario, coordinators, _workers: Vec::new(), _etcd: etcd };
        cluster.launch(0);
        super::wait_for("the first one leads", || cluster.leads(0));
        cluster.launch(1);
        super::wait_for("the second one stands by", || {
            cluster.skein(1, &["workers"]).code() == Some(0)
        });
        let urls = [0, 1].map(|number| cluster.url(number)).join(",");
        cluster._workers = ["one", "two"]
            .map(|id| {
                let words = ["--coordinator", &urls, "--id", id];
                cluster.scenario.run.start("skein-worker", &words).unwrap()
            })
            .into_iter()
            .collect();
        Some(cluster)
    }

    fn launch(&mut self, number: usize) {
        let one = &mut self.coordinators[number];
        let words = ["--config", &one.config, "--dir", &one.directory];
        one.process = Some(self.scenario.run.start("skein-coordinator", &words).unwrap());
    }

    fn url(&self, number: usize) -> String {
        format!("http://127.0.0.1:{}", self.coordinators[number].port.number())
    }

    fn skein(&self, number: usize, words: &[&str]) -> Finished {
        let url = self.url(number);
        let mut words = words.to_vec();
        words.extend(["--coordinator", &url]);
        self.scenario.run.finish("skein", &words, DEADLINE).unwrap()
    }

    fn leads(&self, number: usize) -> bool {
        let process = self.coordinators[number].process.as_ref();
        let output = process.map(Process::output).unwrap_or_default();
        let (on, off) = (output.rfind("leader: leading"), output.rfind("standing by"));
        on.is_some() && on > off
    }

    fn kill9(&mut self, number: usize) {
        if let Some(mut process) = self.coordinators[number].process.take() {
            process.kill9();
        }
    }

    /// SIGTERM, and waits for the end.
    fn stop(&mut self, number: usize) {
        if let Some(mut process) = self.coordinators[number].process.take() {
            process.terminate();
            process.wait(DEADLINE).unwrap();
        }
    }

    fn status(&self, number: usize) -> serde_json::Value {
        let finished = self.skein(number, &["status", NAME, "--json"]);
        serde_json::from_str(&finished.stdout).unwrap_or_default()
    }
}

#[test]
fn a_killed_leader_is_followed_and_its_spool_is_waited_for() {
    let Some(mut cluster) = Cluster::start() else { return };
    let running = cluster.scenario.under_load();
    // Given to the standby: it names the leader, and skein goes there.
    let second = cluster.url(1);
    let source = cluster.scenario.source.conninfo_at(cluster.scenario.proxy.port(), "shop");
    let target = cluster.scenario.target.conninfo("shop");
    let config = cluster.scenario.run.directory().join("skein.toml").display().to_string();
    let words = ["--source", &source, "--target", &target, "--name", NAME, "--config", &config];
    let mut create = vec!["migrate", "--detach", "--cutover", "auto", "--coordinator", &second];
    create.extend(words);
    let created = cluster.scenario.run.finish("skein", &create, DEADLINE).unwrap();
    assert_eq!(created.code(), Some(0), "{}\n{}", created.stderr, cluster.scenario.run.logs());
    let held = cluster.scenario.in_mid_copy();
    assert_eq!(cluster.status(1)["phase"], "copying", "a standby reads from the store");

    cluster.kill9(0);
    let killed = Instant::now();
    super::wait_for("the second one leads", || cluster.leads(1));
    println!("leader killed: the next leads {:.1} s later", killed.elapsed().as_secs_f64());
    drop(held);
    super::wait_for("rows are copied under the second one", || {
        cluster.status(1)["progress"]["running"].as_array().is_some_and(|r| !r.is_empty())
            || cluster.status(1)["progress"]["tasks_done"].as_u64() > Some(0)
    });
    println!("and its first task runs {:.1} s later", killed.elapsed().as_secs_f64());
    super::wait_for("every row and index is there, and it says what it waits for", || {
        let status = cluster.status(1);
        let progress = &status["progress"];
        progress["tasks_done"].as_u64() > Some(0)
            && progress["tasks_done"] == progress["tasks_total"]
            && status["activity"].as_str().is_some_and(|line| line.contains("holds the spool"))
    });
    let status = cluster.status(1);
    assert_eq!(status["fault"], serde_json::Value::Null, "{status:#}");
    assert_eq!(status["positions"]["received_lsn"], serde_json::Value::Null, "{status:#}");

    // The spool's own coordinator comes back, and the other one resigns.
    cluster.launch(0);
    cluster.stop(1);
    let resigned = Instant::now();
    super::wait_for("the first one leads again", || cluster.leads(0));
    println!("leader resigned: the next leads {:.1} s later", resigned.elapsed().as_secs_f64());
    cluster.scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    cluster.scenario.assert_moved(&outcome);
}

#[test]
fn a_leader_that_was_stopped_and_woken_stands_by_and_does_no_harm() {
    let Some(mut cluster) = Cluster::start() else { return };
    let running = cluster.scenario.under_load();
    let (first, config) = (cluster.url(0), cluster.scenario.run.directory().join("skein.toml"));
    let source = cluster.scenario.source.conninfo_at(cluster.scenario.proxy.port(), "shop");
    let target = cluster.scenario.target.conninfo("shop");
    let config = config.display().to_string();
    let words = [
        "migrate",
        "--detach",
        "--cutover",
        "auto",
        "--coordinator",
        &first,
        "--source",
        &source,
        "--target",
        &target,
        "--name",
        NAME,
        "--config",
        &config,
    ];
    let created = cluster.scenario.run.finish("skein", &words, DEADLINE).unwrap();
    assert_eq!(created.code(), Some(0), "{}", created.stderr);
    let held = cluster.scenario.in_mid_copy();

    let stopped = Instant::now();
    cluster.coordinators[0].process.as_ref().unwrap().pause();
    super::wait_for("the second one leads", || cluster.leads(1));
    println!("leader stopped: the next leads {:.1} s later", stopped.elapsed().as_secs_f64());
    cluster.coordinators[0].process.as_ref().unwrap().go_on();
    super::wait_for("the woken one stands by", || !cluster.leads(0));
    assert_eq!(cluster.skein(0, &["status", NAME]).code(), Some(0), "it answers reads");
    drop(held);
    cluster.stop(1);
    super::wait_for("the first one leads again", || cluster.leads(0));
    cluster.scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    cluster.scenario.assert_moved(&outcome);
}
