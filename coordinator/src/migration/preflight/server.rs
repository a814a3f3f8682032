//! One server: whether it lets us in, what it is, its settings, who we are there.
//!
//! In: a connection string. Out: a [`Server`] that the other checks read, or the failed check.

use super::check::{CheckExt as _, Place, failure, or_not_made, pass, warning};
use pg::{Conninfo, Session, SessionName, Settings, sql, sql::quote_ident};
use proto::v1::Check;
use std::{collections::HashMap, time::Duration};

/// Oldest and newest major version that Skein knows.
const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

/// No check reads for longer: a person waits for the answer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// No check waits for a lock, and none holds one that others would notice.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// A server that let us in.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) place: Place,
    pub(super) session: Session,
    /// As a new session of this role in this database finds them, in the server's base units.
    pub(super) settings: HashMap<String, String>,
    pub(super) role: Role,
    pub(super) database: Database,
    pub(super) in_recovery: bool,
}

#[derive(Debug)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) superuser: bool,
    pub(super) replication: bool,
    pub(super) bypass_rls: bool,
    pub(super) create_role: bool,
}

#[derive(Debug)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) ctype: String,
    /// c, i or b from 15 on.
    pub(super) provider: String,
    pub(super) size_bytes: i64,
}

impl Server {
    /// Connects and reads what most checks need.
    pub(super) async fn connect(conninfo: &Conninfo, place: Place) -> Result<Self, Check> {
        let settings = Settings::read(SessionName::of_role("preflight"))
            .statement_timeout(STATEMENT_TIMEOUT)
            .lock_timeout(LOCK_TIMEOUT);
        let session = Session::connect(conninfo, &settings)
            .await
            .map_err(|error| not_reached(conninfo, place, &error))?;
        Self::read(session, place).await.map_err(|error| {
            failure("connection", place, format!("{conninfo} did not answer"))
                .detail(format!("{error}."))
                .fix("Connect to a PostgreSQL server directly, not through a pooler.")
        })
    }

    async fn read(session: Session, place: Place) -> pg::Result<Self> {
        let rows = session
            .query(&sql!("select name, coalesce(reset_val, setting, '') from pg_settings"), &[])
            .await?;
        let mut settings = HashMap::new();
        for row in rows {
            settings.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let row = session
            .query_one(
                &sql!(
                    "select r.rolname::text, r.rolsuper, r.rolreplication, r.rolbypassrls,
                            r.rolcreaterole, d.datname::text, d.oid,
                            pg_encoding_to_char(d.encoding)::text, to_jsonb(d)->>'datcollate',
                            to_jsonb(d)->>'datctype',
                            coalesce(to_jsonb(d)->>'datlocprovider', 'c'),
                            pg_is_in_recovery(),
                            case when has_database_privilege(d.oid, 'connect')
                                 then pg_database_size(d.oid) else 0 end
                       from pg_roles r, pg_database d
                      where r.rolname = current_user and d.datname = current_database()"
                ),
                &[],
            )
            .await?;
        Ok(Self {
            place,
            settings,
            role: Role {
                name: row.try_get(0)?,
                superuser: row.try_get(1)?,
                replication: row.try_get(2)?,
                bypass_rls: row.try_get(3)?,
                create_role: row.try_get(4)?,
            },
            database: Database {
                name: row.try_get(5)?,
                encoding: row.try_get(7)?,
                collate: row.try_get::<_, Option<String>>(8)?.unwrap_or_default(),
                ctype: row.try_get::<_, Option<String>>(9)?.unwrap_or_default(),
                provider: row.try_get(10)?,
                size_bytes: row.try_get(12)?,
            },
            in_recovery: row.try_get(11)?,
            session,
        })
    }

    pub(super) fn reached(&self) -> Check {
        let size = u64::try_from(self.database.size_bytes).unwrap_or(0);
        let found = format!("{}, {}", self.session.server(), bytesize::ByteSize(size));
        pass("connection", self.place, found)
    }

    /// A setting, where this server has it and shows it to us.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }

    pub(super) fn major(&self) -> u32 {
        self.session.major()
    }

    /// The role, quoted for a statement to paste.
    pub(super) fn quoted_role(&self) -> String {
        quote_ident(&self.role.name)
    }

    /// The database, quoted for a statement to paste.
    pub(super) fn quoted_database(&self) -> String {
        quote_ident(&self.database.name)
    }

    /// `select` of one boolean; an error counts as false.
    pub(super) async fn says(&self, question: &pg::Sql) -> bool {
        let answer = self.session.query_one(question, &[]).await;
        answer.ok().and_then(|row| row.try_get(0).ok()).unwrap_or(false)
    }
}

fn not_reached(conninfo: &Conninfo, place: Place, error: &pg::Error) -> Check {
    let side = place.as_str();
    let text = error.to_string();
    let lower = text.to_lowercase();
    let (what, fix) = match error.sqlstate() {
        Some("28P01") => (
            "the password was refused".to_owned(),
            format!("Correct the password in the {side}'s connection string."),
        ),
        Some("28000") => (
            "the server does not let this role in".to_owned(),
            format!(
                "Check that role {} exists, and add a line to pg_hba.conf: host {} {} ADDRESS \
                 scram-sha-256",
                quote_ident(conninfo.user()),
                conninfo.database(),
                conninfo.user()
            ),
        ),
        Some("3D000") => (
            "the database does not exist".to_owned(),
            format!("create database {};", quote_ident(conninfo.database())),
        ),
        Some("53300") => (
            "the server has no connection left".to_owned(),
            "Raise max_connections, or end sessions that are not needed.".to_owned(),
        ),
        Some("57P03") => (
            "the server is starting or stopping".to_owned(),
            "Wait until the server takes connections, then check again.".to_owned(),
        ),
        Some(_) => {
            ("the server refused the connection".to_owned(), format!("See the {side}'s log."))
        }
        None if ["tls", "ssl", "certificate"].iter().any(|word| lower.contains(word)) => (
            "no agreement on TLS".to_owned(),
            format!("Set sslmode in the {side}'s connection string to what the server offers."),
        ),
        None if lower.contains("password") => (
            "a password is asked for, and none was given".to_owned(),
            format!("Add a password to the {side}'s connection string, or name a passfile."),
        ),
        None => (
            "the server cannot be reached".to_owned(),
            format!("Check host, port and firewall of the {side}, and its listen_addresses."),
        ),
    };
    failure("connection", place, format!("{conninfo}: {what}")).detail(format!("{text}.")).fix(fix)
}

pub(super) fn version(server: &Server) -> Vec<Check> {
    let number = server.session.server_version();
    let text = format!("{}.{}", number / 10_000, number % 10_000);
    let check = if SUPPORTED.contains(&server.major()) {
        pass("version", server.place, text)
    } else {
        failure("version", server.place, text)
            .detail(format!("Skein knows {} to {}.", SUPPORTED.start(), SUPPORTED.end()))
            .fix("Use a server of a supported version.")
    };
    vec![check]
}

pub(super) fn standby(server: &Server) -> Vec<Check> {
    let check = if server.in_recovery {
        failure("standby", server.place, "the server is a standby")
            .detail("Publications, slots and rows are made on a primary.")
            .fix("Name the primary in the connection string.")
    } else {
        pass("standby", server.place, "primary")
    };
    vec![check]
}

/// A pooler hands statements of one client to several server sessions, or cannot replicate.
pub(super) async fn pooler(server: &Server, conninfo: &Conninfo) -> Vec<Check> {
    or_not_made("pooler", server.place, look_for_pooler(server, conninfo).await)
}

async fn look_for_pooler(server: &Server, conninfo: &Conninfo) -> pg::Result<Vec<Check>> {
    let pid = sql!("select pg_backend_pid(), current_setting('application_name')");
    let settings = Settings::read(SessionName::of_role("preflight"));
    let second = Session::connect(conninfo, &settings).await?;
    // if both came through a pooler of transactions, the second would be given our session
    second.batch(&sql!("begin")).await?;
    let other: i32 = second.query_one(&pid, &[]).await?.try_get(0)?;
    let mut pids = vec![server.session.backend_pid()];
    for _ in 0..3 {
        pids.push(server.session.query_one(&pid, &[]).await?.try_get(0)?);
    }
    second.batch(&sql!("rollback")).await?;
    pids.dedup();
    let found = if pids.len() > 1 || pids.contains(&other) {
        Some("statements of one session ran in several server processes")
    } else {
        None
    };
    let check = match found {
        Some(found) => failure("pooler", server.place, found)
            .detail("A pooler stands between. A snapshot, a lock and a setting need one session.")
            .fix("Name the PostgreSQL server itself in the connection string."),
        None => pass("pooler", server.place, "a session of its own"),
    };
    Ok(vec![check])
}

/// A replication connection, as the stream will use: the right and `pg_hba.conf` together.
pub(super) async fn replication_connection(source: &Server, conninfo: &Conninfo) -> Vec<Check> {
    let name = SessionName::of_role("preflight");
    let place = source.place;
    let attempt =
        pg::walsender::Walsender::connect(conninfo, &name, &source.database.encoding).await;
    let found = match attempt {
        Ok(mut walsender) => walsender.identify_system().await,
        Err(error) => Err(error),
    };
    let check = match found {
        Ok(_) => pass("replication_connection", place, "let in"),
        Err(error) if error.sqlstate() == Some("53300") => {
            warning("replication_connection", place, "could not be checked")
                .detail(format!("{error}."))
                .fix("Raise max_wal_senders or max_connections, then restart the source.")
        }
        Err(error) => failure("replication_connection", place, "refused")
            .detail(format!("{error}."))
            .fix(format!(
                "alter role {} replication; -- and let it in by pg_hba.conf, without a pooler",
                source.quoted_role()
            )),
    };
    vec![check]
}
