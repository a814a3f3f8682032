//! Odd defaults of roles and databases do not reach our sessions (rules, part 6).

use loadtest::cluster::postgres::Postgres;
use pg::{Conninfo, Session, SessionName, Settings, sql};
use std::time::Duration;

const ODD: &str = "
    alter database odd set datestyle = 'SQL, DMY';
    alter database odd set intervalstyle = 'sql_standard';
    alter database odd set extra_float_digits = 0;
    alter database odd set bytea_output = 'escape';
    alter database odd set timezone = 'Asia/Kolkata';
    alter database odd set xmloption = 'document';
    alter database odd set search_path = 'trap';
    alter database odd set default_transaction_isolation = 'serializable';
    alter database odd set default_transaction_deferrable = on;
    alter database odd set default_transaction_read_only = on;
    alter database odd set standard_conforming_strings = off;
    alter database odd set array_nulls = off;
    alter database odd set client_encoding = 'LATIN1';
    alter role postgres set row_security = on;
    alter role postgres set statement_timeout = '50ms';
    alter role postgres set lock_timeout = '50ms';
    alter role postgres in database odd set idle_session_timeout = '100ms';
    alter role postgres in database odd set idle_in_transaction_session_timeout = '100ms';
    alter role postgres in database odd set synchronous_commit = off;
    alter role postgres in database odd set session_replication_role = replica;
";

#[tokio::test]
async fn settings_of_role_and_database_do_not_reach_a_session() {
    let server = Postgres::builder().start().unwrap();
    server.psql("postgres", "create database odd").unwrap();
    server.psql("postgres", ODD).unwrap();
    let conninfo = Conninfo::parse(&server.conninfo("odd")).unwrap();
    let settings = Settings::write(SessionName::of_role("test")).encoding("UTF8");
    let session = Session::connect(&conninfo, &settings).await.unwrap();
    let wanted = [
        ("datestyle", "ISO, YMD"),
        ("intervalstyle", "postgres"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("lc_monetary", "C"),
        ("timezone", "UTC"),
        ("xmloption", "content"),
        ("search_path", "\"\""),
        ("row_security", "off"),
        ("standard_conforming_strings", "on"),
        ("default_transaction_isolation", "read committed"),
        ("default_transaction_deferrable", "off"),
        ("default_transaction_read_only", "off"),
        ("transaction_isolation", "read committed"),
        ("transaction_read_only", "off"),
        ("array_nulls", "on"),
        ("client_encoding", "UTF8"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("client_connection_check_interval", "2s"),
        ("synchronous_commit", "on"),
        ("session_replication_role", "origin"),
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "10000"),
    ];
    for (name, value) in wanted {
        let row = session.query_one(&sql!("select current_setting($1)"), &[&name]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), value, "{name}");
    }
    let day = sql!("select '2024-02-01'::date::text");
    assert_eq!(session.query_one(&day, &[]).await.unwrap().get::<_, String>(0), "2024-02-01");
    session.batch(&sql!("begin; select pg_sleep(0.3)")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await; // longer than the role's idle limits
    session.batch(&sql!("commit")).await.unwrap();
}
