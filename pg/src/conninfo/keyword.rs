//! The keywords that libpq knows, and what becomes of each here.
//!
//! Source: PostgreSQL 18 manual, libpq-connect (keywords) and libpq-envars (variables).

/// What becomes of a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Obeyed.
    Obey,
    /// Ours wins, or it has no bearing on us.
    Ignore,
    /// It would weaken or change what the user asked for if it were passed over.
    Refuse(&'static str),
}

#[derive(Debug)]
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) usage: Use,
}

const fn obey(name: &'static str, variable: &'static str) -> Keyword {
    Keyword { name, variable: Some(variable), usage: Use::Obey }
}

const fn ignore(name: &'static str, variable: Option<&'static str>) -> Keyword {
    Keyword { name, variable, usage: Use::Ignore }
}

const fn refuse(name: &'static str, variable: Option<&'static str>, why: &'static str) -> Keyword {
    Keyword { name, variable, usage: Use::Refuse(why) }
}

const OAUTH: &str = "OAuth is not supported; use a password or a client certificate";
const SCRAM_KEYS: &str = "SCRAM keys are not supported; use a password";

pub(super) const KEYWORDS: &[Keyword] = &[
    obey("service", "PGSERVICE"),
    obey("servicefile", "PGSERVICEFILE"),
    obey("host", "PGHOST"),
    obey("hostaddr", "PGHOSTADDR"),
    obey("port", "PGPORT"),
    obey("dbname", "PGDATABASE"),
    obey("user", "PGUSER"),
    obey("password", "PGPASSWORD"),
    obey("passfile", "PGPASSFILE"),
    obey("channel_binding", "PGCHANNELBINDING"),
    obey("connect_timeout", "PGCONNECT_TIMEOUT"),
    obey("options", "PGOPTIONS"),
    obey("sslmode", "PGSSLMODE"),
    obey("sslnegotiation", "PGSSLNEGOTIATION"),
    obey("sslcert", "PGSSLCERT"),
    obey("sslkey", "PGSSLKEY"),
    obey("sslcertmode", "PGSSLCERTMODE"),
    obey("sslrootcert", "PGSSLROOTCERT"),
    obey("sslcrl", "PGSSLCRL"),
    obey("sslsni", "PGSSLSNI"),
    obey("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    obey("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    obey("gssencmode", "PGGSSENCMODE"),
    obey("target_session_attrs", "PGTARGETSESSIONATTRS"),
    obey("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ignore("client_encoding", Some("PGCLIENTENCODING")),
    ignore("application_name", Some("PGAPPNAME")),
    ignore("fallback_application_name", None),
    ignore("keepalives", None),
    ignore("keepalives_idle", None),
    ignore("keepalives_interval", None),
    ignore("keepalives_count", None),
    ignore("tcp_user_timeout", None),
    ignore("sslcompression", Some("PGSSLCOMPRESSION")),
    ignore("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ignore("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    ignore("krbsrvname", Some("PGKRBSRVNAME")),
    ignore("gsslib", Some("PGGSSLIB")),
    ignore("gssdelegation", Some("PGGSSDELEGATION")),
    ignore("replication", None),
    refuse("sslpassword", None, "decrypt the key (openssl pkey -in KEY -out PLAIN) and name it"),
    refuse("sslcrldir", Some("PGSSLCRLDIR"), "name one file with sslcrl"),
    refuse("sslkeylogfile", None, "key logs are not written"),
    refuse("requirepeer", Some("PGREQUIREPEER"), "connect by TCP with sslmode=verify-full"),
    refuse("require_auth", Some("PGREQUIREAUTH"), "use channel_binding=require or verify-full"),
    refuse("scram_client_key", None, SCRAM_KEYS),
    refuse("scram_server_key", None, SCRAM_KEYS),
    refuse("oauth_issuer", None, OAUTH),
    refuse("oauth_client_id", None, OAUTH),
    refuse("oauth_client_secret", None, OAUTH),
    refuse("oauth_scope", None, OAUTH),
];

/// Variables that libpq reads and that are no keyword's.
pub(super) const OTHER_VARIABLES: &[&str] =
    &["PGDATESTYLE", "PGTZ", "PGGEQO", "PGSYSCONFDIR", "PGLOCALEDIR", "PGREALM", "PGSSLKEYLOGFILE"];

pub(super) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}
