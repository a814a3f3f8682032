//! Tables that change while a migration runs: made late, truncated all the time, altered.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::{check::Scope, cluster::proxy::Fault};
use pg::Sql;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

fn until_ready(scenario: &Scenario) {
    let mut migrate = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
    let status = migrate.wait(DEADLINE).unwrap();
    assert!(status.success(), "{}\n{}", migrate.output(), scenario.run.logs());
}

fn assert_equal(scenario: &Scenario) {
    let comparison = scenario.compare(&Scope::default());
    assert!(comparison.is_equal(), "{comparison}\n{}", scenario.run.logs());
}

/// A person who cuts over while a new partition is still being copied would leave its rows behind.
#[test]
fn a_cutover_is_refused_while_a_partition_that_came_late_is_copied() {
    let scenario = Scenario::new();
    let make = "create table event (id int primary key, note text) partition by range (id);
                create table event_1 partition of event for values from (0) to (1000);
                insert into event select i, 'x' from generate_series(0, 999) i";
    scenario.source.psql("shop", make).unwrap();
    until_ready(&scenario);
    scenario.proxy.set(Fault::Delay(Duration::from_millis(40)));
    let late = "create table event_2 partition of event for values from (1000) to (100000);
                insert into event select i, repeat(md5(i::text), 20)
                  from generate_series(1000, 20000) i";
    scenario.source.psql("shop", late).unwrap();
    crate::wait_for("the partition is planned", || {
        let planned = "select count(*) from skein.task t join skein.relation r using (relid)
                        where r.table_name = 'event_2' and t.finished_at is null";
        scenario.target.psql("shop", planned).is_ok_and(|count| count != "0")
    });
    let refused = scenario.skein(&["cutover", NAME]);
    assert_ne!(refused.code(), Some(0), "{}", scenario.run.logs());
    assert!(refused.stderr.contains("still being copied"), "{}", refused.stderr);
    scenario.proxy.set(Fault::None);
    crate::wait_for("a cutover", || scenario.skein(&["cutover", NAME]).code() == Some(0));
    scenario.wait_for_phase(&["done"]);
    assert_equal(&scenario);
}

/// Truncates `hot` ten times a second until its session is ended; counts, and keeps the longest
/// that it had to wait.
struct Truncating {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<Duration>,
}

impl Truncating {
    fn start(scenario: &Scenario, statement: &'static str) -> Self {
        let make = "create table hot (id int primary key);
                    create table truncation (id bigserial primary key)";
        scenario.source.psql("shop", make).unwrap();
        let conninfo = pg::Conninfo::parse(&scenario.source.conninfo("shop")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let settings = pg::Settings::write(pg::SessionName::of_role("truncating"));
                let session = pg::Session::connect(&conninfo, &settings).await.unwrap();
                let mut longest = Duration::ZERO;
                while !stopped.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    if session.batch(&Sql::trusted(statement)).await.is_err() {
                        // The fence.
                        break;
                    }
                    longest = longest.max(begun.elapsed());
                    counted.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                longest
            })
        });
        Self { stop, count, thread }
    }

    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn truncated_ten_times_a_second(statement: &'static str) {
    let scenario = Scenario::new();
    let truncating = Truncating::start(&scenario, statement);
    crate::wait_for("it is truncated", || truncating.count.load(Ordering::Relaxed) > 5);
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    scenario.wait_for_end(migrate);
    let longest = truncating.end();
    assert!(longest < Duration::from_secs(13), "the application waited {longest:?} for us");
    assert_equal(&scenario);
}

#[test]
fn a_table_truncated_ten_times_a_second_is_copied_in_the_end() {
    truncated_ten_times_a_second(
        "truncate public.hot; insert into public.hot select generate_series(1, 50)",
    );
}

/// It has written before it waits for our lock: the slot of a new snapshot waits for it in turn.
#[test]
fn so_is_one_truncated_within_transactions_that_have_written() {
    truncated_ten_times_a_second(
        "begin; insert into public.truncation default values; truncate public.hot;
         insert into public.hot select generate_series(1, 50); commit",
    );
}

/// The hint of the fault is followed: the target is altered, too, and the table copied again.
#[test]
fn a_table_altered_in_mid_copy_goes_on_once_the_target_is_altered_alike() {
    let scenario = Scenario::new();
    let make = "create table wide (id int primary key, note text);
                insert into wide select i, repeat(md5(i::text), 20) from generate_series(1, 20000) i";
    scenario.source.psql("shop", make).unwrap();
    scenario.proxy.set(Fault::Delay(Duration::from_millis(40)));
    let mut migrate = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
    scenario.wait_for_phase(&["copying"]);
    let alter = "alter table public.wide alter id type bigint";
    scenario.source.psql("shop", alter).unwrap();
    scenario.proxy.set(Fault::None);
    crate::wait_for("a fault", || {
        scenario.status().is_some_and(|status| status["fault"]["reason"] == "SCHEMA_CHANGED")
    });
    let _ = migrate.wait(DEADLINE);
    scenario.target.psql("shop", alter).unwrap();
    let resumed = scenario.skein(&["resume", NAME]);
    assert_eq!(resumed.code(), Some(0), "{}", resumed.stderr);
    scenario.wait_for_phase(&["ready"]);
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    assert_equal(&scenario);
}
