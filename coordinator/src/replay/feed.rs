//! Reads the spool ahead of the dispatcher.
//!
//! Promise: items are gathered while the dispatcher is busy, and handed over at once when it is
//! not; no more is held than two chunks and one item.

use super::{
    error::{Error, Result},
    spool::{self, Item, Reader},
};
use proto::status::Classify as _;
use tokio::sync::mpsc;

/// Bytes gathered while the dispatcher is busy.
const CHUNK_BYTES: usize = 1024 * 1024;

/// What an item holds besides its message.
const ITEM_BYTES: usize = 64;

fn size_bytes(item: &Item) -> usize {
    ITEM_BYTES
        + match item {
            Item::Relation(bytes) | Item::Type(bytes) | Item::Change(bytes) => bytes.len(),
            Item::Begin(_) | Item::Commit { .. } | Item::Position(_) => 0,
        }
}

fn unreadable(error: spool::Error) -> Error {
    Error::Spool { class: error.class(), source: Box::new(error) }
}

/// Ends with the dispatcher.
pub(super) async fn read_ahead(mut reader: Reader, chunks: mpsc::Sender<Vec<Item>>) -> Result<()> {
    loop {
        let first = reader.next().await.map_err(unreadable)?;
        let mut bytes = size_bytes(&first);
        let mut chunk = vec![first];
        while bytes < CHUNK_BYTES {
            // 1 hand over   2 gather
            tokio::select! { biased;
                sender = chunks.reserve() => {
                    sender.map_err(|_| Error::Lost("dispatcher"))?.send(std::mem::take(&mut chunk));
                    break;
                }
                item = reader.next() => {
                    let item = item.map_err(unreadable)?;
                    bytes += size_bytes(&item);
                    chunk.push(item);
                }
            }
        }
        if !chunk.is_empty() {
            chunks.send(chunk).await.map_err(|_| Error::Lost("dispatcher"))?;
        }
    }
}
