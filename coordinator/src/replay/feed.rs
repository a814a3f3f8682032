//! Where replay reads: durable, committed transactions in commit order.
//!
//! The spool is one; a test may bring another. `next` waits; what it returns is never taken back.

use super::error::{Error, Result};
use bytes::Bytes;
use pg::PgLsn;
use std::future::Future;
use tokio::sync::mpsc;

/// One message, plain pgoutput of protocol 1.
#[derive(Clone, Debug)]
pub enum Item {
    Relation(Bytes),
    Type(Bytes),
    Begin(Begin),
    Change(Bytes),
    Commit {
        end_lsn: PgLsn,
    },
    /// Everything that ends at or before it was given.
    Position(PgLsn),
}

/// A transaction begins; it is committed on the source.
#[derive(Clone, Copy, Debug)]
pub struct Begin {
    pub xid: u32,
    pub end_lsn: PgLsn,
    pub commit_lsn: PgLsn,
    /// Microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
}

/// Gives readers and takes back what was applied.
pub trait Feed: Send + Sync + 'static {
    type Reader: Reader;
    /// Transactions with `end_lsn > after`, and every Relation message they need.
    ///
    /// # Errors
    /// When what lies behind `after` is not there.
    fn reader(&self, after: PgLsn) -> Result<Self::Reader>;
    /// Everything that ends at or before `applied` is durable on the target.
    fn release(&self, applied: PgLsn);
}

/// Reads on from one place.
pub trait Reader: Send + 'static {
    /// Waits for the next item.
    fn next(&mut self) -> impl Future<Output = Result<Item>> + Send;
}

/// Bytes gathered while the dispatcher is busy.
const CHUNK_BYTES: usize = 1024 * 1024;

impl Item {
    fn size_bytes(&self) -> usize {
        64 + match self {
            Self::Relation(bytes) | Self::Type(bytes) | Self::Change(bytes) => bytes.len(),
            Self::Begin(_) | Self::Commit { .. } | Self::Position(_) => 0,
        }
    }
}

/// Reads ahead: gathers items while the dispatcher is busy, and hands them over at once when it
/// is not. Ends with the dispatcher.
pub(super) async fn read_ahead(
    mut reader: impl Reader,
    chunks: mpsc::Sender<Vec<Item>>,
) -> Result<()> {
    loop {
        let first = reader.next().await?;
        let mut size_bytes = first.size_bytes();
        let mut chunk = vec![first];
        let sender = loop {
            if size_bytes >= CHUNK_BYTES {
                break chunks.reserve().await;
            }
            let mut next = std::pin::pin!(reader.next());
            // 1 hand over   2 gather
            tokio::select! { biased;
                sender = chunks.reserve() => {
                    let Ok(sender) = sender else { return Err(Error::Lost("dispatcher")) };
                    sender.send(std::mem::take(&mut chunk));
                    let item = next.await?;
                    size_bytes = item.size_bytes();
                    chunk.push(item);
                }
                item = &mut next => {
                    let item = item?;
                    size_bytes += item.size_bytes();
                    chunk.push(item);
                }
            }
        };
        sender.map_err(|_| Error::Lost("dispatcher"))?.send(chunk);
    }
}
