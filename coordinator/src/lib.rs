//! The coordinator: owns slot, snapshot, plan and replay stream of each migration, and leases
//! tasks to workers.
//!
//! Reading order: `migration` (the workflow), `source`, `plan`, `lease`, `replay`, `verify`,
//! `server` (the gRPC edge), `store` and `target` (what is kept where).

pub mod clock;
pub mod config;
pub mod filter;
pub mod fleet;
pub mod leader;
pub mod lease;
pub mod migration;
pub mod plan;
pub mod registry;
pub mod replay;
pub mod schema;
pub mod secret;
pub mod server;
pub mod source;
pub mod store;
pub mod target;
pub mod verify;
