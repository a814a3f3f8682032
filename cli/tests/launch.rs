//! `skein migrate` and the coordinator that it starts: a script beside the program that
//! becomes this test's coordinator.

use crate::{
    coordinator::{DIR_VARIABLE, State},
    program::{self, Said},
    scenario::{done, eventually},
};
use proto::v1::{self, Phase};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
};
use tempfile::TempDir;

const SOURCE: &str = "postgres://app:hunter2@db1/shop";
const TARGET: &str = "postgres://app:hunter3@db2/shop";

/// `skein` with a coordinator beside it, and a state directory.
struct Machine {
    root: TempDir,
    state: State,
}

impl Machine {
    fn new() -> Self {
        Self::with_coordinator(&format!(
            "printf '%s\\n' \"$@\" > \"$2/argv\"; env > \"$2/environ\"\n{}",
            Self::becoming_the_coordinator()
        ))
    }

    fn becoming_the_coordinator() -> String {
        let test = std::env::current_exe().unwrap();
        format!(
            "{DIR_VARIABLE}=\"$2\" exec '{}' --exact coordinator::a_process_of_its_own --nocapture",
            test.display()
        )
    }

    fn with_coordinator(script: &str) -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bin = root.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::hard_link(program::built(), bin.join("skein")).unwrap();
        let coordinator = bin.join("skein-coordinator");
        fs::write(&coordinator, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&coordinator, fs::Permissions::from_mode(0o755)).unwrap();
        let state = State::of(&root.path().join("s"));
        Self { root, state }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("s")
    }

    fn command(&self, words: &str) -> Command {
        let mut command = program::command(&self.root.path().join("bin/skein"), &self.dir(), words);
        command.env("SKEIN_SOURCE", SOURCE).env("SKEIN_TARGET", TARGET);
        command
    }

    fn begin(&self, words: &str) -> Child {
        self.command(words).spawn().unwrap()
    }

    fn run(&self, words: &str) -> Said {
        program::said(self.begin(words))
    }

    fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.dir().join("fake/pid")).ok()?.parse().ok()
    }

    fn is_running(&self) -> bool {
        self.pid().is_some_and(is_alive)
    }

    /// Waits until the migration was started and is being followed.
    fn followed(&self) {
        eventually("the follower", || self.state.calls().iter().any(|call| call == "watch"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(pid) = self.pid().filter(|pid| is_alive(*pid)) {
            send(pid, Signal::KILL);
        }
    }
}

/// Fields of /proc/PID/stat after the name: state, parent, group, session.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}

fn send(pid: i32, signal: Signal) {
    let _gone_already = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn one_command_checks_starts_follows_and_sums_up() {
    let machine = Machine::new();
    let migrating = machine.begin("migrate --cutover auto --workers 3");
    machine.followed();
    let spec = machine.state.get("main").unwrap().spec.unwrap();
    assert_eq!(spec.copy.unwrap().workers, 3);
    assert_eq!(spec.cutover.unwrap().mode(), v1::CutoverMode::Auto);
    machine.state.put(&v1::Migration { spec: Some(spec), ..done("main") });
    let said = program::said(migrating);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("Started a coordinator in the background"), "{}", said.err);
    assert!(said.err.contains("ok       versions"), "{}", said.err);
    assert!(said.out.contains("1,234 changes in 12 transactions"), "{}", said.out);
    let calls = machine.state.calls();
    let order: Vec<_> = calls.iter().filter(|call| *call != "get" && *call != "list").collect();
    assert_eq!(order, ["check", "create", "start", "watch"]);
}

#[test]
fn connection_strings_are_kept_from_everyone_else() {
    let machine = Machine::new();
    let migrating = machine.begin("migrate");
    machine.followed();
    let secrets = machine.dir().join("secrets");
    assert_eq!(mode(&secrets), 0o700);
    for (end, text) in [("main.source", SOURCE), ("main.target", TARGET)] {
        assert_eq!(mode(&secrets.join(end)), 0o600);
        assert_eq!(fs::read_to_string(secrets.join(end)).unwrap().trim(), text);
    }
    let spec = machine.state.get("main").unwrap().spec.unwrap();
    assert_eq!(spec.source, format!("file:{}", secrets.join("main.source").display()));
    let argv = fs::read_to_string(machine.dir().join("argv")).unwrap();
    assert_eq!(argv, format!("--dir\n{}\n--exit-when-idle\n", machine.dir().display()));
    let environ = fs::read_to_string(machine.dir().join("environ")).unwrap();
    assert!(!environ.contains("hunter"), "{environ}");
    assert_eq!(mode(&machine.dir().join("coordinator.log")), 0o600);
    send(pid_of(&migrating), Signal::INT);
    let said = program::said(migrating);
    assert!(!said.out.contains("hunter") && !said.err.contains("hunter"), "{said:?}");
    machine.state.change("main", |migration| migration.set_phase(Phase::Aborted));
    assert_eq!(machine.run("cleanup --yes").code, Some(0));
    assert_eq!(fs::read_dir(&secrets).unwrap().count(), 0);
}

#[test]
fn each_way_of_leaving_detaches_and_the_same_command_attaches_again() {
    let machine = Machine::new();
    let mut coordinator = None;
    for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
        let before = machine.state.calls().iter().filter(|call| *call == "watch").count();
        let migrating = machine.begin("migrate");
        eventually("the follower", || {
            machine.state.calls().iter().filter(|call| *call == "watch").count() > before
        });
        send(pid_of(&migrating), signal);
        let said = program::said(migrating);
        assert_eq!(said.code, Some(130), "{}", said.err);
        assert!(said.err.contains("goes on in the background"), "{}", said.err);
        assert!(said.err.contains("Come back with: skein watch main --dir "), "{}", said.err);
        assert!(machine.is_running());
        let pid = *coordinator.get_or_insert_with(|| machine.pid().unwrap());
        assert_eq!(machine.pid(), Some(pid), "there is one coordinator");
    }
    let calls = machine.state.calls();
    assert_eq!(calls.iter().filter(|call| *call == "check").count(), 1, "{calls:?}");
}

#[test]
fn the_coordinator_has_a_session_of_its_own() {
    let machine = Machine::new();
    assert_eq!(machine.run("migrate --detach").code, Some(0));
    let fields = stat(machine.pid().unwrap()).unwrap();
    assert_eq!(fields[3], machine.pid().unwrap().to_string(), "it leads its session");
}

#[test]
fn a_coordinator_that_is_killed_is_started_again_for_who_is_attached() {
    let machine = Machine::new();
    let migrating = machine.begin("migrate");
    machine.followed();
    let first = machine.pid().unwrap();
    send(first, Signal::KILL);
    eventually("another coordinator", || machine.pid().is_some_and(|pid| pid != first));
    eventually("the follower to come back", || {
        machine.state.calls().iter().filter(|call| *call == "watch").count() > 1
    });
    machine.state.change("main", |migration| *migration = done("main"));
    let said = program::said(migrating);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("connection lost"), "{}", said.err);
    assert!(said.err.contains("was gone and was started again"), "{}", said.err);
    assert!(said.err.contains("connected again"), "{}", said.err);
}

#[test]
fn a_coordinator_that_cannot_start_is_told_with_its_last_words() {
    let machine = Machine::with_coordinator("echo 'error:  port is taken' >&2; exit 3");
    let said = machine.run("migrate");
    assert_eq!(said.code, Some(4), "{}", said.err);
    assert!(said.err.contains("error:  port is taken"), "{}", said.err);
    assert!(said.err.contains("[COORDINATOR_DIED]"), "{}", said.err);
    assert!(said.err.contains("coordinator.log"), "{}", said.err);
}

#[test]
fn a_coordinator_that_finds_another_stopping_one_is_started_again() {
    let machine = Machine::with_coordinator(&format!(
        "[ -e \"$2/held\" ] || {{ touch \"$2/held\"; exit 75; }}\n{}",
        Machine::becoming_the_coordinator()
    ));
    let said = machine.run("migrate --detach");
    assert_eq!(said.code, Some(0), "{}", said.err);
}

#[test]
fn a_failed_check_stops_before_anything_is_recorded() {
    let machine = Machine::new();
    let failed = v1::Check {
        name: "wal_level".into(),
        r#where: "source".into(),
        outcome: v1::CheckOutcome::Failure.into(),
        found: "replica".into(),
        fix: "alter system set wal_level = logical;".into(),
        ..v1::Check::default()
    };
    machine.state.set_checks(vec![failed]);
    let said = machine.run("migrate");
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("fix:   alter system set wal_level"), "{}", said.err);
    assert_eq!(machine.state.get("main"), None);
    assert!(!machine.is_running(), "a coordinator with nothing to do is not left behind");
}

#[test]
fn check_needs_no_coordinator_and_leaves_none() {
    let machine = Machine::new();
    let said = machine.run("check");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("1 check: 1 passed"), "{}", said.out);
    assert!(!machine.is_running());
    assert_eq!(fs::read_dir(machine.dir().join("secrets")).unwrap().count(), 0);
}

#[test]
fn two_at_once_start_one_coordinator() {
    let machine = Machine::new();
    let both = [machine.begin("migrate --detach"), machine.begin("migrate --detach")];
    let said = both.map(program::said);
    for one in &said {
        assert_eq!(one.code, Some(0), "{}", one.err);
    }
    let started = said.iter().filter(|one| one.err.contains("Started a coordinator")).count();
    assert_eq!(started, 1);
}

#[test]
fn the_name_of_a_migration_never_comes_to_mean_another_server() {
    let machine = Machine::new();
    assert_eq!(machine.run("migrate --detach").code, Some(0));
    let other = machine.run("migrate --detach --source postgres://app:hunter2@elsewhere/shop");
    assert_eq!(other.code, Some(5), "{}", other.err);
    assert!(other.err.contains("[ALREADY_EXISTS]"), "{}", other.err);
    assert!(!other.err.contains("hunter2"), "{}", other.err);
    let kept = fs::read_to_string(machine.dir().join("secrets/main.source")).unwrap();
    assert_eq!(kept.trim(), SOURCE);
    let other = machine.run("migrate --detach --target env:ELSEWHERE");
    assert_eq!(other.code, Some(5), "{}", other.err);
    let kept = machine.run("migrate --detach --workers 9");
    assert_eq!(kept.code, Some(0), "{}", kept.err);
    assert!(kept.err.contains("given otherwise now: copy."), "{}", kept.err);
    assert!(machine.is_running());
}

#[test]
fn the_same_command_goes_on_after_a_fault() {
    let machine = Machine::new();
    assert_eq!(machine.run("migrate --detach").code, Some(0));
    let fault = v1::ErrorDetail { reason: "SPOOL_FULL".into(), ..v1::ErrorDetail::default() };
    machine.state.change("main", |migration| migration.fault = Some(fault));
    let said = machine.run("migrate --detach");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("goes on after its fault SPOOL_FULL"), "{}", said.err);
    assert_eq!(machine.state.get("main").unwrap().fault, None);
}

#[test]
fn waiting_for_ready_ends_there_and_says_how_to_hand_over() {
    let machine = Machine::new();
    let migrating = machine.begin("migrate --until ready");
    machine.followed();
    machine.state.change("main", |migration| migration.set_phase(Phase::Ready));
    let said = program::said(migrating);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("skein cutover main --dir "), "{}", said.err);
}
