//! The second flow: a change on its way from the source to the target.
//!
//! ```text
//! walsender -> receive -> spool (durable) -> decode -> transaction -> route -> lanes -> target
//!     ^           |          |                                                   |
//!     +- status --+          +--------------- release <------- watermark <-------+
//! ```
//! Promise: `received_lsn >= spooled_lsn >= confirmed_flush_lsn` and
//! `spooled_lsn >= applied_lsn`, each by role (see the vocabulary in ARCHITECTURE.md). The spool
//! holds committed transactions only, in commit order, so whoever reads it knows a
//! transaction's `end_lsn` before its first change. The lanes commit a change and their
//! position together.

pub mod apply;
pub mod batch;
pub mod compact;
pub mod copy_text;
pub mod dispatch;
pub mod error;
pub mod feed;
pub mod identity_full;
pub mod images;
pub mod lane;
pub mod lanes;
pub mod parameter;
pub mod position;
pub mod receive;
pub mod relation;
pub mod route;
pub mod row;
pub mod run;
pub mod spool;
pub mod stage;
pub mod statement;
pub mod table;
pub mod transaction;
pub mod trigger;
pub mod watermark;

pub use error::Error;
pub use relation::RelationPlan;
pub use run::{Inputs, Replay, ReplayHandle, ReplayStatus};
