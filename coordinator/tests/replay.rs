//! Replay onto a real target: what the source's slot says, through the spool, to equal tables.

mod faults;
mod lanes;
mod random;
mod stream;
mod values;
mod world;
