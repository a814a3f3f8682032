//! A whole database moves, under load.

use crate::scenario::{NAME, Scenario};
use loadtest::{
    cluster::postgres::{Builder, Postgres},
    workload::{Options, mixed::Scale},
};
use std::time::Duration;

/// Under load from before the start until the fence stops the writers.
fn moves(source: Builder, target: Builder) {
    let Some(scenario) = Scenario::between(source, target) else { return };
    let running = scenario.under(
        Scale::megabytes(8),
        &Options { ledger_clients: 4, mixed_clients: 2, ..Options::default() },
    );
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    let status = scenario.wait_for_end(migrate);
    assert!(running.is_fenced(), "the fence stopped nobody");
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
    assert!(status["cutover"]["writes_stopped_s"].as_f64().is_some_and(|seconds| seconds < 30.0));
    assert!(!scenario.run.all_log_text().contains("password="), "a password in a log");

    let cleaned = scenario.skein(&["cleanup", NAME, "--yes"]);
    assert_eq!(cleaned.code(), Some(0), "{}", cleaned.stderr);
    let left = scenario.left_on_source();
    let left: Vec<&str> = left
        .lines()
        // The fence stays: the source has been handed over.
        .filter(|line| !line.starts_with("setting default_transaction_read_only"))
        .collect();
    assert_eq!(left, Vec::<&str>::new());
}

#[test]
fn whole_database_moves_under_load() {
    moves(Postgres::builder(), Postgres::builder());
}

#[test]
fn whole_database_moves_from_15_to_17() {
    moves(Postgres::builder(), Postgres::builder().major(17));
}

#[test]
fn whole_database_moves_from_17_to_17() {
    moves(Postgres::builder().major(17), Postgres::builder().major(17));
}

/// pgbench's history has no key, so Skein is told what to do with it. Each line that pgbench logs
/// is a transaction whose commit was acknowledged; a row of its history comes with each.
#[test]
fn every_commit_acknowledged_to_pgbench_is_on_the_target() {
    let scenario = Scenario::new();
    let mut make = scenario.source.client_program("pgbench", "shop");
    let made = make.args(["-i", "-q", "-s", "2"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let log = scenario.run.directory().join("pgbench");
    let mut bench = scenario
        .source
        .client_program("pgbench", "shop")
        .args(["-n", "-c", "8", "-j", "2", "-T", "600", "--rate", "400", "-l", "--log-prefix"])
        .arg(&log)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let migrate = scenario.migrate(&["--cutover", "auto", "--replica-identity", "full"]);
    let status = scenario.wait_for_end(migrate);
    // All eight clients fail at the fence, and pgbench ends.
    let begun = std::time::Instant::now();
    while bench.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(30) {
            let _ = bench.kill();
            panic!("the fence did not stop pgbench");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let logs = std::fs::read_dir(scenario.run.directory()).unwrap();
    let acknowledged: usize = logs
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.display().to_string().contains("/pgbench."))
        .map(|path| std::fs::read_to_string(path).unwrap().lines().count())
        .sum();
    let history = scenario.target.psql("shop", "select count(*) from pgbench_history").unwrap();
    let history: usize = history.parse().unwrap();
    assert!(acknowledged > 50, "pgbench did {acknowledged} transactions");
    // Each client may have had one COMMIT on its way that was done and not answered.
    assert!(
        (acknowledged..=acknowledged + 8).contains(&history),
        "{acknowledged} commits were acknowledged, {history} are on the target"
    );
    let sums = "select (select sum(abalance) from pgbench_accounts), \
                (select sum(tbalance) from pgbench_tellers), (select sum(delta) from pgbench_history)";
    let sums = scenario.target.psql("shop", sums).unwrap();
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    let comparison = scenario.compare(&loadtest::check::Scope::default());
    assert!(comparison.is_equal(), "{comparison}");
    assert_eq!(status["cutover"]["late_writes"].as_array().map(Vec::len), Some(0));
}
