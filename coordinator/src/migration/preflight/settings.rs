//! Server settings, and room for our sessions, slots and locks.

use super::{
    Plan,
    check::{CheckExt as _, Place, failure, or_not_made, pass, warning},
    server::Server,
};
use pg::sql;
use proto::v1::Check;

/// Slots and senders that must be free: the main slot, and a temporary one for a table that
/// gets its own consistent point.
const SLOTS_NEEDED: i64 = 2;

/// Our status updates come every 20 s at most; a sender that is ended sooner would be lost in
/// any pause of ours.
const SHORTEST_SENDER_TIMEOUT_MS: i64 = 30_000;

/// Sessions on the source beside the copying ones: three holders, walsender, pg_dump (one, or
/// two while roles are read), watcher, coordinator, and one to spare.
const SOURCE_SESSIONS: i64 = 9;

/// Sessions on the target beside copying and lanes: coordinator, fence, builds, one to spare.
const TARGET_SESSIONS: i64 = 6;

/// pg_dump's own catalogs and indexes, in lock slots.
const CATALOG_LOCKS: i64 = 200;

pub(super) async fn of_source(source: &Server, plan: &Plan<'_>) -> Vec<Check> {
    let mut checks = vec![wal_level(source)];
    checks.extend(or_not_made("replication_slots", Place::Source, slots(source).await));
    checks.extend(fixed_settings(source));
    checks.extend(or_not_made("session_settings", Place::Source, overrides(source).await));
    checks.extend(or_not_made("lock_slots", Place::Source, dump_locks(source, plan).await));
    let needed = SOURCE_SESSIONS + copy_sessions(plan);
    checks.extend(or_not_made("connections", Place::Source, connections(source, needed).await));
    checks
}

pub(super) async fn of_target(target: &Server, plan: &Plan<'_>) -> Vec<Check> {
    let mut checks = or_not_made("session_settings", Place::Target, overrides(target).await);
    let lanes = plan.spec.replay.as_ref().map_or(0, |replay| replay.lanes);
    let lanes = if lanes == 0 { 4 } else { i64::from(lanes) };
    let needed = TARGET_SESSIONS + lanes + copy_sessions(plan);
    checks.extend(or_not_made("connections", Place::Target, connections(target, needed).await));
    checks
}

/// Workers times slots, with the defaults of the contract.
fn copy_sessions(plan: &Plan<'_>) -> i64 {
    let or = |value: u32, default: i64| if value == 0 { default } else { i64::from(value) };
    let copy = plan.spec.copy.as_ref();
    or(copy.map_or(0, |copy| copy.workers), 2) * or(copy.map_or(0, |copy| copy.worker_slots), 2)
}

fn wal_level(source: &Server) -> Check {
    let level = source.setting("wal_level").unwrap_or("not shown");
    if level == "logical" {
        return pass("wal_level", Place::Source, level);
    }
    failure("wal_level", Place::Source, level)
        .detail("Changes can be read from the WAL at level logical only; it needs a restart.")
        .fix("alter system set wal_level = 'logical'; -- then restart the source")
}

async fn slots(source: &Server) -> pg::Result<Vec<Check>> {
    let row = source
        .session
        .query_one(
            &sql!(
                "select (select count(*) from pg_replication_slots),
                        (select count(*) from pg_stat_replication)"
            ),
            &[],
        )
        .await?;
    let check = |name: &str, setting: &str, used: i64| {
        let all = source.number(setting).unwrap_or(0);
        let found = format!("{} of {all} free", (all - used).max(0));
        if all - used >= SLOTS_NEEDED {
            pass(name, Place::Source, found)
        } else {
            failure(name, Place::Source, found)
                .detail(format!("{SLOTS_NEEDED} are needed; {setting} needs a restart."))
                .fix(format!(
                    "alter system set {setting} = {}; -- then restart the source",
                    used + SLOTS_NEEDED
                ))
        }
    };
    Ok(vec![
        check("replication_slots", "max_replication_slots", row.try_get(0)?),
        check("wal_senders", "max_wal_senders", row.try_get(1)?),
    ])
}

/// Settings whose value alone decides.
fn fixed_settings(source: &Server) -> Vec<Check> {
    let mut checks = vec![sender_timeout(source), slot_wal_limit(source)];
    checks.extend(source.setting("idle_replication_slot_timeout").map(|value| {
        if value == "0" {
            pass("idle_replication_slot_timeout", Place::Source, "off")
        } else {
            failure("idle_replication_slot_timeout", Place::Source, format!("{value} s"))
                .detail("The server would invalidate the slot while the coordinator is away.")
                .fix("alter system set idle_replication_slot_timeout = 0; select pg_reload_conf();")
        }
    }));
    checks.extend(source.setting("output_plugin_libraries").map(plugins));
    checks.extend(source.number("old_snapshot_threshold").map(|minutes| {
        if minutes < 0 {
            pass("old_snapshot_threshold", Place::Source, "off")
        } else {
            failure("old_snapshot_threshold", Place::Source, format!("{minutes} min"))
                .detail("The snapshot that the copy reads under would become too old.")
                .fix("alter system set old_snapshot_threshold = -1; -- then restart the source")
        }
    }));
    checks
}

fn plugins(value: &str) -> Check {
    let listed = value.split(',').any(|name| name.trim().trim_matches('"') == "pgoutput");
    if listed {
        return pass("output_plugin_libraries", Place::Source, value);
    }
    failure("output_plugin_libraries", Place::Source, format!("\"{value}\""))
        .detail("A slot with pgoutput would be refused.")
        .fix(
            "alter system set output_plugin_libraries = 'pgoutput'; select pg_reload_conf(); \
             -- and what else is in use",
        )
}

fn sender_timeout(source: &Server) -> Check {
    let name = "wal_sender_timeout";
    match source.number(name) {
        Some(0) => warning(name, Place::Source, "off")
            .detail("After a network cut the slot stays in use until TCP gives up.")
            .fix("alter system set wal_sender_timeout = '60s'; select pg_reload_conf();"),
        Some(ms) if ms < SHORTEST_SENDER_TIMEOUT_MS => {
            warning(name, Place::Source, format!("{ms} ms"))
                .detail("A short pause ends the stream; it is taken up again each time.")
                .fix("alter system set wal_sender_timeout = '60s'; select pg_reload_conf();")
        }
        Some(ms) => pass(name, Place::Source, format!("{} s", ms / 1000)),
        None => pass(name, Place::Source, "not shown"),
    }
}

fn slot_wal_limit(source: &Server) -> Check {
    let name = "max_slot_wal_keep_size";
    match source.number(name) {
        None | Some(-1) => pass(name, Place::Source, "no limit"),
        Some(mb) => warning(name, Place::Source, format!("{mb} MB"))
            .detail(
                "The slot is lost, and with it the migration, when the coordinator is away while \
                 more WAL than that is written.",
            )
            .fix("alter system set max_slot_wal_keep_size = -1; select pg_reload_conf();"),
    }
}

/// `ALTER ROLE` and `ALTER DATABASE` settings that reach our sessions. Ours win where it
/// matters; the walsender and pg_dump are told too.
async fn overrides(server: &Server) -> pg::Result<Vec<Check>> {
    let rows = server
        .session
        .query(
            &sql!(
                "select distinct unnest(s.setconfig)
                   from pg_db_role_setting s
                  where s.setdatabase in
                        (0, (select oid from pg_database where datname = current_database()))
                    and s.setrole in
                        (0, (select oid from pg_roles where rolname = current_user))
                  order by 1"
            ),
            &[],
        )
        .await?;
    let mut all: Vec<String> = Vec::new();
    for row in rows {
        all.push(row.try_get(0)?);
    }
    let name = "session_settings";
    let timeouts: Vec<String> = [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "transaction_timeout",
    ]
    .iter()
    .filter_map(|timeout| {
        let value = server.number(timeout).filter(|value| *value != 0)?;
        Some(format!("{timeout} = {value} ms"))
    })
    .collect();
    let role_changes: Vec<&String> =
        all.iter().filter(|setting| setting.starts_with("role=")).collect();
    let check = if let Some(role) = role_changes.first() {
        failure(name, server.place, format!("sessions begin with {role}"))
            .detail("Rights would be those of another role.")
            .fix(format!("alter role {} reset role;", server.quoted_role()))
    } else if timeouts.is_empty() {
        pass(name, server.place, "no timeout is set for our sessions")
    } else {
        pass(name, server.place, timeouts.join(", "))
            .detail("Skein sets every timeout for its own sessions; these do not reach them.")
    };
    Ok(vec![check])
}

/// Lock slots of the whole server (manual, max_locks_per_transaction).
fn lock_slots(server: &Server) -> Option<(i64, i64)> {
    let of = |name: &str| server.number(name);
    let autovacuum = of("autovacuum_worker_slots").or_else(|| of("autovacuum_max_workers"))?;
    let sessions = of("max_connections")?
        + autovacuum
        + of("max_worker_processes")?
        + of("max_wal_senders")?
        + of("max_prepared_transactions")?
        + 1;
    Some((of("max_locks_per_transaction")? * sessions, sessions))
}

/// pg_dump holds a lock on every table that it dumps, in one transaction.
async fn dump_locks(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let rows = source
        .session
        .query(
            &sql!(
                "select n.nspname::text, count(*)
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' group by 1"
            ),
            &[],
        )
        .await?;
    let mut tables: i64 = CATALOG_LOCKS;
    for row in rows {
        if plan.filter.matches_schema(row.try_get(0)?) {
            tables += row.try_get::<_, i64>(1)?;
        }
    }
    Ok(vec![lock_check(source, Place::Source, tables)])
}

/// Whether one transaction may lock `needed` relations.
pub(super) fn lock_check(server: &Server, place: Place, needed: i64) -> Check {
    let name = "lock_slots";
    let Some((slots, sessions)) = lock_slots(server) else {
        return warning(name, place, "the settings are not shown");
    };
    let found = format!("{needed} needed by one transaction, {slots} on the server");
    // a fifth to spare for everybody else
    let value = (needed + needed / 5) / sessions.max(1) + 1;
    if needed + needed / 5 <= slots {
        return pass(name, place, found);
    }
    let fix = format!(
        "alter system set max_locks_per_transaction = {}; -- then restart the {}",
        value.max(64),
        place.as_str()
    );
    // beyond its slots the server uses shared memory that happens to be free: with defaults
    // (7,808) a pg_dump ran out at its 12,847th table
    if needed <= slots + slots / 4 {
        return warning(name, place, found)
            .detail("It will do while other sessions hold few locks.")
            .fix(fix);
    }
    failure(name, place, found).detail("It would fail with \"out of shared memory\".").fix(fix)
}

/// Free connections for us, by server, database and role.
async fn connections(server: &Server, needed: i64) -> pg::Result<Vec<Check>> {
    let row = server
        .session
        .query_one(
            &sql!(
                "select (select count(*) from pg_stat_activity where datid is not null),
                        (select datconnlimit from pg_database where datname = current_database()),
                        (select count(*) from pg_stat_activity
                          where datname = current_database()),
                        r.rolconnlimit,
                        (select count(*) from pg_stat_activity where usename = current_user)
                   from pg_roles r where r.rolname = current_user"
            ),
            &[],
        )
        .await?;
    let reserved = if server.role.superuser {
        0
    } else {
        server.number("superuser_reserved_connections").unwrap_or(3)
            + server.number("reserved_connections").unwrap_or(0)
    };
    let max = server.number("max_connections").unwrap_or(100);
    let limited = |limit: i32, used: i64| (limit >= 0).then(|| i64::from(limit) - used);
    let (of_database, of_role): (i32, i32) = (row.try_get(1)?, row.try_get(3)?);
    let free = [
        Some((max - reserved - row.try_get::<_, i64>(0)?, "max_connections")),
        limited(of_database, row.try_get(2)?).map(|free| (free, "the database's limit")),
        limited(of_role, row.try_get(4)?).map(|free| (free, "the role's limit")),
    ];
    let (free, by) = free.into_iter().flatten().min().unwrap_or((i64::MAX, "max_connections"));
    let found = format!("{needed} needed, {} free by {by}", free.max(0));
    let name = "connections";
    if free >= needed {
        return Ok(vec![pass(name, server.place, found)]);
    }
    let fix = match by {
        "the database's limit" => {
            format!("alter database {} connection limit -1;", server.quoted_database())
        }
        "the role's limit" => {
            format!("alter role {} connection limit -1;", server.quoted_role())
        }
        _ => format!(
            "alter system set max_connections = {}; -- then restart the {}; or use fewer workers",
            max + needed - free,
            server.place.as_str()
        ),
    };
    Ok(vec![failure(name, server.place, found).fix(fix)])
}
