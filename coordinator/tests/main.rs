//! Tests with real servers.
//!
//! `cfg(test)` on each module lets its helper functions unwrap, too (clippy.toml).

#[cfg(test)]
mod preflight;
#[cfg(test)]
mod schema;
