//! What happens on the source beside the stream: who waits for us, and which tables changed.
//!
//! In: a session on the source, what was published. Out: lock requests that one of our
//! sessions blocks, and differences between the tables that we know and those that are there
//! (the stream says nothing of a new, dropped, detached or swapped table). Promise: set
//! queries alone; the comparison is pure.

use super::{
    Error,
    identity::{Decision, Identity, Publish, Survey, TableIdentity, survey},
};
use crate::{filter::Filter, migration::context::Context};
use pg::{Session, TableName, sql};
use std::collections::{HashMap, HashSet};

/// A lock request that one of our sessions keeps waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Ours, which should let go.
    pub our_pid: i32,
    /// `skein/NAME/EPOCH/ROLE/ID` of ours.
    pub our_application: String,
    pub waiting_pid: i32,
    pub waiting_application: String,
    /// AccessExclusiveLock and so on.
    pub mode: String,
    /// OID and name of the table, where it is a table of this database.
    pub relation: Option<(u32, String)>,
}

/// Ungranted lock requests that wait for a session whose name begins with `ours`.
///
/// # Errors
/// When they cannot be read.
pub async fn blocked_by_us(session: &Session, ours: &str) -> Result<Vec<Blocked>, Error> {
    let statement = sql!(
        "select o.pid, o.application_name, l.pid, coalesce(w.application_name, ''), l.mode,
                c.oid, c.oid::regclass::text
           from pg_locks l
           cross join lateral unnest(pg_blocking_pids(l.pid)) b (pid)
           join pg_stat_activity o on o.pid = b.pid and starts_with(o.application_name, $1)
           left join pg_stat_activity w on w.pid = l.pid
           left join pg_class c on c.oid = l.relation
            and l.database = (select oid from pg_database where datname = current_database())
          where not l.granted and l.locktype = 'relation'
          order by 1, 3"
    );
    let read = async {
        let mut blocked = Vec::new();
        for row in session.query(&statement, &[&ours]).await? {
            let oid: Option<u32> = row.try_get(5)?;
            let name: Option<String> = row.try_get(6)?;
            blocked.push(Blocked {
                our_pid: row.try_get(0)?,
                our_application: row.try_get(1)?,
                waiting_pid: row.try_get(2)?,
                waiting_application: row.try_get(3)?,
                mode: row.try_get(4)?,
                relation: oid.zip(name),
            });
        }
        Ok(blocked)
    };
    read.await.map_err(Error::read("who waits for our locks"))
}

/// A table as it was when it was published.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Known {
    pub oid: u32,
    pub table: TableName,
    pub root: Option<u32>,
    pub publish: Publish,
}

/// How the source differs from what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A table that the filter takes and that is not known: a partition (with its root), a
    /// child by inheritance, or one of its own.
    New {
        oid: u32,
        table: TableName,
        root: Option<u32>,
        inherits: Vec<u32>,
    },
    Dropped {
        oid: u32,
        table: TableName,
    },
    /// Another table stands under the name; the known one is gone or bears another.
    Swapped {
        table: TableName,
        known_oid: u32,
        oid: u32,
    },
    Renamed {
        oid: u32,
        known: TableName,
        table: TableName,
    },
    Detached {
        oid: u32,
        table: TableName,
        root: u32,
    },
    Attached {
        oid: u32,
        table: TableName,
        root: u32,
    },
    /// Somebody took it out of our publication.
    Unpublished {
        oid: u32,
        table: TableName,
    },
    /// It is published for UPDATE and lost its identity: UPDATE fails on the source now.
    IdentityLost {
        oid: u32,
        table: TableName,
    },
}

/// What to remember of the survey that was published.
pub fn known(survey: &Survey, decisions: &[Decision]) -> Vec<Known> {
    let tables = decisions.iter().map(|decision| Known {
        oid: decision.oid,
        table: decision.table.clone(),
        root: survey.table(decision.oid).and_then(|table| table.root),
        publish: decision.publish,
    });
    tables.collect()
}

/// Differences between what is known and what is there.
///
/// # Errors
/// When the catalogs cannot be read.
pub async fn published_changes(
    session: &Session,
    context: &Context,
    filter: &Filter,
    known: &[Known],
) -> Result<Vec<Change>, Error> {
    let now = survey(session, filter).await?;
    let statement = sql!(
        "select r.prrelid from pg_publication_rel r
           join pg_publication p on p.oid = r.prpubid where p.pubname in ($1, $2)"
    );
    let names = (context.full_publication(), context.append_publication());
    let rows = session
        .query(&statement, &[&names.0, &names.1])
        .await
        .map_err(Error::read("the publications"))?;
    let members: HashSet<u32> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    Ok(compare(known, &now, &members))
}

fn compare(known: &[Known], now: &Survey, members: &HashSet<u32>) -> Vec<Change> {
    let known_by_oid: HashMap<u32, &Known> = known.iter().map(|one| (one.oid, one)).collect();
    let now_by_name: HashMap<&TableName, &TableIdentity> =
        now.tables.iter().map(|table| (&table.table, table)).collect();
    let mut changes = Vec::new();
    let mut swapped: HashSet<u32> = HashSet::new();
    for one in known {
        let under_name = now_by_name.get(&one.table).filter(|table| table.oid != one.oid);
        if let Some(other) = under_name {
            swapped.insert(other.oid);
            changes.push(Change::Swapped {
                table: one.table.clone(),
                known_oid: one.oid,
                oid: other.oid,
            });
        } else if let Some(table) = now.table(one.oid) {
            changes.extend(changes_of(one, table, members));
        } else {
            changes.push(Change::Dropped { oid: one.oid, table: one.table.clone() });
        }
    }
    for table in &now.tables {
        let is_published_kind = table.persistence == super::identity::Persistence::Permanent
            && (table.is_leaf || !table.is_partition());
        if is_published_kind
            && !known_by_oid.contains_key(&table.oid)
            && !swapped.contains(&table.oid)
        {
            changes.push(Change::New {
                oid: table.oid,
                table: table.table.clone(),
                root: table.root,
                inherits: table.inherits.clone(),
            });
        }
    }
    changes
}

/// One that is still there under its name or another.
fn changes_of(known: &Known, now: &TableIdentity, members: &HashSet<u32>) -> Vec<Change> {
    let (oid, table) = (known.oid, now.table.clone());
    let mut changes = Vec::new();
    if known.table != now.table {
        let known = known.table.clone();
        changes.push(Change::Renamed { oid, known, table: table.clone() });
    }
    match (known.root, now.root) {
        (Some(before), after) if after != Some(before) => {
            changes.push(Change::Detached { oid, table: table.clone(), root: before });
        }
        (None, Some(root)) => {
            changes.push(Change::Attached { oid, table: table.clone(), root });
        }
        _ => {}
    }
    if !members.contains(&oid) {
        changes.push(Change::Unpublished { oid, table: table.clone() });
    }
    let needs_identity = known.publish == Publish::Full && now.is_leaf;
    if needs_identity && matches!(now.identity, Identity::None(_)) {
        changes.push(Change::IdentityLost { oid, table });
    }
    changes
}
