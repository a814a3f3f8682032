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

/// Without this machine: client programs of 17 stand beside the server, in its chroot.
fn failed_on_servers(checks: &[Check]) -> Vec<String> {
    failed(checks).into_iter().filter(|name| !name.starts_with("coordinator")).collect()
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

#[tokio::test]
async fn a_server_that_does_not_let_us_in_leaves_the_other_s_checks() {
    let source = Postgres::builder().password("right").start().unwrap();
    let target = Postgres::builder().start().unwrap();
    let to = target.conninfo("postgres");
    let nobody = "postgresql://postgres:s3cret@127.0.0.1:1/postgres?sslmode=disable";
    let port = source.port();
    let wrong = format!("postgresql://postgres:s3cret@127.0.0.1:{port}/postgres?sslmode=disable");
    let none = format!("postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let database = format!("postgresql://postgres:right@127.0.0.1:{port}/nope?sslmode=disable");
    let role = format!("postgresql://nobody:s3cret@127.0.0.1:{port}/postgres?sslmode=disable");
    let tls = format!("postgresql://postgres:s3cret@127.0.0.1:{port}/postgres?sslmode=require");
    for (conninfo, found, fix) in [
        (nobody, "127.0.0.1:1 was refused", "listen_addresses"),
        (&wrong, "password authentication failed for user \"postgres\"", "password"),
        (&none, "user \"postgres\" needs a password", "connection string"),
        (&database, "database \"nope\" does not exist", "create database \"nope\";"),
        (&role, "password authentication failed for user \"nobody\"", "password"),
        (&tls, "does not offer TLS", "ssl"),
    ] {
        let checks = run(&spec(), conninfo, &to).await;
        let connection = check(&checks, "source", "connection");
        assert_eq!(connection.outcome(), CheckOutcome::Failure);
        assert!(connection.found.contains(found), "{connection:?}");
        assert!(connection.fix.contains(fix), "{connection:?}");
        assert_eq!(failed(&checks), ["source connection"]);
        assert!(check(&checks, "target", "target_empty").outcome() == CheckOutcome::Pass);
        assert!(!format!("{checks:?}").contains("s3cret"));
    }
}

#[tokio::test]
async fn a_plain_role_is_told_each_right_that_it_lacks_and_passes_once_granted() {
    for major in [15, 17] {
        let Some(source) = Postgres::builder().major(major).start_or_skip().unwrap() else {
            continue;
        };
        let target = Postgres::builder().major(major).start().unwrap();
        source
            .psql(
                "postgres",
                "create role owner; create role mover login; create schema app;
                 create table app.t (id int primary key); alter table app.t owner to owner;
                 create table app.secret (id int primary key); alter table app.secret owner to owner;
                 alter table app.secret enable row level security, force row level security;
                 create table app.keyless (a int); alter table app.keyless owner to owner;",
            )
            .unwrap();
        target.psql("postgres", "create role mover login").unwrap();
        let from = source.conninfo_as("mover", "x", "postgres");
        let to = target.conninfo_as("mover", "x", "postgres");
        let checks = run(&spec(), &from, &to).await;
        assert_eq!(
            failed_on_servers(&checks),
            [
                "source replication_role",
                "source read_tables",
                "source table_owner",
                "source row_security",
                "source create_on_database",
                "source replication_connection",
                "source replica_identity",
                "target create_on_database",
                "target roles",
            ]
        );
        for check in &checks {
            assert!(!check.found.contains("could not be checked"), "{check:?}");
        }
        // each fix is a statement that can be pasted
        for check in checks.iter().filter(|check| check.outcome() != CheckOutcome::Pass) {
            let server = match check.r#where.as_str() {
                "source" => &source,
                "target" => &target,
                _ => continue,
            };
            server.psql("postgres", &check.fix).unwrap();
        }
        let checks = run(&spec(), &from, &to).await;
        assert_eq!(failed_on_servers(&checks), Vec::<String>::new());
    }
}

#[tokio::test]
async fn settings_that_would_lose_the_slot_or_the_snapshot_are_found() {
    let source = Postgres::builder()
        .setting("max_replication_slots", "1")
        .setting("max_wal_senders", "1")
        .setting("wal_sender_timeout", "5s")
        .setting("max_slot_wal_keep_size", "100MB")
        .setting("old_snapshot_threshold", "60")
        .setting("max_locks_per_transaction", "10")
        .setting("max_connections", "12")
        .start()
        .unwrap();
    let target = Postgres::builder().start().unwrap();
    source
        .psql(
            "postgres",
            "do $$ begin for i in 1..1200 loop
               execute format('create table t%s (id int primary key)', i);
               if i % 100 = 0 then commit; end if;
             end loop; end $$",
        )
        .unwrap();
    let checks = run(&spec(), &source.conninfo("postgres"), &target.conninfo("postgres")).await;
    assert_eq!(
        failed(&checks),
        [
            "source replication_slots",
            "source wal_senders",
            "source old_snapshot_threshold",
            "source lock_slots",
            "source connections",
        ]
    );
    for name in ["wal_sender_timeout", "max_slot_wal_keep_size"] {
        assert_eq!(check(&checks, "source", name).outcome(), CheckOutcome::Warning);
    }
    assert!(check(&checks, "source", "lock_slots").fix.contains("max_locks_per_transaction = "));
}

#[tokio::test]
async fn what_the_stream_cannot_carry_is_said_before() {
    let source = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    source
        .psql(
            "postgres",
            "create unlogged table u (id int primary key); select lo_create(0);
             create table t (id int primary key);
             create function f() returns trigger language plpgsql as 'begin return new; end';
             create trigger always before insert on t for each row execute function f();
             alter table t enable always trigger always;
             create extension postgres_fdw;
             create server far foreign data wrapper postgres_fdw;
             create foreign table ft (id int) server far;
             create table late (id int); alter table late add primary key (id) deferrable;
             begin; insert into t values (1); prepare transaction 'pending';",
        )
        .unwrap();
    let mut spec = spec();
    spec.identity = Some(proto::v1::Identity {
        all: proto::v1::IdentityChoice::Full.into(),
        ..proto::v1::Identity::default()
    });
    let checks = run(&spec, &source.conninfo("postgres"), &target.conninfo("postgres")).await;
    assert_eq!(failed(&checks), Vec::<String>::new());
    for name in [
        "unlogged_tables",
        "large_objects",
        "always_triggers",
        "foreign_tables",
        "prepared_transactions",
        "replica_identity",
    ] {
        assert_eq!(check(&checks, "source", name).outcome(), CheckOutcome::Warning, "{name}");
    }
    let identity = check(&checks, "source", "replica_identity");
    assert!(identity.detail.contains(r#""public"."late""#), "{identity:?}");
    assert!(identity.detail.contains("put back at teardown"));
    let announced = check(&checks, "source", "source_changes");
    assert!(announced.found.contains("slot skein_m, publications skein_m_full"), "{announced:?}");
    assert!(announced.found.contains("REPLICA IDENTITY FULL on 1 table"), "{announced:?}");
}

#[tokio::test]
async fn an_earlier_run_is_told_from_a_stranger_s_schema_and_misspelt_patterns_are_named() {
    let source = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    source.psql("postgres", "create table t (id int primary key)").unwrap();
    let session = target.client("postgres").await.unwrap();
    session.batch(&coordinator::target::ddl()).await.unwrap();
    let (from, to) = (source.conninfo("postgres"), target.conninfo("postgres"));
    assert_eq!(failed(&run(&spec(), &from, &to).await), Vec::<String>::new());
    let row = "insert into skein.migration (schema_version, migration_id, name, spec)
               values (1, 'x', 'm', '{}'); create table public.t (id int)";
    target.psql("postgres", row).unwrap();
    let checks = run(&spec(), &from, &to).await;
    assert_eq!(failed(&checks), Vec::<String>::new());
    let other = MigrationSpec { name: "n".into(), ..spec() };
    assert_eq!(
        failed(&run(&other, &from, &to).await),
        ["target schema_skein", "target target_empty"]
    );
    target.psql("postgres", "drop table skein.migration, public.t").unwrap();
    assert_eq!(failed(&run(&spec(), &from, &to).await), ["target schema_skein"]);
    let filter =
        proto::v1::Filter { exclude_tables: vec!["public.T_".into()], ..Default::default() };
    let checks = run(&MigrationSpec { filter: Some(filter), ..spec() }, &from, &to).await;
    assert!(check(&checks, "source", "filter").found.contains(r#""public"."t_""#));
}

/// pgbouncer in front of a server; ended when dropped.
struct Pooler {
    process: std::process::Child,
    _directory: tempfile::TempDir,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// None, and a line, where there is no pgbouncer (`SKEIN_TEST_PGBOUNCER`, or in /usr/sbin).
fn pooler(server: &Postgres, mode: &str, port: u16) -> Option<Pooler> {
    let program =
        std::env::var("SKEIN_TEST_PGBOUNCER").unwrap_or_else(|_| "/usr/sbin/pgbouncer".to_owned());
    if !std::path::Path::new(&program).exists() {
        eprintln!("skipped: pgbouncer is not on this machine");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgbouncer.ini");
    let text = format!(
        "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres user=postgres\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n\
         pool_mode = {mode}\nunix_socket_dir =\n\
         ignore_startup_parameters = extra_float_digits,options,replication\n",
        server.port()
    );
    std::fs::write(&file, text).unwrap();
    // it refuses to run as root
    let nobody = std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).is_ok();
    let mut command = std::process::Command::new("setpriv");
    if nobody {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).arg("-q").arg(file);
    Some(Pooler { process: command.spawn().unwrap(), _directory: directory })
}

#[tokio::test]
async fn a_pooler_of_any_mode_is_told_from_a_server() {
    let server = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    for mode in ["transaction", "session"] {
        let port = loadtest::cluster::port::Port::take().unwrap();
        let Some(_pooler) = pooler(&server, mode, port.number()) else { return };
        let conninfo = server.conninfo_at(port.number(), "postgres");
        crate::stand::until("the pooler", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port.number())).await.is_ok()
        })
        .await;
        let checks = run(&spec(), &conninfo, &target.conninfo("postgres")).await;
        let found = "a pooler stands between us and the server";
        assert!(checks.iter().any(|check| check.found == found), "{mode}");
    }
}

#[tokio::test]
async fn what_the_target_lacks_is_named_encoding_extension_tablespace_role() {
    let source = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    source
        .psql(
            "postgres",
            "create database old encoding 'SQL_ASCII' locale 'C' template template0;
             set allow_in_place_tablespaces = on; create tablespace fast location '';
             create role owner;",
        )
        .unwrap();
    source
        .psql(
            "old",
            "create table t (id int primary key) tablespace fast; alter table t owner to owner;
             create extension citext;",
        )
        .unwrap();
    let (from, to) = (source.conninfo("old"), target.conninfo("postgres"));
    let checks = run(&spec(), &from, &to).await;
    assert_eq!(failed(&checks), ["both encoding", "target tablespaces"]);
    assert_eq!(check(&checks, "both", "locale").outcome(), CheckOutcome::Warning);
    assert!(check(&checks, "target", "roles").found.contains("owner"));
    assert!(check(&checks, "target", "tablespaces").fix.contains("create tablespace \"fast\""));
    // as it looks where the extension's files are not installed on the target
    source
        .psql(
            "old",
            "set allow_system_table_mods = on;
             update pg_extension set extname = 'postgis' where extname = 'citext'",
        )
        .unwrap();
    let checks = run(&spec(), &from, &to).await;
    assert!(check(&checks, "target", "extensions").found.contains("postgis"));
    let filter = proto::v1::Filter { leave_out: vec!["extensions".into()], ..Default::default() };
    let checks = run(&MigrationSpec { filter: Some(filter), ..spec() }, &from, &to).await;
    assert!(!failed(&checks).contains(&"target extensions".to_owned()));
}

#[tokio::test]
async fn hypertables_are_refused_since_their_chunks_would_be_lost() {
    let source = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    // the catalogs as TimescaleDB leaves them; the extension itself is not on every machine
    source
        .psql(
            "postgres",
            "set allow_system_table_mods = on; create extension citext;
             update pg_extension set extname = 'timescaledb', extversion = '2.19.3'
              where extname = 'citext';
             create schema _timescaledb_catalog;
             create table _timescaledb_catalog.hypertable (id int primary key);
             insert into _timescaledb_catalog.hypertable values (1)",
        )
        .unwrap();
    let checks = run(&spec(), &source.conninfo("postgres"), &target.conninfo("postgres")).await;
    let found = check(&checks, "source", "timescaledb");
    assert_eq!(found.outcome(), CheckOutcome::Failure);
    assert_eq!(found.found, "TimescaleDB 2.19.3, 1 hypertable");
}

#[tokio::test]
async fn a_newer_source_and_a_standby_are_refused() {
    let Some(newer) = Postgres::builder().major(17).start_or_skip().unwrap() else { return };
    let older = Postgres::builder().start().unwrap();
    let checks = run(&spec(), &newer.conninfo("postgres"), &older.conninfo("postgres")).await;
    assert!(failed(&checks).contains(&"both version_order".to_owned()));
    let checks = run(&spec(), &older.conninfo("postgres"), &newer.conninfo("postgres")).await;
    assert_eq!(failed(&checks), Vec::<String>::new());

    let mut standby = Postgres::builder().start().unwrap();
    standby.stop(loadtest::cluster::postgres::Stop::Fast).unwrap();
    std::fs::write(standby.data_directory().join("standby.signal"), "").unwrap();
    standby.start_again().unwrap();
    let checks = run(&spec(), &standby.conninfo("postgres"), &older.conninfo("postgres")).await;
    assert!(failed(&checks).contains(&"source standby".to_owned()));
}

#[tokio::test]
async fn nothing_changes_on_either_server() {
    let source = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    source.psql("postgres", "create table t (id int)").unwrap();
    let state = "select txid_current_if_assigned(), pg_current_wal_insert_lsn()
                   - (select checkpoint_lsn from pg_control_checkpoint()) >= 0,
                 (select count(*) from pg_class), (select count(*) from pg_replication_slots),
                 (select count(*) from pg_db_role_setting), (select count(*) from pg_publication),
                 (select next_xid from pg_control_checkpoint()),
                 pg_snapshot_xmax(pg_current_snapshot())";
    let before = (source.psql("postgres", state).unwrap(), target.psql("postgres", state).unwrap());
    run(&spec(), &source.conninfo("postgres"), &target.conninfo("postgres")).await;
    let after = (source.psql("postgres", state).unwrap(), target.psql("postgres", state).unwrap());
    assert_eq!(before, after, "no transaction of ours took an id");
}

#[tokio::test]
async fn a_partitioned_table_taken_without_its_partitions_is_not_moved_empty_in_silence() {
    let source = Postgres::builder().start().unwrap();
    let target = Postgres::builder().start().unwrap();
    source
        .psql(
            "postgres",
            "create table events (id int primary key) partition by range (id);
             create table events_a partition of events for values from (0) to (10);
             create table events_b partition of events for values from (10) to (20);",
        )
        .unwrap();
    let (from, to) = (source.conninfo("postgres"), target.conninfo("postgres"));
    for (include, exclude, outcome) in [
        (&["public.events"][..], &[][..], CheckOutcome::Failure),
        (&[], &["public.events"], CheckOutcome::Failure),
        (&[], &["public.events_a"], CheckOutcome::Warning),
    ] {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let filter = proto::v1::Filter {
            include_tables: owned(include),
            exclude_tables: owned(exclude),
            ..Default::default()
        };
        let checks = run(&MigrationSpec { filter: Some(filter), ..spec() }, &from, &to).await;
        assert_eq!(check(&checks, "source", "filter_partitions").outcome(), outcome);
    }
}
