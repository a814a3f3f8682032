//! Rows that the stream does not carry: unlogged tables, and configuration tables of extensions.
//!
//! In: the plan in the target. Out: the same rows on both ends. Promise: copied anew behind the fence,
//! each table in one target transaction behind the epoch's fence row, so that a kill leaves the
//! old rows or the new ones.

use crate::{migration::context::Context, plan::Leaf, target};
use bytes::{Bytes, BytesMut};
use futures::SinkExt as _;
use pg::{Error, Result, Session, Sql, TableName, sql, sql::Idents};
use std::{collections::BTreeSet, pin::pin};

/// COPY data is handed on in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

/// Copies again what the plan has and the stream does not carry. `Ok(false)`: fenced.
///
/// # Errors
/// What either server refused.
pub async fn copy(context: &Context) -> Result<bool> {
    let target = context.target_session("unlogged", 0).await?;
    let rows = target
        .query(
            &sql!(
                "select plan::text from skein.relation
 where (plan->>'unlogged')::boolean or plan->>'condition' is not null
    or (plan->>'through_root')::boolean order by relid"
            ),
            &[],
        )
        .await?;
    let mut leaves: Vec<Leaf> = Vec::new();
    for row in rows {
        let leaf: Leaf = serde_json::from_str(row.get(0))
            .map_err(|error| Error::Result(format!("plan of a table: {error}")))?;
        leaves.push(leaf);
    }
    let (leaves, streamed): (Vec<Leaf>, Vec<Leaf>) =
        leaves.into_iter().partition(|leaf| leaf.unlogged || leaf.condition.is_some());
    let roots: BTreeSet<&TableName> =
        leaves.iter().filter(|leaf| leaf.through_root).map(|leaf| &leaf.target).collect();
    if let Some(leaf) = streamed.iter().find(|leaf| roots.contains(&leaf.target)) {
        return Err(Error::Result(format!(
            "{} has logged and unlogged partitions by hash of an enum, whose rows cannot be told \
             apart on the target",
            leaf.target
        )));
    }
    for root in roots {
        let statement = sql!("delete from {}", root);
        if !crate::target::fenced(&target, context.epoch, &statement).await? {
            return Ok(false);
        }
    }
    for leaf in &leaves {
        if !copy_one(context, leaf).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn copy_one(context: &Context, leaf: &Leaf) -> Result<bool> {
    let source = context.source_session("unlogged", leaf.relid).await?;
    let target = context.target_session("unlogged", leaf.relid).await?;
    let condition = match &leaf.condition {
        Some(condition) => Sql::trusted(format!(" where {condition}")),
        None => Sql::from(""),
    };
    target.batch(&sql!("begin")).await?;
    if target.query_opt(&target::fence(context.epoch), &[]).await?.is_none() {
        return Ok(false);
    }
    // Rows through a root: it was emptied before the first of its leaves.
    if !leaf.through_root {
        target.batch(&sql!("delete from only {}{}", leaf.target, condition)).await?;
    }
    copy_rows(context, (&source, &target), leaf, &condition).await?;
    target.batch(&sql!("commit")).await?;
    Ok(true)
}

/// Streams a table's rows as text; how many.
///
/// # Errors
/// What either server refused.
pub async fn copy_rows(
    context: &Context,
    (source, target): (&Session, &Session),
    leaf: &Leaf,
    condition: &Sql,
) -> Result<u64> {
    let columns = Idents(&leaf.columns);
    source.batch(&sql!("begin")).await?;
    let out = sql!("copy (select {} from only {}{}) to stdout", columns, leaf.source, condition);
    let mut rows = source.copy_out_as(&out, &context.source_encoding).await?;
    // A table without columns: `copy t () from stdin` is no syntax, `copy t from stdin` is.
    let list = if leaf.columns.is_empty() { Sql::from("") } else { sql!("({})", columns) };
    let into = sql!("copy {} {} from stdin", leaf.target, list);
    let mut sink = pin!(target.copy_in_as(&into, &context.source_encoding).await?);
    let mut piece = BytesMut::new();
    while let Some(row) = rows.next().await {
        piece.extend_from_slice(&row?);
        if piece.len() >= PIECE_BYTES {
            sink.send(piece.split().freeze()).await.map_err(Error::from)?;
        }
    }
    let rest: Bytes = piece.freeze();
    sink.send(rest).await.map_err(Error::from)?;
    sink.finish().await.map_err(Error::from)
}
