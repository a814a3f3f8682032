//! The target's side of a chunk.
//!
//! In: frames in order. Out: rows written. Promise: the COPY is finished only after the last
//! frame; dropped before, it fails on the server and nothing is kept.

use super::read::{Frame, is_binary};
use crate::task::{Copy, Task};
use bytes::Bytes;
use futures::SinkExt as _;
use pg::{Result, Session, Sql, sql, sql::Idents};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_postgres::CopyInSink;

/// A COPY under way on the target.
pub(super) type Sink = Pin<Box<CopyInSink<Bytes>>>;

/// Begins the COPY.
pub(super) async fn open(target: &Session, task: &Task, copy: &Copy) -> Result<Sink> {
    Ok(Box::pin(target.copy_in_as(&statement(copy), &task.client_encoding).await?))
}

/// `copy ... from stdin`.
fn statement(copy: &Copy) -> Sql {
    let mut statement = sql!("copy {}", copy.target_table);
    if !copy.columns.is_empty() {
        statement.push(sql!(" ({})", Idents(&copy.columns)));
    }
    statement.push(" from stdin");
    if is_binary(copy) {
        statement.push(" (format binary)");
    }
    statement
}

/// Writes every frame; rows as the server counted them.
pub(super) async fn forward(mut sink: Sink, mut frames: mpsc::Receiver<Frame<'_>>) -> Result<u64> {
    while let Some(Frame { bytes, .. }) = frames.recv().await {
        sink.feed(bytes).await?;
    }
    Ok(sink.as_mut().finish().await?)
}
