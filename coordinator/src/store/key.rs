//! Keys of the state store, all of them.
//!
//! ```text
//! /migration/NAME   Record: spec, phase, fault, slot, spool id, snapshot names
//! /leader           who leads: the address others are sent to; under a lease (etcd alone)
//! ```
//! In etcd each stands below the cluster's prefix.

/// Prefix of all records of migrations.
pub const MIGRATIONS: &str = "/migration/";

/// Who leads.
pub const LEADER: &str = "/leader";

/// The record of one migration.
pub fn migration(name: &str) -> String {
    format!("{MIGRATIONS}{name}")
}
