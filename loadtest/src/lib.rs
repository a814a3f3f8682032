//! What the tests, the demonstration and the benchmarks stand on: real servers, real processes,
//! checkable work, and a comparison that owes nothing to Skein's own.
//!
//! Reading order: `cluster` (servers and processes), `workload`, `check`.

mod background;
pub mod check;
pub mod cluster;
pub mod workload;
