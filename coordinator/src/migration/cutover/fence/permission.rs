//! What the fence would do, and whether we may: found before anything is set.
//!
//! Promise: reads only.

use super::{Before, Error, prepared, raise_statements, read_before};
use crate::migration::context::Context;
use pg::{Session, sql, sql::quote_ident};

/// Something that we may not do, and the statement by which somebody may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// After "may not".
    pub what: String,
    pub statement: String,
}

/// The dry run of a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Statements in order, and what is done beside them, as a person reads it.
    pub actions: Vec<String>,
    /// What stands in the way.
    pub missing: Vec<Missing>,
    /// Prepared transactions that must end first.
    pub prepared: Vec<String>,
}

/// Who we are on the source.
#[derive(Debug)]
struct Rights {
    user: String,
    superuser: bool,
    owns_database: bool,
    sees_sessions: bool,
    signals_sessions: bool,
}

/// What a cutover would do on the source. Changes nothing.
///
/// # Errors
/// When the source cannot be read.
pub async fn plan(source: &Session, context: &Context, fence: bool) -> Result<Plan, Error> {
    let before = read_before(source, fence).await?;
    let database = context.source.database();
    let mut plan = Plan {
        actions: Vec::new(),
        missing: Vec::new(),
        prepared: if fence { prepared(source).await? } else { Vec::new() },
    };
    if fence {
        for statement in raise_statements(database, &before) {
            plan.actions.push(format!("{};", statement.as_str()));
        }
        let count = session_count(source, &context.name).await?;
        plan.actions.push(format!("end {count} sessions of database {}", quote_ident(database)));
        plan.missing = missing(source, context, &before).await?;
    }
    plan.actions.push("write a logical message; its end is the end position".to_owned());
    plan.actions.push(
        "wait until every change before it is in the target, set sequences, add foreign keys, \
         enable triggers and policies, open the target"
            .to_owned(),
    );
    if fence {
        plan.actions.push("leave the source read-only".to_owned());
    }
    Ok(plan)
}

async fn session_count(source: &Session, name: &str) -> Result<i64, Error> {
    let statement = sql!(
        "select count(*) from pg_stat_activity where datname = current_database()
            and pid <> pg_backend_pid() and not starts_with(coalesce(application_name, ''), $1)
            and coalesce(backend_type, '') not in ('autovacuum worker', 'parallel worker')"
    );
    let row = source.query_one(&statement, &[&format!("skein/{name}/")]).await;
    Ok(row.map_err(Error::source("the sessions"))?.get(0))
}

async fn missing(
    source: &Session,
    context: &Context,
    before: &Before,
) -> Result<Vec<Missing>, Error> {
    let read = async {
        let rights = rights(source).await?;
        if rights.superuser {
            return Ok(Vec::new());
        }
        let database = quote_ident(context.source.database());
        let user = quote_ident(&rights.user);
        let mut missing = Vec::new();
        if !rights.owns_database {
            missing.push(Missing {
                what: format!("set default_transaction_read_only of database {database}"),
                statement: format!("alter database {database} owner to {user};"),
            });
        }
        if !rights.sees_sessions {
            missing.push(Missing {
                what: "see when the sessions of others began".to_owned(),
                statement: format!("grant pg_read_all_stats to {user};"),
            });
        }
        if !rights.signals_sessions {
            missing.push(Missing {
                what: "end the sessions of others".to_owned(),
                statement: format!("grant pg_signal_backend to {user};"),
            });
        }
        let roles: Vec<&str> = before.roles.iter().map(|role| role.role.as_str()).collect();
        missing.extend(unsettable_roles(source, &roles, &database).await?);
        missing.extend(foreign_subscriptions(source, &before.subscriptions).await?);
        missing.extend(superuser_sessions(source, &context.name).await?);
        Ok(missing)
    };
    read.await.map_err(Error::source("what we may do"))
}

async fn rights(source: &Session) -> pg::Result<Rights> {
    let row = source
        .query_one(
            &sql!(
                "select current_user::text, r.rolsuper, pg_has_role(d.datdba, 'usage'),
                        pg_has_role('pg_read_all_stats', 'usage'),
                        pg_has_role('pg_signal_backend', 'usage')
                   from pg_roles r cross join pg_database d
                  where r.rolname = current_user and d.datname = current_database()"
            ),
            &[],
        )
        .await?;
    Ok(Rights {
        user: row.try_get(0)?,
        superuser: row.try_get(1)?,
        owns_database: row.try_get(2)?,
        sees_sessions: row.try_get(3)?,
        signals_sessions: row.try_get(4)?,
    })
}

/// Roles whose settings we may not change: superusers', and others' without CREATEROLE (and,
/// from 16 on, the admin option).
async fn unsettable_roles(
    source: &Session,
    roles: &[&str],
    database: &str,
) -> pg::Result<Vec<Missing>> {
    let admin = if source.major() >= 16 {
        sql!("pg_has_role(r.oid, 'member with admin option')")
    } else {
        sql!("true")
    };
    let statement = sql!(
        "select r.rolname::text from pg_roles r cross join pg_roles me
          where r.rolname = any($1) and me.rolname = current_user and r.oid <> me.oid
            and (r.rolsuper or not (me.rolcreaterole and {}))",
        admin
    );
    let mut missing = Vec::new();
    for row in source.query(&statement, &[&roles]).await? {
        let role = quote_ident(&row.try_get::<_, String>(0)?);
        missing.push(Missing {
            what: format!("change the settings of role {role}, whose own would pass the fence"),
            statement: format!(
                "alter role {role} in database {database} set default_transaction_read_only = on;"
            ),
        });
    }
    Ok(missing)
}

async fn foreign_subscriptions(source: &Session, names: &[String]) -> pg::Result<Vec<Missing>> {
    let statement = sql!(
        "select s.subname::text from pg_subscription s join pg_database d on d.oid = s.subdbid
          where d.datname = current_database() and s.subname = any($1)
            and not pg_has_role(s.subowner, 'usage')"
    );
    let mut missing = Vec::new();
    for row in source.query(&statement, &[&names]).await? {
        let name = quote_ident(&row.try_get::<_, String>(0)?);
        missing.push(Missing {
            what: format!("disable subscription {name}"),
            statement: format!("alter subscription {name} disable;"),
        });
    }
    Ok(missing)
}

/// `pg_signal_backend` does not reach sessions of superusers, nor workers of no role.
async fn superuser_sessions(source: &Session, name: &str) -> pg::Result<Vec<Missing>> {
    let statement = sql!(
        "select a.pid, coalesce(a.usename::text, '')
           from pg_stat_activity a left join pg_roles r on r.oid = a.usesysid
          where a.datname = current_database() and coalesce(r.rolsuper, true)
            and not starts_with(coalesce(a.application_name, ''), $1)
            and coalesce(a.backend_type, '') not in ('autovacuum worker', 'parallel worker')
            -- these end when their subscription is disabled
            and not starts_with(coalesce(a.backend_type, ''), 'logical replication')
            and a.pid <> pg_backend_pid()"
    );
    let mut missing = Vec::new();
    for row in source.query(&statement, &[&format!("skein/{name}/")]).await? {
        let (pid, user): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
        missing.push(Missing {
            what: format!("end session {pid} of superuser \"{user}\""),
            statement: format!("select pg_terminate_backend({pid});"),
        });
    }
    Ok(missing)
}
