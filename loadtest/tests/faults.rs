//! Faults at moments nobody chose: any process killed, any session ended, any server stopped,
//! again and again from the first second to the last.
//!
//! `SKEIN_TEST_SEED` runs other moments than CI's; `SKEIN_TEST_LONG` runs what takes minutes.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::{
    check::Scope,
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

/// Whether tests that take minutes run: `make e2e` says so, CI does not.
fn is_long_run() -> bool {
    let is_long = std::env::var_os("SKEIN_TEST_LONG").is_some();
    if !is_long {
        eprintln!("skipped: make e2e runs it");
    }
    is_long
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
    // A source that crashed after the cutover has skipped some numbers of its sequences.
    let scope = Scope { without_sequences: true, ..Scope::default() };
    scenario.assert_moved_but(&outcome, &scope);
}

#[test]
fn coordinator_killed_at_random_moments_arrives_equal() {
    if !is_long_run() {
        return;
    }
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

/// Killed while writes are stopped: the target opens, or writes go on, before the deadline and by
/// itself, since `skein migrate` starts the coordinator again.
#[test]
fn coordinator_killed_behind_the_fence_opens_or_lifts() {
    for (seed, kills) in [(5, 1), (6, 3)] {
        let mut dice = dice(seed);
        let scenario = Scenario::new();
        let running = scenario.under(Scale::default(), &Options::default());
        let mut ready = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
        assert!(ready.wait(DEADLINE).unwrap().success(), "{}", ready.output());
        let mut attached = scenario.migrate(&["--cutover", "manual"]);
        let mut cutover = scenario.begin(&["cutover", NAME, "--timeout", "20s"]);
        scenario.wait_for_phase(&["cutting_over", "done"]);
        let begun = Instant::now();
        for _ in 0..kills {
            pause(&mut dice, 5, 300);
            scenario.run.kill9("skein-coordinator");
            super::wait_for("a coordinator answers", || {
                // Who saw the end is not attached any more, and starts no other coordinator.
                if attached.has_ended() {
                    attached = scenario.migrate(&["--cutover", "manual"]);
                }
                ["cutting_over", "ready", "done"].contains(&phase(&scenario).as_str())
            });
        }
        let status = scenario.wait_for_phase(&["ready", "done"]);
        // The deadline, a second for its lifting, and a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(40), "{status:#}");
        let _ = cutover.wait(DEADLINE).unwrap();
        if status["phase"] == "ready" {
            scenario.wait_for_replay(&running);
            assert_eq!(scenario.skein(&["cutover", NAME]).code(), Some(0));
            scenario.wait_for_phase(&["done"]);
        }
        let outcome = running.stop();
        scenario.assert_moved(&outcome);
    }
}

/// Nobody is there to lift the fence in time: whoever comes next does it first.
#[test]
fn a_fence_whose_deadline_passed_unattended_is_lifted_by_the_next_coordinator() {
    let scenario = Scenario::new();
    let running = scenario.under(Scale::default(), &Options::default());
    let mut ready = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
    assert!(ready.wait(DEADLINE).unwrap().success(), "{}", ready.output());
    // A transaction that replay cannot finish keeps the cutover from opening.
    let held = scenario.hold_target("ledger.entry");
    let mut cutover = scenario.begin(&["cutover", NAME, "--timeout", "5s"]);
    super::wait_for("the fence", || running.is_fenced());
    assert_eq!(scenario.run.kill9("skein-coordinator"), 1);
    cutover.kill9();
    std::thread::sleep(Duration::from_secs(6));
    let written = running.transaction_count();
    let _attached = scenario.migrate(&["--cutover", "manual"]);
    scenario.wait_for_phase(&["ready"]);
    super::wait_for("writes go on", || running.transaction_count() > written + 20);
    drop(held);
    scenario.wait_for_replay(&running);
    assert_eq!(scenario.skein(&["cutover", NAME]).code(), Some(0), "{}", scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

/// What Skein made, on either server: only copied tables stay after `abort`, and not even schema
/// `skein` after `cleanup`.
#[test]
fn abort_in_every_phase_leaves_nothing_behind() {
    for wanted in ["provisioning", "copying", "catching_up", "ready", "fault"] {
        let scenario = Scenario::new();
        let running = scenario.under(small(), &Options::default());
        let more = ["--cutover", "manual", "--replica-identity", "full"];
        scenario.source.psql("shop", "create table mixed.keyless (a int)").unwrap();
        let mut migrate;
        let held = match wanted {
            "provisioning" => {
                scenario
                    .proxy
                    .set(loadtest::cluster::proxy::Fault::Delay(Duration::from_millis(20)));
                migrate = scenario.migrate(&more);
                scenario.wait_for_phase(&["provisioning"]);
                None
            }
            "copying" => {
                migrate = scenario.migrate(&more);
                Some(scenario.in_mid_copy())
            }
            _ => {
                migrate = scenario.migrate(&more);
                scenario
                    .wait_for_phase(&[if wanted == "fault" { "ready" } else { wanted }, "ready"]);
                None
            }
        };
        if wanted == "fault" {
            scenario.target.psql("shop", "drop table ledger.entry cascade").unwrap();
            super::wait_for("a fault", || {
                !scenario.status().unwrap_or_default()["fault"].is_null()
            });
        }
        let finished = scenario.skein(&["abort", NAME, "--yes"]);
        assert_eq!(
            finished.code(),
            Some(0),
            "{wanted}: {}\n{}",
            finished.stderr,
            scenario.run.logs()
        );
        scenario.wait_for_phase(&["aborted"]);
        drop(held);
        migrate.wait(DEADLINE).unwrap();
        assert_eq!(scenario.left_on_source(), "", "{wanted}");
        let identity = "select relreplident from pg_class where oid = 'mixed.keyless'::regclass";
        assert_eq!(scenario.source.psql("shop", identity).unwrap(), "d", "{wanted}");
        let finished = scenario.skein(&["cleanup", NAME, "--yes"]);
        assert_eq!(finished.code(), Some(0), "{wanted}: {}", finished.stderr);
        let left = "select 'schema ' || nspname from pg_namespace where nspname = 'skein' \
                    union all select application_name from pg_stat_activity where application_name like 'skein/demo/%' \
                    union all select 'trigger ' || evtname from pg_event_trigger";
        assert_eq!(scenario.target.psql("shop", left).unwrap(), "", "{wanted}");
        let outcome = running.stop();
        assert_eq!(outcome.failures, Vec::<String>::new(), "{wanted}");
        if wanted == "ready" && is_long_run() {
            // Nothing to do is no reason to stay.
            let begun = Instant::now();
            while !scenario.run.processes("skein-coordinator").is_empty()
                || !scenario.run.processes("skein-worker").is_empty()
            {
                assert!(begun.elapsed() < Duration::from_secs(90), "they stay");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

/// Rows of the large transaction; `SKEIN_TEST_LARGE_ROWS` says another number.
fn large_rows() -> u64 {
    let given = std::env::var("SKEIN_TEST_LARGE_ROWS").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(150_000)
}

/// Peak resident memory of the coordinator in MB.
fn coordinator_peak_mb(scenario: &Scenario) -> u64 {
    let pids = scenario.run.processes("skein-coordinator");
    let status = std::fs::read_to_string(format!("/proc/{}/status", pids[0])).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// One transaction begun before the slot, which therefore waits for it and says so; one begun
/// after it, streamed, with savepoints rolled back; one prepared, which stops the cutover.
#[test]
fn large_and_prepared_transactions_arrive_whole() {
    let scenario = Scenario::new();
    let rows = large_rows();
    // No TRUNCATE: the new snapshot that it asks for would wait for our transaction, too.
    let options = Options { mixed_clients: 0, ..Options::default() };
    let running = scenario.under(Scale::default(), &options);
    scenario
        .source
        .psql("shop", "create table public.large (id bigint primary key, round int, note text)")
        .unwrap();
    let open = scenario.session();
    let fill = |round: u32, first: u64| {
        format!(
            "insert into public.large select i, {round}, 'n' || i from generate_series({first}, {}) i",
            first + rows - 1
        )
    };
    open.run("begin");
    open.run(&fill(1, 1));
    let mut migrate = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
    super::wait_for("the slot waits, and says for whom", || {
        let activity = scenario.status().unwrap_or_default()["activity"].to_string();
        activity.contains("replication slot") && activity.contains("process ")
    });
    open.run("savepoint a");
    open.run("delete from public.large where id % 3 = 0");
    open.run("rollback to a");
    open.run("update public.large set round = 2 where id % 1000 = 0");
    open.run("commit");
    // The next begins behind the slot and is open while everything is copied.
    super::wait_for("a slot", || scenario.left_on_source().contains("slot "));
    scenario.wait_for_phase(&["copying", "catching_up", "ready"]);
    open.run("begin");
    open.run(&fill(3, 1_000_000_000));
    open.run("savepoint b");
    open.run(&fill(4, 2_000_000_000));
    open.run("rollback to b");
    open.run("savepoint c");
    open.run("update public.large set round = 5 where id between 1 and 5000");
    open.run("release c");
    assert!(migrate.wait(DEADLINE).unwrap().success(), "{}", migrate.output());
    open.run("commit");
    open.run("begin");
    open.run("update public.large set note = 'prepared' where id <= 1000");
    open.run("prepare transaction 'a \"gid\"'");
    let finished = scenario.skein(&["cutover", NAME]);
    assert_ne!(finished.code(), Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("a \"gid\""), "{}", finished.stderr);
    open.run("commit prepared 'a \"gid\"'");
    let peak_mb = coordinator_peak_mb(&scenario);
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let peak_mb = peak_mb.max(coordinator_peak_mb(&scenario));
    eprintln!("{rows} rows in one transaction: coordinator's peak {peak_mb} MB");
    assert!(peak_mb < 400, "{peak_mb} MB");
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
    let prepared = "select count(*) from public.large where note = 'prepared'";
    assert_eq!(scenario.target.psql("shop", prepared).unwrap(), "1000");
}

/// What changes a table under its copy beyond `crashes.rs`: equal in the end, or a fault that
/// names the cure, which works once it is followed.
fn arrives_with_its_cure(change: &str, cure: &str) {
    let scenario = Scenario::new();
    let running = scenario.under(small(), &Options::default());
    let mut migrate = scenario.migrate(&["--cutover", "auto"]);
    drop(scenario.in_mid_copy());
    scenario.source.psql("shop", change).unwrap();
    let mut cures = 0;
    loop {
        super::wait_for("an end, or a fault", || {
            let state = scenario.status().unwrap_or_default();
            migrate.has_ended()
                || state["phase"] == "ready" && state["cutover"]["state"] == "lifted"
        });
        let status = scenario.status().unwrap_or_default();
        let fault = &status["fault"];
        if fault.is_null() {
            break;
        }
        eprintln!("{change}: {fault:#}");
        assert!(fault["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{status:#}");
        cures += 1;
        assert!(cures < 4, "it does not work: {status:#}\n{}", scenario.run.logs());
        scenario.target.psql("shop", cure).unwrap();
        migrate = scenario.migrate(&["--cutover", "auto"]);
    }
    // A change that came with the cutover lifts it; then it is asked for by hand.
    let begun = Instant::now();
    while phase(&scenario) != "done" {
        assert!(begun.elapsed() < DEADLINE, "{}", scenario.run.logs());
        // What the survey names only now is cured in the same way.
        if scenario.status().is_some_and(|status| !status["fault"].is_null()) {
            scenario.target.psql("shop", cure).unwrap();
            scenario.skein(&["resume", NAME]);
        }
        scenario.skein(&["cutover", NAME]);
        std::thread::sleep(Duration::from_secs(2));
    }
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn a_column_with_a_volatile_default_added_between_two_chunks_arrives() {
    arrives_with_its_cure(
        "alter table mixed.bulk add column extra float default random()",
        "alter table mixed.bulk add column if not exists extra float default random()",
    );
}

#[test]
fn a_type_changed_between_two_chunks_arrives() {
    let change = "alter table mixed.bulk alter filler type varchar(5000)";
    arrives_with_its_cure(change, change);
}

#[test]
fn a_table_swapped_between_two_chunks_arrives() {
    arrives_with_its_cure(
        "begin; create table mixed.next (like mixed.bulk including all); \
         insert into mixed.next select * from mixed.bulk; \
         alter table mixed.bulk rename to past; alter table mixed.next rename to bulk; commit",
        "create table if not exists mixed.past (like mixed.bulk including all)",
    );
}

#[test]
fn a_table_dropped_between_two_chunks_is_let_go() {
    arrives_with_its_cure(
        "drop view mixed.rich; drop table mixed.bulk",
        "drop view if exists mixed.rich; drop table if exists mixed.bulk",
    );
}

/// Clients of the server that die are started again, and their half work does no harm.
#[test]
fn pg_dump_and_pg_restore_killed_are_started_again() {
    for program in ["pg_dump", "pg_restore"] {
        let scenario = Scenario::new();
        scenario.source.psql("shop", include_str!("../sql/every_object.sql")).unwrap();
        let running = scenario.under(Scale::default(), &Options::default());
        let migrate = scenario.migrate(&["--cutover", "auto", "--replica-identity", "full"]);
        let mut killed = 0;
        super::wait_for("it was killed twice", || {
            killed += scenario.run.kill9(program);
            killed >= 2 || phase(&scenario) == "done"
        });
        eprintln!("{program} killed {killed} times");
        // pg_restore may be too quick to be met.
        assert!(killed > 0 || program == "pg_restore", "{program} never ran");
        scenario.wait_for_end(migrate);
        let outcome = running.stop();
        scenario.assert_moved(&outcome);
    }
}

/// The loss of the snapshot costs the tables that are not finished, and no other.
#[test]
fn finished_tables_are_not_copied_again_when_the_source_crashes() {
    let mut scenario = Scenario::new();
    let running = scenario.under_load();
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    let finished = "select r.table_name from skein.relation r where not exists \
        (select from skein.task t where t.relid = r.relid and t.kind = 'copy' and t.finished_at is null) \
        and r.table_name not in ('small') order by 1";
    let epochs = format!(
        "select table_name || ' ' || snapshot_epoch from skein.relation r where r.table_name in \
         (select f.table_name from ({finished}) f) order by 1"
    );
    super::wait_for("some others are copied", || {
        scenario.target.psql("shop", finished).unwrap().lines().count() >= 3
    });
    let before = scenario.target.psql("shop", &epochs).unwrap();
    scenario.source.stop(Stop::Immediate).unwrap();
    scenario.source.start_again().unwrap();
    drop(held);
    scenario.wait_for_end(migrate);
    let after = scenario.target.psql("shop", &epochs).unwrap();
    for line in before.lines() {
        assert!(after.lines().any(|same| same == line), "{line} was copied again: {after}");
    }
    assert!(!after.lines().any(|line| line == "bulk 1"), "bulk kept a lost snapshot: {after}");
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}
