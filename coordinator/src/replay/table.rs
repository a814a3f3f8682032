//! A table of the target as its catalogs tell it.
//!
//! In: names. Out: [`Table`]: columns, what is written and how values are compared, and the key by
//! which changes may be spread over lanes. Read again at each start of replay, since a person may
//! have changed the target while it stood still.

use pg::{Result, Session, Sql, TableName, sql, sql::Ident};
use std::{collections::HashMap, sync::Arc};

/// A column of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    /// GENERATED ALWAYS AS (...) STORED or VIRTUAL: never written.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: taken on INSERT with OVERRIDING, refused by UPDATE.
    pub identity_always: bool,
    /// NOT NULL without a default: must be given.
    pub required: bool,
    /// The type's btree equality, `operator(schema.=)`; found by OID since our search_path is
    /// empty and an extension's type would fall back to the equality of text.
    pub equality: Sql,
    /// Base or enum type with a btree: its equality may narrow a search through an index.
    pub indexable: bool,
    /// The type that a compared parameter must be told: of a composite column, which would be taken
    /// for any record, which has no input function; and of a type that borrows its equality, such
    /// as regclass, whose names oid does not read.
    pub compared_type_oid: Option<u32>,
}

/// A table of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Number within this run.
    pub id: u32,
    pub name: TableName,
    /// A partition root: statements reach its leaves; elsewhere `only` is said.
    pub partitioned: bool,
    pub columns: Vec<Column>,
    /// Columns (ascending) of the only unique or exclusion index, if its types are equal only when
    /// their bytes are (rules, part 5).
    pub lane_key: Option<Vec<usize>>,
}

impl Table {
    /// `only "schema"."table"`, or without `only` for a partition root.
    pub fn only(&self) -> Sql {
        if self.partitioned { sql!("{}", self.name) } else { sql!("only {}", self.name) }
    }

    /// The columns that are written, in order.
    pub fn written(&self) -> impl Iterator<Item = usize> + '_ {
        self.columns.iter().enumerate().filter(|(_, column)| !column.generated).map(|(i, _)| i)
    }

    pub fn ident(&self, column: usize) -> Ident<'_> {
        Ident(&self.columns[column].name)
    }
}

/// The target's tables by name; a name that is not there is left out.
///
/// # Errors
/// When the catalogs cannot be read.
pub async fn read(
    session: &Session,
    names: &[TableName],
) -> Result<HashMap<TableName, Arc<Table>>> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = session.query(&catalog_query(), &[&schemas, &tables]).await?;
    let mut found: HashMap<TableName, Table> = HashMap::new();
    for row in rows {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let next_id = u32::try_from(found.len()).unwrap_or(u32::MAX);
        let table = found.entry(name.clone()).or_insert_with(|| Table {
            id: next_id,
            name,
            partitioned: row.get(2),
            columns: Vec::new(),
            lane_key: None,
        });
        let Some(column) = row.get::<_, Option<String>>(4) else { continue };
        let schema: Option<String> = row.get(9);
        let operator: Option<String> = row.get(10);
        let equality = match (&schema, &operator) {
            (Some(schema), Some(operator)) => {
                sql!("operator({}.{})", Ident(schema), Sql::trusted(operator.as_str()))
            }
            _ => sql!("operator(pg_catalog.=)"),
        };
        if row.get::<_, bool>(12) {
            table.lane_key.get_or_insert_default().push(table.columns.len());
        }
        table.columns.push(Column {
            name: column,
            type_oid: row.get(5),
            type_modifier: row.get(6),
            generated: row.get(7),
            identity_always: row.get(8),
            equality,
            indexable: row.get(11),
            required: row.get(13),
            compared_type_oid: row.get(14),
        });
    }
    Ok(found.into_iter().map(|(name, table)| (name, Arc::new(table))).collect())
}

/// Parts are materialised: on a target whose catalogs nobody has analyzed yet, the server would
/// run them once for each column (minutes for 275 tables).
///
/// One row per column of each table; `lane_key` is true for a column of a key by which lanes may
/// be chosen. Byte-equal types: rules, part 5.
fn catalog_query() -> Sql {
    sql!(
        "with named as (
  select c.oid, n.nspname, c.relname, c.relkind
  from unnest($1::text[], $2::text[]) as w(schema_name, table_name)
  join pg_namespace n on n.nspname = w.schema_name
  join pg_class c on c.relnamespace = n.oid and c.relname = w.table_name
  where c.relkind in ('r', 'p')
), keyed as materialized (
  select i.indrelid, min(i.indexrelid::bigint)::oid as indexrelid
  from named join pg_index i on i.indrelid = named.oid
  where i.indisunique or i.indisexclusion
  group by i.indrelid
  having count(*) = 1
), key as materialized (
  select i.indrelid, i.indkey::int2[] as columns, i.indnkeyatts
  from keyed join pg_index i using (indexrelid)
  join named on named.oid = i.indrelid and named.relkind = 'r'
  where i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null
    and i.indexprs is null
    and not exists (
      select from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) as k(attnum)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
      join pg_type t on t.oid = a.atttypid
      left join pg_type b on b.oid = t.typbasetype
      left join pg_collation l on l.oid = a.attcollation
      where not a.attnotnull
         or not coalesce(l.collisdeterministic, true)
         or not (coalesce(b.typtype, t.typtype) = 'e' or coalesce(b.oid, t.oid) in (
           'bool'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype,
           'uuid'::regtype, 'date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype,
           'bytea'::regtype, 'macaddr'::regtype, 'text'::regtype, 'varchar'::regtype)))
), eq as materialized (
  select distinct on (c.opcintype) c.opcintype, n.nspname, p.oprname
  from pg_opclass c
  join pg_am m on m.oid = c.opcmethod and m.amname = 'btree'
  join pg_amop o on o.amopfamily = c.opcfamily and o.amopstrategy = 3
    and o.amoplefttype = c.opcintype and o.amoprighttype = c.opcintype
  join pg_operator p on p.oid = o.amopopr
  join pg_namespace n on n.oid = p.oprnamespace
  where c.opcdefault
  order by c.opcintype, c.oid
)
select named.nspname::text, named.relname::text, named.relkind = 'p', a.attnum,
  a.attname::text, a.atttypid, a.atttypmod, a.attgenerated <> '', a.attidentity = 'a',
  eq.nspname::text, eq.oprname::text,
  coalesce(coalesce(b.typtype, t.typtype) in ('b', 'e')
    and (eq.oprname is not null or coalesce(b.typtype, t.typtype) = 'e'
         or coalesce(b.oid, t.oid) = 'varchar'::regtype), false),
  coalesce(a.attnum = any((key.columns)[0:key.indnkeyatts - 1]), false),
  a.attnotnull and not a.atthasdef and a.attidentity = '',
  case when coalesce(b.typtype, t.typtype) = 'c'
         or coalesce(b.typtype, t.typtype) = 'b' and eq.oprname is null
            and coalesce(b.typcategory, t.typcategory) <> 'A' then coalesce(b.oid, t.oid) end
from named
left join pg_attribute a on a.attrelid = named.oid and a.attnum > 0 and not a.attisdropped
left join pg_type t on t.oid = a.atttypid
left join pg_type b on b.oid = t.typbasetype
left join key on key.indrelid = named.oid
left join eq on eq.opcintype = coalesce(b.oid, t.oid)
order by named.nspname, named.relname, a.attnum"
    )
}

/// A table of text columns, for tests of the pure parts.
#[cfg(test)]
pub(crate) fn sample(name: &str, columns: &[&str], key: Option<Vec<usize>>) -> Table {
    Table {
        id: 0,
        name: TableName::new("public", name),
        partitioned: false,
        columns: columns
            .iter()
            .map(|column| Column {
                name: (*column).to_owned(),
                type_oid: 25,
                type_modifier: -1,
                generated: false,
                identity_always: false,
                required: false,
                compared_type_oid: None,
                equality: sql!("operator(pg_catalog.=)"),
                indexable: true,
            })
            .collect(),
        lane_key: key,
    }
}
