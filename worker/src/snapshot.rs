//! Imports an exported snapshot.
//!
//! In: a session without a transaction, names. Out: a read-only transaction under the first
//! name that lives. Promise: never a transaction under a snapshot of its own.

use pg::{Result, Session, sql, sql::Literal};

/// Begins a transaction under the first of `names` that can be imported. False: none lives,
/// and no transaction is open.
pub(crate) async fn import(session: &Session, names: &[String]) -> Result<bool> {
    for name in names {
        let begun = session
            .batch(&sql!(
                "begin isolation level repeatable read read only; set transaction snapshot {};",
                Literal(name)
            ))
            .await;
        match begun {
            Ok(()) => return Ok(true),
            Err(error) if is_dead(&error) => session.batch(&sql!("rollback")).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// What the server says of a name whose exporter is gone, or that never was: 22023, 42704 or
/// 58P01 by version (no such file), 55000 (its process or transaction is gone).
fn is_dead(error: &pg::Error) -> bool {
    matches!(error.sqlstate(), Some("22023" | "42704" | "55000" | "58P01"))
}
