//! kill -9 of each process at the worst moments: the run goes on, exactly once.

use crate::scenario::{NAME, Scenario};
use loadtest::workload::Running;
use std::time::Duration;

/// The same command again attaches to what runs, or goes on where it was killed; then the end.
fn goes_on_and_arrives(scenario: &Scenario, running: Running) {
    let status = scenario.wait_for_end(scenario.migrate(&["--cutover", "auto"]));
    assert_eq!(status["fault"], serde_json::Value::Null);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

/// Waits for the cutover by hand, after a run that was told to wait for it.
fn hand_over(scenario: &Scenario, running: Running) {
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn coordinator_killed_in_copying_goes_on() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let mut migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    migrate.kill9();
    assert_eq!(scenario.run.kill9("skein-coordinator"), 1);
    drop(held);
    goes_on_and_arrives(&scenario, running);
}

#[test]
fn coordinator_killed_in_catching_up_goes_on() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let mut migrate = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
    assert!(migrate.wait(crate::scenario::DEADLINE).unwrap().success(), "{}", migrate.output());
    for _ in 0..3 {
        scenario.wait_for_replay(&running);
        assert_eq!(scenario.run.kill9("skein-coordinator"), 1);
        let mut again = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
        assert!(again.wait(crate::scenario::DEADLINE).unwrap().success(), "{}", again.output());
    }
    hand_over(&scenario, running);
}

#[test]
fn worker_killed_in_copying_is_replaced() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    assert!(scenario.run.kill9("skein-worker") >= 1);
    drop(held);
    // Nobody types anything: the coordinator supervises its workers.
    scenario.wait_for_end(migrate);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn everything_killed_in_copying_goes_on_with_the_same_command() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let mut migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    migrate.kill9();
    for program in ["skein-coordinator", "skein-worker", "pg_dump", "pg_restore"] {
        scenario.run.kill9(program);
    }
    drop(held);
    goes_on_and_arrives(&scenario, running);
}

#[test]
fn killing_skein_stops_nothing() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let mut migrate = scenario.migrate(&["--cutover", "auto"]);
    drop(scenario.in_mid_copy());
    migrate.kill9();
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn coordinator_killed_in_provisioning_goes_on() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let mut migrate = scenario.migrate(&["--cutover", "auto"]);
    scenario.wait_for_phase(&["provisioning", "copying"]);
    migrate.kill9();
    assert_eq!(scenario.run.kill9("skein-coordinator"), 1);
    goes_on_and_arrives(&scenario, running);
}

#[test]
fn a_worker_that_stood_still_commits_nothing_twice() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    let stopped = scenario.run.processes("skein-worker");
    for pid in &stopped {
        loadtest::cluster::process::signal(*pid, rustix::process::Signal::STOP);
    }
    drop(held);
    // Longer than a lease lives; then it wakes and finds its tasks given to others.
    std::thread::sleep(Duration::from_secs(20));
    for pid in &stopped {
        loadtest::cluster::process::signal(*pid, rustix::process::Signal::CONT);
    }
    scenario.wait_for_end(migrate);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}
