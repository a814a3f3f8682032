//! The target's side of a table that came up on the source.
//!
//! In: its leaf as the new snapshot shows it. Out: a table on the target with the same columns.
//! Promise: only a partition of a root that stands there is made; what else a table may need
//! (indexes, triggers, policies) is a person's to say.

use super::changed;
use crate::{
    migration::{connect::refused, context::Context, replan},
    plan::Leaf,
    target,
};
use pg::{Session, Sql, TableName, sql, sql::Ident};
use proto::status::Report;

/// Whether a table of that name stands.
///
/// # Errors
/// What the server refused.
pub(super) async fn exists(session: &Session, table: &TableName) -> Result<bool, Report> {
    let row = session
        .query_one(&sql!("select to_regclass($1) is not null"), &[&table.to_string()])
        .await
        .map_err(|error| refused("look for a table", &error))?;
    Ok(row.get(0))
}

/// The target's table for a fresh leaf: a partition of a root that is there is made; any other
/// has to stand there already, with the same columns.
pub(super) async fn make_target(
    source: &Session,
    context: &Context,
    target: &Session,
    (leaf, names): (&Leaf, &[String]),
) -> Result<(), Report> {
    if leaf.through_root {
        return Ok(());
    }
    if !exists(target, &leaf.target).await? {
        let row = source
            .query_opt(
                &sql!(
                    "select n.nspname::text, p.relname::text,
       pg_catalog.pg_get_expr(c.relpartbound, c.oid), pg_catalog.pg_get_userbyid(c.relowner)::text
  from pg_catalog.pg_class c
  join pg_catalog.pg_inherits i on i.inhrelid = c.oid
  join pg_catalog.pg_class p on p.oid = i.inhparent
  join pg_catalog.pg_namespace n on n.oid = p.relnamespace
 where c.oid = $1 and c.relispartition"
                ),
                &[&leaf.relid],
            )
            .await
            .map_err(|error| refused("read a partition's bounds", &error))?;
        let Some(row) = row else { return Err(by_hand(leaf, names)) };
        let parent = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !exists(target, &parent).await? {
            return Err(by_hand(leaf, names));
        }
        let statements = sql!(
            "create table {} partition of {} {}; alter table {} owner to {};",
            leaf.target,
            parent,
            Sql::trusted(row.get::<_, String>(2)),
            leaf.target,
            Ident(row.get(3))
        );
        match target::fenced(target, context.epoch, &statements).await {
            Ok(true) => {}
            Ok(false) => return Err(replan::fenced_out()),
            Err(error) => return Err(refused("make a new partition on the target", &error)),
        }
    }
    let row = target
        .query_one(
            &sql!(
                "select coalesce(array_agg(a.attname::text order by a.attname), '{}')
  from pg_catalog.pg_attribute a
 where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
   and a.attgenerated = ''"
            ),
            &[&leaf.target.to_string()],
        )
        .await
        .map_err(|error| refused("read the target's table", &error))?;
    let mut columns = leaf.columns.clone();
    columns.sort();
    if row.get::<_, Vec<String>>(0) != columns {
        return Err(by_hand(leaf, names));
    }
    Ok(())
}

fn by_hand(leaf: &Leaf, names: &[String]) -> Report {
    changed(names).with_hint(format!(
        "Make {} on the target as it is on the source (pg_dump --schema-only --table), \
         then run: skein resume. It is copied then.",
        leaf.source
    ))
}
