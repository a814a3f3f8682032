//! Runs steps on the target, inside the transaction that a lane began.
//!
//! ```text
//! Fold: deletes, updates, inserts --few--> prepared statements, pipelined
//!                                 --many-> COPY to a staging table, one statement; or COPY
//! One, Truncate ------------------------> one statement
//! ```
//! Promise: rows met are compared with rows meant; a difference is an error. A staging table takes
//! type and collation of the target's columns and no cast stands in between, so that a value is read
//! by its column's own input function and never cut.

use super::{
    compact::{Fold, Step},
    copy_text,
    error::{Error, Result},
    relation::Relation,
    row::{Event, Row, Truncate, Value},
    statement::{self, Statement},
    table::Table,
};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, future::join_all};
use pg::{PgLsn, Session, Sql, sql, sql::Ident};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    error::Error as StdError,
    pin::pin,
    sync::Arc,
};
use tokio_postgres::{
    Statement as Prepared,
    types::{Format, IsNull, ToSql, Type},
};

/// From this many rows on COPY and one statement are used. A pipelined statement costs about 30 us
/// (shared/crates.md: 28,000 a second), a COPY with its staging table about 500 us.
const BULK_ROWS: usize = 16;

/// Statements in flight at once; `join_all` polls up to 30 in their order.
const PIPELINE: usize = 30;

/// Prepared statements kept per session. Each costs the server some 10 kB of plan.
const PREPARED_LIMIT: usize = 500;

/// Staging tables kept per session: a COMMIT empties each of them, used or not.
const STAGE_LIMIT: usize = 64;

/// COPY data is sent in pieces of this size (shared/crates.md: gathered to 64 KiB and more).
const COPY_PIECE_BYTES: usize = 128 * 1024;

/// A session on the target that applies changes.
#[derive(Debug)]
pub struct Applier {
    session: Session,
    prepared: HashMap<String, Prepared>,
    /// Staging tables that a commit made lasting, by target table and column lists.
    stages: HashMap<StageKey, Stage>,
    /// Of the transaction under way.
    new_stages: Vec<StageKey>,
    used_stages: HashSet<StageKey>,
    next_stage: u32,
    /// Temporary tables are allowed here.
    may_stage: bool,
}

type StageKey = (u32, Vec<usize>, Vec<usize>);

#[derive(Clone, Debug)]
struct Stage {
    name: String,
}

impl Applier {
    /// # Errors
    /// When the session fails.
    pub async fn new(session: Session) -> Result<Self> {
        let row = session
            .query_one(&sql!("select has_database_privilege(current_database(), 'temporary')"), &[])
            .await
            .map_err(Error::target("read privileges"))?;
        // A nested loop looks each key up by index. The planner knows nothing of a staging table
        // and read the whole target for each batch instead.
        session
            .batch(&sql!("set enable_hashjoin = off; set enable_mergejoin = off"))
            .await
            .map_err(Error::target("pin the planner"))?;
        Ok(Self {
            session,
            prepared: HashMap::new(),
            stages: HashMap::new(),
            new_stages: Vec::new(),
            used_stages: HashSet::new(),
            next_stage: 0,
            may_stage: row.get(0),
        })
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The transaction ended: staging tables made in it stand, or are gone with it.
    ///
    /// # Errors
    /// When too many staging tables stood and could not be dropped.
    pub async fn ended(&mut self, committed: bool) -> Result<()> {
        for key in self.new_stages.drain(..) {
            if !committed {
                self.stages.remove(&key);
            }
        }
        self.used_stages.clear();
        if self.stages.len() > STAGE_LIMIT {
            self.session
                .batch(&sql!("discard temp"))
                .await
                .map_err(Error::target("drop staging tables"))?;
            self.stages.clear();
        }
        Ok(())
    }

    /// Applies steps in bulk. `end_lsn` is the batch's, for the error.
    ///
    /// # Errors
    /// What the server refused, or a count that differs.
    pub async fn bulk(&mut self, steps: Vec<Step>, end_lsn: PgLsn) -> Result<()> {
        for step in steps {
            match step {
                Step::Fold(fold) => self.fold(fold, end_lsn).await?,
                Step::One(change) => {
                    if let Some(statement) = statement::of_change(&change) {
                        self.run(vec![statement]).await?;
                    }
                }
                Step::Truncate(truncate) => self.truncate(&truncate).await?,
            }
        }
        Ok(())
    }

    /// Applies events one by one in their order.
    ///
    /// # Errors
    /// What the server refused, with the change's table and position.
    pub async fn one_by_one(&mut self, events: &[Event]) -> Result<()> {
        let mut gathered = Vec::new();
        for event in events {
            match event {
                Event::Change(change) => gathered.extend(statement::of_change(change)),
                Event::Truncate(truncate) => {
                    self.run(std::mem::take(&mut gathered)).await?;
                    self.truncate(truncate).await?;
                }
            }
        }
        self.run(gathered).await
    }

    async fn fold(&mut self, fold: Fold, end_lsn: PgLsn) -> Result<()> {
        let relation = &*fold.relation;
        let table = &*relation.table;
        let mut few = Vec::new();

        if self.may_stage && fold.deletes.len() >= BULK_ROWS {
            self.delete_staged(relation, &fold.deletes, end_lsn).await?;
        } else {
            few.extend(fold.deletes.iter().map(|old| statement::delete(relation, old, end_lsn)));
        }

        // Statements of one kind must not overtake those of the kind before.
        let mut by_columns: BTreeMap<Vec<usize>, Vec<Row>> = BTreeMap::new();
        for row in fold.updates {
            let set = statement::set_columns(relation, &row, &row);
            by_columns.entry(set).or_default().push(row);
        }
        for (set, rows) in by_columns {
            let settable = !set.iter().any(|&at| table.columns[at].identity_always);
            if set.is_empty() {
                continue;
            }
            if self.may_stage && settable && rows.len() >= BULK_ROWS {
                self.run(std::mem::take(&mut few)).await?;
                self.update_staged(relation, &set, &rows, end_lsn).await?;
            } else {
                few.extend(
                    rows.iter().filter_map(|row| statement::update(relation, None, row, end_lsn)),
                );
            }
        }

        if !relation.written.is_empty() && fold.inserts.len() >= BULK_ROWS {
            self.run(few).await?;
            return self.insert_copied(relation, &fold.inserts, end_lsn).await;
        }
        few.extend(fold.inserts.iter().map(|new| statement::insert(relation, new, end_lsn)));
        self.run(few).await
    }

    /// Runs statements in their order, pipelined; the first that failed is the error.
    async fn run(&mut self, statements: Vec<Statement>) -> Result<()> {
        for part in statements.chunks(PIPELINE) {
            let mut prepared = Vec::with_capacity(part.len());
            for statement in part {
                let failed = |source| failure(statement, source);
                prepared.push(self.prepare(&statement.sql).await.map_err(failed)?);
            }
            let client = self.session.client();
            let sent = part.iter().zip(&prepared).map(|(statement, prepared)| {
                let values: Vec<Text> = statement.values.iter().map(|v| Text(v.clone())).collect();
                async move { client.execute_raw(prepared, values).await }
            });
            let answers = join_all(sent).await;
            for (statement, answer) in part.iter().zip(answers) {
                let affected = answer.map_err(|error| failure(statement, error.into()))?;
                check(statement, affected)?;
            }
        }
        Ok(())
    }

    async fn prepare(&mut self, sql: &Sql) -> pg::Result<Prepared> {
        if let Some(prepared) = self.prepared.get(sql.as_str()) {
            return Ok(prepared.clone());
        }
        if self.prepared.len() >= PREPARED_LIMIT {
            self.prepared.clear();
        }
        let prepared = self.session.client().prepare(sql.as_str()).await?;
        self.prepared.insert(sql.as_str().to_owned(), prepared.clone());
        Ok(prepared)
    }

    async fn truncate(&mut self, truncate: &Truncate) -> Result<()> {
        let mut whole: Vec<Arc<Table>> = Vec::new();
        for relation in &truncate.relations {
            let table = &relation.table;
            let done = whole.iter().any(|other| other.id == table.id);
            if !done && (!relation.plan.through_root || is_whole_root(truncate, table)) {
                whole.push(Arc::clone(table));
            }
        }
        let failed = |relation: &Relation| {
            let table = relation.table.name.clone();
            move |source| Error::Apply {
                operation: "truncate",
                table,
                end_lsn: truncate.end_lsn,
                source,
            }
        };
        for relation in &truncate.relations {
            if whole.iter().any(|table| table.id == relation.table.id) {
                continue;
            }
            let bounds = leaf_bounds(relation, truncate.end_lsn)?;
            let sql = sql!("delete from {} where {}", relation.table.name, bounds);
            self.session.batch(&sql).await.map_err(failed(relation))?;
        }
        if let (false, Some(first)) = (whole.is_empty(), truncate.relations.first()) {
            let sql = statement::truncate(whole.iter().map(|table| &**table), truncate);
            self.session.batch(&sql).await.map_err(failed(first))?;
        }
        Ok(())
    }

    async fn delete_staged(&mut self, of: &Relation, rows: &[Row], end_lsn: PgLsn) -> Result<()> {
        let fail = |source| bulk_failure("delete", of, end_lsn, source);
        let key = of.key().unwrap_or_default();
        let stage = self.fill_stage(of, key, &[], rows).await.map_err(fail)?;
        let sql = sql!(
            "delete from {} as t using pg_temp.{} as s where {}",
            of.table.only(),
            Ident(&stage),
            joined(&of.table, key)
        );
        let affected = self.session.execute(&sql, &[]).await.map_err(fail)?;
        check_bulk("delete", of, end_lsn, rows.len(), affected)
    }

    async fn update_staged(
        &mut self,
        of: &Relation,
        set: &[usize],
        rows: &[Row],
        end_lsn: PgLsn,
    ) -> Result<()> {
        let fail = |source| bulk_failure("update", of, end_lsn, source);
        let key = of.key().unwrap_or_default();
        let stage = self.fill_stage(of, key, set, rows).await.map_err(fail)?;
        let assignments = set
            .iter()
            .enumerate()
            .map(|(i, &at)| sql!("{} = s.{}", of.table.ident(at), Ident(&format!("v{i}"))));
        let sql = sql!(
            "update {} as t set {} from pg_temp.{} as s where {}",
            of.table.only(),
            Sql::join(assignments, ", "),
            Ident(&stage),
            joined(&of.table, key)
        );
        let affected = self.session.execute(&sql, &[]).await.map_err(fail)?;
        check_bulk("update", of, end_lsn, rows.len(), affected)
    }

    async fn insert_copied(&mut self, of: &Relation, rows: &[Row], end_lsn: PgLsn) -> Result<()> {
        let columns = &of.written;
        let sql =
            sql!("copy {} ({}) from stdin", of.table.name, statement::names(&of.table, columns));
        let copied = self
            .copy(&sql, rows.iter().map(|row| columns.iter().map(|&at| &row[at])))
            .await
            .map_err(|source| bulk_failure("insert", of, end_lsn, source))?;
        check_bulk("insert", of, end_lsn, rows.len(), copied)
    }

    /// An empty staging table filled with keys and values; its name.
    async fn fill_stage(
        &mut self,
        of: &Relation,
        key: &[usize],
        set: &[usize],
        rows: &[Row],
    ) -> pg::Result<String> {
        let place: StageKey = (of.table.id, key.to_vec(), set.to_vec());
        let stage = match self.stages.get(&place) {
            Some(stage) => {
                if self.used_stages.contains(&place) {
                    self.session.batch(&sql!("truncate pg_temp.{}", Ident(&stage.name))).await?;
                }
                stage.clone()
            }
            None => self.make_stage(&of.table, &place).await?,
        };
        self.used_stages.insert(place);
        let sql = sql!("copy pg_temp.{} from stdin", Ident(&stage.name));
        let values = rows.iter().map(|row| key.iter().chain(set).map(|&at| &row[at]));
        self.copy(&sql, values).await?;
        Ok(stage.name)
    }

    /// `create table as` keeps type, modifier and collation and takes no constraint.
    async fn make_stage(&mut self, table: &Table, place: &StageKey) -> pg::Result<Stage> {
        self.next_stage += 1;
        let stage = Stage { name: format!("skein_stage_{}", self.next_stage) };
        let keys = place.1.iter().enumerate().map(|(i, at)| (format!("k{i}"), *at));
        let values = place.2.iter().enumerate().map(|(i, at)| (format!("v{i}"), *at));
        let columns =
            keys.chain(values).map(|(name, at)| sql!("{} as {}", table.ident(at), Ident(&name)));
        let sql = sql!(
            "create temporary table {} on commit delete rows as select {} from {} with no data",
            Ident(&stage.name),
            Sql::join(columns, ", "),
            table.only()
        );
        self.session.batch(&sql).await?;
        self.stages.insert(place.clone(), stage.clone());
        self.new_stages.push(place.clone());
        Ok(stage)
    }

    /// Rows that the server took.
    async fn copy<'a, R>(&self, sql: &Sql, rows: impl Iterator<Item = R>) -> pg::Result<u64>
    where
        R: Iterator<Item = &'a Value>,
    {
        let mut sink = pin!(self.session.copy_in(sql).await?);
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
}

/// Every planned leaf of this root is in the statement: the root itself was truncated.
fn is_whole_root(truncate: &Truncate, table: &Table) -> bool {
    let mut named = truncate.relations.iter().filter(|relation| relation.table.id == table.id);
    let siblings = named.clone().count();
    named.all(|relation| relation.siblings == siblings)
}

/// Rows of one leaf, by its bounds.
fn leaf_bounds(relation: &Relation, end_lsn: PgLsn) -> Result<Sql> {
    match &relation.plan.partition_constraint {
        // It names the source's root by OID, and hashes of enums differ between servers.
        Some(bounds) if !bounds.contains("satisfies_hash_partition") => {
            Ok(Sql::trusted(bounds.as_str()))
        }
        Some(_) | None => {
            Err(Error::TruncateByHash { table: relation.plan.source.clone(), end_lsn })
        }
    }
}

/// `t.key = s.k0 and ...`.
fn joined(table: &Table, key: &[usize]) -> Sql {
    let equal = key.iter().enumerate().map(|(i, &at)| {
        let equality = &table.columns[at].equality;
        sql!("t.{} {} s.{}", table.ident(at), equality, Ident(&format!("k{i}")))
    });
    Sql::join(equal, " and ")
}

fn failure(statement: &Statement, source: pg::Error) -> Error {
    Error::Apply {
        operation: statement.operation,
        table: statement.table.clone(),
        end_lsn: statement.end_lsn,
        source,
    }
}

fn bulk_failure(
    operation: &'static str,
    of: &Relation,
    end_lsn: PgLsn,
    source: pg::Error,
) -> Error {
    Error::Apply { operation, table: of.table.name.clone(), end_lsn, source }
}

fn check(statement: &Statement, affected: u64) -> Result<()> {
    match statement.meant {
        Some(meant) if meant != affected => Err(Error::RowsDiffer {
            operation: statement.operation,
            table: statement.table.clone(),
            end_lsn: statement.end_lsn,
            meant,
            affected,
        }),
        Some(_) | None => Ok(()),
    }
}

fn check_bulk(
    operation: &'static str,
    of: &Relation,
    end_lsn: PgLsn,
    meant: usize,
    affected: u64,
) -> Result<()> {
    let meant = u64::try_from(meant).unwrap_or(u64::MAX);
    if meant == affected {
        return Ok(());
    }
    Err(Error::RowsDiffer { operation, table: of.table.name.clone(), end_lsn, meant, affected })
}

/// A value as text, whatever the parameter's type.
#[derive(Debug)]
struct Text(Option<Bytes>);

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
