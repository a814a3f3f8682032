//! What would fire on the target while changes are applied.
//!
//! Triggers and rules ENABLE ALWAYS or REPLICA fire in the replica role, on COPY too (rules, part 5);
//! without the right to that role every other one does. They are made or enabled at cutover only:
//! whatever stands before is told by name.

use super::error::{Error, Result};
use pg::{Session, TableName, sql};

/// Stops at the first trigger or rule that would fire on one of these tables.
///
/// # Errors
/// [`Error::Fires`]; when the catalogs cannot be read.
pub async fn check(session: &Session, tables: &[TableName]) -> Result<()> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let found = session
        .query_opt(
            &sql!(
                "with fires as (
  select case current_setting('session_replication_role')
    when 'replica' then array['A', 'R'] else array['A', 'O'] end::\"char\"[] as states
), named as (
  select c.oid, n.nspname, c.relname
  from unnest($1::text[], $2::text[]) as w(schema_name, table_name)
  join pg_namespace n on n.nspname = w.schema_name
  join pg_class c on c.relnamespace = n.oid and c.relname = w.table_name
)
select named.nspname::text, named.relname::text, t.tgname::text
from named join pg_trigger t on t.tgrelid = named.oid, fires
where not t.tgisinternal and t.tgenabled = any(fires.states)
union all
select named.nspname::text, named.relname::text, r.rulename::text
from named join pg_rewrite r on r.ev_class = named.oid, fires
where r.ev_enabled = any(fires.states) and r.ev_type <> '1'
limit 1"
            ),
            &[&schemas, &names],
        )
        .await
        .map_err(Error::target("read the target's triggers"))?;
    match found {
        None => Ok(()),
        Some(row) => Err(Error::Fires {
            table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            name: row.get(2),
        }),
    }
}
