//! Roles of the source's cluster, with what belongs to them.
//!
//! ```text
//! pg_roles, pg_authid, pg_auth_members, pg_db_role_setting -> create role, alter, grant, set
//! ```
//! Promise: all roles and the mark commit together. A role that the target has already is kept
//! as it is; an attribute, password or membership that the target refuses is said, and stops
//! nothing, since a server for hire gives no superuser.

use super::NotMoved;
use super::attempt::Attempt;
use super::error::{Error, Result};
use super::{setting, step};
use crate::filter::{Filter, Kind};
use crate::migration::context::Context;
use pg::{
    Session, Sql, sql,
    sql::{Ident, Literal, quote_ident},
};
use std::collections::{BTreeMap, HashSet};

const MARK: &str = "schema/roles";
const READ: &str = "read the roles of the source";

/// The first server whose memberships say whether they are inherited, and may be SET.
const MEMBERSHIP_OPTIONS: u32 = 160_000;

/// A role of the source.
#[derive(Debug)]
struct Role {
    name: String,
    /// Attributes that any CREATEROLE may give.
    plain: Sql,
    /// Attributes that need more, each for itself.
    privileged: Vec<&'static str>,
    password: Option<String>,
    comment: Option<String>,
    /// `(provider, label)`.
    labels: Vec<(String, String)>,
    settings: Vec<String>,
}

/// Makes the roles that the target lacks. What was refused comes back, also the second time.
pub(super) async fn restore(context: &Context, filter: &Filter) -> Result<NotMoved> {
    if filter.leaves_out(Kind::Roles) {
        return Ok(vec!["roles: left out".to_owned()]);
    }
    let session = step::target_session(context, "roles").await?;
    if let Some(notes) = step::read::<NotMoved>(&session, MARK).await? {
        return Ok(notes);
    }
    let source = step::source_session(context, "roles").await?;
    let (roles, mut notes) = read(&source).await?;
    let memberships = memberships(&source, context.target_version).await?;
    let mut attempt = Attempt::begin(&session, context.epoch, "make roles on the target").await?;
    if let Some(notes) = step::claim::<NotMoved>(&session, MARK).await? {
        attempt.undo().await?;
        return Ok(notes);
    }
    let present = names(&session).await?;
    let mut made = HashSet::new();
    for role in roles.iter().filter(|role| !present.contains(&role.name)) {
        if make(&mut attempt, role, filter).await? {
            made.insert(role.name.as_str());
        }
    }
    for (member, statement) in &memberships {
        if made.contains(member.as_str()) {
            attempt.attempt(&format!("role {}", quote_ident(member)), statement).await?;
        }
    }
    let kept: Vec<String> = roles
        .iter()
        .filter(|role| present.contains(&role.name))
        .map(|role| quote_ident(&role.name))
        .collect();
    if !kept.is_empty() {
        notes.push(format!("roles kept as the target has them: {}", kept.join(", ")));
    }
    notes.append(&mut attempt.notes);
    attempt.commit(MARK, &notes).await?;
    Ok(notes)
}

/// One role: itself, or nothing; then each of its attributes as far as the target takes them.
async fn make(attempt: &mut Attempt<'_>, role: &Role, filter: &Filter) -> Result<bool> {
    let what = format!("role {}", quote_ident(&role.name));
    let name = Ident(&role.name);
    if !attempt.attempt(&what, &sql!("create role {} {}", name, role.plain)).await? {
        return Ok(false);
    }
    for attribute in &role.privileged {
        let statement = sql!("alter role {} {}", name, *attribute);
        attempt.attempt(&format!("{what}, {attribute}"), &statement).await?;
    }
    if let Some(password) = &role.password {
        let statement = sql!("alter role {} password {}", name, Literal(password));
        attempt.attempt(&format!("{what}, password"), &statement).await?;
    }
    if let Some(comment) = role.comment.as_ref().filter(|_| !filter.leaves_out(Kind::Comments)) {
        let statement = sql!("comment on role {} is {}", name, Literal(comment));
        attempt.attempt(&format!("{what}, comment"), &statement).await?;
    }
    for (provider, label) in role.labels.iter().filter(|_| !filter.leaves_out(Kind::SecurityLabels))
    {
        let statement =
            sql!("security label for {} on role {} is {}", Ident(provider), name, Literal(label));
        attempt.attempt(&format!("{what}, security label"), &statement).await?;
    }
    for config in &role.settings {
        if let Some((assignment, parameter)) = setting::assignment(config) {
            let statement = sql!("alter role {} set {}", name, assignment);
            attempt.attempt(&format!("{what}, setting {parameter}"), &statement).await?;
        }
    }
    Ok(true)
}

async fn names(session: &Session) -> Result<HashSet<String>> {
    let rows = session.query(&sql!("select rolname from pg_roles"), &[]).await;
    let rows = rows.map_err(Error::server("read the roles of the target"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The roles, but for the server's own; and whether passwords were readable.
async fn read(source: &Session) -> Result<(Vec<Role>, NotMoved)> {
    let server = || Error::server(READ);
    let mut settings = settings(source).await?;
    let mut labels = labels(source).await?;
    let readable = source
        .query_one(&sql!("select has_table_privilege('pg_catalog.pg_authid', 'select')"), &[])
        .await
        .map_err(server())?
        .get::<_, bool>(0);
    let mut passwords: BTreeMap<String, String> = BTreeMap::new();
    let mut notes = NotMoved::new();
    if readable {
        let stored =
            sql!("select rolname, rolpassword from pg_authid where rolpassword is not null");
        for row in source.query(&stored, &[]).await.map_err(server())? {
            passwords.insert(row.get(0), row.get(1));
        }
    } else {
        notes.push(
            "passwords of roles: the role of the source may not read pg_authid; set them by hand"
                .to_owned(),
        );
    }
    let rows = source
        .query(
            &sql!(
                "select rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin,
                        rolreplication, rolbypassrls, rolconnlimit, rolvaliduntil::text,
                        shobj_description(oid, 'pg_authid')
                 from pg_roles where rolname !~ '^pg_' order by oid"
            ),
            &[],
        )
        .await
        .map_err(server())?;
    let roles = rows.iter().map(|row| {
        let name: String = row.get(0);
        let mut plain = sql!("");
        plain.push(if row.get(2) { "inherit" } else { "noinherit" });
        plain.push(if row.get(5) { " login" } else { " nologin" });
        plain.push(sql!(" connection limit {}", row.get::<_, i32>(8)));
        if let Some(until) = row.get::<_, Option<&str>>(9) {
            plain.push(sql!(" valid until {}", Literal(until)));
        }
        let attributes = [
            (1, "superuser"),
            (3, "createrole"),
            (4, "createdb"),
            (6, "replication"),
            (7, "bypassrls"),
        ];
        Role {
            plain,
            privileged: attributes.iter().filter(|(at, _)| row.get(*at)).map(|(_, a)| *a).collect(),
            password: passwords.remove(&name),
            comment: row.get(10),
            labels: labels.remove(&name).unwrap_or_default(),
            settings: settings.remove(&name).unwrap_or_default(),
            name,
        }
    });
    Ok((roles.collect(), notes))
}

/// Settings of roles in every database, by role.
async fn settings(source: &Session) -> Result<BTreeMap<String, Vec<String>>> {
    let rows = source
        .query(
            &sql!(
                "select r.rolname, s.setconfig from pg_db_role_setting s
                 join pg_roles r on r.oid = s.setrole where s.setdatabase = 0"
            ),
            &[],
        )
        .await
        .map_err(Error::server(READ))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Security labels of roles: `(provider, label)` by role.
async fn labels(source: &Session) -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let rows = source
        .query(
            &sql!(
                "select r.rolname, l.provider, l.label from pg_shseclabel l
                 join pg_roles r on r.oid = l.objoid where l.classoid = 'pg_authid'::regclass"
            ),
            &[],
        )
        .await
        .map_err(Error::server(READ))?;
    let mut labels: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for row in rows {
        labels.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    Ok(labels)
}

/// Grants of roles to roles, with the member.
async fn memberships(source: &Session, target_version: u32) -> Result<Vec<(String, Sql)>> {
    let options = source.server_version() >= MEMBERSHIP_OPTIONS;
    let statement = if options {
        sql!(
            "select r.rolname, m.rolname, bool_or(a.admin_option), bool_or(a.inherit_option),
                    bool_or(a.set_option)
             from pg_auth_members a join pg_roles r on r.oid = a.roleid
             join pg_roles m on m.oid = a.member where m.rolname !~ '^pg_'
             group by 1, 2 order by 1, 2"
        )
    } else {
        sql!(
            "select r.rolname, m.rolname, bool_or(a.admin_option), true, true
             from pg_auth_members a join pg_roles r on r.oid = a.roleid
             join pg_roles m on m.oid = a.member where m.rolname !~ '^pg_'
             group by 1, 2 order by 1, 2"
        )
    };
    let rows = source.query(&statement, &[]).await.map_err(Error::server(READ))?;
    let grant = |row: &tokio_postgres::Row| {
        let (role, member): (String, String) = (row.get(0), row.get(1));
        let mut grant = sql!("grant {} to {}", Ident(&role), Ident(&member));
        let [admin, inherit, set]: [bool; 3] = [row.get(2), row.get(3), row.get(4)];
        if options && target_version >= MEMBERSHIP_OPTIONS {
            grant.push(sql!(" with admin {}, inherit {}, set {}", admin, inherit, set));
        } else if admin {
            grant.push(" with admin option");
        }
        (member, grant)
    };
    Ok(rows.iter().map(grant).collect())
}
