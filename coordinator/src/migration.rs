//! The workflow of one migration.

pub mod phase;
