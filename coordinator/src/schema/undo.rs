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

/// Objects dropped in a transaction: each takes lock slots, as in the restore.
const BATCH: i64 = 200;

/// Statements that drop what the stage makes, in an order that no dependency forbids. What an
/// extension keeps on its own tables stays.
fn drops() -> Sql {
    sql!(
        "with own as (
select t.oid, t.oid::regclass as name, t.relrowsecurity from pg_class t
  join pg_namespace n on n.oid = t.relnamespace
 where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'skein')
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass
                     and d.objid = t.oid and d.deptype = 'e')
)
select s.statement from (
select 1 as place, format('alter table %s drop constraint %I', own.name, c.conname) as statement
  from pg_constraint c join own on own.oid = c.conrelid
 where c.contype = 'f' and c.conparentid = 0
union all
select 2, format('alter table %s drop constraint %I', own.name, c.conname)
  from pg_constraint c join own on own.oid = c.conrelid
 where c.contype = 'c' and not c.convalidated and c.coninhcount = 0
union all
select 2, format('alter domain %s drop constraint %I', c.contypid::regtype, c.conname)
  from pg_constraint c join pg_type t on t.oid = c.contypid
  join pg_namespace n on n.oid = t.typnamespace
 where c.contype = 'c' and not c.convalidated and n.nspname !~ '^pg_'
union all
select 3, format('drop trigger %I on %s', g.tgname, own.name)
  from pg_trigger g join own on own.oid = g.tgrelid
 where not g.tgisinternal and g.tgparentid = 0
union all
select 4, format('drop rule %I on %s', r.rulename, own.name)
  from pg_rewrite r join own on own.oid = r.ev_class where r.rulename <> '_RETURN'
union all
select 5, format('drop policy %I on %s', p.polname, own.name)
  from pg_policy p join own on own.oid = p.polrelid
union all
-- FORCE belongs to the table's own definition, and stays.
select 6, format('alter table %s disable row level security', own.name)
  from own where own.relrowsecurity
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
) s order by s.place, s.statement limit {}",
        BATCH
    )
}

/// Takes the stage back. Safe to repeat.
///
/// # Errors
/// What the target refuses; [`Error::Fenced`] when a newer coordinator acts.
pub(super) async fn undo(context: &Context) -> Result<()> {
    let session = step::quiet_session(context, "undo").await?;
    loop {
        let rows = session
            .query(&drops(), &[])
            .await
            .map_err(Error::server("read what the cutover made on the target"))?;
        // The marks go first: what is half taken back is not done.
        let mut statements = sql!(
            "delete from skein.step where step in ({}, {});\n",
            Literal(&format!("schema/{}", Stage::Cutover)),
            Literal(super::identity::MARK)
        );
        for row in &rows {
            // Composed by the server itself, with its own quoting.
            statements.push(Sql::trusted(row.get::<_, String>(0))).push(";\n");
        }
        match target::fenced(&session, context.epoch, &statements).await {
            Ok(true) if rows.is_empty() => return Ok(()),
            Ok(true) => {}
            Ok(false) => return Err(Error::Fenced),
            Err(error) => {
                return Err(Error::server("take back what the cutover made on the target")(error));
            }
        }
    }
}
