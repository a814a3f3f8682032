//! The workflow of one migration.

pub mod context;
pub mod phase;
