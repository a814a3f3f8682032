//! The copy worker: leases tasks from a coordinator, does them, says so.
//!
//! ```text
//! client --LeaseTask--> run --+-> copy (read -> write, fence)   rows, chunk by chunk
//!    ^                        +-> build                         indexes, constraints
//!    |                        +-> verify                        digests of both sides
//!    +--Complete/Release------+
//! heartbeat: leases and holders out; fenced, revoked, holds, drain, rate in
//! ```
//! Promise: what a task writes and its finishing mark are one transaction on the target that
//! began by taking the task's row under the task's token, so that any number of workers, stale
//! ones included, commit a task at most once; row values and passwords are never logged.

pub mod config;
pub mod error;
pub mod run;

mod backoff;
mod build;
mod client;
mod copy;
mod failpoint;
mod heartbeat;
mod holder;
mod lease;
mod meter;
mod rate;
mod sessions;
mod snapshot;
mod task;
mod verify;

pub use config::Config;
pub use error::Error;
