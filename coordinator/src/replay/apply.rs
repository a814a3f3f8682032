//! Runs steps on the target, inside the transaction that a lane began.
//!
//! ```text
//! Fold: deletes, updates, inserts --few--> prepared statements, pipelined
//!                                 --many-> COPY to a staging table, one statement; or COPY
//! Full: rows that go, rows that come ---> as Fold, found by their image
//! One, Truncate ------------------------> one statement
//! ```
//! Promise: rows met are compared with rows meant; a difference is an error. A staging table takes
//! type and collation of the target's columns and no cast stands in between, so that a value is read
//! by its column's own input function and never cut.

use super::{
    compact::{Fold, Step},
    error::{Error, Result},
    images::{self, Images},
    parameter::Text,
    relation::Relation,
    row::{Change, Event, Operation, Row, Truncate},
    stage::{self, Stages},
    statement::{self, Statement},
    table::Table,
};
use futures::future::join_all;
use pg::{PgLsn, Session, Sql, sql, sql::Ident};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tokio_postgres::{
    Statement as Prepared,
    types::{Kind, Type},
};

/// From this many rows on COPY and one statement are used. A pipelined statement costs about 30 us
/// (measured: 28,000 a second), a COPY with its staging table about 500 us.
const BULK_ROWS: usize = 16;

/// Statements in flight at once; `join_all` polls up to 30 in their order.
const PIPELINE: usize = 30;

/// Prepared statements kept per session. Each costs the server some 10 kB of plan.
const PREPARED_LIMIT: usize = 500;

/// A session on the target that applies changes.
#[derive(Debug)]
pub struct Applier {
    session: Session,
    prepared: HashMap<String, Prepared>,
    stages: Stages,
    /// Temporary tables are allowed here.
    may_stage: bool,
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
            stages: Stages::default(),
            may_stage: row.get(0),
        })
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The transaction ended.
    ///
    /// # Errors
    /// When staging tables could not be dropped.
    pub async fn ended(&mut self, committed: bool) -> Result<()> {
        let ended = self.stages.ended(&self.session, committed).await;
        ended.map_err(Error::target("drop staging tables"))
    }

    /// Applies steps in bulk. `end_lsn` is the batch's, for the error.
    ///
    /// # Errors
    /// What the server refused, or a count that differs.
    pub async fn bulk(&mut self, steps: Vec<Step>, end_lsn: PgLsn) -> Result<()> {
        for step in steps {
            match step {
                Step::Fold(fold) => self.fold(fold, end_lsn).await?,
                Step::Full(changes) => self.full(changes, end_lsn).await?,
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

    /// Changes of one table by image: few one by one, many at once.
    async fn full(&mut self, changes: Vec<Change>, end_lsn: PgLsn) -> Result<()> {
        let Some(first) = changes.first() else { return Ok(()) };
        let relation = Arc::clone(&first.relation);
        let is_insert = |change: &Change| matches!(change.operation, Operation::Insert { .. });
        let found = changes.iter().filter(|change| !is_insert(change)).count();
        let columns = images::columns(&relation);
        let are_many = changes.len() >= BULK_ROWS && (found == 0 || self.may_stage);
        let Some(columns) = columns.filter(|_| are_many) else {
            return self.run(changes.iter().filter_map(statement::of_change).collect()).await;
        };
        let Images { deletes, inserts } = images::fold(changes);
        if !deletes.is_empty() {
            self.delete_images(&relation, &columns, &deletes, end_lsn).await?;
        }
        if inserts.len() >= BULK_ROWS {
            return self.insert_copied(&relation, &inserts, end_lsn).await;
        }
        let inserts = inserts.iter().map(|new| statement::insert(&relation, new, end_lsn));
        self.run(inserts.collect()).await
    }

    async fn delete_images(
        &mut self,
        of: &Relation,
        columns: &[usize],
        rows: &[Row],
        end_lsn: PgLsn,
    ) -> Result<()> {
        let fail = |source| bulk_failure("delete", of, end_lsn, source);
        let stage =
            self.stages.fill(&self.session, &of.table, [columns, &[]], rows).await.map_err(fail)?;
        // No index knows an image: only where the planner knows the sizes does it hash them.
        let plan = sql!("analyze pg_temp.{}; set local enable_hashjoin = on", Ident(&stage));
        self.session.batch(&plan).await.map_err(fail)?;
        let sql = images::delete(&of.table, &stage, columns, rows);
        let affected = self.session.execute(&sql, &[]).await.map_err(fail)?;
        self.session.batch(&sql!("set local enable_hashjoin = off")).await.map_err(fail)?;
        check_bulk("delete", of, end_lsn, rows.len(), affected)
    }

    /// Runs statements in their order, pipelined; the first that failed is the error.
    async fn run(&mut self, statements: Vec<Statement>) -> Result<()> {
        for part in statements.chunks(PIPELINE) {
            let mut prepared = Vec::with_capacity(part.len());
            for statement in part {
                let failed = |source| failure(statement, source);
                prepared.push(self.prepare(statement).await.map_err(failed)?);
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

    async fn prepare(&mut self, statement: &Statement) -> pg::Result<Prepared> {
        let sql = &statement.sql;
        if let Some(prepared) = self.prepared.get(sql.as_str()) {
            return Ok(prepared.clone());
        }
        if self.prepared.len() >= PREPARED_LIMIT {
            self.prepared.clear();
        }
        // The server finds the others' types by where they stand.
        let known = statement.types.last().map_or(0, |&(place, _)| place + 1);
        let mut types = vec![Type::UNKNOWN; known];
        for &(place, oid) in &statement.types {
            types[place] = Type::new(String::new(), oid, Kind::Simple, String::new());
        }
        let prepared = self.session.client().prepare_typed(sql.as_str(), &types).await?;
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
        let stage =
            self.stages.fill(&self.session, &of.table, [key, &[]], rows).await.map_err(fail)?;
        let sql = sql!(
            "delete from {} as t using pg_temp.{} as s where {}",
            of.table.only(),
            Ident(&stage),
            stage::joined(&of.table, key)
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
        let stage =
            self.stages.fill(&self.session, &of.table, [key, set], rows).await.map_err(fail)?;
        let assignments = set
            .iter()
            .enumerate()
            .map(|(i, &at)| sql!("{} = s.{}", of.table.ident(at), Ident(&stage::value_column(i))));
        let sql = sql!(
            "update {} as t set {} from pg_temp.{} as s where {}",
            of.table.only(),
            Sql::join(assignments, ", "),
            Ident(&stage),
            stage::joined(&of.table, key)
        );
        let affected = self.session.execute(&sql, &[]).await.map_err(fail)?;
        check_bulk("update", of, end_lsn, rows.len(), affected)
    }

    async fn insert_copied(&mut self, of: &Relation, rows: &[Row], end_lsn: PgLsn) -> Result<()> {
        let columns = &of.written;
        let sql =
            sql!("copy {} ({}) from stdin", of.table.name, statement::names(&of.table, columns));
        let values = rows.iter().map(|row| columns.iter().map(|&at| &row[at]));
        let copied = stage::copy(&self.session, &sql, values)
            .await
            .map_err(|source| bulk_failure("insert", of, end_lsn, source))?;
        check_bulk("insert", of, end_lsn, rows.len(), copied)
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
