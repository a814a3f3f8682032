//! What an operator asks, and what is answered.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::{
    cluster::{collector::Collector, postgres::Postgres},
    workload::mixed::Scale,
};

/// Checks that failed, with their fixes.
fn failures(checks: &serde_json::Value) -> Vec<(String, String)> {
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap_or("").to_owned();
    let checks = checks["checks"].as_array().expect("a list of checks");
    let failed = checks.iter().filter(|check| check["outcome"] == "failure");
    failed.map(|check| (text(check, "name"), format!("{check}"))).collect()
}

#[test]
fn check_names_the_three_faults_with_their_fixes() {
    let source = Postgres::builder().setting("wal_level", "replica");
    let scenario = Scenario::between(source, Postgres::builder()).unwrap();
    scenario
        .source
        .psql("shop", "create table keyless (a int); create table keyed (a int primary key)")
        .unwrap();
    scenario
        .target
        .psql("shop", "create table already (a int); insert into already values (1)")
        .unwrap();
    let (source, target) = (scenario.source.conninfo("shop"), scenario.target.conninfo("shop"));
    let finished = scenario.skein(&["check", "--source", &source, "--target", &target, "--json"]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr);
    let failed = failures(&serde_json::from_str(&finished.stdout).unwrap());
    let about = |word: &str| {
        failed.iter().find(|(_, check)| check.contains(word)).map(|(_, check)| check.as_str())
    };
    let wal_level = about("wal_level").expect("wal_level is named");
    assert!(wal_level.to_lowercase().contains("alter system set wal_level"), "{wal_level}");
    let identity = about("keyless").expect("the table without identity is named");
    assert!(identity.to_lowercase().contains("replica identity"), "{identity}");
    assert!(!failed.iter().any(|(_, check)| check.contains("keyed")), "{failed:?}");
    let full = about("already").expect("the non-empty target is named");
    assert!(full.to_lowercase().contains("drop"), "{full}");
    assert_eq!(scenario.left_on_source(), "", "check changes nothing");
}

/// Up to the open target, quietly.
fn moved() -> Scenario {
    let scenario = Scenario::new();
    let running = scenario.under(Scale::default(), &loadtest::workload::Options::default());
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    scenario.wait_for_end(migrate);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
    scenario
}

#[test]
fn verify_detects_each_kind_of_difference() {
    let scenario = moved();
    for (damage, repair, table) in [
        (
            "update mixed.wide set note = 'damaged' where id = 1",
            "update mixed.wide set note = 'x' where id = 1",
            "wide",
        ),
        (
            "insert into mixed.small values (-1, 'one more')",
            "delete from mixed.small where id = -1",
            "small",
        ),
        ("delete from ledger.entry where id = (select min(id) from ledger.entry)", "", "entry"),
    ] {
        scenario.target.psql("shop", damage).unwrap();
        let finished = scenario.skein(&["verify", NAME, "--json"]);
        assert_eq!(finished.code(), Some(1), "{damage}: {}", finished.stderr);
        let verified: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        let different = verified["tables"].as_array().unwrap().iter();
        let different: Vec<&str> = different
            .filter(|verdict| verdict["equal"] == false)
            .filter_map(|verdict| verdict["table"].as_str())
            .collect();
        assert!(different.iter().any(|name| name.contains(table)), "{damage}: {different:?}");
        if !repair.is_empty() {
            scenario.target.psql("shop", repair).unwrap();
        }
    }
}

#[test]
fn abort_leaves_nothing_on_the_source() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let mut migrate = scenario.migrate(&[
        "--cutover",
        "manual",
        "--until",
        "ready",
        "--replica-identity",
        "full",
    ]);
    assert!(
        migrate.wait(DEADLINE).unwrap().success(),
        "{}\n{}",
        migrate.output(),
        scenario.run.logs()
    );
    assert!(scenario.left_on_source().contains("slot "), "there is a slot before");
    let finished = scenario.skein(&["abort", NAME, "--yes"]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    assert!(finished.stderr.contains("slot"), "it says what it drops: {}", finished.stderr);
    scenario.wait_for_phase(&["aborted"]);
    let outcome = running.stop();
    assert_eq!(outcome.failures, Vec::<String>::new());
    // The server takes a moment to end a session that was closed.
    super::wait_for("nothing is left", || scenario.left_on_source().is_empty());
    let finished = scenario.skein(&["cleanup", NAME, "--yes"]);
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr);
    let schema = "select count(*) from pg_namespace where nspname = 'skein'";
    assert_eq!(scenario.target.psql("shop", schema).unwrap(), "0");
}

#[test]
fn telemetry_of_all_three_programs_reaches_a_collector() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let collector = runtime.block_on(Collector::start()).unwrap();
    let scenario = Scenario::new()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
        .env("OTEL_METRIC_EXPORT_INTERVAL", "500")
        .env("OTEL_BSP_SCHEDULE_DELAY", "200");
    let running = scenario.under(Scale::default(), &loadtest::workload::Options::default());
    let migrate = scenario.migrate(&["--cutover", "auto"]);
    scenario.wait_for_end(migrate);
    running.stop();
    super::wait_for("spans of all three programs, and metrics", || {
        let received = collector.received();
        let has = |service: &str| received.spans.iter().any(|span| span.service == service);
        ["skein", "skein-coordinator", "skein-worker"].iter().all(|service| has(service))
            && received.metrics.iter().any(|(_, name)| name.starts_with("skein."))
    });
    // One trace goes from the command to the coordinator.
    let spans = collector.received().spans;
    let commands = spans.iter().filter(|span| span.service == "skein");
    let traces: std::collections::HashSet<&String> = commands.map(|span| &span.trace).collect();
    let joined = spans
        .iter()
        .any(|span| span.service == "skein-coordinator" && traces.contains(&span.trace));
    assert!(joined, "no span of the coordinator is in a trace of the command");
}

#[test]
fn a_wrong_password_is_named_and_nothing_is_started() {
    let scenario =
        Scenario::between(Postgres::builder().password("right"), Postgres::builder()).unwrap();
    let source = scenario.source.conninfo_as("postgres", "wrong-word", "shop");
    let mut migrate = scenario.migrate_from(&source, &[]);
    let status = migrate.wait(DEADLINE).unwrap();
    assert!(!status.success());
    let output = migrate.output();
    assert!(output.contains("password"), "{output}");
    assert!(!output.contains("wrong-word"), "a password was printed");
    assert!(!scenario.run.all_log_text().contains("wrong-word"), "a password was logged");
    assert_eq!(scenario.left_on_source(), "");
}

#[test]
fn the_same_command_attaches_and_another_source_is_refused() {
    let scenario = Scenario::new();
    let running = scenario.under_load();
    let first = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    let other = scenario.target.conninfo("postgres");
    let mut refused = scenario.migrate_from(&other, &["--cutover", "auto"]);
    let status = refused.wait(DEADLINE).unwrap();
    assert!(!status.success(), "{}", refused.output());
    let second = scenario.migrate(&["--cutover", "auto"]);
    drop(held);
    scenario.wait_for_end(second);
    scenario.wait_for_end(first);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}
