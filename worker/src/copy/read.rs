//! The source's side of a chunk.
//!
//! ```text
//! import snapshot -> lock table -> same relation, same file? -> COPY TO -> frames of 128 KiB
//! ```
//! Promise: a chunk is read under the planned snapshot from the planned relation's planned
//! file, or not at all (rules, part 1); the lock is held until the last byte is read; bytes are
//! passed on unchanged, and only `READ_AHEAD_BYTES` of them wait for the target.

use crate::{
    error::{Error, Result},
    failpoint,
    lease::Lease,
    rate::Rate,
    snapshot,
    task::{Blocks, Copy, Task},
};
use bytes::{Bytes, BytesMut};
use pg::{
    Session, Sql,
    copy::CopyOut,
    sql,
    sql::{Idents, Literal},
};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_postgres::SimpleQueryMessage;

/// Rows are gathered to frames of at least this; the server sends one frame a row, and a frame
/// a row costs twice the time (`crates.md`: 109 against 150 MB/s).
const GATHER_BYTES: usize = 128 << 10;
/// Bytes read and not yet taken by the target, per slot. A larger row passes alone.
pub(super) const READ_AHEAD_BYTES: u32 = 8 << 20;

/// Bytes on their way to the target, and their share of the read-ahead.
pub(super) struct Frame<'a> {
    pub(super) bytes: Bytes,
    _share: SemaphorePermit<'a>,
}

/// Opens the chunk's stream under the checks above.
pub(super) async fn open(source: &Session, task: &Task, copy: &Copy) -> Result<CopyOut> {
    let read_error = |source| Error::Read { table: copy.source_table.clone(), source };
    if !snapshot::import(source, &copy.snapshots).await.map_err(read_error)? {
        return Err(Error::SnapshotLost);
    }
    lock(source, copy).await?;
    source.copy_out_as(&statement(copy), &task.client_encoding).await.map_err(read_error)
}

/// Locks the table and checks that it is the planned one.
async fn lock(source: &Session, copy: &Copy) -> Result<()> {
    let name = copy.source_table.to_string();
    // Both functions look at the present, not at the snapshot (rules, part 1).
    let lock_and_check = sql!(
        "set local lock_timeout = '2s'; lock table only {} in access share mode; \
         select coalesce(to_regclass({})::oid::int8, 0), \
         coalesce(pg_relation_filenode({}::oid)::int8, 0)",
        copy.source_table,
        Literal(&name),
        copy.source_oid
    );
    let table = || copy.source_table.clone();
    let answer = match source.simple(&lock_and_check).await {
        Ok(answer) => answer,
        Err(source) => {
            return Err(match source.sqlstate() {
                // No such table, no such schema, not a table.
                Some("42P01" | "3F000" | "42809") => Error::Replaced { table: table() },
                Some("55P03") => Error::Lock { table: table(), source },
                _ => Error::Read { table: table(), source },
            });
        }
    };
    let found = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((number(row.get(0)), number(row.get(1)))),
        _ => None,
    });
    match found {
        Some((Some(oid), Some(filenode))) if oid == copy.source_oid => {
            if filenode == copy.filenode {
                Ok(())
            } else {
                Err(Error::Rewritten { table: table() })
            }
        }
        _ => Err(Error::Replaced { table: table() }),
    }
}

fn number(text: Option<&str>) -> Option<u32> {
    text.and_then(|text| text.parse().ok())
}

/// `copy (select ...) to stdout`.
fn statement(copy: &Copy) -> Sql {
    let mut select = sql!("copy (select {} from only {}", Idents(&copy.columns), copy.source_table);
    let range = range(copy.blocks);
    let condition = copy.condition.trim();
    match (range, condition) {
        (None, "") => {}
        // As pg_dump does with an extension's condition, WHERE and all.
        (None, condition) => {
            select.push(" ").push(with_where(condition));
        }
        (Some(range), "") => {
            select.push(" where ").push(range);
        }
        (Some(range), condition) => {
            let condition = Sql::trusted(without_where(condition));
            select.push(sql!(" where {} and ({})", range, condition));
        }
    }
    select.push(") to stdout");
    if is_binary(copy) {
        select.push(" (format binary)");
    }
    select
}

/// A row without columns is an empty line in text, which both sides understand.
pub(super) fn is_binary(copy: &Copy) -> bool {
    copy.binary && !copy.columns.is_empty()
}

fn range(blocks: Blocks) -> Option<Sql> {
    let first = (blocks.first > 0).then(|| sql!("ctid >= {}", tid(blocks.first)));
    let end = blocks.end.map(|end| sql!("ctid < {}", tid(end)));
    match (first, end) {
        (None, None) => None,
        (Some(bound), None) | (None, Some(bound)) => Some(bound),
        (Some(first), Some(end)) => Some(sql!("{} and {}", first, end)),
    }
}

fn tid(block: u64) -> Sql {
    sql!("'({},0)'::tid", block)
}

fn without_where(condition: &str) -> &str {
    match condition.get(..5) {
        Some(word) if word.eq_ignore_ascii_case("where") => condition[5..].trim_start(),
        _ => condition,
    }
}

fn with_where(condition: &str) -> Sql {
    sql!("where {}", Sql::trusted(without_where(condition)))
}

/// Passes the stream on in larger frames, within the byte budget.
pub(super) async fn forward<'a>(
    mut stream: CopyOut,
    frames: mpsc::Sender<Frame<'a>>,
    read_ahead: &'a Semaphore,
    lease: &Lease,
    rate: &Rate,
) -> Result<(), ForwardError> {
    let mut gathered = BytesMut::with_capacity(2 * GATHER_BYTES);
    let send = async |bytes: Bytes| {
        rate.take(bytes.len()).await;
        let share = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(READ_AHEAD_BYTES);
        let share = read_ahead.acquire_many(share).await;
        let share = share.expect("the semaphore is never closed");
        if frames.send(Frame { bytes, _share: share }).await.is_err() {
            // The writer failed, and says why.
            std::future::pending::<()>().await;
        }
        failpoint::reach(failpoint::MID_COPY).await.map_err(ForwardError::Failpoint)
    };
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(ForwardError::Source)?;
        lease.read(bytes.len());
        if bytes.len() < GATHER_BYTES {
            gathered.extend_from_slice(&bytes);
        }
        if gathered.len() >= GATHER_BYTES || (bytes.len() >= GATHER_BYTES && !gathered.is_empty()) {
            let next = BytesMut::with_capacity(2 * GATHER_BYTES);
            send(std::mem::replace(&mut gathered, next).freeze()).await?;
        }
        if bytes.len() >= GATHER_BYTES {
            send(bytes).await?;
        }
    }
    if !gathered.is_empty() {
        send(gathered.freeze()).await?;
    }
    Ok(())
}

/// Why the stream did not reach its end.
#[derive(Debug)]
pub(super) enum ForwardError {
    Source(pg::Error),
    Failpoint(Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg::TableName;

    fn copy(first: u64, end: Option<u64>, condition: &str) -> Copy {
        Copy {
            source_table: TableName::new("public", "T\"1"),
            target_table: TableName::new("public", "t"),
            source_oid: 1,
            filenode: 1,
            columns: vec!["a".to_owned(), "B c".to_owned()],
            binary: true,
            blocks: Blocks { first, end },
            snapshots: Vec::new(),
            condition: condition.to_owned(),
        }
    }

    #[test]
    fn the_last_range_is_open_and_a_whole_table_has_none() {
        assert_eq!(
            statement(&copy(0, None, "")).as_str(),
            r#"copy (select "a", "B c" from only "public"."T""1") to stdout (format binary)"#
        );
        assert!(statement(&copy(7, None, "")).as_str().contains("where ctid >= '(7,0)'::tid)"));
        assert!(
            statement(&copy(7, Some(9), ""))
                .as_str()
                .contains("where ctid >= '(7,0)'::tid and ctid < '(9,0)'::tid)")
        );
    }

    #[test]
    fn an_extensions_condition_is_kept_with_or_without_a_range() {
        assert!(statement(&copy(0, None, "WHERE x > 1")).as_str().contains(" where x > 1)"));
        assert!(
            statement(&copy(7, None, "where x > 1 or y"))
                .as_str()
                .contains("where ctid >= '(7,0)'::tid and (x > 1 or y))")
        );
    }

    #[test]
    fn a_table_without_columns_is_copied_as_text() {
        let mut copy = copy(0, None, "");
        copy.columns.clear();
        assert_eq!(
            statement(&copy).as_str(),
            r#"copy (select  from only "public"."T""1") to stdout"#
        );
    }
}
