//! The schema: dump, archive, restore by stages, against real servers.

mod choice;
mod fault;
mod fixture;
mod round_trip;
