//! Faults at moments nobody chose: any process killed, any session ended, any server stopped,
//! again and again from the first second to the last.
//!
//! `SKEIN_TEST_SEED` runs other moments than CI's; `SKEIN_TEST_LONG` runs what takes minutes.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::{
    cluster::postgres::Stop,
    workload::{Options, mixed::Scale},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::time::{Duration, Instant};

fn dice(seed: u64) -> StdRng {
    let given = std::env::var("SKEIN_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or(seed);
    eprintln!("SKEIN_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn pause(dice: &mut StdRng, from_ms: u64, to_ms: u64) {
    std::thread::sleep(Duration::from_millis(dice.random_range(from_ms..to_ms)));
}

fn phase(scenario: &Scenario) -> String {
    scenario.status().unwrap_or_default()["phase"].as_str().unwrap_or_default().to_owned()
}

fn small() -> Scale {
    Scale::megabytes(6)
}

/// Does `harm` at random moments until the migration is done or `limit` is over, then lets it
/// arrive.
fn under_fire(seed: u64, limit: Duration, mut harm: impl FnMut(&mut Scenario, &mut StdRng)) {
    let mut dice = dice(seed);
    let mut scenario = Scenario::new();
    let running = scenario.under(small(), &Options::default());
    let mut migrate = scenario.migrate(&["--cutover", "auto"]);
    let begun = Instant::now();
    while begun.elapsed() < limit && phase(&scenario) != "done" {
        harm(&mut scenario, &mut dice);
        if migrate.has_ended() {
            migrate = scenario.migrate(&["--cutover", "auto"]);
        }
    }
    // A cutover that was lifted is asked for again, by hand.
    let begun = Instant::now();
    while phase(&scenario) != "done" {
        if migrate.has_ended() {
            migrate = scenario.migrate(&["--cutover", "auto"]);
        }
        let status = scenario.status().unwrap_or_default();
        if status["phase"] == "ready" && status["cutover"]["state"] == "lifted" {
            scenario.skein(&["cutover", NAME]);
        }
        assert!(begun.elapsed() < DEADLINE, "in vain: done; {status:#}\n{}", scenario.run.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(migrate);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn coordinator_killed_at_random_moments_arrives_equal() {
    under_fire(1, Duration::from_secs(25), |scenario, dice| {
        pause(dice, 50, 1500);
        scenario.run.kill9("skein-coordinator");
    });
}

#[test]
fn any_process_killed_at_random_moments_arrives_equal() {
    under_fire(2, Duration::from_secs(25), |scenario, dice| {
        pause(dice, 20, 700);
        let programs = ["skein", "skein-coordinator", "skein-worker", "pg_dump", "pg_restore"];
        scenario.run.kill9(programs[dice.random_range(0..programs.len())]);
    });
}

#[test]
fn sessions_ended_at_random_on_both_sides_arrive_equal() {
    under_fire(3, Duration::from_secs(30), |scenario, dice| {
        pause(dice, 20, 400);
        let server = if dice.random_bool(0.5) { &scenario.source } else { &scenario.target };
        let ended = server.psql(
            "shop",
            "select pg_terminate_backend(pid) from (select pid from pg_stat_activity \
             where application_name like 'skein/%' order by random() limit 2) s",
        );
        assert!(ended.is_ok(), "{ended:?}");
    });
}

#[test]
fn servers_stopped_at_random_moments_arrive_equal() {
    under_fire(4, Duration::from_secs(30), |scenario, dice| {
        pause(dice, 200, 4000);
        let is_source = dice.random_bool(0.5);
        let server = if is_source { &mut scenario.source } else { &mut scenario.target };
        server.stop(Stop::Immediate).unwrap();
        server.start_again().unwrap();
    });
}
