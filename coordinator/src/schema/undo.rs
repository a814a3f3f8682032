//! Takes back the cutover stage after a lifted fence: replay goes on, and triggers, rules and
//! foreign keys must not.
//!
//! Promise: read from the target's catalogs, so that a half-made stage is taken back too; the
//! marks of the stage go in the same transaction, behind the fence. The target was empty before
//! Skein, so that whatever of these kinds stands there is ours.

use super::{
    entry::Stage,
    error::{Error, Result},
    step,
};
use crate::{migration::context::Context, target};
use pg::{Sql, sql, sql::Literal};

/// Statements that drop what the stage makes, in an order that no dependency forbids.
fn drops() -> Sql {
    sql!(
        "select s.statement from (
select 1 as place, format('alter table %s drop constraint %I', c.conrelid::regclass, c.conname)
       as statement
  from pg_constraint c join pg_class t on t.oid = c.conrelid
  join pg_namespace n on n.oid = t.relnamespace
 where c.contype = 'f' and c.conparentid = 0 and n.nspname !~ '^pg_' and n.nspname <> 'skein'
union all
select 2, format('alter table %s drop constraint %I', c.conrelid::regclass, c.conname)
  from pg_constraint c join pg_class t on t.oid = c.conrelid
  join pg_namespace n on n.oid = t.relnamespace
 where c.contype = 'c' and not c.convalidated and c.coninhcount = 0 and n.nspname !~ '^pg_'
union all
select 3, format('drop trigger %I on %s', g.tgname, g.tgrelid::regclass)
  from pg_trigger g join pg_class t on t.oid = g.tgrelid
  join pg_namespace n on n.oid = t.relnamespace
 where not g.tgisinternal and g.tgparentid = 0 and n.nspname !~ '^pg_' and n.nspname <> 'skein'
   and not exists (select from pg_depend d where d.classid = 'pg_trigger'::regclass
                     and d.objid = g.oid and d.deptype = 'e')
union all
select 4, format('drop rule %I on %s', r.rulename, r.ev_class::regclass)
  from pg_rewrite r join pg_class t on t.oid = r.ev_class
  join pg_namespace n on n.oid = t.relnamespace
 where r.rulename <> '_RETURN' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   and not exists (select from pg_depend d where d.classid = 'pg_rewrite'::regclass
                     and d.objid = r.oid and d.deptype = 'e')
union all
select 5, format('drop policy %I on %s', p.polname, p.polrelid::regclass) from pg_policy p
union all
select 6, format('alter table %s no force row level security, disable row level security',
                 t.oid::regclass)
  from pg_class t join pg_namespace n on n.oid = t.relnamespace
 where (t.relrowsecurity or t.relforcerowsecurity) and n.nspname !~ '^pg_'
union all
select 7, format('drop event trigger %I', e.evtname) from pg_event_trigger e
 where not exists (select from pg_depend d where d.classid = 'pg_event_trigger'::regclass
                     and d.objid = e.oid and d.deptype = 'e')
union all
select 8, format('drop publication %I', p.pubname) from pg_publication p
union all
select 9, format('drop subscription %I', s.subname) from pg_subscription s
 where s.subdbid = (select oid from pg_database where datname = current_database())
   and s.subslotname is null
) s order by s.place"
    )
}

/// Takes the stage back. Safe to repeat.
///
/// # Errors
/// What the target refuses; [`Error::Fenced`] when a newer coordinator acts.
pub(super) async fn undo(context: &Context) -> Result<()> {
    let session = step::target_session(context, "undo").await?;
    let rows = session
        .query(&drops(), &[])
        .await
        .map_err(Error::server("read what the cutover made on the target"))?;
    let mut statements = sql!("");
    for row in rows {
        // Composed by the server itself, with its own quoting.
        statements.push(Sql::trusted(row.get::<_, String>(0))).push(";\n");
    }
    statements.push(sql!(
        "delete from skein.step where step in ({}, {});",
        Literal(&format!("schema/{}", Stage::Cutover)),
        Literal(super::identity::MARK)
    ));
    match target::fenced(&session, context.epoch, &statements).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Fenced),
        Err(error) => Err(Error::server("take back what the cutover made on the target")(error)),
    }
}
