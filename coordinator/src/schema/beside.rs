//! What the archive needs from the source's catalogs beside it.

use super::error::{Error, Result};
use pg::{Session, TableName, sql};
use serde::{Deserialize, Serialize};

/// A leaf partition's foreign key, child of one on a partitioned table. Before 18 a server takes
/// NOT VALID only on the leaves; the root's key, added when theirs are valid, adopts them without
/// reading a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafKey {
    /// OID of the constraint on the partitioned table.
    pub root: u32,
    pub relid: u32,
    pub table: TableName,
    pub name: String,
    /// `FOREIGN KEY (...) REFERENCES ...`, as the server prints it.
    pub definition: String,
}

/// Foreign keys of leaf partitions.
pub(super) async fn leaf_keys(source: &Session) -> Result<Vec<LeafKey>> {
    // Where the other side is partitioned, too, a key has further rows, on the same table.
    let rows = source
        .query(
            &sql!(
                "with recursive key as (
                   select c.oid, c.oid as root, c.conrelid, c.conname from pg_constraint c
                   join pg_class r on r.oid = c.conrelid
                   where c.contype = 'f' and c.conparentid = 0 and c.convalidated
                     and r.relkind = 'p'
                   union all
                   select c.oid, k.root, c.conrelid, c.conname from key k
                   join pg_constraint c on c.conparentid = k.oid and c.contype = 'f'
                     and c.conrelid <> k.conrelid
                 )
                 select k.root, r.oid, n.nspname, r.relname, k.conname, pg_get_constraintdef(k.oid)
                 from key k join pg_class r on r.oid = k.conrelid and r.relkind = 'r'
                 join pg_namespace n on n.oid = r.relnamespace
                 order by k.root, r.oid"
            ),
            &[],
        )
        .await
        .map_err(Error::server("read foreign keys of partitions"))?;
    let key = |row: &tokio_postgres::Row| LeafKey {
        root: row.get(0),
        relid: row.get(1),
        table: TableName::new(row.get::<_, String>(2), row.get::<_, String>(3)),
        name: row.get(4),
        definition: row.get(5),
    };
    Ok(rows.iter().map(key).collect())
}

/// Relations whose names hold new lines: the archive's comments print blanks instead.
pub(super) async fn odd_names(source: &Session) -> Result<Vec<(u32, TableName)>> {
    let rows = source
        .query(
            &sql!(
                "select c.oid, n.nspname, c.relname from pg_class c
                 join pg_namespace n on n.oid = c.relnamespace
                 where c.relname ~ '[\\n\\r]' or n.nspname ~ '[\\n\\r]'"
            ),
            &[],
        )
        .await
        .map_err(Error::server("read odd names"))?;
    let name = |row: &tokio_postgres::Row| {
        (row.get(0), TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)))
    };
    Ok(rows.iter().map(name).collect())
}

/// PostgreSQL 15 took CREATE on schema public from PUBLIC; pg_dump does not carry a server's own
/// defaults over.
pub(super) async fn public_create(source: &Session, target: &Session) -> Result<Option<String>> {
    let granted = async |session: &Session| {
        let row = session
            .query_one(
                &sql!(
                    "select exists (select from pg_namespace n,
                       aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
                     where n.nspname = 'public' and a.grantee = 0
                       and a.privilege_type = 'CREATE')"
                ),
                &[],
            )
            .await
            .map_err(Error::server("read the grants on schema public"))?;
        Ok::<bool, Error>(row.get(0))
    };
    let lost = granted(source).await? && !granted(target).await?;
    Ok(lost.then(|| {
        "CREATE on schema public for PUBLIC, which 15 and later do not give by default; where it \
         is used: grant create on schema public to public;"
            .to_owned()
    }))
}
