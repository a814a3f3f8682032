//! The source's tables, as seen under a snapshot.
//!
//! In: a session inside a transaction that imported the snapshot. Out: [`Leaf`]s without their
//! target side. Promise: a fixed number of set queries, however many tables there are.

use crate::{filter::Filter, plan::Leaf};
use pg::{Result, Session, TableName, sql};
use std::collections::HashMap;

/// Types whose binary form is the same on every server of version 13 to 18 and does not hold
/// another object's number. Not among them: reg*, aclitem, money (depends on lc_monetary), xml
/// (names an encoding), int2vector and oidvector (an empty one is sent as an array without
/// dimensions, which is refused), and everything that an extension or a user made, but for enums
/// and domains over safe types; those arrive as text.
const BINARY_SAFE: &str = "('bool','bytea','char','name','int8','int2','int4','text','oid','tid',\
'xid','cid','json','point','lseg','path','box','polygon','line','cidr','float4','float8',\
'circle','macaddr8','macaddr','inet','bpchar','varchar','date','time','timestamp','timestamptz',\
'interval','timetz','bit','varbit','numeric','uuid','pg_lsn','jsonb','xid8','int4range',\
'numrange','tsrange','tstzrange','daterange','int8range')";

/// Server facts that every session needs.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    pub encoding: String,
    pub version: u32,
}

/// Encoding and version.
///
/// # Errors
/// What the server refused.
pub async fn server_facts(session: &Session) -> Result<ServerFacts> {
    let row = session.query_one(&sql!("select current_setting('server_encoding')"), &[]).await?;
    Ok(ServerFacts { encoding: row.get(0), version: session.server_version() })
}

/// Every leaf table that the filter lets through, with the file that the session's snapshot
/// shows: `pg_relation_filenode` would show the file of now, and a table truncated between
/// snapshot and plan would be read as empty, in silence (rules, part 1).
///
/// # Errors
/// What the server refused.
pub async fn leaves(session: &Session, filter: &Filter) -> Result<Vec<Leaf>> {
    let unsafe_tables = tables_without_binary(session).await?;
    let columns = columns(session).await?;
    let rows = session
        .query(
            &sql!(
                "select c.oid, n.nspname::text, c.relname::text,
       c.relfilenode,
       coalesce(pg_catalog.pg_relation_size(c.oid), 0)
         / current_setting('block_size')::bigint,
       c.relpersistence = 'u',
       case when c.relispartition
            then pg_catalog.pg_get_partition_constraintdef(c.oid) end,
       rn.nspname::text, r.relname::text
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_class r
    on c.relispartition and r.oid = pg_catalog.pg_partition_root(c.oid)
  left join pg_catalog.pg_namespace rn on rn.oid = r.relnamespace
 where c.relkind = 'r'
   and c.relpersistence <> 't'
   and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'skein')
   and not exists (
         select from pg_catalog.pg_depend d
          where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid
            and d.deptype = 'e')
 order by 5 desc, c.oid"
            ),
            &[],
        )
        .await?;
    let mut leaves = Vec::new();
    for row in rows {
        let relid: u32 = row.get(0);
        let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if !filter.matches_table(&table) {
            continue;
        }
        let (names, types) = columns.get(&relid).cloned().unwrap_or_default();
        leaves.push(Leaf {
            relid,
            target: table.clone(),
            source: table,
            filenode: row.get(3),
            blocks: u64::try_from(row.get::<_, i64>(4)).unwrap_or(0),
            columns: names,
            types,
            binary: !unsafe_tables.contains(&relid),
            unlogged: row.get(5),
            through_root: false,
            partition_constraint: row.get(6),
            root: row.get::<_, Option<String>>(7).map(|schema| {
                TableName::new(schema, row.get::<_, Option<String>>(8).unwrap_or_default())
            }),
            condition: None,
            append_only: false,
        });
    }
    Ok(leaves)
}

/// Names and types of columns.
pub type Columns = (Vec<String>, Vec<String>);

/// Columns of each table in attribute order, without dropped and generated ones.
async fn columns(session: &Session) -> Result<HashMap<u32, Columns>> {
    let rows = session
        .query(
            &sql!(
                "select a.attrelid, array_agg(a.attname::text order by a.attnum),
       array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) order by a.attnum)
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid
 where c.relkind = 'r' and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
 group by a.attrelid"
            ),
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

/// Columns of one table of either server; empty where it is not there.
///
/// # Errors
/// What the server refused.
pub async fn columns_of(session: &Session, table: &TableName) -> Result<Columns> {
    let row = session
        .query_one(
            &sql!(
                "select coalesce(array_agg(a.attname::text order by a.attnum), '{}'),
       coalesce(array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) order by a.attnum), '{}')
  from pg_catalog.pg_attribute a
 where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
   and a.attgenerated = ''"
            ),
            &[&table.to_string()],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}

/// Tables with a column whose type is not safe in binary, domains and arrays looked through.
async fn tables_without_binary(session: &Session) -> Result<std::collections::HashSet<u32>> {
    let rows = session
        .query(
            &pg::Sql::trusted(format!(
                "with recursive safe(oid) as (
  select t.oid from pg_catalog.pg_type t
   where t.typnamespace = 'pg_catalog'::regnamespace and t.typname in {BINARY_SAFE}
  union
  select t.oid from pg_catalog.pg_type t where t.typtype = 'e'
  union
  select t.oid
    from pg_catalog.pg_type t join safe s
      on (t.typtype = 'd' and t.typbasetype = s.oid)
      or (t.typcategory = 'A' and t.typelem = s.oid and t.oid < 16384
          and t.typname not in ('int2vector', 'oidvector'))
)
select distinct a.attrelid
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid
 where c.relkind = 'r' and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
   and a.atttypid not in (select oid from safe)"
            )),
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Leaves of hash partitioned roots whose key holds an enum: the hash of an enum is its OID's,
/// which differs on the target, so rows go through the root. Leaf to root.
///
/// # Errors
/// What the server refused.
pub async fn enum_hashed_leaves(session: &Session) -> Result<HashMap<u32, TableName>> {
    let rows = session
        .query(
            &sql!(
                "with recursive hashed(oid) as (
  select p.partrelid from pg_catalog.pg_partitioned_table p
   where p.partstrat = 'h' and exists (
         select from unnest(p.partattrs::int2[]) k(attnum)
           join pg_catalog.pg_attribute a on a.attrelid = p.partrelid and a.attnum = k.attnum
           join pg_catalog.pg_type t on t.oid = a.atttypid
           left join pg_catalog.pg_type b on b.oid = t.typbasetype
          where t.typtype in ('e', 'c') or b.typtype = 'e' or t.typcategory = 'A')
), below(oid, root) as (
  select i.inhrelid, i.inhparent from pg_catalog.pg_inherits i
    join hashed h on h.oid = i.inhparent
  union all
  select i.inhrelid, b.root from pg_catalog.pg_inherits i join below b on b.oid = i.inhparent
)
select b.oid, n.nspname::text, r.relname::text
  from below b
  join pg_catalog.pg_class c on c.oid = b.oid and c.relkind = 'r'
  join pg_catalog.pg_class r on r.oid = b.root
  join pg_catalog.pg_namespace n on n.oid = r.relnamespace"
            ),
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), TableName::new(row.get::<_, String>(1), row.get::<_, String>(2))))
        .collect())
}

/// `pg_relation_filenode` of relations now, outside any old snapshot. Gone ones are not listed.
///
/// # Errors
/// What the server refused.
pub async fn filenodes(session: &Session, relids: &[u32]) -> Result<HashMap<u32, u32>> {
    let rows = session
        .query(
            &sql!(
                "select r.oid, pg_catalog.pg_relation_filenode(r.oid)
  from unnest($1::oid[]) r(oid)
 where pg_catalog.pg_relation_filenode(r.oid) is not null"
            ),
            &[&relids],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Configuration tables of extensions keep their leaf form; this finds one table by OID,
/// extension members included.
///
/// # Errors
/// What the server refused.
pub async fn leaf(session: &Session, relid: u32, condition: &str) -> Result<Option<Leaf>> {
    let Some(row) = session
        .query_opt(
            &sql!(
                "select n.nspname::text, c.relname::text,
       c.relfilenode,
       pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::bigint,
       c.relpersistence = 'u'
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.oid = $1 and c.relkind = 'r'"
            ),
            &[&relid],
        )
        .await?
    else {
        return Ok(None);
    };
    let (names, types) = columns(session).await?.remove(&relid).unwrap_or_default();
    let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(Some(Leaf {
        relid,
        target: table.clone(),
        source: table,
        filenode: row.get(2),
        blocks: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
        columns: names,
        types,
        binary: false,
        unlogged: row.get(4),
        through_root: false,
        partition_constraint: None,
        root: None,
        condition: (!condition.is_empty()).then(|| condition.to_owned()),
        append_only: false,
    }))
}
