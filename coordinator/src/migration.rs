//! The workflow of one migration.

pub mod context;
pub mod phase;
pub mod preflight;
