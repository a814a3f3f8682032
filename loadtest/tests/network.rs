//! The network that fails.

use loadtest::cluster::{
    postgres::Postgres,
    proxy::{Fault, Proxy},
};
use pg::{Conninfo, Session, SessionName, Settings, sql};
use std::time::{Duration, Instant};

async fn connect(server: &Postgres, proxy: &Proxy) -> pg::Result<Session> {
    let conninfo = Conninfo::parse(&server.conninfo_at(proxy.port(), "postgres")).unwrap();
    Session::connect(&conninfo, &Settings::read(SessionName::of_role("test"))).await
}

#[tokio::test]
async fn each_fault_of_the_proxy_does_what_its_name_says() {
    let server = Postgres::builder().start().unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let session = connect(&server, &proxy).await.unwrap();
    let one = sql!("select 1");
    assert!(session.query_one(&one, &[]).await.is_ok());

    proxy.set(Fault::Delay(Duration::from_millis(200)));
    let begun = Instant::now();
    session.simple(&one).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));

    // The statement reaches the server, its answer does not come back; then it does.
    for fault in [Fault::Cut, Fault::CutAnswers] {
        proxy.set(fault);
        let query = session.query_one(&one, &[]);
        tokio::pin!(query);
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut query).await.is_err());
        proxy.set(Fault::None);
        assert!(query.await.is_ok(), "{fault:?} loses nothing");
    }

    proxy.reset();
    assert!(session.query_one(&one, &[]).await.unwrap_err().is_transient());
    let session = connect(&server, &proxy).await.unwrap();
    proxy.set(Fault::ResetAfter(100_000));
    let big = sql!("select repeat('x', 1000) from generate_series(1, 1000)");
    assert!(session.query(&big, &[]).await.unwrap_err().is_transient());
    assert!(proxy.passed_bytes() > 100_000);

    proxy.set(Fault::Refuse);
    assert!(connect(&server, &proxy).await.is_err());
}
