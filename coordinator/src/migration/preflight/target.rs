//! The target: empty, ours from an earlier run, or somebody's.

use super::{
    Plan,
    check::{CheckExt as _, Place, count, failure, or_not_made, pass, some, statements, warning},
    server::Server,
};
use pg::{TableName, sql, sql::quote_ident};
use proto::v1::Check;

pub(super) async fn checks(target: &Server, plan: &Plan<'_>) -> Vec<Check> {
    let mut checks = or_not_made("target_empty", Place::Target, empty(target, plan).await);
    checks.extend(or_not_made("event_triggers", Place::Target, event_triggers(target).await));
    checks
}

/// What an earlier run left in schema `skein`.
enum Earlier {
    None,
    /// A schema of this name that is not readable, or not of our making.
    Foreign,
    Migration(String),
}

async fn earlier(target: &Server) -> pg::Result<Earlier> {
    let there = target
        .session
        .query_one(
            &sql!(
                "select exists (select from pg_namespace where nspname = 'skein'),
                        to_regclass('skein.migration') is not null
                          and has_schema_privilege('skein', 'usage')
                          and has_table_privilege('skein.migration', 'select')"
            ),
            &[],
        )
        .await;
    // has_schema_privilege fails where the schema is not there
    let (schema, table): (bool, bool) = match there {
        Ok(row) => (row.try_get(0)?, row.try_get::<_, Option<bool>>(1)?.unwrap_or(false)),
        Err(error) if error.sqlstate() == Some("3F000") => (false, false),
        Err(error) => return Err(error),
    };
    if !schema {
        return Ok(Earlier::None);
    }
    if !table {
        return Ok(Earlier::Foreign);
    }
    let row = target.session.query_opt(&sql!("select name from skein.migration"), &[]).await?;
    Ok(match row {
        Some(row) => Earlier::Migration(row.try_get(0)?),
        // ours, and killed before its first row
        None => Earlier::None,
    })
}

async fn empty(target: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let name = "target_empty";
    let (tables, others) = objects(target).await?;
    let found =
        format!("{} and {}", count(tables.len(), "table"), count(others.len(), "other object"));
    let earlier = earlier(target).await?;
    if let Earlier::Migration(migration) = &earlier
        && *migration == plan.spec.name
    {
        return Ok(vec![
            warning(name, Place::Target, format!("{found}, of migration \"{migration}\""))
                .detail("An earlier run of this migration stands here; it goes on from there.")
                .fix(format!(
                    "skein abort {migration} && skein cleanup {migration}  # to begin anew"
                )),
        ]);
    }
    let mut checks = Vec::new();
    match earlier {
        Earlier::None => {}
        Earlier::Foreign => checks.push(
            failure("schema_skein", Place::Target, "schema \"skein\" exists")
                .detail("Skein keeps its state there, and this one is not of a migration known.")
                .fix("drop schema skein cascade; -- or rename it, if it is yours"),
        ),
        Earlier::Migration(other) => checks.push(
            failure("schema_skein", Place::Target, format!("migration \"{other}\" stands here"))
                .detail("A target takes one migration at a time.")
                .fix(format!("skein cleanup {other}  # or: drop schema skein cascade;")),
        ),
    }
    checks.push(if tables.is_empty() && others.is_empty() {
        pass(name, Place::Target, "no user objects")
    } else {
        let mut drops: Vec<String> =
            tables.iter().map(|table| format!("drop table {table} cascade;")).collect();
        drops.extend(others.iter().map(|(kind, object)| format!("drop {kind} {object} cascade;")));
        let listed: Vec<String> = tables
            .iter()
            .map(ToString::to_string)
            .chain(others.iter().map(|(kind, object)| format!("{kind} {object}")))
            .collect();
        drops.insert(
            0,
            format!(
                "-- take a new database: create database NAME; -- or, if database {} may lose them:",
                target.quoted_database()
            ),
        );
        failure(name, Place::Target, found)
            .detail(format!("Rows would mix with what is there: {}.", some(&listed)))
            .fix(statements(&drops))
    });
    Ok(checks)
}

type Objects = (Vec<TableName>, Vec<(String, String)>);

/// User tables, and other user objects (`kind`, quoted name), but for members of extensions
/// and partitions.
async fn objects(target: &Server) -> pg::Result<Objects> {
    let rows = target
        .session
        .query(
            &sql!(
                "select 'table', n.nspname::text, c.relname::text
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.relkind in ('r', 'p', 'f') and not c.relispartition
                    and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'skein')
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_class'::regclass and d.objid = c.oid
                                       and d.deptype = 'e')
                 union all
                 select case c.relkind when 'v' then 'view' when 'm' then 'materialized view'
                                       else 'sequence' end, n.nspname, c.relname
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.relkind in ('v', 'm', 'S')
                    and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'skein')
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_class'::regclass and d.objid = c.oid
                                       and d.deptype in ('e', 'a', 'i'))
                 union all
                 select 'routine', n.nspname, p.proname
                   from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                  where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'skein')
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_proc'::regclass and d.objid = p.oid
                                       and d.deptype in ('e', 'i'))
                 union all
                 select 'type', n.nspname, t.typname
                   from pg_type t join pg_namespace n on n.oid = t.typnamespace
                  where t.typtype in ('d', 'e', 'r')
                    and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'skein')
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_type'::regclass and d.objid = t.oid
                                       and d.deptype in ('e', 'i'))
                 union all
                 select 'schema', n.nspname, null
                   from pg_namespace n
                  where n.nspname !~ '^pg_'
                    and n.nspname not in ('public', 'information_schema', 'skein')
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_namespace'::regclass
                                       and d.objid = n.oid and d.deptype = 'e')
                  order by 1, 2, 3"
            ),
            &[],
        )
        .await?;
    let mut objects = Objects::default();
    for row in rows {
        let (kind, schema): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        match row.try_get::<_, Option<String>>(2)? {
            Some(name) if kind == "table" => objects.0.push(TableName::new(schema, name)),
            Some(name) => objects.1.push((kind, TableName::new(schema, name).to_string())),
            None => objects.1.push((kind, quote_ident(&schema))),
        }
    }
    Ok(objects)
}

/// They would fire on what we create.
async fn event_triggers(target: &Server) -> pg::Result<Vec<Check>> {
    let rows = target
        .session
        .query(
            &sql!(
                "select evtname::text from pg_event_trigger t
                  where evtenabled <> 'D'
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_event_trigger'::regclass
                                       and d.objid = t.oid and d.deptype = 'e')"
            ),
            &[],
        )
        .await?;
    let names: Vec<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let disable: Vec<String> = names
        .iter()
        .map(|name| format!("alter event trigger {} disable;", quote_ident(name)))
        .collect();
    Ok(vec![
        warning("event_triggers", Place::Target, count(names.len(), "event trigger"))
            .detail(format!("They fire on the schema that is made here: {}.", some(&names)))
            .fix(statements(&disable)),
    ])
}
