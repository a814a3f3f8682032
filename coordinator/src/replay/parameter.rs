//! A parameter of a statement: a value's text.
//!
//! Promise: the server's input function of the parameter's own type reads it; `Debug` prints nothing.

use bytes::{Bytes, BytesMut};
use std::{error::Error as StdError, fmt};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

/// A value as text, whatever the parameter's type.
pub(super) struct Text(pub(super) Option<Bytes>);

/// The driver prints parameters at `debug`.
impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

impl ToSql for Text {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}
