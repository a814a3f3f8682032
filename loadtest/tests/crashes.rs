//! Servers that crash, and a network that breaks, in mid-copy and in mid-replay.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::{
    cluster::{postgres::Stop, proxy::Fault},
    workload::Running,
};
use std::time::Duration;

/// A transient failure heals by itself; what needs a person is resumed, as its hint says. Then
/// the migration arrives.
fn arrives(scenario: &Scenario, running: Running) {
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    scenario.wait_for_end(migrate);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

fn until_ready(scenario: &Scenario) {
    let mut migrate = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
    let status = migrate.wait(DEADLINE).unwrap();
    assert!(status.success(), "{}\n{}", migrate.output(), scenario.run.logs());
}

fn hand_over(scenario: &Scenario, running: Running) {
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn source_crash_in_mid_copy_arrives_equal() {
    let mut scenario = Scenario::new();
    let running = scenario.under_load();
    let _migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    scenario.source.stop(Stop::Immediate).unwrap();
    scenario.source.start_again().unwrap();
    drop(held);
    arrives(&scenario, running);
}

#[test]
fn source_crash_in_mid_replay_arrives_equal() {
    let mut scenario = Scenario::new();
    let running = scenario.under_load();
    until_ready(&scenario);
    for _ in 0..2 {
        scenario.wait_for_replay(&running);
        scenario.source.stop(Stop::Immediate).unwrap();
        scenario.source.start_again().unwrap();
    }
    scenario.wait_for_replay(&running);
    hand_over(&scenario, running);
}

#[test]
fn target_crash_in_mid_copy_arrives_equal() {
    let mut scenario = Scenario::new();
    let running = scenario.under_load();
    let _migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    scenario.target.stop(Stop::Immediate).unwrap();
    scenario.target.start_again().unwrap();
    drop(held);
    arrives(&scenario, running);
}

#[test]
fn target_crash_in_mid_replay_arrives_equal() {
    let mut scenario = Scenario::new();
    let running = scenario.under_load();
    until_ready(&scenario);
    for _ in 0..2 {
        scenario.wait_for_replay(&running);
        scenario.target.stop(Stop::Immediate).unwrap();
        scenario.target.start_again().unwrap();
    }
    scenario.wait_for_replay(&running);
    hand_over(&scenario, running);
}

#[test]
fn connections_reset_in_mid_copy_and_in_mid_replay_arrive_equal() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let _migrate = scenario.migrate(&["--cutover", "manual"]);
    let held = scenario.in_mid_copy();
    scenario.proxy.reset();
    drop(held);
    until_ready(&scenario);
    scenario.wait_for_replay(&running);
    scenario.proxy.reset();
    // A cut cable: nobody is told, and keepalives have to notice.
    scenario.proxy.set(Fault::Cut);
    std::thread::sleep(Duration::from_secs(15));
    scenario.proxy.set(Fault::None);
    scenario.proxy.reset();
    scenario.wait_for_replay(&running);
    hand_over(&scenario, running);
}

/// Each of these makes an older snapshot read wrong rows, or none, without an error (rules,
/// part 1): equal at the end, or a fault that names the cure.
fn rewritten_between_two_chunks(statement: &str) {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let mut migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    scenario.proxy.set(Fault::Delay(Duration::from_millis(10)));
    drop(held);
    scenario.source.psql("shop", statement).unwrap();
    scenario.proxy.set(Fault::None);
    let ended = migrate.wait(DEADLINE).unwrap();
    if ended.success() {
        let outcome = running.stop();
        scenario.assert_moved(&outcome);
    } else {
        let status = scenario.status().unwrap_or_default();
        let hint = status["fault"]["hint"].as_str().unwrap_or_default();
        assert!(!hint.is_empty(), "{status:#}\n{}", scenario.run.logs());
    }
}

#[test]
fn vacuum_full_between_two_chunks_arrives_equal() {
    rewritten_between_two_chunks("vacuum full mixed.bulk");
}

#[test]
fn cluster_between_two_chunks_arrives_equal() {
    rewritten_between_two_chunks("cluster mixed.bulk using bulk_pkey");
}

#[test]
fn truncate_between_two_chunks_arrives_equal() {
    rewritten_between_two_chunks("truncate mixed.bulk");
}

#[test]
fn alter_type_between_two_chunks_arrives_equal_or_stops_with_a_cure() {
    rewritten_between_two_chunks("alter table mixed.bulk alter filler type varchar(500)");
}
