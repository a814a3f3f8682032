//! Tables of the source: identity, what the stream cannot carry, what fires, who may read.

use super::{
    Plan,
    check::{CheckExt as _, Place, count, failure, or_not_made, pass, some, statements, warning},
    server::Server,
};
use crate::source::identity::{
    Decision, MissingIdentity, Persistence, Publish, Survey, TableIdentity, decide, survey,
};
use pg::{Sql, TableName, sql};
use proto::{status::Classify as _, v1::Check};
use std::collections::HashSet;

pub(super) async fn checks(source: &Server, plan: &Plan<'_>) -> Vec<Check> {
    let place = Place::Source;
    let tables = match survey(&source.session, &plan.filter).await {
        Ok(tables) => tables,
        Err(error) => {
            return vec![
                failure("replica_identity", place, "could not be read")
                    .detail(error.report().detail)
                    .fix("Let the role read pg_class and pg_index."),
            ];
        }
    };
    let decisions = decide(&tables, &plan.choices);
    let mut checks = vec![match &decisions {
        Ok(decisions) => decided(decisions),
        Err(missing) => undecided(missing),
    }];
    checks.extend(decisions.ok().map(|decisions| announced(&decisions, &plan.spec.name)));
    checks.extend(unlogged(&tables));
    checks.extend(orphans(&tables));
    checks.extend(left_out_partitions(&tables));
    checks.extend(or_not_made("filter", place, patterns(source, plan).await));
    checks.extend(or_not_made("triggers", place, firing(source, plan).await));
    checks.extend(or_not_made("foreign_tables", place, foreign(source, plan).await));
    checks
}

/// All that will be changed on the source; teardown takes it back.
fn announced(decisions: &[Decision], name: &str) -> Check {
    let identities = decisions.iter().filter(|decision| decision.set_full).count();
    let mut found =
        format!("slot skein_{name}, publications skein_{name}_full and skein_{name}_append");
    if identities > 0 {
        found = format!("{found}, REPLICA IDENTITY FULL on {}", count(identities, "table"));
    }
    pass("source_changes", Place::Source, found).detail(
        "What is made or set on the source, under a lock timeout of 2 s, and taken back at the end.",
    )
}

fn decided(decisions: &[Decision]) -> Check {
    let leaves = || decisions.iter().filter(|decision| !decision.is_root);
    let set_full: Vec<_> = leaves().filter(|one| one.set_full).map(|one| &one.table).collect();
    let append: Vec<_> =
        leaves().filter(|one| one.publish == Publish::AppendOnly).map(|one| &one.table).collect();
    let name = "replica_identity";
    let found = format!("{} with a replica identity", count(leaves().count(), "table"));
    if set_full.is_empty() && append.is_empty() {
        return pass(name, Place::Source, found);
    }
    let mut detail = Vec::new();
    if !set_full.is_empty() {
        detail.push(format!(
            "REPLICA IDENTITY FULL will be set, and put back at teardown: {}.",
            some(&set_full)
        ));
    }
    if !append.is_empty() {
        detail.push(format!(
            "Published for INSERT and TRUNCATE alone; an UPDATE or DELETE is not carried, and \
             shows in verify: {}.",
            some(&append)
        ));
    }
    warning(
        name,
        Place::Source,
        format!("{} set to full, {} append-only, by choice", set_full.len(), append.len()),
    )
    .detail(detail.join(" "))
}

fn undecided(missing: &[MissingIdentity]) -> Check {
    let listed: Vec<String> =
        missing.iter().map(|one| format!("{} ({})", one.table, one.cause)).collect();
    let mut fixes: Vec<String> = missing.iter().map(MissingIdentity::fix).collect();
    fixes.push("-- or choose for all of them: --replica-identity full|append-only".to_owned());
    failure(
        "replica_identity",
        Place::Source,
        format!("{} without a replica identity", count(missing.len(), "table")),
    )
    .detail(format!(
        "UPDATE and DELETE would fail on the source once they are published: {}.",
        some(&listed)
    ))
    .fix(statements(&fixes))
}

fn unlogged(tables: &Survey) -> Option<Check> {
    let found: Vec<&TableName> = tables
        .tables
        .iter()
        .filter(|table| table.is_leaf && table.persistence == Persistence::Unlogged)
        .map(|table| &table.table)
        .collect();
    (!found.is_empty()).then(|| {
        warning("unlogged_tables", Place::Source, count(found.len(), "unlogged table"))
            .detail(format!(
                "Their changes are not in the WAL. They are copied while writes are stopped at \
                 cutover, which takes the longer the larger they are: {}.",
                some(&found)
            ))
            .fix("alter table NAME set logged; -- to have it replicated; it is rewritten")
    })
}

/// A partition whose root the filter leaves out has nothing to hang on.
fn orphans(tables: &Survey) -> Option<Check> {
    let orphans: Vec<&TableName> = tables
        .tables
        .iter()
        .filter(|table| table.root.is_some_and(|root| tables.table(root).is_none()))
        .map(|table| &table.table)
        .collect();
    (!orphans.is_empty()).then(|| {
        failure(
            "filter_partitions",
            Place::Source,
            count(orphans.len(), "partition") + " without their root",
        )
        .detail(format!(
            "The filter takes these and not the table they are part of: {}.",
            some(&orphans)
        ))
        .fix("Name the partitions in exclude_tables too, or take the partitioned table in.")
    })
}

/// A partitioned table that is taken without some of its partitions, or all.
fn left_out_partitions(tables: &Survey) -> Vec<Check> {
    let taken_leaves: HashSet<u32> =
        tables.tables.iter().filter(|table| table.is_leaf).filter_map(|table| table.root).collect();
    let roots = tables.partly_taken_roots.iter().filter_map(|root| tables.table(*root));
    let (partly, hollow): (Vec<_>, Vec<_>) =
        roots.partition(|root| taken_leaves.contains(&root.oid));
    let listed = |roots: &[&TableIdentity]| {
        let mut names: Vec<&TableName> = roots.iter().map(|root| &root.table).collect();
        names.sort();
        some(&names)
    };
    let name = "filter_partitions";
    let mut checks = Vec::new();
    if !hollow.is_empty() {
        checks.push(
            failure(name, Place::Source, count(hollow.len(), "table") + " without any partition")
                .detail(format!(
                    "Rows lie in partitions, which have names of their own: {}.",
                    listed(&hollow)
                ))
                .fix("Take the partitions in as well, by a pattern such as schema.table_*."),
        );
    }
    if !partly.is_empty() {
        checks.push(
            warning(name, Place::Source, count(partly.len(), "table") + " without some partitions")
                .detail(format!(
                    "Rows of partitions that are left out are not moved: {}.",
                    listed(&partly)
                ))
                .fix("Take the partitions in as well, if their rows are wanted."),
        );
    }
    checks
}

async fn patterns(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    if plan.filter.is_everything() {
        return Ok(Vec::new());
    }
    let rows = source
        .session
        .query(
            &sql!(
                "select n.nspname::text, c.relname::text
                   from pg_namespace n left join pg_class c on c.relnamespace = n.oid
                    and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                  where n.nspname !~ '^pg_'"
            ),
            &[],
        )
        .await?;
    let mut schemas = Vec::new();
    let mut tables = Vec::new();
    for row in rows {
        let schema: String = row.try_get(0)?;
        if let Some(name) = row.try_get::<_, Option<String>>(1)? {
            tables.push(TableName::new(&schema, name));
        }
        schemas.push(schema);
    }
    let idle = plan.filter.idle_patterns(schemas.iter().map(String::as_str), tables.iter());
    let taken = tables.iter().filter(|table| plan.filter.matches_table(table)).count();
    let found = format!("{taken} of {} relations", tables.len());
    let check = if idle.is_empty() {
        pass("filter", Place::Source, found)
    } else {
        warning("filter", Place::Source, format!("{found}; patterns fit nothing: {}", some(&idle)))
            .detail("Letters outside double quotes are folded to lower case.")
            .fix("Correct the patterns, or take them out.")
    };
    Ok(vec![check])
}

/// What fires in the replica role, and row security, each noted once.
async fn firing(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let always = named(
        source,
        plan,
        &sql!(
            "select distinct n.nspname::text, c.relname::text, t.tgname::text
               from pg_trigger t join pg_class c on c.oid = t.tgrelid
               join pg_namespace n on n.oid = c.relnamespace
              where t.tgenabled in ('A', 'R') and not t.tgisinternal
             union
             select n.nspname::text, c.relname::text, w.rulename::text
               from pg_rewrite w join pg_class c on c.oid = w.ev_class
               join pg_namespace n on n.oid = c.relnamespace
              where c.relkind in ('r', 'p') and w.ev_enabled in ('A', 'R')"
        ),
    )
    .await?;
    let rules = named(
        source,
        plan,
        &sql!(
            "select n.nspname::text, c.relname::text, w.rulename::text
               from pg_rewrite w join pg_class c on c.oid = w.ev_class
               join pg_namespace n on n.oid = c.relnamespace
              where c.relkind in ('r', 'p') and w.ev_enabled = 'O'"
        ),
    )
    .await?;
    let mut checks = Vec::new();
    if !always.is_empty() {
        checks.push(
            warning("always_triggers", Place::Source, count(always.len(), "trigger or rule"))
                .detail(format!(
                    "ENABLE ALWAYS or REPLICA fires during replay too; they are enabled on the \
                     target at cutover only: {}.",
                    some(&always)
                )),
        );
    }
    if !rules.is_empty() {
        checks.push(
            pass("rules", Place::Source, count(rules.len(), "rule"))
                .detail(format!("They do not fire during copy and replay: {}.", some(&rules))),
        );
    }
    Ok(checks)
}

async fn foreign(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let found = named(
        source,
        plan,
        &sql!(
            "select n.nspname::text, c.relname::text, s.srvname::text
               from pg_foreign_table f join pg_class c on c.oid = f.ftrelid
               join pg_namespace n on n.oid = c.relnamespace
               join pg_foreign_server s on s.oid = f.ftserver"
        ),
    )
    .await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![warning("foreign_tables", Place::Source, count(found.len(), "foreign table")).detail(
        format!(
            "Definition and server are moved, rows stay where they are; the target must reach \
                 that server. Passwords of user mappings may not be readable: {}.",
            some(&found)
        ),
    )])
}

/// `schema.table (object)` of rows (schema, table, object) that the filter takes.
async fn named(source: &Server, plan: &Plan<'_>, query: &Sql) -> pg::Result<Vec<String>> {
    let mut found = Vec::new();
    for row in source.session.query(query, &[]).await? {
        let table = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        if plan.filter.matches_table(&table) {
            found.push(format!("{table} ({})", row.try_get::<_, String>(2)?));
        }
    }
    Ok(found)
}
