//! What programs read: shapes that may grow, and never change.

use crate::{
    program::{self, skein},
    scenario::{coordinator, copying, done, eventually},
};
use proto::{
    status::Report,
    v1::{self, Phase},
};
use serde_json::json;

/// Compares with a file; `SKEIN_GOLDEN=write` writes it anew.
fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("SKEIN_GOLDEN").is_some_and(|mode| mode == "write") {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
}

#[test]
fn status_has_every_field_under_its_name() {
    let (dir, coordinator) = coordinator();
    let fault = Report::definite("SPOOL_FULL", "the spool is full").with_hint("Make room.");
    let migration = v1::Migration {
        fault: Some(fault.into()),
        cutover: done("main").cutover,
        ..copying("main")
    };
    coordinator.state.put(&migration);
    let said = skein(dir.path(), "status --json");
    assert_eq!(said.code, Some(1));
    golden("status.json", &said.out);
    let json = said.json();
    assert_eq!(json["phase"], "copying");
    assert_eq!(json["fault"]["reason"], "SPOOL_FULL");
    assert_eq!(json["positions"]["consistent_point_lsn"], "16/B374D848");
    assert_eq!(json["positions"]["end_lsn"], json!(null));
    assert!(!said.out.contains("hunter2"), "{}", said.out);
}

#[test]
fn every_phase_has_its_name() {
    let (dir, coordinator) = coordinator();
    let names = [
        (Phase::Preflight, "preflight"),
        (Phase::Provisioning, "provisioning"),
        (Phase::Copying, "copying"),
        (Phase::CatchingUp, "catching_up"),
        (Phase::Ready, "ready"),
        (Phase::CuttingOver, "cutting_over"),
        (Phase::Done, "done"),
        (Phase::Aborting, "aborting"),
        (Phase::Aborted, "aborted"),
    ];
    for (phase, name) in names {
        coordinator.state.put(&v1::Migration { phase: phase.into(), ..copying("main") });
        let json = skein(dir.path(), "status --json").json();
        assert_eq!((&json["phase"], &json["fault"]), (&json!(name), &json!(null)));
    }
}

#[test]
fn lists_stand_under_a_name() {
    let (dir, coordinator) = coordinator();
    assert_eq!(skein(dir.path(), "list --json").json(), json!({ "migrations": [] }));
    coordinator.state.put(&copying("main"));
    let listed = skein(dir.path(), "list --json").json();
    assert_eq!(listed["migrations"][0]["name"], "main");
    golden("workers.json", &skein(dir.path(), "workers --json").out);
}

#[test]
fn check_says_what_failed_and_its_fix() {
    let (dir, coordinator) = coordinator();
    let failed = v1::Check {
        name: "wal_level".into(),
        r#where: "source".into(),
        outcome: v1::CheckOutcome::Failure.into(),
        found: "replica".into(),
        detail: "Changes cannot be decoded.".into(),
        fix: "alter system set wal_level = logical;".into(),
    };
    coordinator.state.set_checks(vec![failed]);
    let words = "check --json --source postgres://u:hunter2@h/a --target host=h";
    let said = skein(dir.path(), words);
    assert_eq!(said.code, Some(1), "{}", said.err);
    golden("check.json", &said.out);
    let left = std::fs::read_dir(dir.path().join("secrets")).unwrap().count();
    assert_eq!(left, 0, "the connection strings of a check are forgotten");
}

#[test]
fn watch_prints_a_document_for_each_change() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    let watching = program::command(&program::built(), dir.path(), "watch --json").spawn().unwrap();
    eventually("the watch", || coordinator.state.calls().contains(&"watch".to_owned()));
    coordinator.state.put(&done("main"));
    let said = program::said(watching);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let phases: Vec<_> = said
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["phase"].clone())
        .collect();
    assert_eq!(phases.last(), Some(&json!("done")));
}

#[test]
fn plans_and_drops_are_lists() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    let plan = skein(dir.path(), "cutover --dry-run --json").json();
    assert_eq!(plan["plan"][1], "open the target");
    let drops = skein(dir.path(), "abort --dry-run --json").json();
    assert_eq!(drops, json!({ "name": "main", "drops": ["slot skein_main on the source"] }));
    let aborted = skein(dir.path(), "abort --yes --json").json();
    assert_eq!(aborted["migration"]["phase"], "aborted");
    let cleaned = skein(dir.path(), "cleanup --yes --json").json();
    assert_eq!(cleaned["drops"][0], "schema skein on the target");
}
