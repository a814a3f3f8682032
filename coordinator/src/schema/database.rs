//! The database itself: owner, grants, comment, connection limit, and its settings.
//!
//! ```text
//! PreData  source -> statements -> tried and taken back -> kept in skein.step
//! Cutover  skein.step -> statements -> for good
//! ```
//! Promise: nothing of it disturbs our own sessions before the cutover, what the target would
//! refuse is said at the beginning, and what the fence sets on the source is not carried over,
//! since the statements are those of the first stage.

use super::attempt::Attempt;
use super::error::{Error, Result};
use super::{NotMoved, Stage, setting, step};
use crate::filter::{Filter, Kind};
use crate::migration::context::Context;
use pg::{
    Session, Sql, sql,
    sql::{Ident, Literal, quote_ident},
};
use serde::{Deserialize, Serialize};

const PLANNED: &str = "schema/database_planned";
const APPLIED: &str = "schema/database_applied";
const READ: &str = "read the settings of the source database";

/// A statement, and what it is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Planned {
    what: String,
    statement: String,
    /// Kept only while our own role may still connect.
    guarded: bool,
}

/// At [`Stage::Cutover`] for good; at any other a trial.
pub(super) async fn restore(context: &Context, filter: &Filter, stage: Stage) -> Result<NotMoved> {
    let session = step::target_session(context, "database").await?;
    let planned = match step::read::<Vec<Planned>>(&session, PLANNED).await? {
        Some(planned) => planned,
        None => plan(context, filter, &session).await?,
    };
    if stage != Stage::Cutover {
        let mut attempt = Attempt::begin(&session, context.epoch, "try settings").await?;
        apply(&mut attempt, &session, &planned).await?;
        return attempt.undo().await;
    }
    let mut attempt = Attempt::begin(&session, context.epoch, "set up the database").await?;
    if let Some(notes) = step::claim::<NotMoved>(&session, APPLIED).await? {
        attempt.undo().await?;
        return Ok(notes);
    }
    apply(&mut attempt, &session, &planned).await?;
    let notes = attempt.notes.clone();
    attempt.commit(APPLIED, &notes).await
}

async fn apply(attempt: &mut Attempt<'_>, session: &Session, planned: &[Planned]) -> Result<()> {
    for one in planned {
        let statement = Sql::trusted(&one.statement);
        if !one.guarded {
            attempt.attempt(&one.what, &statement).await?;
            continue;
        }
        session.batch(&sql!("savepoint guarded")).await.map_err(Error::server(READ))?;
        if attempt.attempt(&one.what, &statement).await? {
            let allowed = sql!("select has_database_privilege(current_database(), 'connect')");
            let row = session.query_one(&allowed, &[]).await.map_err(Error::server(READ))?;
            if !row.get::<_, bool>(0) {
                session.batch(&sql!("rollback to guarded")).await.map_err(Error::server(READ))?;
                attempt.notes.push(format!("{}: it would shut out our own role", one.what));
            }
        }
    }
    Ok(())
}

/// Reads the source, and keeps what is to be done.
async fn plan(context: &Context, filter: &Filter, target: &Session) -> Result<Vec<Planned>> {
    let source = step::source_session(context, "database").await?;
    let database = context.target.database().to_owned();
    let mut planned = Vec::new();
    if !filter.leaves_out(Kind::DatabaseSettings) {
        settings(&source, &database, &mut planned).await?;
    }
    attributes(&source, &database, filter, &mut planned).await?;
    let mark = step::mark(PLANNED, &planned);
    match crate::target::fenced(target, context.epoch, &mark).await {
        Ok(true) => Ok(planned),
        Ok(false) => Err(Error::Fenced),
        Err(error) => Err(Error::server("keep the settings of the source database")(error)),
    }
}

async fn settings(source: &Session, database: &str, planned: &mut Vec<Planned>) -> Result<()> {
    let rows = source
        .query(
            &sql!(
                "select r.rolname, s.setconfig from pg_db_role_setting s
                 left join pg_roles r on r.oid = s.setrole
                 where s.setdatabase = (select oid from pg_database
                                        where datname = current_database())
                 order by r.rolname nulls first"
            ),
            &[],
        )
        .await
        .map_err(Error::server(READ))?;
    for row in rows {
        let role: Option<String> = row.get(0);
        for config in row.get::<_, Vec<String>>(1) {
            let Some((assignment, name)) = setting::assignment(&config) else { continue };
            let (what, statement) = match &role {
                None => (
                    format!("database setting {name}"),
                    sql!("alter database {} set {}", Ident(database), assignment),
                ),
                Some(role) => (
                    format!("setting {name} of role {} in the database", quote_ident(role)),
                    sql!(
                        "alter role {} in database {} set {}",
                        Ident(role),
                        Ident(database),
                        assignment
                    ),
                ),
            };
            planned.push(Planned {
                what,
                statement: statement.as_str().to_owned(),
                guarded: false,
            });
        }
    }
    Ok(())
}

async fn attributes(
    source: &Session,
    database: &str,
    filter: &Filter,
    planned: &mut Vec<Planned>,
) -> Result<()> {
    let name = Ident(database);
    let row = source
        .query_one(
            &sql!(
                "select pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database'),
                        datacl is not null
                 from pg_database where datname = current_database()"
            ),
            &[],
        )
        .await
        .map_err(Error::server(READ))?;
    let mut plan = |what: &str, statement: Sql, guarded: bool| {
        let statement = statement.as_str().to_owned();
        planned.push(Planned { what: what.to_owned(), statement, guarded });
    };
    let limit: i32 = row.get(1);
    if limit != -1 && !filter.leaves_out(Kind::DatabaseSettings) {
        plan(
            "connection limit of the database",
            sql!("alter database {} connection limit {}", name, limit),
            false,
        );
    }
    if let Some(comment) =
        row.get::<_, Option<&str>>(2).filter(|_| !filter.leaves_out(Kind::Comments))
    {
        plan(
            "comment of the database",
            sql!("comment on database {} is {}", name, Literal(comment)),
            false,
        );
    }
    if !filter.leaves_out(Kind::SecurityLabels) {
        let labels = sql!(
            "select l.provider, l.label from pg_shseclabel l join pg_database d on d.oid = l.objoid
             where l.classoid = 'pg_database'::regclass and d.datname = current_database()"
        );
        for row in source.query(&labels, &[]).await.map_err(Error::server(READ))? {
            let (provider, label) = (Ident(row.get(0)), Literal(row.get(1)));
            let statement =
                sql!("security label for {} on database {} is {}", provider, name, label);
            plan("security label of the database", statement, false);
        }
    }
    if !filter.leaves_out(Kind::Owners) {
        let owner: String = row.get(0);
        plan(
            "owner of the database",
            sql!("alter database {} owner to {}", name, Ident(&owner)),
            true,
        );
    }
    if row.get(3) && !filter.leaves_out(Kind::Privileges) {
        plan("grants on the database", grants(source, database).await?, true);
    }
    Ok(())
}

/// All grants on the database, from none.
async fn grants(source: &Session, database: &str) -> Result<Sql> {
    let rows = source
        .query(
            &sql!(
                "select r.rolname, a.privilege_type, a.is_grantable
                 from pg_database d, aclexplode(d.datacl) a
                 left join pg_roles r on r.oid = a.grantee
                 where d.datname = current_database() and (a.grantee = 0 or r.oid is not null)"
            ),
            &[],
        )
        .await
        .map_err(Error::server(READ))?;
    let name = Ident(database);
    let mut statements = sql!("revoke all on database {} from public", name);
    for row in rows {
        let privilege: &str = row.get(1);
        statements.push(sql!("; grant {} on database {} to ", Sql::trusted(privilege), name));
        match row.get::<_, Option<&str>>(0) {
            Some(role) => statements.push(Ident(role)),
            None => statements.push("public"),
        };
        if row.get(2) {
            statements.push(" with grant option");
        }
    }
    Ok(statements)
}
