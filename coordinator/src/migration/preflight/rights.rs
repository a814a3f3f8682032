//! What our role may do on either side, and what it takes to let it.

use super::{
    Plan,
    check::{CheckExt as _, Place, count, failure, or_not_made, pass, some, statements, warning},
    server::Server,
};
use pg::{Sql, TableName, sql, sql::quote_ident};
use proto::v1::Check;
use std::collections::{BTreeMap, BTreeSet};

pub(super) async fn of_source(source: &Server, plan: &Plan<'_>) -> Vec<Check> {
    let place = Place::Source;
    let mut checks = vec![superuser(source), replication(source).await];
    checks.extend(or_not_made("read_tables", place, read_tables(source, plan).await));
    checks.extend(or_not_made("table_owner", place, ownership(source, plan).await));
    checks.extend(or_not_made("row_security", place, row_security(source, plan).await));
    checks.push(create_on_database(source).await);
    let without_fence = plan.spec.cutover.as_ref().is_some_and(|cutover| cutover.no_fence);
    if !without_fence {
        checks.push(fence_rights(source).await);
    }
    checks
}

pub(super) async fn of_target(target: &Server) -> Vec<Check> {
    let mut checks = vec![superuser(target), create_on_database(target).await];
    checks.push(replica_role(target).await);
    checks.push(if target.role.superuser || target.role.create_role {
        pass("create_role", Place::Target, "the role may create roles")
    } else {
        warning("create_role", Place::Target, "the role may not create roles")
            .detail("Roles that are missing on the target cannot be made; see check roles.")
            .fix(format!("alter role {} createrole; -- or leave out roles", target.quoted_role()))
    });
    checks
}

fn superuser(server: &Server) -> Check {
    let name = "superuser";
    if server.role.superuser {
        return pass(name, server.place, "superuser");
    }
    let detail = match server.place {
        Place::Source => {
            "Works without: schema, rows, changes, cutover. Does not: passwords of roles, \
             ending sessions of superusers at the fence, user mappings of others."
        }
        Place::Target | Place::Both | Place::Coordinator => {
            "Works without: schema, rows, changes of what the role owns. Does not: extensions \
             that are not trusted, event triggers, owners that the role is no member of, \
             foreign-data wrappers, casts of others' types."
        }
    };
    pass(name, server.place, "no superuser").detail(detail)
}

async fn replication(source: &Server) -> Check {
    // managed servers give the right through a role of theirs
    let by_member = source
        .says(&sql!(
            "select exists (select from pg_roles r
              where r.rolname in ('rds_replication', 'rds_superuser', 'azure_pg_admin')
                and pg_has_role(current_user, r.oid, 'member'))"
        ))
        .await;
    if source.role.superuser || source.role.replication || by_member {
        return pass("replication_role", Place::Source, "the role may replicate");
    }
    failure("replication_role", Place::Source, "the role may not replicate")
        .detail("A slot is made, and the stream read, by a role with REPLICATION.")
        .fix(format!("alter role {} replication;", source.quoted_role()))
}

/// SELECT on every table and USAGE on its schema: what one session reads, all may.
async fn read_tables(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let name = "read_tables";
    let unreadable = tables_of(
        source,
        plan,
        &sql!(
            "select n.nspname::text, c.relname::text
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where c.relkind in ('r', 'p', 'S') and n.nspname !~ '^pg_'
                -- of an extension's tables pg_dump reads the configuration alone
                and (exists (select from pg_extension x where c.oid = any (x.extconfig))
                     or not exists (select from pg_depend d
                                     where d.classid = 'pg_class'::regclass and d.objid = c.oid
                                       and d.deptype = 'e'))
                and not (has_schema_privilege(n.oid, 'usage')
                         and case when c.relkind = 'S'
                                  then has_sequence_privilege(c.oid, 'select')
                                  else has_table_privilege(c.oid, 'select') end)"
        ),
    )
    .await?;
    if unreadable.is_empty() {
        return Ok(vec![pass(name, Place::Source, "every table and sequence can be read")]);
    }
    let role = source.quoted_role();
    let fix = if source.major() >= 14 {
        format!("grant pg_read_all_data to {role};")
    } else {
        let schemas: BTreeSet<&str> =
            unreadable.iter().map(|table| table.schema.as_str()).collect();
        let grants: Vec<String> = schemas
            .iter()
            .map(|schema| {
                let schema = quote_ident(schema);
                format!(
                    "grant usage on schema {schema} to {role}; grant select on all tables in \
                     schema {schema} to {role}; grant select on all sequences in schema {schema} \
                     to {role};"
                )
            })
            .collect();
        statements(&grants)
    };
    Ok(vec![
        failure(
            name,
            Place::Source,
            format!("{} cannot be read", count(unreadable.len(), "relation")),
        )
        .detail(format!("{}.", some(&unreadable)))
        .fix(fix),
    ])
}

/// Publications and replica identities are the owner's to set.
async fn ownership(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let name = "table_owner";
    let query = sql!(
        "select n.nspname::text, c.relname::text, o.rolname::text, o.rolsuper
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
           join pg_roles o on o.oid = c.relowner
          where c.relkind in ('r', 'p') and n.nspname !~ '^pg_'
            and c.relpersistence = 'p' and not pg_has_role(c.relowner, 'usage')
            and not exists (select from pg_depend d
                             where d.classid = 'pg_class'::regclass and d.objid = c.oid
                               and d.deptype = 'e')"
    );
    let mut tables = Vec::new();
    let mut owners: BTreeMap<String, bool> = BTreeMap::new();
    for row in source.session.query(&query, &[]).await? {
        let table = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        if plan.filter.matches_table(&table) {
            tables.push(table);
            owners.insert(row.try_get(2)?, row.try_get(3)?);
        }
    }
    if tables.is_empty() {
        return Ok(vec![pass(name, Place::Source, "the role owns every table")]);
    }
    let grants: Vec<String> = owners
        .iter()
        .map(|(owner, is_superuser)| {
            let (owner, role) = (quote_ident(owner), source.quoted_role());
            if *is_superuser {
                format!("-- superuser {owner}: connect as it, or alter table NAME owner to {role};")
            } else {
                format!("grant {owner} to {role};")
            }
        })
        .collect();
    Ok(vec![
        failure(name, Place::Source, format!("{} owned by others", count(tables.len(), "table")))
            .detail(format!("Only its owner can publish a table: {}.", some(&tables)))
            .fix(statements(&grants)),
    ])
}

/// Every row or an error: row security is bypassed or refused, never applied.
async fn row_security(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let name = "row_security";
    let query = sql!(
        "select n.nspname::text, c.relname::text
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where c.relrowsecurity and c.relkind in ('r', 'p')
            and (exists (select from pg_extension x where c.oid = any (x.extconfig))
                 or not exists (select from pg_depend d
                                 where d.classid = 'pg_class'::regclass and d.objid = c.oid
                                   and d.deptype = 'e'))
            and (c.relforcerowsecurity or not pg_has_role(c.relowner, 'usage'))"
    );
    let hidden = tables_of(source, plan, &query).await?;
    if hidden.is_empty() {
        return Ok(vec![pass(name, Place::Source, "no policy hides rows from the role")]);
    }
    if source.role.superuser || source.role.bypass_rls {
        return Ok(vec![pass(name, Place::Source, "the role bypasses row security")]);
    }
    Ok(vec![
        failure(name, Place::Source, format!("{} under policies", count(hidden.len(), "table")))
            .detail(format!(
                "Rows could be hidden from the role; reading them is refused instead: {}.",
                some(&hidden)
            ))
            .fix(format!("alter role {} bypassrls;", source.quoted_role())),
    ])
}

async fn create_on_database(server: &Server) -> Check {
    let may =
        server.says(&sql!("select has_database_privilege(current_database(), 'create')")).await;
    let what = match server.place {
        Place::Source => "Publications need it.",
        Place::Target | Place::Both | Place::Coordinator => "Schemas and extensions need it.",
    };
    if may {
        return pass("create_on_database", server.place, "the role may create in the database");
    }
    failure("create_on_database", server.place, "the role may not create in the database")
        .detail(what)
        .fix(format!(
            "grant create on database {} to {};",
            server.quoted_database(),
            server.quoted_role()
        ))
}

/// What the fence at cutover needs: to end sessions, to make the database read-only.
async fn fence_rights(source: &Server) -> Check {
    let member = |role: &'static str| {
        sql!("select pg_has_role(current_user, {}, 'usage')", pg::sql::Literal(role))
    };
    let role = source.quoted_role();
    let signals = source.says(&member("pg_signal_backend")).await || source.role.superuser;
    let sees = source.says(&member("pg_read_all_stats")).await || source.role.superuser;
    let owns = source
        .says(&sql!(
            "select pg_has_role(datdba, 'usage') from pg_database
              where datname = current_database()"
        ))
        .await;
    let mut missing = Vec::new();
    let mut fixes = Vec::new();
    if !signals {
        missing.push("ending other sessions");
        fixes.push(format!("grant pg_signal_backend to {role};"));
    }
    if !owns {
        missing.push("ALTER DATABASE");
        fixes.push(format!("alter database {} owner to {role};", source.quoted_database()));
    }
    if !sees {
        missing.push("seeing what other sessions do");
        fixes.push(format!("grant pg_read_all_stats to {role};"));
    }
    let name = "fence_rights";
    if missing.is_empty() {
        return pass(name, Place::Source, "the role can stop writers at cutover");
    }
    warning(name, Place::Source, format!("not granted: {}", missing.join(", ")))
        .detail(
            "Cutover stops the writers on the source by these. Without them use --no-fence and \
             stop the writers yourself.",
        )
        .fix(fixes.join("\n"))
}

/// Foreign keys and user triggers stay quiet in the replica role.
async fn replica_role(target: &Server) -> Check {
    let name = "session_replication_role";
    let tried = async {
        target
            .session
            .batch(&sql!("begin read only; set local session_replication_role = replica; rollback"))
            .await
    };
    let outcome: pg::Result<()> = tried.await;
    if outcome.is_err() && !target.session.is_closed() {
        // the failed transaction is still open; nothing was changed in it
        let _ = target.session.batch(&sql!("rollback")).await;
    }
    if outcome.is_ok() {
        return pass(name, Place::Target, "may be set");
    }
    let fix = if target.major() >= 15 {
        format!("grant set on parameter session_replication_role to {};", target.quoted_role())
    } else {
        "Use a superuser on the target, where you can.".to_owned()
    };
    warning(name, Place::Target, "may not be set")
        .detail("Foreign keys and user triggers are made at cutover only.")
        .fix(fix)
}

async fn tables_of(source: &Server, plan: &Plan<'_>, query: &Sql) -> pg::Result<Vec<TableName>> {
    let mut tables = Vec::new();
    for row in source.session.query(query, &[]).await? {
        let table = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        if plan.filter.matches_table(&table) {
            tables.push(table);
        }
    }
    Ok(tables)
}
