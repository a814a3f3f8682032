//! Receiving and the spool against a real source: rules, part 4.

mod kill;
mod memory;
mod order;
mod rig;
mod safety;
mod status;
