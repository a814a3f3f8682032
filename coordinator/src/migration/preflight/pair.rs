//! What only both servers together tell: same database, versions, encodings, what is missing.

use super::{
    Plan,
    check::{CheckExt as _, Place, failure, or_not_made, pass, some, statements, warning},
    extensions,
    server::Server,
    settings::lock_check,
};
use crate::filter::Kind;
use pg::{Session, Sql, sql, sql::quote_ident};
use proto::v1::Check;
use std::collections::BTreeSet;

pub(super) async fn checks(source: &Server, target: &Server, plan: &Plan<'_>) -> Vec<Check> {
    let mut checks = or_not_made("same_database", Place::Both, same_database(source, target).await);
    checks.push(versions(source, target));
    checks.extend(encoding(source, target));
    checks.extend(locale(source, target));
    checks.extend(or_not_made("collations", Place::Source, collations(source).await));
    if !plan.filter.leaves_out(Kind::Extensions) {
        checks.extend(or_not_made(
            "extensions",
            Place::Target,
            extensions::checks(source, target).await,
        ));
    }
    checks.extend(or_not_made("tablespaces", Place::Target, tablespaces(source, target).await));
    checks.extend(or_not_made("access_methods", Place::Target, methods(source, target).await));
    checks.extend(or_not_made("roles", Place::Target, roles(source, target, plan).await));
    checks.extend(or_not_made("lock_slots", Place::Target, partition_locks(source, target).await));
    checks
}

/// A lock taken on the source is looked for on the target: a system identifier proves nothing,
/// since a restored copy of a server bears the same.
async fn same_database(source: &Server, target: &Server) -> pg::Result<Vec<Check>> {
    let key: i64 = rand::random();
    source.session.query_one(&sql!("select pg_try_advisory_lock($1)"), &[&key]).await?;
    let seen = target
        .session
        .query_opt(
            &sql!(
                "select database = (select oid from pg_database
                                     where datname = current_database())
                   from pg_locks
                  where locktype = 'advisory' and objsubid = 1
                    and (classid::int8 << 32) | objid::int8 = $1"
            ),
            &[&key],
        )
        .await;
    source.session.query_one(&sql!("select pg_advisory_unlock($1)"), &[&key]).await?;
    let name = "same_database";
    Ok(vec![match seen?.map(|row| row.try_get::<_, bool>(0)).transpose()? {
        None => pass(name, Place::Both, "two servers"),
        Some(true) => failure(name, Place::Both, "source and target are the same database")
            .fix("Name another database as target."),
        Some(false) => warning(name, Place::Both, "two databases of one server")
            .detail(
                "Transactions on the target hold back the slot, and the snapshot holds back \
                 vacuum on both.",
            )
            .fix("Use another server where you can."),
    }])
}

fn versions(source: &Server, target: &Server) -> Check {
    let found = format!("{} to {}", source.major(), target.major());
    if target.major() >= source.major() {
        return pass("version_order", Place::Both, found);
    }
    failure("version_order", Place::Both, found)
        .detail("A schema of a newer version does not fit an older server.")
        .fix("Use a target of the source's version or a newer one.")
}

fn encoding(source: &Server, target: &Server) -> Option<Check> {
    let (from, to) = (&source.database.encoding, &target.database.encoding);
    let found = format!("{from} to {to}");
    let fix = format!(
        "create database NAME encoding '{from}' lc_collate '{}' lc_ctype '{}' template template0;",
        source.database.collate, source.database.ctype
    );
    Some(if from == to {
        pass("encoding", Place::Both, found)
    } else if from == "SQL_ASCII" {
        failure("encoding", Place::Both, found)
            .detail("Nobody knows the encoding of the source's bytes; the target refuses some.")
            .fix(fix)
    } else if to == "UTF8" {
        warning("encoding", Place::Both, found)
            .detail("Text is converted by the target. Bytes of it differ, lengths may too.")
            .fix(fix)
    } else if to == "SQL_ASCII" {
        failure("encoding", Place::Both, found)
            .detail(
                "The target takes bytes as they come and knows no characters: copied rows would \
                 have those of the source's encoding, later changes those of UTF-8.",
            )
            .fix(fix)
    } else {
        failure("encoding", Place::Both, found)
            .detail("Characters that the target's encoding lacks are refused.")
            .fix(fix)
    })
}

fn locale(source: &Server, target: &Server) -> Option<Check> {
    let of = |server: &Server| {
        let database = &server.database;
        format!("{} / {} ({})", database.collate, database.ctype, database.provider)
    };
    let (from, to) = (of(source), of(target));
    Some(if from == to {
        pass("locale", Place::Both, from)
    } else {
        warning("locale", Place::Both, format!("{from} to {to}"))
            .detail(
                "Text sorts and compares otherwise on the target: order of results, and which \
                 range partition a text key falls into.",
            )
            .fix(format!(
                "create database NAME lc_collate '{}' lc_ctype '{}' template template0;",
                source.database.collate, source.database.ctype
            ))
    })
}

/// Collations whose library has changed under their indexes.
async fn collations(source: &Server) -> pg::Result<Vec<Check>> {
    let mut stale = names(
        &source.session,
        &sql!(
            "select n.nspname || '.' || c.collname
               from pg_collation c join pg_namespace n on n.oid = c.collnamespace
              where c.collversion is not null
                and c.collversion <> pg_collation_actual_version(c.oid)
                and exists (select from pg_depend d
                             where d.refclassid = 'pg_collation'::regclass
                               and d.refobjid = c.oid)"
        ),
    )
    .await?;
    if source.major() >= 15 {
        stale.extend(
            names(
                &source.session,
                &sql!(
                    "select 'the database''s own' from pg_database
                      where datname = current_database() and datcollversion is not null
                        and datcollversion <> pg_database_collation_actual_version(oid)"
                ),
            )
            .await?,
        );
    }
    Ok(vec![if stale.is_empty() {
        pass("collations", Place::Source, "as their library has them")
    } else {
        warning("collations", Place::Source, format!("of another version: {}", some(&stale)))
            .detail(
                "Indexes on the source may be out of order. They are built anew on the target, \
                 where a unique one may then find duplicates.",
            )
            .fix(format!(
                "reindex database {0}; alter database {0} refresh collation version;",
                source.quoted_database()
            ))
    }])
}

async fn tablespaces(source: &Server, target: &Server) -> pg::Result<Vec<Check>> {
    let used = names(
        &source.session,
        &sql!(
            "select distinct t.spcname::text from pg_class c
               join pg_tablespace t on t.oid = c.reltablespace
              where t.spcname not in ('pg_default', 'pg_global')"
        ),
    )
    .await?;
    let there: BTreeSet<String> =
        names(&target.session, &sql!("select spcname::text from pg_tablespace"))
            .await?
            .into_iter()
            .collect();
    let missing: Vec<String> = used.into_iter().filter(|name| !there.contains(name)).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let create: Vec<String> = missing
        .iter()
        .map(|name| format!("create tablespace {} location 'DIRECTORY';", quote_ident(name)))
        .collect();
    Ok(vec![
        failure("tablespaces", Place::Target, format!("missing: {}", some(&missing)))
            .detail("Tables or indexes of the source are kept there.")
            .fix(statements(&create)),
    ])
}

async fn methods(source: &Server, target: &Server) -> pg::Result<Vec<Check>> {
    let used = names(
        &source.session,
        &sql!(
            "select distinct a.amname::text from pg_class c join pg_am a on a.oid = c.relam
              where c.relkind in ('r', 'p', 'm') and a.amname <> 'heap'"
        ),
    )
    .await?;
    if used.is_empty() {
        return Ok(Vec::new());
    }
    let there: BTreeSet<String> = names(&target.session, &sql!("select amname::text from pg_am"))
        .await?
        .into_iter()
        .collect();
    let missing: Vec<String> = used.into_iter().filter(|name| !there.contains(name)).collect();
    Ok(vec![
        warning("access_methods", Place::Source, "tables that are not heaps")
            .detail(format!(
                "Their rows are copied whole, not by ranges. Not on the target now: {}.",
                if missing.is_empty() { "none".to_owned() } else { some(&missing) }
            ))
            .fix("Make sure that the extension which brings the access method is on the target."),
    ])
}

/// Roles that own or are granted something and are not on the target.
async fn roles(source: &Server, target: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let used = names(
        &source.session,
        &sql!(
            "select distinct r.rolname::text from pg_shdepend d
               join pg_roles r on r.oid = d.refobjid
              where d.refclassid = 'pg_authid'::regclass and d.deptype in ('o', 'a', 'r')
                and d.dbid in (0, (select oid from pg_database
                                    where datname = current_database()))
                and r.rolname !~ '^pg_'
              order by 1"
        ),
    )
    .await?;
    let there: BTreeSet<String> =
        names(&target.session, &sql!("select rolname::text from pg_roles"))
            .await?
            .into_iter()
            .collect();
    let missing: Vec<String> = used.into_iter().filter(|name| !there.contains(name)).collect();
    let name = "roles";
    if missing.is_empty() {
        return Ok(vec![pass(name, Place::Target, "every role that is used is there")]);
    }
    let found = format!("missing: {}", some(&missing));
    let makes =
        !plan.filter.leaves_out(Kind::Roles) && (target.role.superuser || target.role.create_role);
    if makes {
        return Ok(vec![if source.role.superuser {
            pass(name, Place::Target, found).detail("They are created, with their passwords.")
        } else {
            warning(name, Place::Target, found)
                .detail("They are created without passwords, which only a superuser may read.")
        }]);
    }
    if plan.filter.leaves_out(Kind::Owners) && plan.filter.leaves_out(Kind::Privileges) {
        return Ok(vec![
            pass(name, Place::Target, found).detail("Owners and grants are left out."),
        ]);
    }
    let create: Vec<String> =
        missing.iter().map(|role| format!("create role {};", quote_ident(role))).collect();
    Ok(vec![
        failure(name, Place::Target, found)
            .detail("They own objects or are granted rights, and our role cannot create them.")
            .fix(statements(&create)),
    ])
}

/// One statement on a partitioned table locks every partition and its indexes.
async fn partition_locks(source: &Server, target: &Server) -> pg::Result<Vec<Check>> {
    let row = source
        .session
        .query_one(
            &sql!(
                "with recursive tree (relid, root) as (
                   select oid, oid from pg_class where relkind = 'p' and not relispartition
                   union all
                   select i.inhrelid, tree.root from tree join pg_inherits i on i.inhparent = tree.relid
                 ), locks (root, needed) as (
                   select tree.root, count(*) + count(x.indexrelid)
                     from tree left join pg_index x on x.indrelid = tree.relid group by 1
                 ) select coalesce(max(needed), 0)::int8 from locks"
            ),
            &[],
        )
        .await?;
    Ok(vec![lock_check(target, Place::Target, row.try_get::<_, i64>(0)?.max(100))])
}

pub(super) async fn names(session: &Session, query: &Sql) -> pg::Result<Vec<String>> {
    let mut names = Vec::new();
    for row in session.query(query, &[]).await? {
        names.push(row.try_get(0)?);
    }
    Ok(names)
}
