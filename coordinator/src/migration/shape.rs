//! Whether a table's columns are the same on both sides, while it is copied.
//!
//! In: the leaf as it was planned, and as the source has it now. Out: the leaf to copy, or a fault
//! whose cure is to alter the target in the same way. Promise: a table that was altered is copied
//! again from its beginning, and only once the target has the same columns.

use super::{connect::refused, context::Context, provision::filter_of};
use crate::{lease::Leases, plan::Leaf, source::catalog};
use pg::Session;
use proto::status::Report;
use std::{collections::HashMap, sync::Arc};

/// The leaf as the new snapshot shows it, if its columns are those of the target.
///
/// # Errors
/// `RELATION_REPLACED`, `SCHEMA_CHANGED`, each with its cure.
pub async fn on_both(before: &Leaf, now: Option<Leaf>, target: &Session) -> Result<Leaf, Report> {
    let Some(found) = now else {
        return Err(Report::definite(
            "RELATION_REPLACED",
            format!("table {} is gone on the source", before.source),
        )
        .with_detail("It was dropped after the plan was made.")
        .with_hint(format!(
            "Drop {} on the target as well and run: skein resume. Or abort: skein abort",
            before.target
        )));
    };
    if found.source != before.source {
        return Err(changed(before));
    }
    let altered = found.columns != before.columns || found.types != before.types;
    if altered && !target_has(target, &found).await? {
        return Err(changed(before));
    }
    Ok(found)
}

/// Relations whose file and columns are others than those that were copied. A rewrite that left
/// the columns as they were (VACUUM FULL) does no harm, since each chunk was read under a lock
/// with the right file.
///
/// # Errors
/// When a server cannot be read.
pub async fn altered_since_copied(context: &Context, leases: &Leases) -> Result<Vec<u32>, Report> {
    let session = context
        .source_session("plan", "filenodes")
        .await
        .map_err(|error| refused("reach the source", &error))?;
    let leaves = leases.leaves();
    let relids: Vec<u32> = leaves.iter().map(|leaf| leaf.relid).collect();
    let files = catalog::filenodes(&session, &relids)
        .await
        .map_err(|error| refused("compare the tables' files", &error))?;
    let now: HashMap<u32, Leaf> = catalog::leaves(&session, &filter_of(context)?)
        .await
        .map_err(|error| refused("compare the tables", &error))?
        .into_iter()
        .map(|leaf| (leaf.relid, leaf))
        .collect();
    let is_altered = |leaf: &&Arc<Leaf>| {
        let other = now
            .get(&leaf.relid)
            .is_some_and(|now| now.columns != leaf.columns || now.types != leaf.types);
        leaf.condition.is_none() && other && files.get(&leaf.relid) != Some(&leaf.filenode)
    };
    Ok(leaves.iter().filter(is_altered).map(|leaf| leaf.relid).collect())
}

/// The target's table has the leaf's columns with their types, in any order.
async fn target_has(target: &Session, leaf: &Leaf) -> Result<bool, Report> {
    let columns = catalog::columns_of(target, &leaf.target)
        .await
        .map_err(|error| refused("read the target's table", &error))?;
    let sorted = |names: &[String], types: &[String]| {
        let mut pairs: Vec<(String, String)> =
            names.iter().cloned().zip(types.iter().cloned()).collect();
        pairs.sort();
        pairs
    };
    Ok(sorted(&columns.0, &columns.1) == sorted(&leaf.columns, &leaf.types))
}

fn changed(leaf: &Leaf) -> Report {
    Report::definite("SCHEMA_CHANGED", format!("table {} was altered on the source", leaf.source))
        .with_detail("Its columns or their types are not those of the target any more.")
        .with_hint(format!(
            "Alter {} on the target in the same way and run: skein resume. It is copied again then. \
             Or undo it on the source.",
            leaf.target
        ))
}
