//! Strings as libpq reads them (its own regression list, manual: libpq-connect).

use super::*;
use proptest::prelude::*;
use std::{fs, os::unix::fs::PermissionsExt as _};

fn parse(text: &str) -> Conninfo {
    Conninfo::parse_in(text, &Environment::empty().with_user("os")).unwrap()
}

fn refusal(text: &str) -> String {
    Conninfo::parse_in(text, &Environment::empty().with_user("os")).unwrap_err().0
}

fn env_of(conninfo: &Conninfo, name: &str) -> Option<String> {
    conninfo.to_env().into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[test]
fn a_uri_is_taken_apart() {
    let conninfo = parse("postgresql://us%20er:p%40ss%2F@db.example:6432/my%20db?sslmode=require");
    assert_eq!(conninfo.to_string(), "db.example:6432/my db as us er");
    assert_eq!(conninfo.hosts()[0].password(), Some("p@ss/"));
    assert_eq!(conninfo.ssl_mode(), SslMode::Require);
    assert!(!format!("{conninfo:?}").contains("p@ss"));
}

#[test]
fn a_password_of_the_environment_is_not_in_the_text() {
    assert!(Conninfo::holds_password("postgres://u:p@h/d"));
    assert!(Conninfo::holds_password("host=h password=p"));
    assert!(Conninfo::holds_password("postgres://h/d?password=p"));
    assert!(!Conninfo::holds_password("postgres://u@h/d"));
    assert!(!Conninfo::holds_password("host=h password=''"));
}

#[test]
fn forms_of_the_manual_are_understood() {
    assert_eq!(parse("postgresql://localhost").database(), "os");
    assert_eq!(parse("postgresql://user@localhost").database(), "user");
    assert_eq!(parse("postgresql:///mydb?host=localhost&port=5433").hosts()[0].port, 5433);
    let v6 = parse("postgresql://[2001:db8::1234]/database");
    assert_eq!(v6.hosts()[0].to_string(), "[2001:db8::1234]:5432");
    let socket = parse("postgresql://%2Fvar%2Flib%2Fpostgresql/dbname");
    assert_eq!(socket.hosts()[0].place, Place::Unix("/var/lib/postgresql".into()));
    let two = parse("postgresql://host1:123,host2:456/somedb?target_session_attrs=any");
    assert_eq!(two.to_string(), "host1:123,host2:456/somedb as os");
    assert_eq!(parse("postgres://?user=u&dbname=d").user(), "u");
    assert_eq!(parse("postgres://h/d?ssl=true").ssl_mode(), SslMode::Require);
}

#[test]
fn pairs_are_taken_apart() {
    let text =
        r"host = localhost port=5439 dbname='my \'db' user=a\ b password='' options='-c geqo=off'";
    let conninfo = parse(text);
    assert_eq!(conninfo.to_string(), "localhost:5439/my 'db as a b");
    assert_eq!(conninfo.hosts()[0].password(), None);
    assert_eq!(conninfo.options(), Some("-c geqo=off"));
    assert_eq!(conninfo.ssl_mode(), SslMode::Prefer);
}

#[test]
fn the_environment_fills_what_the_string_leaves_open() {
    let environment = Environment::empty()
        .with("PGHOST", "from.env")
        .with("PGPORT", "6000")
        .with("PGUSER", "envuser")
        .with("PGDATABASE", "envdb")
        .with("PGPASSWORD", "secret")
        .with("PGSSLMODE", "verify-full")
        .with("PGOPTIONS", "");
    let conninfo = Conninfo::parse_in("postgresql:///given", &environment).unwrap();
    assert_eq!(conninfo.to_string(), "from.env:6000/given as envuser");
    assert_eq!(conninfo.hosts()[0].password(), Some("secret"));
    assert_eq!(conninfo.ssl_mode(), SslMode::VerifyFull);
    assert_eq!(conninfo.options(), None);
}

#[test]
fn what_is_not_known_or_not_supported_is_named() {
    assert!(refusal("postgres://h/d?sslmod=require").contains("\"sslmod\""));
    assert!(refusal("host=h sslpassword=x").contains("sslpassword"));
    assert!(refusal("host=h sslmode=strict").contains("strict"));
    assert!(refusal("host=h sslrootcert=system sslmode=require").contains("verify-full"));
    assert!(refusal("host=a,b port=1,2,3").contains("3 ports"));
    assert!(refusal("host=h port=70000").contains("70000"));
    assert!(refusal("hostaddr=localhost").contains("localhost"));
    assert!(refusal("gssencmode=require host=h").contains("GSSAPI"));
    let peer = Environment::empty().with("PGREQUIREPEER", "postgres");
    assert!(Conninfo::parse_in("user=u", &peer).unwrap_err().0.contains("PGREQUIREPEER"));
}

#[test]
fn a_password_is_in_no_error() {
    for text in
        ["postgres://u:hun%ter2@h/d", "password=hun ter2", "postgres://u:hun%ffter2@h/d", "hunter2"]
    {
        let text = refusal(text);
        assert!(!text.contains("hun") && !text.contains("ter2"), "{text}");
    }
}

#[test]
fn what_has_no_bearing_is_passed_over() {
    let conninfo =
        parse("host=h application_name=x keepalives_idle=1 krbsrvname=y gssencmode=prefer");
    assert_eq!(env_of(&conninfo, "PGAPPNAME"), None);
    assert_eq!(env_of(&conninfo, "PGGSSENCMODE").as_deref(), Some("disable"));
}

#[test]
fn a_child_is_given_the_same_meaning() {
    let conninfo = parse(
        "host=a,b hostaddr=10.0.0.1,10.0.0.2 port=1,2 user=u dbname=d password=pw sslmode=verify-ca \
         sslrootcert=/r sslcert=/c sslkey=/k connect_timeout=1 options='-c a=b' \
         target_session_attrs=read-write channel_binding=require",
    );
    let expected = [
        ("PGHOST", "a,b"),
        ("PGHOSTADDR", "10.0.0.1,10.0.0.2"),
        ("PGPORT", "1,2"),
        ("PGUSER", "u"),
        ("PGDATABASE", "d"),
        ("PGPASSWORD", "pw"),
        ("PGSSLMODE", "verify-ca"),
        ("PGSSLROOTCERT", "/r"),
        ("PGSSLCERT", "/c"),
        ("PGSSLKEY", "/k"),
        ("PGCONNECT_TIMEOUT", "2"),
        ("PGOPTIONS", "-c a=b"),
        ("PGTARGETSESSIONATTRS", "read-write"),
        ("PGCHANNELBINDING", "require"),
    ];
    for (name, value) in expected {
        assert_eq!(env_of(&conninfo, name).as_deref(), Some(value), "{name}");
    }
    let cleared: Vec<_> = Conninfo::inherited_variables().collect();
    for name in ["PGSERVICE", "PGPASSFILE", "PGSSLMODE", "PGOPTIONS", "PGSSLCRLDIR"] {
        assert!(cleared.contains(&name), "{name}");
    }
}

#[test]
fn a_password_file_is_used_only_when_it_is_private() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(".pgpass");
    fs::write(&path, "a:5432:*:u:first\n*:*:*:u:other\n").unwrap();
    let environment = Environment::empty().with_home(home.path());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let open = Conninfo::parse_in("host=a user=u", &environment).unwrap();
    assert_eq!(open.hosts()[0].password(), None);
    assert!(open.passfile_note().unwrap().contains("chmod 0600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let private = Conninfo::parse_in("host=a user=u", &environment).unwrap();
    assert_eq!(env_of(&private, "PGPASSWORD").as_deref(), Some("first"));
    let two = Conninfo::parse_in("host=a,b user=u", &environment).unwrap();
    assert_eq!(two.hosts()[1].password(), Some("other"));
    assert_eq!(env_of(&two, "PGPASSWORD"), None);
    assert_eq!(env_of(&two, "PGPASSFILE"), Some(path.display().to_string()));
}

#[test]
fn a_service_gives_way_to_the_string_and_wins_over_variables() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(".pg_service.conf"), "[s]\nhost=svc\nport=7\nuser=su\n").unwrap();
    let environment =
        Environment::empty().with_home(home.path()).with("PGHOST", "env").with("PGPORT", "9");
    let conninfo = Conninfo::parse_in("service=s port=8", &environment).unwrap();
    assert_eq!(conninfo.to_string(), "svc:8/su as su");
    assert!(Conninfo::parse_in("service=none", &environment).unwrap_err().0.contains("none"));
}

#[test]
fn a_default_root_certificate_is_found() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".postgresql")).unwrap();
    let root = home.path().join(".postgresql/root.crt");
    fs::write(&root, "").unwrap();
    let environment = Environment::empty().with_home(home.path());
    let conninfo = Conninfo::parse_in("host=h user=u sslmode=require", &environment).unwrap();
    assert_eq!(conninfo.tls().root_cert, Some(RootCert::File(root)));
    let system = Conninfo::parse_in("host=h user=u sslrootcert=system", &environment).unwrap();
    assert_eq!(system.ssl_mode(), SslMode::VerifyFull);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,80}") {
        let _ = Conninfo::parse_in(&text, &Environment::empty());
    }

    #[test]
    fn no_uri_makes_it_panic(text in "postgres(ql)?://[\\[\\]a-z0-9:@/?&=,%éA-F ]{0,60}") {
        let _ = Conninfo::parse_in(&text, &Environment::empty());
    }

    #[test]
    fn no_pairs_make_it_panic(text in "((host|port|user|password|x) ?= ?['\\\\a-z0-9 é,]{0,12} ?){0,5}") {
        let _ = Conninfo::parse_in(&text, &Environment::empty());
    }

    #[test]
    fn what_is_exposed_reads_back_the_same_anywhere(
        user in "[^\\x00]{1,12}", password in "[^\\x00]{0,12}", database in "[^\\x00]{1,12}",
        host in "[a-z]{1,8}(,[a-z]{1,8}){0,2}", mode in "disable|allow|prefer|require|verify-ca",
    ) {
        let quote = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        let text = format!(
            "host={host} user='{}' password='{}' dbname='{}' sslmode={mode}",
            quote(&user), quote(&password), quote(&database),
        );
        let first = Conninfo::parse_in(&text, &Environment::empty()).unwrap();
        let elsewhere = Environment::empty()
            .with("PGHOST", "x").with("PGPORT", "1").with("PGSSLMODE", "disable")
            .with("PGCHANNELBINDING", "require").with("PGTARGETSESSIONATTRS", "standby");
        let again = Conninfo::parse_in(&first.expose(), &elsewhere).unwrap();
        prop_assert_eq!(&again, &first);
        prop_assert_eq!(again.user(), user);
        prop_assert_eq!(again.database(), database);
    }
}
