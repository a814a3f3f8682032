//! One server: whether it lets us in, what it is, its settings, who we are there.
//!
//! In: a connection string. Out: a [`Server`] that the other checks read, or the failed check.

use super::check::{CheckExt as _, Place, failure, or_not_made, pass, warning};
use pg::{Conninfo, Session, SessionName, Settings, connect::Failure, sql, sql::quote_ident};
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
    /// c (libc), i (ICU) or b (builtin) from 15 on, and the provider's own locale.
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
                            concat_ws(' ', coalesce(to_jsonb(d)->>'datlocprovider', 'c'),
                              to_jsonb(d)->>'daticulocale', to_jsonb(d)->>'datlocale'),
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
    let found = error.failure().map_or_else(|| error.to_string(), ToString::to_string);
    let fix = match error.failure() {
        Some(Failure::DatabaseMissing { .. }) => {
            format!("create database {};", quote_ident(conninfo.database()))
        }
        Some(failure) => failure.hint(),
        None => format!("See the log of the {}.", place.as_str()),
    };
    failure("connection", place, found).detail(format!("It was {conninfo}.")).fix(fix)
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

/// Rows and passwords over a network in the clear.
pub(super) async fn encryption(server: &Server) -> Vec<Check> {
    let query = sql!(
        "select coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false)
             or inet_server_addr() is null
             or inet_server_addr() <<= '127.0.0.0/8' or inet_server_addr() = '::1'"
    );
    if server.says(&query).await {
        return Vec::new();
    }
    vec![
        warning("encryption", server.place, "the connection is not encrypted")
            .detail("Rows travel in the clear.")
            .fix(format!(
                "Set sslmode=require or stricter in the {}'s connection string.",
                server.place.as_str()
            )),
    ]
}

/// A pooler hands statements of one client to several server sessions, or cannot replicate.
pub(super) async fn pooler(server: &Server, conninfo: &Conninfo) -> Vec<Check> {
    let looked = look_for_pooler(server, conninfo).await;
    // statements that we prepared in one server process and met in another
    if let Err(error) = &looked
        && matches!(error.sqlstate(), Some("26000" | "42P05"))
    {
        return vec![behind_a_pooler("pooler", server.place)];
    }
    or_not_made("pooler", server.place, looked)
}

async fn look_for_pooler(server: &Server, conninfo: &Conninfo) -> pg::Result<Vec<Check>> {
    let pid = sql!("select pg_backend_pid()");
    let settings = Settings::read(SessionName::of_role("preflight"));
    let second = Session::connect(conninfo, &settings).await?;
    let own = server.session.backend_pid();
    let mut mixed = false;
    for _ in 0..3 {
        let ours: i32 = server.session.query_one(&pid, &[]).await?.try_get(0)?;
        // a pooler of transactions gives the next one the session that was freed last: ours
        second.batch(&sql!("begin")).await?;
        let other: i32 = second.query_one(&pid, &[]).await?.try_get(0)?;
        second.batch(&sql!("rollback")).await?;
        mixed |= ours != own || ours == other;
    }
    Ok(vec![if mixed {
        behind_a_pooler("pooler", server.place)
    } else {
        pass("pooler", server.place, "a session of its own")
    }])
}

fn behind_a_pooler(name: &str, place: Place) -> Check {
    failure(name, place, "a pooler stands between us and the server")
        .detail("A snapshot, a lock, a setting and the stream each need a session of their own.")
        .fix("Name the PostgreSQL server itself in the connection string.")
}

/// A replication connection, as the stream will use: the right and `pg_hba.conf` together.
pub(super) async fn replication_connection(source: &Server, conninfo: &Conninfo) -> Vec<Check> {
    let name = SessionName::of_role("preflight");
    let place = source.place;
    let attempt =
        pg::walsender::Walsender::connect(conninfo, &name, &source.database.encoding).await;
    let found = match attempt {
        Ok(mut walsender) => {
            let identified = walsender.identify_system().await;
            let query = sql!("select exists (select from pg_stat_activity where pid = $1)");
            let pid = walsender.backend_pid();
            let shown = source.session.query_one(&query, &[&pid]).await;
            // a pooler makes up the number by which a session is cancelled
            if let Ok(row) = shown
                && !row.try_get(0).unwrap_or(true)
            {
                return vec![behind_a_pooler("replication_connection", place)];
            }
            identified
        }
        Err(error) => Err(error),
    };
    let check = match found {
        Ok(_) => pass("replication_connection", place, "let in"),
        Err(error) if error.sqlstate() == Some("53300") => {
            warning("replication_connection", place, "could not be checked")
                .detail(format!("{error}."))
                .fix("Raise max_wal_senders or max_connections, then restart the source.")
        }
        // pgbouncer's words; a server says "unrecognized configuration parameter"
        Err(error) if error.to_string().contains("unsupported startup parameter") => {
            behind_a_pooler("replication_connection", place)
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
