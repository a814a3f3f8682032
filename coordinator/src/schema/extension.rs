//! Configuration tables of extensions: their rows are data, their definition is not.

use super::error::{Error, Result};
use pg::{Session, TableName, sql};

/// A relation that an extension marked with `pg_extension_config_dump`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigTable {
    pub relid: u32,
    pub name: TableName,
    /// `WHERE ...` of the extension, empty for all rows.
    pub condition: String,
    /// A sequence: its value is carried over, not rows.
    pub sequence: bool,
}

/// The configuration tables and sequences of all extensions.
///
/// # Errors
/// When the source does not answer.
pub async fn extension_config_tables(source: &Session) -> Result<Vec<ConfigTable>> {
    let rows = source
        .query(
            &sql!(
                "select c.oid, n.nspname, c.relname, e.extcondition[i.i], c.relkind = 'S'
                 from pg_extension e
                 cross join lateral generate_subscripts(e.extconfig, 1) as i(i)
                 join pg_class c on c.oid = e.extconfig[i.i]
                 join pg_namespace n on n.oid = c.relnamespace
                 order by n.nspname, c.relname"
            ),
            &[],
        )
        .await
        .map_err(Error::server("read the extensions of the source"))?;
    let table = |row: &tokio_postgres::Row| ConfigTable {
        relid: row.get(0),
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        condition: row.get::<_, Option<String>>(3).unwrap_or_default(),
        sequence: row.get(4),
    };
    Ok(rows.iter().map(table).collect())
}
