//! Large objects: they are in no table of the dump and in no stream.
//!
//! ```text
//! copy, under the snapshot:  source lo_get -> pieces -> target lo_create, lo_put; owner, grants
//! sync, behind the fence:    digests of both ends, object by object -> new, changed, gone
//! ```
//! Promise: objects and the mark of how far we are commit together; memory holds one piece, not
//! an object; after `sync` both ends have the same objects with the same bytes.

mod content;

use super::attempt::Attempt;
use super::error::{Error, Result};
use super::{NotMoved, step};
use crate::filter::{Filter, Kind};
use crate::migration::context::Context;
use content::{Attributes, Page};
use pg::{Session, sql, sql::Literal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const COPIED: &str = "schema/large_objects";
const SYNCED: &str = "schema/large_objects_synced";
const READ: &str = "read large objects of the source";
const WRITE: &str = "write large objects of the target";

/// How far the copy is: all objects up to this OID.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Progress {
    last: u32,
    finished: bool,
    /// What was refused, and of how many objects.
    notes: BTreeMap<String, u64>,
}

impl Progress {
    fn note(&mut self, notes: NotMoved) {
        for note in notes {
            *self.notes.entry(note).or_default() += 1;
        }
    }

    fn told(&self) -> NotMoved {
        self.notes.iter().map(|(note, count)| format!("{note} ({count} objects)")).collect()
    }
}

/// Copies every large object as `snapshot` sees it.
pub(super) async fn copy(context: &Context, filter: &Filter, snapshot: &str) -> Result<NotMoved> {
    if filter.leaves_out(Kind::LargeObjects) {
        return Ok(vec!["large objects: left out".to_owned()]);
    }
    let target = step::target_session(context, "large-objects").await?;
    if let Some(done) = step::read::<Progress>(&target, COPIED).await?.filter(|p| p.finished) {
        return Ok(done.told());
    }
    let source = step::source_session(context, "large-objects").await?;
    let begin = sql!(
        "begin isolation level repeatable read read only; set transaction snapshot {}",
        Literal(snapshot)
    );
    source.batch(&begin).await.map_err(Error::server(READ))?;
    loop {
        let mut attempt = Attempt::begin(&target, context.epoch, WRITE).await?;
        let mut progress = step::claim::<Progress>(&target, COPIED).await?.unwrap_or_default();
        let page = Page::after(&source, progress.last).await.map_err(Error::server(READ))?;
        for object in &page.objects {
            create(&source, &target, object.oid).await?;
            attributes(&mut attempt, object, filter).await?;
        }
        progress.finished = page.is_last;
        progress.last = page.last.unwrap_or(progress.last);
        progress.note(std::mem::take(&mut attempt.notes));
        attempt.commit(COPIED, &progress).await?;
        if progress.finished {
            return Ok(progress.told());
        }
    }
}

/// Makes the target's large objects those of the source as they are now. Meant for when nobody
/// writes; repeated, it goes on.
pub(super) async fn sync(context: &Context, filter: &Filter) -> Result<NotMoved> {
    if filter.leaves_out(Kind::LargeObjects) {
        return Ok(NotMoved::new());
    }
    let target = step::quiet_session(context, "large-objects").await?;
    let source = step::source_session(context, "large-objects").await?;
    let mut progress = Progress::default();
    let begin = sql!("begin isolation level repeatable read read only");
    source.batch(&begin).await.map_err(Error::server(READ))?;
    while !progress.finished {
        let wanted = Page::after(&source, progress.last).await.map_err(Error::server(READ))?;
        let mut attempt = Attempt::begin(&target, context.epoch, WRITE).await?;
        let upto = if wanted.is_last { u32::MAX } else { wanted.last.unwrap_or(u32::MAX) };
        let there = Page::between(&target, progress.last, upto).await;
        let mut there = there.map_err(Error::server(WRITE))?;
        let digests = content::digests(&source, &wanted.oids()).await;
        let digests = digests.map_err(Error::server(READ))?;
        let present = content::digests(&target, &there.oids()).await;
        let present = present.map_err(Error::server(WRITE))?;
        for object in &wanted.objects {
            let old = there.take(object.oid);
            let same_bytes = present.get(&object.oid) == digests.get(&object.oid);
            // A grant that was taken back goes with the object.
            let same_grants = filter.leaves_out(Kind::Privileges)
                || old.as_ref().is_some_and(|old| old.granted() == object.granted());
            if old.is_some() && !(same_bytes && same_grants) {
                unlink(&target, object.oid).await?;
            }
            if old.is_none() || !(same_bytes && same_grants) {
                create(&source, &target, object.oid).await?;
            } else if old.as_ref() == Some(object) {
                continue;
            }
            attributes(&mut attempt, object, filter).await?;
        }
        for object in &there.objects {
            unlink(&target, object.oid).await?;
        }
        progress.finished = wanted.is_last;
        progress.last = upto;
        progress.note(std::mem::take(&mut attempt.notes));
        attempt.commit(SYNCED, &progress).await?;
    }
    Ok(progress.told())
}

async fn unlink(target: &Session, oid: u32) -> Result<()> {
    let unlinked = target.query(&sql!("select lo_unlink($1)"), &[&oid]).await;
    unlinked.map(|_| ()).map_err(|source| Error::LargeObject { oid, source })
}

/// The object with its bytes.
async fn create(source: &Session, target: &Session, oid: u32) -> Result<()> {
    content::copy(source, target, oid).await.map_err(|source| Error::LargeObject { oid, source })
}

/// Owner, comment and grants; a refusal is said.
async fn attributes(attempt: &mut Attempt<'_>, object: &Attributes, filter: &Filter) -> Result<()> {
    if !filter.leaves_out(Kind::Comments) {
        attempt.attempt("comment of large objects", &object.comment_sql()).await?;
    }
    // Grants first: whoever gives the object away may not grant afterwards.
    if !filter.leaves_out(Kind::Privileges)
        && let Some(grants) = object.grants_sql()
    {
        attempt.attempt("grants on large objects", &grants).await?;
    }
    if !filter.leaves_out(Kind::Owners) {
        let what = format!("owner of large objects, {}", pg::sql::quote_ident(&object.owner));
        attempt.attempt(&what, &object.owner_sql()).await?;
    }
    Ok(())
}
