//! Exit codes, and which stream says what.

use crate::{
    coordinator::Coordinator,
    program::{self, skein},
    scenario::{coordinator, copying, done, eventually},
};
use proto::{
    status::{ErrorClass, Report},
    v1::{self, Phase},
};

#[test]
fn without_a_coordinator_it_is_four_and_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    for words in ["list", "status main", "watch", "pause main", "cutover main", "workers"] {
        let said = skein(dir.path(), words);
        assert_eq!((said.code, said.out.as_str()), (Some(4), ""), "{words}: {}", said.err);
        assert!(said.err.starts_with("error:  no coordinator answers at "), "{}", said.err);
        assert!(said.err.contains("skein-coordinator --dir"), "{}", said.err);
        assert!(said.err.trim_end().ends_with("[COORDINATOR_UNREACHABLE]"), "{}", said.err);
    }
}

#[test]
fn an_unknown_migration_is_three_and_none_at_all_too() {
    let (dir, coordinator) = coordinator();
    assert_eq!(skein(dir.path(), "status").code, Some(3));
    coordinator.state.put(&copying("main"));
    let said = skein(dir.path(), "status other");
    assert_eq!(said.code, Some(3), "{}", said.err);
    assert_eq!(
        said.err,
        "error:  there is no migration \"other\"\nhint:   Run: skein list   [NOT_FOUND]\n"
    );
}

#[test]
fn the_name_may_be_left_out_when_there_is_only_one() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("shop"));
    let said = skein(dir.path(), "status");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.starts_with("shop: copying"), "{}", said.out);
    coordinator.state.put(&copying("other"));
    let said = skein(dir.path(), "pause");
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("Their names: other, shop."), "{}", said.err);
    assert!(!coordinator.state.calls().contains(&"pause".to_owned()));
}

#[test]
fn wrong_usage_is_two() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("skein.toml");
    std::fs::write(&file, "[replay]\nlanez = 3\n").unwrap();
    let unknown_key = format!("migrate --config {}", file.display());
    let wrong = [
        "frobnicate",
        "cutover main --timeout soon",
        "migrate --name Main",
        "status --coordinator http://h:1",
        &unknown_key,
    ];
    for words in wrong {
        let said = skein(dir.path(), words);
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{words}: {}", said.err);
    }
    let said = skein(dir.path(), &unknown_key);
    assert!(said.err.contains("unknown key \"lanez\" in line 2"), "{}", said.err);
    assert!(said.err.contains("Known there: lanes, spool_limit, order."), "{}", said.err);
}

#[test]
fn what_the_coordinator_says_decides_between_refused_internal_and_later() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    let refused = skein(dir.path(), "cutover main");
    assert_eq!(refused.code, Some(5));
    assert_eq!(
        refused.err,
        "error:  the migration is not ready\ndetail: It is still copying.\n\
         hint:   Wait for phase ready.   [NOT_READY]\n"
    );
    for (class, code) in
        [(ErrorClass::Bug, 6), (ErrorClass::Transient, 7), (ErrorClass::Conflict, 7)]
    {
        coordinator.state.set_failure(Report::definite("X", "no").with_class(class));
        assert_eq!(skein(dir.path(), "status main").code, Some(code));
    }
}

#[test]
fn a_fault_is_one_in_status_and_watch_and_is_told_with_its_cure() {
    let (dir, coordinator) = coordinator();
    let fault = Report::definite("SPOOL_FULL", "the spool is full").with_hint("Make room.");
    let faulty = v1::Migration { fault: Some(fault.into()), ..copying("main") };
    coordinator.state.put(&faulty);
    let status = skein(dir.path(), "status");
    assert_eq!(status.code, Some(1));
    assert!(status.out.contains("error:  the spool is full\nhint:   Make room."), "{}", status.out);
    let watch = skein(dir.path(), "watch");
    assert_eq!((watch.code, watch.out.as_str()), (Some(1), ""), "{}", watch.err);
    assert!(watch.err.contains("error:  the spool is full"), "{}", watch.err);
    assert!(watch.err.contains("skein resume main --dir "), "{}", watch.err);
}

#[test]
fn pause_resume_and_start_do_what_they_say() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    assert_eq!(skein(dir.path(), "pause main").code, Some(0));
    assert!(coordinator.state.get("main").unwrap().paused);
    assert!(skein(dir.path(), "list").out.contains("copying, paused"));
    assert_eq!(skein(dir.path(), "resume main").code, Some(0));
    assert!(!coordinator.state.get("main").unwrap().paused);
    assert_eq!(skein(dir.path(), "start main --json").json()["phase"], "copying");
}

#[test]
fn a_cutover_is_zero_only_when_the_target_is_open() {
    let (dir, coordinator) = coordinator();
    for (end, code) in [(Phase::Ready, 1), (Phase::Done, 0)] {
        let mut ready = copying("main");
        ready.set_phase(Phase::Ready);
        coordinator.state.put(&ready);
        let begun =
            program::command(&program::built(), dir.path(), "cutover --timeout 30s").spawn();
        cutting_over(&coordinator);
        coordinator.state.change("main", |migration| {
            migration.set_phase(end);
            migration.cutover = done("main").cutover;
            if end == Phase::Ready {
                migration.cutover.as_mut().unwrap().state = "lifted".into();
            }
        });
        let said = program::said(begun.unwrap());
        assert_eq!(said.code, Some(code), "{}{}", said.out, said.err);
        assert!(said.err.contains("cutover: drain  1.500 s"), "{}", said.err);
        if end == Phase::Done {
            assert!(said.out.contains("writes stopped  1.843 s"), "{}", said.out);
        } else {
            assert!(said.err.contains("Cutover attempt 1 was lifted"), "{}", said.err);
        }
    }
    assert!(coordinator.state.calls().contains(&"cutover no_fence=false timeout_s=30".to_owned()));
}

fn cutting_over(coordinator: &Coordinator) {
    eventually("the cutover", || {
        coordinator.state.get("main").unwrap().phase() == Phase::CuttingOver
    });
}

#[test]
fn a_dry_run_of_a_cutover_prints_its_plan_and_begins_nothing() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    let said = skein(dir.path(), "cutover --dry-run");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("  1. end other sessions\n  2. open the target"), "{}", said.out);
    assert_eq!(coordinator.state.get("main").unwrap().phase(), Phase::Copying);
}

#[test]
fn nothing_is_dropped_without_consent() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    for words in ["abort main", "cleanup main"] {
        let said = skein(dir.path(), words);
        assert_eq!(said.code, Some(5), "{}", said.err);
        assert!(said.err.contains(" drops:\n  s"), "{}", said.err);
        assert!(said.err.contains("Give --yes"), "{}", said.err);
        let planned = skein(dir.path(), &format!("{words} --dry-run"));
        assert_eq!(planned.code, Some(0));
        assert!(planned.out.contains(" drops:\n  s"), "{}", planned.out);
    }
    assert!(!coordinator.state.calls().iter().any(|call| call.ends_with("dry_run=false")));
    assert_eq!(skein(dir.path(), "abort main --yes").code, Some(0));
    assert_eq!(skein(dir.path(), "cleanup main --yes").code, Some(0));
    assert_eq!(coordinator.state.get("main"), None);
}

#[test]
fn a_difference_is_one_and_equality_is_zero() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    coordinator.state.set_verdicts(&verdicts(true));
    let equal = skein(dir.path(), "verify");
    assert_eq!(equal.code, Some(0), "{}", equal.err);
    assert!(equal.out.starts_with("equal      public.a  2 rows\n"), "{}", equal.out);
    coordinator.state.set_verdicts(&verdicts(false));
    let different = skein(dir.path(), "verify");
    assert_eq!(different.code, Some(1), "{}", different.err);
    assert!(different.out.contains("different  public.a  2 rows on the source, 1 on the target"));
    assert!(different.out.contains("  missing (id)=(2)"), "{}", different.out);
    let json = skein(dir.path(), "verify --json").json();
    assert_eq!(json["tables"][0]["differences"][0], "missing (id)=(2)");
    assert_eq!(json["summary"]["different"], 1);
}

#[test]
fn a_comparison_that_breaks_off_is_no_success() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    coordinator.state.set_verdicts(&verdicts(true)[..1]);
    assert_eq!(skein(dir.path(), "verify").code, Some(7));
}

fn verdicts(equal: bool) -> [v1::VerifyMigrationResponse; 2] {
    use v1::verify_migration_response::Event;
    let table = v1::TableVerdict {
        table: "public.a".into(),
        equal,
        source_rows: 2,
        target_rows: if equal { 2 } else { 1 },
        differences: if equal { vec![] } else { vec!["missing (id)=(2)".into()] },
        ..v1::TableVerdict::default()
    };
    let summary = v1::VerifySummary {
        tables: 1,
        different: u64::from(!equal),
        source_rows: 2,
        target_rows: table.target_rows,
        seconds: 0.1,
        ..v1::VerifySummary::default()
    };
    [Event::Table(table), Event::Summary(summary)]
        .map(|event| v1::VerifyMigrationResponse { event: Some(event) })
}
