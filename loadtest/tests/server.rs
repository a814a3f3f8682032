//! The throw-away server itself.

use loadtest::cluster::postgres::{Postgres, Stop};
use pg::sql;

async fn count(server: &Postgres) -> i64 {
    let session = server.client("postgres").await.unwrap();
    session.query_one(&sql!("select count(*) from public.t"), &[]).await.unwrap().get(0)
}

async fn keeps_what_was_committed(mut server: Postgres) {
    server
        .psql("postgres", "create table t (id int primary key); insert into t values (1)")
        .unwrap();
    server.stop(Stop::Immediate).unwrap();
    server.start_again().unwrap();
    assert_eq!(count(&server).await, 1);
    server.kill9();
    server.start_again().unwrap();
    assert_eq!(count(&server).await, 1);
    server.stop(Stop::Fast).unwrap();
    server.start_again().unwrap();
    assert_eq!(count(&server).await, 1);
    assert_eq!(server.psql("postgres", "show wal_level").unwrap(), "logical");
    let dump = server.client_program("pg_dump", "postgres").arg("--schema-only").output().unwrap();
    assert!(String::from_utf8_lossy(&dump.stdout).contains("CREATE TABLE public.t"));
}

#[tokio::test]
async fn a_server_keeps_what_was_committed_over_every_kind_of_stop() {
    keeps_what_was_committed(Postgres::builder().start().unwrap()).await;
}

#[tokio::test]
async fn so_does_version_17() {
    if let Some(server) = Postgres::builder().major(17).start_or_skip().unwrap() {
        keeps_what_was_committed(server).await;
    }
}

#[tokio::test]
async fn a_server_with_a_password_refuses_a_wrong_one() {
    let server = Postgres::builder().password("secret").start().unwrap();
    assert!(server.client("postgres").await.is_ok());
    let wrong = pg::Conninfo::parse(&server.conninfo_as("postgres", "wrong", "postgres")).unwrap();
    let settings = pg::Settings::read(pg::SessionName::of_role("test"));
    let error = pg::Session::connect(&wrong, &settings).await.unwrap_err();
    assert!(error.to_string().contains("password authentication failed"), "{error}");
}

#[test]
fn nothing_is_left_of_a_dropped_server() {
    let server = Postgres::builder().start().unwrap();
    let (pid, data) = (server.pid().unwrap(), server.data_directory());
    assert!(data.exists());
    drop(server);
    assert!(!data.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

const CHILD: &str = "SKEIN_TEST_SERVER_CHILD";

#[test]
fn child_that_is_killed() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let server = Postgres::builder().start().unwrap();
    println!("server {} {}", server.pid().unwrap(), server.data_directory().display());
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn a_server_ends_when_the_process_that_started_it_is_killed() {
    use std::io::BufRead as _;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server::child_that_is_killed", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    // libtest writes the test's name in front, without an end of line.
    let line = output.lines().map(Result::unwrap).find(|line| line.contains("server ")).unwrap();
    let words: Vec<&str> = line.rsplit_once("server ").unwrap().1.split(' ').collect();
    let (process, data) = (format!("/proc/{}", words[0]), std::path::Path::new(words[1]));
    assert!(std::path::Path::new(&process).exists() && data.exists(), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    super::wait_for("server and files go", || {
        !std::path::Path::new(&process).exists() && !data.exists()
    });
}
