//! The workflow of one migration: load, step, record.
//!
//! ```text
//! Preflight -> Provisioning -> Copying -> CatchingUp -> Ready <-> CuttingOver -> Done
//!  preflight    provision      copying    catch_up      catch_up  cutover
//! ```
//! `phase` is the one pure function that says what comes next; `driver` runs the loop and takes
//! commands; `flow` holds what lives across the steps, one file per step beside it.

pub mod catch_up;
pub mod connect;
pub mod context;
pub mod copying;
pub mod cutover;
pub mod driver;
pub mod finish;
pub mod flow;
pub mod meter;
pub mod observe;
pub mod phase;
pub mod preflight;
pub mod provision;
pub mod replan;
pub mod shape;
pub mod shared;
pub mod snapshots;
pub mod spec;
pub mod stream;
pub mod tables;
pub mod teardown;
