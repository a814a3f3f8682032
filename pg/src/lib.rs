//! PostgreSQL vocabulary and protocol, used by coordinator, worker and loadtest.
//!
//! Promise: raw driver calls stand only in this crate; SQL enters a session as [`Sql`], whose
//! parts are quoted; every session pins what changes the text of a value
//! (`session.rs`); error texts hold no row values (`error.rs`).

pub mod connect;
pub mod conninfo;
pub mod copy;
pub mod error;
pub mod pgoutput;
pub mod relation;
pub mod session;
pub mod sql;
pub mod sqlstate;
pub mod stream;
mod tls;
pub mod walsender;

pub use conninfo::Conninfo;
pub use error::{Error, Result};
pub use postgres_types::PgLsn;
pub use relation::TableName;
pub use session::{Session, SessionName, Settings};
pub use sql::Sql;
pub use walsender::Walsender;
