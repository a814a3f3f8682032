//! Changes on their way from the source to the target.
//!
//! ```text
//! feed -> dispatch (transaction, route) -> lanes (compact, apply) -> watermark -> feed
//!              positions: skein.lane on the target
//! ```
//! `run` holds them together; `table`, `relation` and `statement` say what a change means there.

pub mod apply;
pub mod compact;
pub mod copy_text;
pub mod dispatch;
pub mod error;
pub mod feed;
pub mod identity_full;
pub mod lane;
pub mod position;
pub mod relation;
pub mod route;
pub mod row;
pub mod run;
pub mod statement;
pub mod table;
pub mod transaction;
pub mod watermark;

pub use error::Error;
pub use relation::RelationPlan;
pub use run::{Inputs, Replay, ReplayHandle, ReplayStatus};
