//! Replica identities as they were before Skein set REPLICA IDENTITY FULL.

use super::error::{Error, Result};
use super::step;
use crate::{migration::context::Context, target};
use pg::{Sql, TableName, sql, sql::Ident};
use serde::{Deserialize, Serialize};

/// A table's replica identity before Skein changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginalIdentity {
    Default,
    Nothing,
    Full,
    /// By this index, in the table's schema.
    Index(String),
}

impl OriginalIdentity {
    /// `alter table only ... replica identity ...`.
    pub fn statement(&self, table: &TableName) -> Sql {
        let identity = match self {
            Self::Default => sql!("default"),
            Self::Nothing => sql!("nothing"),
            Self::Full => sql!("full"),
            Self::Index(index) => sql!("using index {}", Ident(index)),
        };
        sql!("alter table only {} replica identity {}", table, identity)
    }
}

pub(super) const MARK: &str = "schema/replica_identities";

pub(super) async fn restore(
    context: &Context,
    originals: &[(TableName, OriginalIdentity)],
) -> Result<()> {
    let session = step::quiet_session(context, "identity").await?;
    if step::read::<usize>(&session, MARK).await?.is_some() {
        return Ok(());
    }
    let mut statements = sql!("");
    for (table, original) in originals {
        statements.push(original.statement(table)).push(";\n");
    }
    statements.push(step::mark(MARK, &originals.len()));
    match target::fenced(&session, context.epoch, &statements).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Fenced),
        Err(error) => Err(Error::server("restore replica identities on the target")(error)),
    }
}
