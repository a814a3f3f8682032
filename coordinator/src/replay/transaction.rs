//! Messages to events. Pure.
//!
//! In: pgoutput messages in stream order. Out: [`Event`]s fitted to the target, and whether one is a
//! barrier. Promise: a relation skips what ends at or before its consistent point and nothing else;
//! a table that does not fit is an error at its first change, not before.

use super::{
    error::{Error, Result},
    relation::{Relation, RelationPlan},
    route::Routing,
    row::{Change, Event, Operation, Truncate},
    table::Table,
};
use bytes::Bytes;
use pg::{
    PgLsn, TableName,
    pgoutput::{self, Message, OldTuple, Tuple},
};
use std::{collections::HashMap, sync::Arc};

/// Turns messages into events.
#[derive(Debug)]
pub struct Decoder {
    plans: HashMap<u32, Arc<RelationPlan>>,
    tables: HashMap<TableName, Arc<Table>>,
    /// Leaves of the plan per table of the target.
    siblings: HashMap<TableName, usize>,
    routing: Routing,
    known: HashMap<u32, Known>,
}

/// What the latest Relation message of a table said.
#[derive(Debug)]
enum Known {
    Fitted(Arc<Relation>),
    Misfit(String),
    Unplanned(TableName),
}

/// An event, and whether it must run alone.
#[derive(Debug)]
pub struct Decoded {
    pub event: Event,
    pub is_barrier: bool,
}

impl Decoder {
    pub fn new(
        plans: &[RelationPlan],
        tables: HashMap<TableName, Arc<Table>>,
        routing: Routing,
    ) -> Self {
        let mut siblings: HashMap<TableName, usize> = HashMap::new();
        for plan in plans {
            *siblings.entry(plan.target.clone()).or_default() += 1;
        }
        let plans = plans.iter().map(|plan| (plan.relid, Arc::new(plan.clone()))).collect();
        Self { plans, tables, siblings, routing, known: HashMap::new() }
    }

    /// Takes a Relation message. True: the table is not what it was, its next transaction is a
    /// barrier.
    ///
    /// # Errors
    /// When the message cannot be read.
    pub fn relation(&mut self, bytes: &Bytes) -> Result<bool> {
        let Message::Relation(message) = decode(bytes)? else {
            return Err(Error::Stream("a Relation message was announced".to_owned()));
        };
        let mut known = self.fit(&message);
        let before = self.known.get(&message.relid);
        if let (Some(Known::Fitted(before)), Known::Fitted(now)) = (before, &known)
            && let Some(column) = now.dropped_since(before)
        {
            known = Known::Misfit(format!("column \"{column}\" was dropped on the source"));
        }
        let changed = match (before, &known) {
            (None, _) => false,
            (Some(Known::Fitted(before)), Known::Fitted(now)) => before != now,
            (Some(_), _) => true,
        };
        self.known.insert(message.relid, known);
        Ok(changed)
    }

    fn fit(&self, message: &pgoutput::Relation) -> Known {
        let Some(plan) = self.plans.get(&message.relid) else {
            return Known::Unplanned(TableName::new(&message.schema, &message.name));
        };
        let Some(table) = self.tables.get(&plan.target) else {
            return Known::Misfit("the table is missing on the target".to_owned());
        };
        match Relation::fit(message, Arc::clone(plan), Arc::clone(table)) {
            Ok(mut relation) => {
                relation.siblings = self.siblings.get(&plan.target).copied().unwrap_or(1);
                relation.by_key = self.routing.is_by_key(&relation);
                Known::Fitted(Arc::new(relation))
            }
            Err(difference) => Known::Misfit(difference),
        }
    }

    /// Name on the source and whether the change is in the copy; for counting late writes.
    pub fn table_of(&self, bytes: &Bytes) -> Result<Option<TableName>> {
        let relid = match decode(bytes)? {
            Message::Insert(insert) => insert.relid,
            Message::Update(update) => update.relid,
            Message::Delete(delete) => delete.relid,
            Message::Truncate(truncate) => match truncate.relids.first() {
                Some(relid) => *relid,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(self.plans.get(&relid).map(|plan| plan.source.clone()))
    }

    /// The event that a message stands for; None: skipped, or nothing to do with rows.
    ///
    /// # Errors
    /// When it cannot be read, its table is not planned or does not fit the target.
    pub fn event(&self, bytes: &Bytes, end_lsn: PgLsn) -> Result<Option<Decoded>> {
        let (relid, tuples) = match decode(bytes)? {
            Message::Insert(insert) => (insert.relid, Tuples::Insert(insert.new)),
            Message::Update(update) => (update.relid, Tuples::Update(update.old, update.new)),
            Message::Delete(delete) => (delete.relid, Tuples::Delete(delete.old)),
            Message::Truncate(truncate) => return self.truncate(&truncate, end_lsn),
            // Passed over: what pg_logical_emit_message sent, origins, types.
            _ => return Ok(None),
        };
        let Some(relation) = self.relation_of(relid, end_lsn)? else { return Ok(None) };
        let operation = tuples.fitted(relation)?;
        let change = Change { relation: Arc::clone(relation), end_lsn, operation };
        let is_barrier = relation.by_key && change.changes_key();
        Ok(Some(Decoded { event: Event::Change(change), is_barrier }))
    }

    fn truncate(&self, truncate: &pgoutput::Truncate, end_lsn: PgLsn) -> Result<Option<Decoded>> {
        let mut relations = Vec::new();
        for relid in &truncate.relids {
            // A partition root is named beside its leaves; the leaves are what we know.
            if self.plans.contains_key(relid) {
                relations.extend(self.relation_of(*relid, end_lsn)?.map(Arc::clone));
            }
        }
        if relations.is_empty() {
            return Ok(None);
        }
        let restart_identity = truncate.restart_identity;
        let event = Event::Truncate(Truncate { relations, restart_identity, end_lsn });
        Ok(Some(Decoded { event, is_barrier: true }))
    }

    /// None: the change is in the copy already.
    fn relation_of(&self, relid: u32, end_lsn: PgLsn) -> Result<Option<&Arc<Relation>>> {
        let plan = self.plans.get(&relid);
        if plan.is_some_and(|plan| end_lsn <= plan.consistent_point) {
            return Ok(None);
        }
        match (self.known.get(&relid), plan) {
            (Some(Known::Fitted(relation)), _) => Ok(Some(relation)),
            (Some(Known::Misfit(difference)), Some(plan)) => Err(Error::SchemaChanged {
                table: plan.source.clone(),
                difference: difference.clone(),
                end_lsn,
            }),
            (Some(Known::Unplanned(name)), _) => {
                Err(Error::UnknownRelation { relid, name: Some(name.clone()), end_lsn })
            }
            (Some(Known::Misfit(_)) | None, None) => {
                Err(Error::UnknownRelation { relid, name: None, end_lsn })
            }
            (None, Some(plan)) => {
                Err(Error::Stream(format!("table {} came unannounced", plan.source)))
            }
        }
    }
}

/// A change as the stream has it.
enum Tuples {
    Insert(Tuple),
    Update(Option<OldTuple>, Tuple),
    Delete(OldTuple),
}

impl Tuples {
    fn fitted(self, relation: &Relation) -> Result<Operation> {
        let fit_old = |old| match old {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => relation.row(tuple),
        };
        Ok(match self {
            Self::Insert(new) => Operation::Insert { new: relation.row(new)? },
            Self::Update(old, new) => {
                Operation::Update { old: old.map(fit_old).transpose()?, new: relation.row(new)? }
            }
            Self::Delete(old) => Operation::Delete { old: fit_old(old)? },
        })
    }
}

fn decode(bytes: &Bytes) -> Result<Message> {
    pgoutput::decode(bytes, false).map_err(|error| Error::Stream(error.to_string()))
}
