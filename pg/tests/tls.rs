//! sslmode by sslmode, against a server with certificates of our making.

use crate::{
    certificate::Authority,
    connect::{connect, conninfo, is_tls},
};
use loadtest::cluster::postgres::Postgres;
use pg::{SessionName, connect::Failure};

#[tokio::test]
async fn every_sslmode_means_what_libpq_means() {
    let server = Postgres::builder().password("pw").start().unwrap();
    let (ours, other) = (Authority::new(), Authority::new());
    ours.issue("server", "DNS:localhost");
    ours.install(&server, "server");
    let base = format!("port={} user=postgres password=pw dbname=postgres", server.port());
    let good = format!("sslrootcert={}", ours.path("root.crt").display());
    let bad = format!("sslrootcert={}", other.path("root.crt").display());
    let by_name = "host=localhost hostaddr=127.0.0.1";
    let by_address = "host=127.0.0.1";

    for (rest, tls) in [
        (by_address.to_owned(), true), // prefer
        (format!("{by_address} sslmode=disable"), false),
        (format!("{by_address} sslmode=allow"), false),
        (format!("{by_address} sslmode=require"), true),
        (format!("{by_address} sslmode=require channel_binding=require"), true),
        (format!("{by_address} sslmode=require ssl_max_protocol_version=TLSv1.2"), true),
        (format!("{by_address} sslmode=verify-ca {good}"), true),
        (format!("{by_name} sslmode=verify-full {good}"), true),
        // not trusted, and plain is acceptable
        (format!("{by_address} sslmode=prefer {bad}"), false),
    ] {
        let session = connect(&conninfo(&format!("{base} {rest}"))).await;
        assert_eq!(is_tls(&session.unwrap_or_else(|f| panic!("{rest}: {f}"))).await, tls, "{rest}");
    }
    let told = |rest: String| {
        let text = format!("{base} {rest}");
        async move { connect(&conninfo(&text)).await.unwrap_err() }
    };
    let failure = told(format!("{by_address} sslmode=verify-full {good}")).await;
    let Failure::CertificateName { host, names, .. } = &failure else { panic!("{failure}") };
    assert_eq!((host.as_str(), names.as_str()), ("127.0.0.1", "\"localhost\""));
    for mode in ["require", "verify-ca", "verify-full"] {
        let failure = told(format!("{by_name} sslmode={mode} {bad}")).await;
        assert!(matches!(failure, Failure::CertificateNotTrusted { .. }), "{mode}: {failure}");
    }
    let failure = told(format!("{by_name} sslmode=verify-full")).await;
    assert!(matches!(failure, Failure::RootCertMissing { .. }), "{failure}");
    let failure = told(format!("hostaddr=127.0.0.1 sslmode=verify-full {good}")).await;
    assert!(matches!(failure, Failure::HostNameMissing), "{failure}");
    let failure = told(format!("{by_name} sslmode=verify-full sslrootcert=/nowhere")).await;
    assert!(matches!(failure, Failure::File { .. }), "{failure}");

    // The walsender comes in by the same door, bound to the channel.
    let text = format!("{base} {by_name} sslmode=verify-full {good} channel_binding=require");
    let name = SessionName::of_role("walsender");
    let mut walsender = pg::Walsender::connect(&conninfo(&text), &name, "UTF8").await.unwrap();
    assert_eq!(walsender.identify_system().await.unwrap().database, "postgres");
}

#[tokio::test]
async fn a_client_certificate_lets_us_in_and_an_open_key_does_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = Postgres::builder().start().unwrap();
    let authority = Authority::new();
    authority.issue("server", "DNS:localhost");
    authority.issue("app", "DNS:app");
    authority.install(&server, "server");
    server.psql("postgres", "create role app login").unwrap();
    server.hba("hostssl all app all cert\nhostnossl all app all reject").unwrap();
    let (cert, key) = (authority.path("app.crt"), authority.path("app.key"));
    let base = format!("host=127.0.0.1 port={} user=app dbname=postgres", server.port());
    let with = format!("{base} sslcert={} sslkey={}", cert.display(), key.display());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    // allow: plain is rejected by pg_hba.conf, so TLS comes next
    assert!(is_tls(&connect(&conninfo(&format!("{with} sslmode=allow"))).await.unwrap()).await);
    let failure = connect(&conninfo(&format!("{base} sslmode=require"))).await.unwrap_err();
    assert!(matches!(failure, Failure::NotAuthorized { .. }), "{failure}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let failure = connect(&conninfo(&format!("{with} sslmode=require"))).await.unwrap_err();
    assert!(failure.to_string().contains("chmod 0600"), "{failure}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_root_by_its_common_name() {
    let server = Postgres::builder().start().unwrap();
    let authority = Authority::new();
    authority.self_signed("localhost");
    authority.install(&server, "localhost");
    let root = authority.path("localhost.crt");
    let base = format!("port={} sslmode=verify-full sslrootcert={}", server.port(), root.display());
    let named = conninfo(&format!("{base} host=localhost hostaddr=127.0.0.1 dbname=postgres"));
    assert!(is_tls(&connect(&named).await.unwrap()).await);
    let other = conninfo(&format!("{base} host=elsewhere hostaddr=127.0.0.1 dbname=postgres"));
    let failure = connect(&other).await.unwrap_err();
    assert!(matches!(failure, Failure::CertificateName { .. }), "{failure}");
}

#[tokio::test]
async fn a_statement_is_cancelled_over_tls() {
    let server = Postgres::builder().start().unwrap();
    let authority = Authority::new();
    authority.issue("server", "DNS:localhost");
    authority.install(&server, "server");
    let text = format!("host=127.0.0.1 port={} sslmode=require dbname=postgres", server.port());
    let session = connect(&conninfo(&text)).await.unwrap();
    let token = session.cancel_token();
    let sleep = pg::sql!("select pg_sleep(60)");
    let (slept, cancelled) = tokio::join!(session.batch(&sleep), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        token.cancel().await
    });
    cancelled.unwrap();
    assert_eq!(slept.unwrap_err().sqlstate(), Some("57014"));
}
