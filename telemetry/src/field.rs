//! Names of fields in spans, events and metrics: the same word for the same thing everywhere.
//!
//! The macros of `tracing` take a name as it stands (`info!(migration = %name)`) or a constant in
//! braces (`info!({ field::MIGRATION } = %name)`). Row values and connection strings are in none.

/// Name of a migration.
pub const MIGRATION: &str = "migration";
/// Term of the acting coordinator.
pub const EPOCH: &str = "epoch";
/// Id of a worker.
pub const WORKER: &str = "worker";
/// Id of a task, as in the target's plan.
pub const TASK: &str = "task";
/// What a task does: copy, index, checksum and so on.
pub const TASK_KIND: &str = "task_kind";
/// Fencing token of a lease.
pub const TOKEN: &str = "token";
/// Number of an apply lane.
pub const LANE: &str = "lane";
/// Phase, as `status --json` has it.
pub const PHASE: &str = "phase";
/// A table's name, quoted where SQL needs it.
pub const TABLE: &str = "table";
/// Which server: `source` or `target`.
pub const SERVER: &str = "server";
/// Upper-case word of an error, such as REPLICA_IDENTITY_MISSING.
pub const REASON: &str = "reason";
/// Positions, by role (ARCHITECTURE.md).
pub const RECEIVED_LSN: &str = "received_lsn";
pub const SPOOLED_LSN: &str = "spooled_lsn";
pub const APPLIED_LSN: &str = "applied_lsn";
pub const CONFIRMED_FLUSH_LSN: &str = "confirmed_flush_lsn";
pub const END_POSITION: &str = "end_position";
