//! The two publications of a migration: full, and insert-and-truncate.
//!
//! In: the decisions (identities are set and committed by now). Out: publications whose members
//! are exactly those. Promise: safe to repeat, a half-made one is completed; every statement is
//! of bounded length and holds its locks for one batch; `publish_via_partition_root` is off (a
//! partition's TRUNCATE is lost with it). The slot is created after this is committed: a slot
//! older than its publication fails on every change (42704).

use super::{
    Error, LOCK_PAUSE,
    identity::{Decision, Publish, briefly_locked, holders_of},
};
use crate::migration::context::Context;
use pg::{
    Session, Sql, TableName, sql,
    sql::{Ident, Literal},
};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Tables in one ALTER PUBLICATION: bounds its length (about 64 KiB at most with usual names)
/// and how many tables are locked (SHARE UPDATE EXCLUSIVE) at a time.
const TABLES_PER_STATEMENT: usize = 500;

/// How long one call waits for its locks, over all attempts. VACUUM and CREATE INDEX
/// CONCURRENTLY conflict, and may take long.
const LOCK_DEADLINE: Duration = Duration::from_secs(600);

/// One publication as it is on the source.
#[derive(Debug)]
struct Present {
    all_tables: bool,
    actions: [bool; 4],
    via_root: bool,
    members: HashMap<u32, TableName>,
}

/// Makes both publications, or completes them.
///
/// # Errors
/// [`Error::ForeignPublication`] where the name is taken; locks; what the server refused.
pub async fn create(
    session: &Session,
    context: &Context,
    decisions: &[Decision],
) -> Result<(), Error> {
    let with_generated =
        session.major() >= 18 && decisions.iter().any(|decision| decision.publish_generated);
    for (publication, publish) in [
        (context.full_publication(), Publish::Full),
        (context.append_publication(), Publish::AppendOnly),
    ] {
        let wanted: Vec<&Decision> =
            decisions.iter().filter(|decision| decision.publish == publish).collect();
        ensure(session, &publication, publish, with_generated).await?;
        fill(session, &publication, &wanted).await?;
    }
    Ok(())
}

/// Adds tables found later. Members stay.
///
/// # Errors
/// As [`create`].
pub async fn add(
    session: &Session,
    context: &Context,
    decisions: &[Decision],
) -> Result<(), Error> {
    for (publication, publish) in [
        (context.full_publication(), Publish::Full),
        (context.append_publication(), Publish::AppendOnly),
    ] {
        let present = read(session, &publication).await?;
        let members = present.map(|present| present.members).unwrap_or_default();
        let new: Vec<&TableName> = decisions
            .iter()
            .filter(|one| one.publish == publish && !members.contains_key(&one.oid))
            .map(|one| &one.table)
            .collect();
        alter(session, &publication, "add", &new).await?;
    }
    Ok(())
}

/// Drops both, where they are.
///
/// # Errors
/// What the server refused.
pub async fn drop(session: &Session, context: &Context) -> Result<(), Error> {
    for publication in [context.full_publication(), context.append_publication()] {
        let members = read(session, &publication).await?.map(|present| present.members);
        let members = members.unwrap_or_default();
        // DROP PUBLICATION takes a lock slot per member, all in one transaction
        if members.len() > TABLES_PER_STATEMENT {
            let tables: Vec<&TableName> = members.values().collect();
            alter(session, &publication, "drop", &tables).await?;
        }
        let statement = sql!("drop publication if exists {}", Ident(&publication));
        patiently(session, &publication, &statement).await?;
    }
    Ok(())
}

/// Whether both exist.
///
/// # Errors
/// When the catalogs cannot be read.
pub async fn exist(session: &Session, context: &Context) -> Result<bool, Error> {
    Ok(read(session, &context.full_publication()).await?.is_some()
        && read(session, &context.append_publication()).await?.is_some())
}

fn actions(publish: Publish) -> ([bool; 4], &'static str) {
    match publish {
        Publish::Full => ([true; 4], "insert, update, delete, truncate"),
        Publish::AppendOnly => ([true, false, false, true], "insert, truncate"),
    }
}

/// Creates an empty publication, or checks that the one there is ours.
async fn ensure(
    session: &Session,
    publication: &str,
    publish: Publish,
    with_generated: bool,
) -> Result<(), Error> {
    let (flags, words) = actions(publish);
    let mut options = sql!("publish = {}, publish_via_partition_root = false", Literal(words));
    if with_generated {
        // UPDATE fails on the source where an identity holds an unpublished one (42P10); both
        // publications must agree on it
        options.push(", publish_generated_columns = stored");
    }
    let name = Ident(publication);
    let statement = match read(session, publication).await? {
        Some(present) if present.all_tables || present.via_root || present.actions != flags => {
            return Err(Error::ForeignPublication { publication: publication.to_owned() });
        }
        Some(_) if !with_generated => return Ok(()),
        Some(_) => sql!("alter publication {} set ({})", name, options),
        None => sql!("create publication {} with ({})", name, options),
    };
    patiently(session, publication, &statement).await
}

/// Takes out what does not belong, then adds what is missing.
async fn fill(session: &Session, publication: &str, wanted: &[&Decision]) -> Result<(), Error> {
    let members =
        read(session, publication).await?.map(|present| present.members).unwrap_or_default();
    let wanted_oids: HashSet<u32> = wanted.iter().map(|decision| decision.oid).collect();
    let surplus: Vec<&TableName> = members
        .iter()
        .filter(|(oid, _)| !wanted_oids.contains(oid))
        .map(|(_, table)| table)
        .collect();
    let missing: Vec<&TableName> = wanted
        .iter()
        .filter(|decision| !members.contains_key(&decision.oid))
        .map(|decision| &decision.table)
        .collect();
    alter(session, publication, "drop", &surplus).await?;
    alter(session, publication, "add", &missing).await
}

/// Adds or drops in batches. A batch whose locks are not had in time is halved, down to the
/// tables that are locked; those are tried until the deadline.
async fn alter(
    session: &Session,
    publication: &str,
    verb: &'static str,
    tables: &[&TableName],
) -> Result<(), Error> {
    let begun = Instant::now();
    let mut batches: VecDeque<&[&TableName]> = tables.chunks(TABLES_PER_STATEMENT).collect();
    while let Some(batch) = batches.pop_front() {
        // ONLY: a child by inheritance has an identity of its own
        let list = Sql::join(batch.iter().map(|&table| sql!("only {}", table)), ", ");
        let statement = sql!("alter publication {} {} table {}", Ident(publication), verb, list);
        match (briefly_locked(session, &statement).await, batch) {
            (Ok(()), _) => {}
            (Err(error), [table]) if is_lock_failure(&error) => {
                if begun.elapsed() >= LOCK_DEADLINE {
                    let blockers = holders_of(session, table).await.unwrap_or_default();
                    let (table, waited) = ((*table).clone(), begun.elapsed());
                    return Err(Error::Locked { table, waited, blockers });
                }
                tracing::info!(publication, table = %table, "lock not had in time, trying again");
                batches.push_back(batch);
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            (Err(error), _) if is_lock_failure(&error) => {
                let (one, other) = batch.split_at(batch.len() / 2);
                batches.extend([one, other]);
            }
            (Err(error), _) => return Err(refused(publication, error)),
        }
    }
    Ok(())
}

/// Runs a statement on the publication itself until its lock is had.
async fn patiently(session: &Session, publication: &str, statement: &Sql) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        match briefly_locked(session, statement).await {
            Ok(()) => return Ok(()),
            Err(error) if is_lock_failure(&error) && begun.elapsed() < LOCK_DEADLINE => {
                tracing::info!(publication, "lock not had in time, trying again");
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(error) => return Err(refused(publication, error)),
        }
    }
}

fn is_lock_failure(error: &pg::Error) -> bool {
    matches!(error.sqlstate(), Some("55P03" | "40P01" | "40001"))
}

fn refused(publication: &str, error: pg::Error) -> Error {
    Error::change(format!("publication \"{publication}\""))(error)
}

async fn read(session: &Session, publication: &str) -> Result<Option<Present>, Error> {
    let found = async {
        let statement = sql!(
            "select oid, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
               from pg_publication where pubname = $1"
        );
        let Some(row) = session.query_opt(&statement, &[&publication]).await? else {
            return Ok(None);
        };
        let oid: u32 = row.try_get(0)?;
        let members = sql!(
            "select r.prrelid, n.nspname::text, c.relname::text
               from pg_publication_rel r
               join pg_class c on c.oid = r.prrelid
               join pg_namespace n on n.oid = c.relnamespace
              where r.prpubid = $1"
        );
        let mut present = Present {
            all_tables: row.try_get(1)?,
            actions: [row.try_get(2)?, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?],
            via_root: row.try_get(6)?,
            members: HashMap::new(),
        };
        for row in session.query(&members, &[&oid]).await? {
            let table = TableName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?);
            present.members.insert(row.try_get(0)?, table);
        }
        Ok(Some(present))
    };
    found.await.map_err(Error::read("the publications"))
}
