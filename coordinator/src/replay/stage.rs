//! Staging tables and COPY: many rows in one statement.
//!
//! In: keys and values. Out: a temporary table that holds them, named `k0, k1, ... v0, v1, ...`.
//! Promise: it takes type, modifier and collation of the target's columns and no constraint; it is
//! empty before it is filled, and emptied by COMMIT.

use super::{
    copy_text,
    row::{Row, Value},
    table::Table,
};
use bytes::BytesMut;
use futures::SinkExt as _;
use pg::{Result, Session, Sql, sql, sql::Ident};
use std::{
    collections::{HashMap, HashSet},
    pin::pin,
};

/// Staging tables kept per session: a COMMIT empties each of them, used or not.
const STAGE_LIMIT: usize = 64;

/// COPY data is sent in pieces of this size.
const COPY_PIECE_BYTES: usize = 128 * 1024;

/// The target's table, key columns, value columns.
type Shape = (u32, Vec<usize>, Vec<usize>);

/// Staging tables of one session.
#[derive(Debug, Default)]
pub struct Stages {
    names: HashMap<Shape, String>,
    /// Made in the transaction under way: gone if it is rolled back.
    new: Vec<Shape>,
    /// Filled in the transaction under way.
    filled: HashSet<Shape>,
    count: u32,
}

impl Stages {
    /// The transaction ended: staging tables made in it stand, or are gone with it.
    ///
    /// # Errors
    /// When too many stood and could not be dropped.
    pub async fn ended(&mut self, session: &Session, committed: bool) -> Result<()> {
        for shape in self.new.drain(..) {
            if !committed {
                self.names.remove(&shape);
            }
        }
        self.filled.clear();
        if self.names.len() > STAGE_LIMIT {
            session.batch(&sql!("discard temp")).await?;
            self.names.clear();
        }
        Ok(())
    }

    /// Fills one with key and value columns of `rows`; its name.
    ///
    /// # Errors
    /// What the server refused: a value, a privilege.
    pub async fn fill(
        &mut self,
        session: &Session,
        table: &Table,
        [key, set]: [&[usize]; 2],
        rows: &[Row],
    ) -> Result<String> {
        let shape: Shape = (table.id, key.to_vec(), set.to_vec());
        let name = match self.names.get(&shape) {
            Some(name) => {
                if self.filled.contains(&shape) {
                    session.batch(&sql!("truncate pg_temp.{}", Ident(name))).await?;
                }
                name.clone()
            }
            None => self.make(session, table, &shape).await?,
        };
        self.filled.insert(shape);
        let sql = sql!("copy pg_temp.{} from stdin", Ident(&name));
        let values = rows.iter().map(|row| key.iter().chain(set).map(|&at| &row[at]));
        copy(session, &sql, values).await?;
        Ok(name)
    }

    /// `create table as` keeps type, modifier and collation and takes no constraint.
    async fn make(&mut self, session: &Session, table: &Table, shape: &Shape) -> Result<String> {
        self.count += 1;
        let name = format!("skein_stage_{}", self.count);
        let keys = shape.1.iter().enumerate().map(|(i, at)| (key_column(i), *at));
        let values = shape.2.iter().enumerate().map(|(i, at)| (value_column(i), *at));
        let columns =
            keys.chain(values).map(|(name, at)| sql!("{} as {}", table.ident(at), Ident(&name)));
        let sql = sql!(
            "create temporary table {} on commit delete rows as select {} from {} with no data",
            Ident(&name),
            Sql::join(columns, ", "),
            table.only()
        );
        session.batch(&sql).await?;
        self.names.insert(shape.clone(), name.clone());
        self.new.push(shape.clone());
        Ok(name)
    }
}

pub(super) fn key_column(i: usize) -> String {
    format!("k{i}")
}

pub(super) fn value_column(i: usize) -> String {
    format!("v{i}")
}

/// `t.key = s.k0 and ...`.
pub(super) fn joined(table: &Table, key: &[usize]) -> Sql {
    let equal = key.iter().enumerate().map(|(i, &at)| {
        let equality = &table.columns[at].equality;
        sql!("t.{} {} s.{}", table.ident(at), equality, Ident(&key_column(i)))
    });
    Sql::join(equal, " and ")
}

/// Rows that the server took.
///
/// # Errors
/// What the server refused.
pub async fn copy<'a, R>(session: &Session, sql: &Sql, rows: impl Iterator<Item = R>) -> Result<u64>
where
    R: Iterator<Item = &'a Value>,
{
    let mut sink = pin!(session.copy_in(sql).await?);
    let mut piece = BytesMut::with_capacity(COPY_PIECE_BYTES + 4096);
    for row in rows {
        copy_text::line(&mut piece, row);
        if piece.len() >= COPY_PIECE_BYTES {
            sink.send(piece.split().freeze()).await?;
        }
    }
    if !piece.is_empty() {
        sink.send(piece.freeze()).await?;
    }
    Ok(sink.finish().await?)
}
