//! What people and machines do wrong: each a clear error, nothing lost, and it goes on when the
//! cause is gone.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::{
    cluster::{
        postgres::Postgres,
        process::{Process, signal},
    },
    workload::{Options, mixed::Scale},
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A value in the data that must be in no log.
const MARKER: &str = "Geheimwert4711";

fn until_ready(scenario: &Scenario) {
    let mut migrate = scenario.migrate(&["--cutover", "manual", "--until", "ready"]);
    let status = migrate.wait(DEADLINE).unwrap();
    assert!(status.success(), "{}\n{}", migrate.output(), scenario.run.logs());
}

fn wait_for_fault(scenario: &Scenario) -> Value {
    let mut fault = Value::Null;
    super::wait_for("a fault", || {
        fault = scenario.status().unwrap_or_default()["fault"].clone();
        !fault.is_null()
    });
    for part in ["reason", "primary", "detail", "hint"] {
        assert!(fault[part].as_str().is_some_and(|text| !text.is_empty()), "{part}: {fault:#}");
    }
    fault
}

/// A small file system, as root; gone when dropped.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(path: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "skein-test"])
            .arg(path)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no file system can be mounted here");
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    /// Takes all but so many megabytes.
    fn fill(&self, but_megabytes: u64) {
        let output = Command::new("df").args(["--output=avail", "-BK"]).arg(&self.path).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let digits: String =
            text.lines().nth(1).unwrap().chars().filter(char::is_ascii_digit).collect();
        let kilobytes: u64 = digits.parse().unwrap();
        let size = usize::try_from(kilobytes.saturating_sub(but_megabytes * 1024) * 1024).unwrap();
        // The server writes at the same time: it may have taken the last of the room itself.
        match std::fs::write(self.path.join("filler"), vec![b'x'; size]) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {}
            written => written.unwrap(),
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.path.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[test]
fn a_full_disk_of_the_target_is_named_and_the_run_goes_on_when_there_is_room() {
    let scenario = Scenario::new();
    let place = scenario.run.directory().join("small-disk");
    let Some(disk) = Disk::mount(&place, 150) else { return };
    let space = place.join("space");
    std::fs::create_dir(&space).unwrap();
    assert!(
        Command::new("chown")
            .arg("--reference")
            .arg(scenario.target.data_directory())
            .arg(&space)
            .status()
            .unwrap()
            .success()
    );
    let make = format!(
        "drop database shop; create tablespace small location '{}'; \
         create database shop tablespace small;",
        space.display()
    );
    for statement in make.split_inclusive(';') {
        scenario.target.psql("postgres", statement).unwrap();
    }
    let running = scenario.under(Scale::megabytes(24), &Options::default());
    disk.fill(12);
    let mut migrate = scenario.migrate(&["--cutover", "manual"]);
    super::wait_for("it is told that there is no room", || migrate.output().contains("space"));
    disk.free();
    migrate.terminate();
    migrate.wait(DEADLINE).unwrap();
    // Copied, and full again in mid-replay.
    until_ready(&scenario);
    scenario.wait_for_replay(&running);
    disk.fill(0);
    let insert = "insert into mixed.wide (body) select repeat(md5(i::text), 400) \
                  from generate_series(1, 2000) i";
    scenario.source.psql("shop", insert).unwrap();
    super::wait_for("replay is told to have no room", || {
        let status = scenario.status().unwrap_or_default().to_string();
        status.contains("space") || status.contains("53100")
    });
    disk.free();
    until_ready(&scenario);
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn a_full_disk_of_the_spool_stops_reading_and_nothing_else() {
    let scenario = Scenario::new();
    let Some(disk) = Disk::mount(&scenario.run.state_directory(), 1200) else { return };
    let running = scenario.under(Scale::megabytes(4), &Options::default());
    until_ready(&scenario);
    scenario.wait_for_replay(&running);
    disk.fill(2);
    assert_eq!(scenario.skein(&["pause", NAME]).code(), Some(0));
    let insert = "insert into mixed.wide (body) select string_agg(md5(i::text || j::text), '') \
                  from generate_series(1, 600) i, generate_series(1, 400) j group by i";
    scenario.source.psql("shop", insert).unwrap();
    super::wait_for("status says that the spool is full", || {
        let status = scenario.status().unwrap_or_default().to_string().to_lowercase();
        status.contains("spool") && status.contains("full")
    });
    let confirmed = |status: &Value| status["positions"]["confirmed_flush_lsn"].to_string();
    let status = scenario.json(&["status", NAME]);
    assert_eq!(status["phase"], "ready", "{} {status:#}", confirmed(&status));
    // Killed while it is full, too.
    assert_eq!(scenario.run.kill9("skein-coordinator"), 1);
    disk.free();
    until_ready(&scenario);
    scenario.wait_for_replay(&running);
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn a_row_that_someone_put_on_the_target_is_named_without_its_values() {
    let scenario = Scenario::new();
    let running = scenario.under(Scale::megabytes(4), &Options::default());
    let make = format!(
        "create table public.secret (id int primary key, word text unique, doc json); \
         insert into public.secret select i, '{MARKER}' || i, '[\"{MARKER}\"]' from generate_series(1, 100) i"
    );
    scenario.source.psql("shop", &make).unwrap();
    until_ready(&scenario);
    let intruder = format!("insert into public.secret values (500, '{MARKER}501', null)");
    scenario.target.psql("shop", &intruder).unwrap();
    let insert = format!(
        "begin; insert into public.secret values (400, '{MARKER}400', null); \
         insert into public.secret values (501, '{MARKER}501', null); commit"
    );
    scenario.source.psql("shop", &insert).unwrap();
    let fault = wait_for_fault(&scenario);
    assert!(fault.to_string().contains("secret"), "{fault:#}");
    // Still received, and everything before it is applied.
    let before = scenario.target.psql("shop", "select count(*) from public.secret").unwrap();
    assert_eq!(before, "101");
    scenario.target.psql("shop", "delete from public.secret where id = 500").unwrap();
    assert_eq!(scenario.skein(&["resume", NAME]).code(), Some(0));
    scenario.wait_for_replay(&running);
    // A row that is missing is found as well.
    scenario.target.psql("shop", "delete from public.secret where id = 7").unwrap();
    let update = format!("update public.secret set word = '{MARKER}x' where id = 7");
    scenario.source.psql("shop", &update).unwrap();
    let fault = wait_for_fault(&scenario);
    assert!(fault.to_string().contains("secret"), "{fault:#}");
    let mend = format!("insert into public.secret values (7, '{MARKER}7', '[\"{MARKER}\"]')");
    scenario.target.psql("shop", &mend).unwrap();
    assert_eq!(scenario.skein(&["resume", NAME]).code(), Some(0));
    scenario.wait_for_replay(&running);
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
    scenario.target.psql("shop", "update public.secret set id = -id where id = 9").unwrap();
    scenario.skein(&["verify", NAME]);
    assert!(!scenario.run.all_log_text().contains(MARKER), "a row's value is in a log");
}

#[test]
fn settings_of_roles_and_databases_do_not_end_our_sessions() {
    let scenario = Scenario::new();
    for server in [&scenario.source, &scenario.target] {
        for setting in [
            "statement_timeout = '300ms'",
            "lock_timeout = '100ms'",
            "idle_in_transaction_session_timeout = '200ms'",
            "idle_session_timeout = '300ms'",
            "datestyle = 'SQL, DMY'",
            "intervalstyle = 'sql_standard'",
            "extra_float_digits = -3",
            "bytea_output = 'escape'",
            "timezone = 'Asia/Kathmandu'",
            "default_transaction_isolation = 'serializable'",
            "row_security = off",
            "xmloption = 'document'",
        ] {
            server.psql("postgres", &format!("alter database shop set {setting}")).unwrap();
        }
    }
    let options = Options { pause: Duration::from_millis(5), ..Options::default() };
    let running = scenario.under(Scale::megabytes(6), &options);
    let _migrate = scenario.migrate(&["--cutover", "auto"]);
    drop(scenario.in_mid_copy());
    scenario.wait_for_end(scenario.migrate(&["--cutover", "auto"]));
    // Its own sessions may be ended by such settings; that is no fault of ours.
    let mut outcome = running.stop();
    outcome.failures.clear();
    scenario.assert_moved(&outcome);
}

/// Each must fail at once, with primary, detail or hint, and leave nothing.
#[test]
fn a_server_that_cannot_be_used_is_named_at_once() {
    let scenario = Scenario::new();
    let good = scenario.source.conninfo("shop");
    let port = scenario.source.port().to_string();
    for (source, word) in [
        (good.replace(&port, "1"), "refused"),
        (good.replace("127.0.0.1", "nowhere.invalid"), "nowhere.invalid"),
        (good.replace("sslmode=disable", "sslmode=require"), "TLS"),
        (good.replace("/shop", "/missing"), "missing"),
        (good.replace("sslmode=disable", "sslmode=sometimes"), "sslmode"),
        (
            good.replace("postgres@", "nobody@")
                .replace("postgresql://postgres", "postgresql://nobody"),
            "nobody",
        ),
    ] {
        let mut migrate = scenario.migrate_from(&source, &[]);
        let status = migrate.wait(Duration::from_secs(60)).unwrap();
        let output = migrate.output();
        assert!(!status.success(), "{source}: {output}");
        assert!(output.contains(word), "{source}: {word} in {output}");
        assert!(!output.contains("panicked"), "{output}");
    }
    let config = scenario.run.directory().join("skein.toml");
    std::fs::write(&config, "[copy]\nchunk_sise = \"1 MiB\"\n").unwrap();
    let mut migrate = scenario.migrate(&[]);
    assert!(!migrate.wait(Duration::from_secs(60)).unwrap().success());
    assert!(migrate.output().contains("chunk_sise"), "{}", migrate.output());
    assert_eq!(scenario.left_on_source(), "");
}

fn twice(scenario: &Scenario, program: &str, kind: Signal) {
    for _ in 0..2 {
        for pid in scenario.run.processes(program) {
            signal(pid, kind);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn each_program_told_to_end_twice_ends_and_the_same_command_goes_on() {
    let scenario = Scenario::new();
    let running = scenario.under(Scale::megabytes(6), &Options::default());
    let mut migrate: Process = scenario.migrate(&["--cutover", "manual"]);
    let held = scenario.in_mid_copy();
    for kind in [Signal::TERM, Signal::INT] {
        for program in ["skein-worker", "skein-coordinator", "skein"] {
            twice(&scenario, program, kind);
        }
        if !migrate.has_ended() {
            migrate.terminate();
        }
        migrate.wait(Duration::from_secs(30)).unwrap();
        super::wait_for("the coordinator told to end is gone", || {
            scenario.run.processes("skein-coordinator").is_empty()
                && scenario.run.processes("skein-worker").is_empty()
        });
        migrate = scenario.migrate(&["--cutover", "manual"]);
        scenario.wait_for_phase(&["copying"]);
    }
    drop(held);
    until_ready(&scenario);
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}

#[test]
fn a_target_without_free_connections_is_waited_for() {
    let target = Postgres::builder().setting("max_connections", "40");
    let scenario = Scenario::between(Postgres::builder(), target).unwrap();
    let running = scenario.under(Scale::megabytes(6), &Options::default());
    let _migrate = scenario.migrate(&["--cutover", "auto"]);
    let held = scenario.in_mid_copy();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let taken = runtime.block_on(async {
        let mut taken = Vec::new();
        while let Ok(session) = scenario.target.client("postgres").await {
            taken.push(session);
        }
        taken
    });
    assert!(!taken.is_empty());
    // What runs loses its sessions, and finds no new ones.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'skein/demo/%'";
    let session = &taken[0];
    runtime.block_on(session.batch(&pg::Sql::from(end))).unwrap();
    let more = runtime.block_on(async {
        let mut more = Vec::new();
        while let Ok(session) = scenario.target.client("postgres").await {
            more.push(session);
        }
        more
    });
    drop(held);
    std::thread::sleep(Duration::from_secs(5));
    let status = scenario.json(&["status", NAME]);
    assert_eq!(status["fault"], Value::Null, "{status:#}");
    drop((taken, more));
    scenario.wait_for_end(scenario.migrate(&["--cutover", "auto"]));
    let outcome = running.stop();
    scenario.assert_moved(&outcome);
}
