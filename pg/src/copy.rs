//! COPY through a session.
//!
//! ```text
//! source: COPY TO -> CopyOut: bytes of each CopyData ~~> CopyInSink -> COPY FROM :target
//! ```
//! Promise: bytes are passed on as they come; a COPY FROM that is dropped before it is finished
//! keeps nothing; bytes that are no text in the target's encoding are refused.

use crate::{Error, Result, Session, Sql, sql, sql::Literal};
use bytes::Bytes;
use futures::StreamExt as _;
use std::{fmt, pin::Pin};
use tokio_postgres::{CopyInSink, CopyOutStream};

/// Bytes of a `COPY ... TO STDOUT`.
pub struct CopyOut(Pin<Box<CopyOutStream>>);

impl fmt::Debug for CopyOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CopyOut")
    }
}

impl CopyOut {
    /// The next CopyData, or None at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        self.0.next().await.map(|item| item.map_err(Error::from))
    }
}

impl Session {
    /// `COPY ... TO STDOUT`: the bytes of each CopyData.
    pub async fn copy_out(&self, sql: &Sql) -> Result<CopyOut> {
        Ok(CopyOut(Box::pin(self.client().copy_out(sql.as_str()).await?)))
    }

    /// `COPY ... FROM STDIN`: finish the sink, or nothing is kept.
    pub async fn copy_in(&self, sql: &Sql) -> Result<CopyInSink<Bytes>> {
        Ok(self.client().copy_in(sql.as_str()).await?)
    }

    /// [`Session::copy_out`] inside a transaction, whose rows come in `encoding`; names in the
    /// statement are UTF-8 whatever it is.
    pub async fn copy_out_as(&self, sql: &Sql, encoding: &str) -> Result<CopyOut> {
        let statement = self.client().prepare(sql.as_str()).await?;
        self.switch_encoding(encoding).await?;
        Ok(CopyOut(Box::pin(self.client().copy_out(&statement).await?)))
    }

    /// [`Session::copy_in`] inside a transaction, whose rows are in `encoding`; names in the
    /// statement are UTF-8 whatever it is.
    ///
    /// Bytes of no known encoding (SQL_ASCII) are checked against the server's own: under
    /// client_encoding SQL_ASCII a text COPY lets anything into a UTF-8 database (15.20; every
    /// other way in is checked).
    pub async fn copy_in_as(&self, sql: &Sql, encoding: &str) -> Result<CopyInSink<Bytes>> {
        let statement = self.client().prepare(sql.as_str()).await?;
        if encoding.eq_ignore_ascii_case("SQL_ASCII") {
            let as_server = sql!(
                "select set_config('client_encoding', current_setting('server_encoding'), true)"
            );
            self.batch(&as_server).await?;
        } else {
            self.switch_encoding(encoding).await?;
        }
        Ok(self.client().copy_in(&statement).await?)
    }

    /// `client_encoding` until the transaction ends.
    async fn switch_encoding(&self, encoding: &str) -> Result<()> {
        if encoding.is_empty() || encoding.eq_ignore_ascii_case("UTF8") {
            return Ok(());
        }
        self.batch(&sql!("set local client_encoding = {}", Literal(encoding))).await
    }
}
