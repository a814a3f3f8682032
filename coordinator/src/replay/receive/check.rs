//! Whether the slot's stream joins what the spool holds. Pure.
//!
//! START_REPLICATION at a position older than `confirmed_flush_lsn` skips ahead in silence
//! (PostgreSQL 15 and 18), so the server is asked before each one.

use super::error::Lost;
use crate::replay::spool::SpoolIdentity;
use pg::{
    PgLsn,
    walsender::{ActiveSlot, SlotState, SystemId},
};

/// Checks server and slot against the spool.
///
/// # Errors
/// The first thing that shows that changes are missing between them.
pub fn joins(
    identity: &SpoolIdentity,
    spooled_lsn: PgLsn,
    system: &SystemId,
    slot: Option<&SlotState>,
) -> Result<(), Lost> {
    if system.system_id != identity.system_id {
        let (found, expected) = (system.system_id.clone(), identity.system_id.clone());
        return Err(Lost::System { found, expected });
    }
    if system.timeline != identity.timeline {
        return Err(Lost::Timeline { found: system.timeline, expected: identity.timeline });
    }
    let slot = slot.ok_or(Lost::NoSlot)?;
    if slot.plugin != "pgoutput" {
        return Err(Lost::Plugin { found: slot.plugin.clone() });
    }
    if slot.database != identity.database {
        let (found, expected) = (slot.database.clone(), identity.database.clone());
        return Err(Lost::Database { found, expected });
    }
    if slot.wal_status == "lost" {
        return Err(Lost::WalRemoved);
    }
    match slot.confirmed_flush_lsn {
        Some(confirmed) if confirmed > spooled_lsn => {
            Err(Lost::Confirmed { confirmed, spooled: spooled_lsn })
        }
        _ => Ok(()),
    }
}

/// Whether the session that holds our slot is an earlier one of ours: the same migration and
/// role, an epoch not newer than ours.
pub fn is_older_of_ours(active: &ActiveSlot, our_name: &str) -> bool {
    let parts = |name: &str| -> Option<(String, String, u64)> {
        let mut parts = name.split('/');
        let is_ours = parts.next() == Some("skein");
        let migration = parts.next()?.to_owned();
        let epoch = parts.next()?.parse().ok()?;
        let role = parts.next()?.to_owned();
        is_ours.then_some((migration, role, epoch))
    };
    match (parts(&active.application_name), parts(our_name)) {
        (Some((migration, role, epoch)), Some((our_migration, our_role, our_epoch))) => {
            migration == our_migration && role == our_role && epoch <= our_epoch
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> SpoolIdentity {
        SpoolIdentity {
            spool_id: "5".to_owned(),
            system_id: "7000".to_owned(),
            timeline: 1,
            slot: "s".to_owned(),
            database: "d".to_owned(),
            consistent_point: PgLsn::from(100),
        }
    }

    fn system() -> SystemId {
        SystemId {
            system_id: "7000".to_owned(),
            timeline: 1,
            flushed_lsn: PgLsn::from(900),
            database: "d".to_owned(),
        }
    }

    fn slot() -> SlotState {
        SlotState {
            plugin: "pgoutput".to_owned(),
            database: "d".to_owned(),
            confirmed_flush_lsn: Some(PgLsn::from(200)),
            wal_status: "reserved".to_owned(),
            active: None,
        }
    }

    fn check(spooled: u64, system: &SystemId, slot: Option<&SlotState>) -> Result<(), Lost> {
        joins(&identity(), PgLsn::from(spooled), system, slot)
    }

    #[test]
    fn a_stream_joins_where_the_spool_holds_what_was_confirmed() {
        assert_eq!(check(200, &system(), Some(&slot())), Ok(()));
        assert_eq!(check(900, &system(), Some(&slot())), Ok(()));
        let (confirmed, spooled) = (PgLsn::from(200), PgLsn::from(199));
        assert_eq!(
            check(199, &system(), Some(&slot())),
            Err(Lost::Confirmed { confirmed, spooled })
        );
    }

    #[test]
    fn another_server_slot_or_database_does_not_join() {
        let lost =
            |system: SystemId, slot: SlotState| check(200, &system, Some(&slot)).unwrap_err();
        let other = SystemId { system_id: "7001".to_owned(), ..system() };
        assert!(matches!(lost(other, slot()), Lost::System { .. }));
        let promoted = SystemId { timeline: 2, ..system() };
        assert!(matches!(lost(promoted, slot()), Lost::Timeline { .. }));
        let plugin = SlotState { plugin: "wal2json".to_owned(), ..slot() };
        assert!(matches!(lost(system(), plugin), Lost::Plugin { .. }));
        let database = SlotState { database: "e".to_owned(), ..slot() };
        assert!(matches!(lost(system(), database), Lost::Database { .. }));
        let invalid = SlotState { wal_status: "lost".to_owned(), ..slot() };
        assert!(matches!(lost(system(), invalid), Lost::WalRemoved));
        assert_eq!(check(200, &system(), None), Err(Lost::NoSlot));
    }

    #[test]
    fn only_our_own_older_session_is_ended() {
        let is_older = |name: &str| {
            let active = ActiveSlot { pid: 1, application_name: name.to_owned() };
            is_older_of_ours(&active, "skein/m/7/receive/0")
        };
        assert!(is_older("skein/m/6/receive/0"));
        assert!(is_older("skein/m/7/receive/1"));
        assert!(!is_older("skein/m/8/receive/0"));
        assert!(!is_older("skein/n/6/receive/0"));
        assert!(!is_older("skein/m/6/holder/0"));
        assert!(!is_older("pg_recvlogical"));
        assert!(!is_older(""));
    }
}
