//! What a person is told when a server does not let us in, and what libpq's strings reach.

use loadtest::cluster::postgres::Postgres;
use pg::{
    Conninfo, Error, Session, SessionName, Settings, connect::Failure, conninfo::Environment, sql,
};
use std::os::unix::fs::PermissionsExt as _;

pub(crate) fn conninfo(text: &str) -> Conninfo {
    Conninfo::parse_in(text, &Environment::empty().with_user("postgres")).unwrap()
}

pub(crate) async fn connect(conninfo: &Conninfo) -> Result<Session, Failure> {
    let settings = Settings::read(SessionName::of_role("test"));
    Session::connect(conninfo, &settings).await.map_err(|error| match error {
        Error::Connect { reason, .. } => {
            assert!(!reason.hint().is_empty() && !reason.reason().is_empty());
            *reason
        }
        other => panic!("{other}"),
    })
}

/// Whether the server sees this session as TLS.
pub(crate) async fn is_tls(session: &Session) -> bool {
    let statement = sql!("select ssl from pg_stat_ssl where pid = pg_backend_pid()");
    session.query_one(&statement, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn each_refusal_says_what_is_wrong() {
    let server = Postgres::builder().password("right").start().unwrap();
    server.psql("postgres", "create role nobody login password 'x'").unwrap();
    server.hba("host all nobody all reject").unwrap();
    let port = server.port();
    let told = |text: String| async move { connect(&conninfo(&text)).await.unwrap_err() };
    let base = format!("hostaddr=127.0.0.1 port={port} dbname=postgres");
    assert!(matches!(
        told(format!("{base} user=postgres password=wrong")).await,
        Failure::WrongPassword { .. }
    ));
    assert!(matches!(
        told(format!("{base} user=postgres")).await,
        Failure::PasswordMissing { note: None, .. }
    ));
    assert!(matches!(
        told(format!("{base} user=nobody password=x")).await,
        Failure::NotAuthorized { .. }
    ));
    assert!(matches!(
        told(format!("{base} user=postgres password=right dbname=none")).await,
        Failure::DatabaseMissing { .. }
    ));
    assert!(matches!(
        told(format!("{base} user=postgres password=right sslmode=require")).await,
        Failure::TlsRefused { .. }
    ));
    assert!(matches!(
        told(format!("{base} user=postgres password=right channel_binding=require")).await,
        Failure::NoChannelBinding
    ));
    assert!(matches!(
        told(format!("{base} user=postgres password=right target_session_attrs=standby")).await,
        Failure::WrongSession { .. }
    ));
    assert!(matches!(
        told("hostaddr=127.0.0.1 port=1 user=u".to_owned()).await,
        Failure::Refused { .. }
    ));
    assert!(matches!(
        told("host=no-such-host.invalid user=u".to_owned()).await,
        Failure::NameNotResolved { .. }
    ));
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    assert!(matches!(
        told(format!("hostaddr=127.0.0.1 port={port} user=u connect_timeout=2")).await,
        Failure::TimedOut { seconds: 2, .. }
    ));
}

#[tokio::test]
async fn the_next_host_is_asked_when_one_does_not_answer() {
    let server = Postgres::builder().start().unwrap();
    let port = server.port();
    let two = conninfo(&format!(
        "host=127.0.0.1,127.0.0.1 port=1,{port} dbname=postgres target_session_attrs=read-write"
    ));
    assert!(!is_tls(&connect(&two).await.unwrap()).await);
    let socket = server.socket_directory().display().to_string();
    assert!(connect(&conninfo(&format!("host={socket} port={port}"))).await.is_ok());
}

#[tokio::test]
async fn a_private_password_file_lets_us_in_and_an_open_one_is_named() {
    let server = Postgres::builder().password("se:cret").start().unwrap();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".pgpass");
    std::fs::write(&file, "*:*:*:postgres:se\\:cret\n").unwrap();
    let environment = Environment::empty().with_home(home.path()).with_user("postgres");
    let text = format!("host=127.0.0.1 port={}", server.port());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let open = connect(&Conninfo::parse_in(&text, &environment).unwrap()).await.unwrap_err();
    assert!(open.hint().contains("chmod 0600"), "{}", open.hint());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(connect(&Conninfo::parse_in(&text, &environment).unwrap()).await.is_ok());
}

#[tokio::test]
async fn md5_and_scram_passwords_are_understood() {
    let server = Postgres::builder().password("x").start().unwrap();
    server
        .psql(
            "postgres",
            "set password_encryption = 'md5'; create role old login password 'p1'; \
             set password_encryption = 'scram-sha-256'; create role new login password 'p2'",
        )
        .unwrap();
    server.hba("host all old all md5").unwrap();
    for (role, password) in [("old", "p1"), ("new", "p2")] {
        let text = format!(
            "host=127.0.0.1 port={} user={role} password={password} dbname=postgres",
            server.port()
        );
        assert!(connect(&conninfo(&text)).await.is_ok(), "{role}");
        let wrong = conninfo(&text.replace("p1", "wrong").replace("p2", "wrong"));
        let name = SessionName::of_role("walsender");
        let error = pg::Walsender::connect(&wrong, &name, "UTF8").await.unwrap_err();
        assert!(matches!(error.failure(), Some(Failure::WrongPassword { .. })), "{error}");
    }
}

#[tokio::test]
async fn a_child_process_is_let_in_by_the_environment_alone() {
    let server = Postgres::builder().password("se'cr et").start().unwrap();
    let text =
        format!("host=127.0.0.1 port={} password='se\\'cr et' dbname=postgres", server.port());
    let mut command = tokio::process::Command::new(server.client_bin().join("psql"));
    // What we would inherit, and must not.
    command.env("PGSERVICE", "none").env("PGSSLMODE", "verify-full").env("PGOPTIONS", "-c x=");
    conninfo(&text).apply_to(&mut command).args(["-XAtc", "select current_user"]);
    let output = command.output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "postgres\n", "{output:?}");
}
