//! The source: what is read of it and what is made on it.

pub mod catalog;
pub mod holder;
