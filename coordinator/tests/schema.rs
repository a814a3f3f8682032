//! The schema: dump, archive, restore by stages, against real servers.

mod fault;
mod fixture;
mod round_trip;
