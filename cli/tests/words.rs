//! What people read: help, and lines where there is no terminal.

use crate::{
    program::{self, skein},
    scenario::{coordinator, copying, done, eventually},
};
use proto::v1::Phase;

const COMMANDS: [&str; 14] = [
    "migrate", "check", "create", "start", "list", "status", "watch", "pause", "resume", "cutover",
    "verify", "abort", "cleanup", "workers",
];

#[test]
fn every_command_has_help_with_an_example() {
    let dir = tempfile::tempdir().unwrap();
    let help = skein(dir.path(), "--help");
    assert_eq!(help.code, Some(0));
    for command in COMMANDS {
        assert!(help.out.contains(&format!("\n  {command} ")), "{command}: {}", help.out);
        let said = skein(dir.path(), &format!("{command} --help"));
        assert_eq!(said.code, Some(0));
        assert!(said.out.contains("Example"), "{command}: {}", said.out);
        assert!(said.out.contains(&format!("skein {command}")), "{command}: {}", said.out);
    }
    for code in ["0  ", "1  ", "2  ", "3  ", "4  ", "5  ", "6  ", "7  ", "130"] {
        assert!(help.out.contains(&format!("\n  {code}  ")), "{code}: {}", help.out);
    }
    assert!(!help.out.contains("__launch"));
}

#[test]
fn the_default_configuration_is_printed_and_taken_back() {
    let (dir, _coordinator) = coordinator();
    let printed = skein(dir.path(), "migrate --print-default-config");
    assert_eq!(printed.code, Some(0));
    let file = dir.path().join("skein.toml");
    std::fs::write(&file, &printed.out).unwrap();
    let create = "create --source host=a --target host=b --config";
    let said = skein(dir.path(), &format!("{create} {}", file.display()));
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(skein(dir.path(), "create --source host=a --target host=b").code, Some(0));
}

#[test]
fn without_a_terminal_each_event_is_a_line_of_its_own() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    let watching = program::command(&program::built(), dir.path(), "watch").spawn().unwrap();
    eventually("the watch", || coordinator.state.calls().contains(&"watch".to_owned()));
    coordinator.state.change("main", |migration| migration.set_phase(Phase::CatchingUp));
    coordinator.state.put(&done("main"));
    let said = program::said(watching);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(!said.err.contains('\x1b') && !said.out.contains('\x1b'), "{said:?}");
    for line in said.err.lines() {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.len() == 20, "{line}");
        assert!(rest.starts_with("main: "), "{line}");
    }
    assert!(said.err.contains("main: phase copying: "), "{}", said.err);
    assert!(said.err.contains("main: copying: tables 12/40, 1.00 GiB of 4.00 GiB"), "{}", said.err);
    assert!(said.err.contains("main: phase done: the target is open"), "{}", said.err);
    for part in ["writes stopped  1.843 s", "skein verify main --dir ", "left out by the config"] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    let mut listing =
        program::command(&program::built(), dir.path(), "status --json").spawn().unwrap();
    drop(listing.stdout.take());
    let said = program::said(listing);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
}

#[test]
fn a_command_carries_its_trace_to_the_coordinator() {
    let (dir, coordinator) = coordinator();
    coordinator.state.put(&copying("main"));
    let said: program::Said = program::command(&program::built(), dir.path(), "pause main")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:41599")
        .output()
        .unwrap()
        .into();
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_eq!(coordinator.state.calls(), ["pause traced"]);
}
