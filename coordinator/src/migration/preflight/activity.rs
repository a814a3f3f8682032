//! What runs on the source now: transactions that a slot would wait for, leftovers of ours.

use super::{
    Plan,
    check::{CheckExt as _, Place, count, pass, some, warning},
    server::Server,
};
use crate::source::{Error, slot};
use pg::sql;
use proto::{status::Classify as _, v1::Check};

/// A transaction open for longer is named: creating the slot waits for its end.
const LONG_TRANSACTION_S: u64 = 60;

pub(super) async fn checks(source: &Server, plan: &Plan<'_>) -> Vec<Check> {
    if source.in_recovery {
        return Vec::new();
    }
    let mut checks = match slot::blockers(&source.session).await {
        Ok(open) => transactions(&open),
        Err(error) => vec![not_checked("long_transactions", &error)],
    };
    checks.extend(match slot::oldest_transaction(&source.session).await {
        Ok(oldest) => oldest.into_iter().flat_map(|one| old_snapshot(&one)).collect(),
        Err(error) => vec![not_checked("long_transactions", &error)],
    });
    let slot_name = format!("skein_{}", plan.spec.name);
    checks.extend(leftovers(source, &slot_name).await);
    checks
}

fn not_checked(name: &str, error: &Error) -> Check {
    let report = error.report();
    warning(name, Place::Source, "could not be checked")
        .detail(format!("{}. {}", report.primary, report.detail))
        .fix("grant pg_read_all_stats to the role, then check again.")
}

fn transactions(open: &[slot::OpenTransaction]) -> Vec<Check> {
    let prepared: Vec<_> = open.iter().filter(|one| one.gid.is_some()).collect();
    let long: Vec<_> =
        open.iter().filter(|one| one.gid.is_none() && one.age_s >= LONG_TRANSACTION_S).collect();
    let mut checks = Vec::new();
    checks.push(if long.is_empty() {
        pass("long_transactions", Place::Source, "none that writes for over a minute")
    } else {
        let ends: Vec<String> = long
            .iter()
            .filter_map(|one| Some(format!("select pg_terminate_backend({});", one.pid?)))
            .collect();
        warning("long_transactions", Place::Source, count(long.len(), "long transaction"))
            .detail(format!("Creating the slot waits for their end: {}.", some(&long)))
            .fix(ends.join("\n"))
    });
    checks.push(if prepared.is_empty() {
        pass("prepared_transactions", Place::Source, "none")
    } else {
        let ends: Vec<String> = prepared
            .iter()
            .filter_map(|one| {
                let gid = pg::sql::quote_literal(one.gid.as_ref()?);
                Some(format!("commit prepared {gid}; -- or: rollback prepared {gid};"))
            })
            .collect();
        warning(
            "prepared_transactions",
            Place::Source,
            count(prepared.len(), "prepared transaction"),
        )
        .detail(format!(
            "Creating the slot waits for each, and one that is pending stops cutover: {}.",
            some(&prepared)
        ))
        .fix(ends.join("\n"))
    });
    checks
}

/// One that only reads holds back nothing of ours, but its age tells of locks to come.
fn old_snapshot(oldest: &slot::OpenTransaction) -> Option<Check> {
    let long = oldest.age_s >= LONG_TRANSACTION_S && oldest.gid.is_none() && oldest.xid.is_none();
    long.then(|| {
        warning("open_transaction", Place::Source, oldest.to_string())
            .detail(
                "Setting a replica identity needs a lock on the table for a moment, and waits \
                 while such a transaction holds it.",
            )
            .fix(format!("select pg_terminate_backend({});", oldest.pid.unwrap_or(0)))
    })
}

/// A slot or publication of an earlier run under this name.
async fn leftovers(source: &Server, prefix: &str) -> Vec<Check> {
    let query = sql!(
        "select 'slot ' || slot_name from pg_replication_slots where slot_name = $1
         union all
         select 'publication ' || pubname from pg_publication
          where pubname in ($1 || '_full', $1 || '_append')"
    );
    let Ok(rows) = source.session.query(&query, &[&prefix]).await else { return Vec::new() };
    let found: Vec<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    if found.is_empty() {
        return Vec::new();
    }
    vec![
        warning("leftovers", Place::Source, found.join(", "))
            .detail(
                "Left by an earlier run under this name. A migration that is begun anew drops the \
                 slot and completes the publications.",
            )
            .fix(format!(
                "select pg_drop_replication_slot('{prefix}'); drop publication if exists \
                 {prefix}_full, {prefix}_append;"
            )),
    ]
}
