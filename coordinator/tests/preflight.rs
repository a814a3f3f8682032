//! Every failure is found at once, each with a fix, and nothing changes.

use coordinator::migration::preflight;
use loadtest::cluster::postgres::Postgres;
use pg::Conninfo;
use proto::v1::{Check, CheckOutcome, MigrationSpec};

pub(crate) fn spec() -> MigrationSpec {
    MigrationSpec { name: "m".into(), ..MigrationSpec::default() }
}

async fn run(spec: &MigrationSpec, source: &str, target: &str) -> Vec<Check> {
    let directory = tempfile::tempdir().unwrap();
    let source = Conninfo::parse(source).unwrap();
    let target = Conninfo::parse(target).unwrap();
    let checks = preflight::run(spec, &source, &target, directory.path()).await;
    for check in &checks {
        println!(
            "{:?} {} {}: {} | {} | {}",
            check.outcome(),
            check.r#where,
            check.name,
            check.found,
            check.detail,
            check.fix
        );
        assert!(
            check.outcome() != CheckOutcome::Failure || !check.fix.is_empty(),
            "a failure without a fix: {check:?}"
        );
    }
    checks
}

fn failed(checks: &[Check]) -> Vec<String> {
    checks
        .iter()
        .filter(|check| check.outcome() == CheckOutcome::Failure)
        .map(|check| format!("{} {}", check.r#where, check.name))
        .collect()
}

fn check<'a>(checks: &'a [Check], place: &str, name: &str) -> &'a Check {
    checks
        .iter()
        .find(|check| check.name == name && check.r#where == place)
        .unwrap_or_else(|| panic!("no check {place} {name}"))
}

#[tokio::test]
async fn two_fresh_servers_pass() {
    let source = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    source.psql("postgres", "create table t (id int primary key)").unwrap();
    let checks = run(&spec(), &source.conninfo("postgres"), &target.conninfo("postgres")).await;
    assert_eq!(failed(&checks), Vec::<String>::new());
    let not_made: Vec<_> =
        checks.iter().filter(|check| check.found.contains("could not be checked")).collect();
    assert!(not_made.is_empty(), "{not_made:?}");
    assert!(preflight::failures(&checks).is_none());
}

#[tokio::test]
async fn wal_level_identity_and_a_full_target_are_all_named_at_once_with_fixes() {
    let source = Postgres::builder().setting("wal_level", "replica").start().unwrap();
    let target = Postgres::builder().start().unwrap();
    source.psql("postgres", "create table keyless (a int)").unwrap();
    target.psql("postgres", "create table there (a int)").unwrap();
    let checks = run(&spec(), &source.conninfo("postgres"), &target.conninfo("postgres")).await;
    assert_eq!(
        failed(&checks),
        ["source wal_level", "source replica_identity", "target target_empty"]
    );
    assert!(check(&checks, "source", "wal_level").fix.contains("set wal_level = 'logical'"));
    let identity = check(&checks, "source", "replica_identity");
    assert!(identity.fix.contains(r#"alter table "public"."keyless" replica identity full;"#));
    let empty = check(&checks, "target", "target_empty");
    assert!(empty.fix.contains(r#"drop table "public"."there" cascade;"#));
    let report = preflight::failures(&checks).unwrap();
    assert_eq!(report.reason, "PREFLIGHT_FAILED");
}

#[tokio::test]
async fn the_same_database_on_both_ends_is_refused_and_its_neighbour_is_not() {
    let server = Postgres::builder().start().unwrap();
    server.psql("postgres", "create database other").unwrap();
    let (one, other) = (server.conninfo("postgres"), server.conninfo("other"));
    assert_eq!(failed(&run(&spec(), &one, &one).await), ["both same_database"]);
    let checks = run(&spec(), &one, &other).await;
    assert_eq!(failed(&checks), Vec::<String>::new());
    assert_eq!(check(&checks, "both", "same_database").outcome(), CheckOutcome::Warning);
}
