//! Reads the identity of every table by set queries: no query per table.
//!
//! In: a session on the source, the filter. Out: [`TableIdentity`] of each table that the
//! filter takes, and of the other tables of a partition tree it takes a part of. Promise: three
//! queries whatever the number of tables.

use super::{Generated, Index, Persistence, Setting, TableIdentity, identity_of};
use crate::{filter::Filter, source::Error};
use pg::{Result, Session, TableName, sql, sql::Sql};
use std::collections::{HashMap, HashSet};

/// Tables that the filter takes, but for members of extensions, ordered by OID. Partitions
/// beside them are not in it; see [`Survey`].
#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub tables: Vec<TableIdentity>,
    /// Roots with a partition that the filter leaves out: published whole, they would carry it.
    pub partly_taken_roots: HashSet<u32>,
}

impl Survey {
    /// One table by its OID.
    pub fn table(&self, oid: u32) -> Option<&TableIdentity> {
        let at = self.tables.binary_search_by_key(&oid, |table| table.oid).ok()?;
        self.tables.get(at)
    }
}

/// Identity of every table that the filter takes.
///
/// # Errors
/// When the catalogs cannot be read.
pub async fn survey(session: &Session, filter: &Filter) -> Result<Survey, Error> {
    let read = async {
        let mut indexes = read_indexes(session).await?;
        let mut generated = read_generated(session).await?;
        let rows = session.query(&tables(), &[]).await?;
        let mut survey = Survey::default();
        for row in rows {
            let oid: u32 = row.try_get(0)?;
            let table = TableName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?);
            let root: Option<u32> = row.try_get(6)?;
            if !filter.matches_table(&table) {
                survey.partly_taken_roots.extend(root);
                continue;
            }
            let indexes = indexes.remove(&oid).unwrap_or_default();
            let generated = generated.remove(&oid).unwrap_or_default();
            let relkind = letter(row.try_get(3)?);
            let setting = setting_of(row.try_get(5)?);
            let (identity, generated_in_identity) =
                identity_of(setting, &indexes, &generated, session.major());
            survey.tables.push(TableIdentity {
                oid,
                table,
                relkind,
                is_leaf: relkind != 'p',
                root,
                inherits: row.try_get(7)?,
                persistence: persistence_of(row.try_get(4)?),
                setting,
                identity,
                has_immediate_primary_key: indexes
                    .iter()
                    .any(|i| i.is_primary && i.is_immediate && i.is_valid),
                marked_index: indexes.iter().find(|i| i.is_marked).map(|i| i.name.clone()),
                candidate_index: indexes
                    .iter()
                    .find(|i| i.is_usable() && i.generated_columns.is_empty())
                    .map(|i| i.name.clone()),
                generated,
                generated_in_identity,
            });
        }
        Ok(survey)
    };
    read.await.map_err(Error::read("the replica identities"))
}

/// `root`: the topmost partitioned table, for itself and everything under it. Extensions' own
/// tables come with the extension.
fn tables() -> Sql {
    sql!(
        "with recursive tree (relid, root) as (
           select oid, oid from pg_class where relkind = 'p' and not relispartition
           union all
           select i.inhrelid, tree.root
             from tree join pg_inherits i on i.inhparent = tree.relid
         ), parents (relid, parents) as (
           select i.inhrelid, array_agg(i.inhparent order by i.inhseqno)
             from pg_inherits i join pg_class p on p.oid = i.inhparent
            where p.relkind = 'r'
            group by 1
         )
         select c.oid, n.nspname::text, c.relname::text, c.relkind::text,
                c.relpersistence::text, c.relreplident::text, tree.root,
                coalesce(parents.parents, '{}')
           from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
           left join tree on tree.relid = c.oid
           left join parents on parents.relid = c.oid
          where c.relkind in ('r', 'p')
            and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
            and not exists (select from pg_depend d
                             where d.classid = 'pg_class'::regclass and d.objid = c.oid
                               and d.deptype = 'e')
          order by c.oid"
    )
}

async fn read_indexes(session: &Session) -> Result<HashMap<u32, Vec<Index>>> {
    let statement = sql!(
        "select i.indrelid, ic.relname::text, i.indisprimary, i.indisreplident, i.indisunique,
                i.indimmediate, i.indisvalid and i.indislive, i.indpred is not null,
                i.indexprs is not null, k.names, k.nullable, k.generated
           from pg_index i
           join pg_class ic on ic.oid = i.indexrelid
           join pg_class c on c.oid = i.indrelid
           cross join lateral (
             select coalesce(array_agg(a.attname::text order by k.n), '{}') as names,
                    coalesce(array_agg(a.attname::text) filter (where not a.attnotnull), '{}')
                      as nullable,
                    coalesce(array_agg(a.attname::text) filter (where a.attgenerated <> ''),
                             '{}') as generated
               from unnest(i.indkey::int2[]) with ordinality as k (attnum, n)
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
              where k.n <= i.indnkeyatts) k
          where (i.indisunique or i.indisprimary or i.indisreplident)
            and i.indrelid >= 16384 and c.relkind in ('r', 'p')
          order by i.indexrelid"
    );
    let mut indexes: HashMap<u32, Vec<Index>> = HashMap::new();
    for row in session.query(&statement, &[]).await? {
        indexes.entry(row.try_get(0)?).or_default().push(Index {
            name: row.try_get(1)?,
            is_primary: row.try_get(2)?,
            is_marked: row.try_get(3)?,
            is_unique: row.try_get(4)?,
            is_immediate: row.try_get(5)?,
            is_valid: row.try_get(6)?,
            is_partial: row.try_get(7)?,
            has_expression: row.try_get(8)?,
            key_columns: row.try_get(9)?,
            nullable_columns: row.try_get(10)?,
            generated_columns: row.try_get(11)?,
        });
    }
    Ok(indexes)
}

async fn read_generated(session: &Session) -> Result<HashMap<u32, Generated>> {
    let statement = sql!(
        "select attrelid, attname::text, attgenerated::text from pg_attribute
          where attgenerated <> '' and not attisdropped and attrelid >= 16384 order by 1, attnum"
    );
    let mut generated: HashMap<u32, Generated> = HashMap::new();
    for row in session.query(&statement, &[]).await? {
        let columns = generated.entry(row.try_get(0)?).or_default();
        let name = row.try_get(1)?;
        match row.try_get(2)? {
            "v" => columns.virtuals.push(name),
            _ => columns.stored.push(name),
        }
    }
    Ok(generated)
}

fn letter(text: &str) -> char {
    text.chars().next().unwrap_or(' ')
}

fn persistence_of(text: &str) -> Persistence {
    match text {
        "u" => Persistence::Unlogged,
        "t" => Persistence::Temporary,
        _ => Persistence::Permanent,
    }
}

pub(super) fn setting_of(text: &str) -> Setting {
    match text {
        "n" => Setting::Nothing,
        "f" => Setting::Full,
        "i" => Setting::Index,
        _ => Setting::Default,
    }
}
