//! Names of relations.

use crate::sql::{Fragment, quote_ident};
use std::fmt;

/// Schema and name of a table, unquoted. Prints quoted, as SQL takes it.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

impl Fragment for TableName {
    fn render(&self, out: &mut String) {
        out.push_str(&self.to_string());
    }
}
