//! Tests with real servers.
//!
//! `cfg(test)` on each module lets its helper functions unwrap, too (clippy.toml).

#[cfg(test)]
mod cutover;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod lease;
#[cfg(test)]
mod plan_file;
#[cfg(test)]
mod preflight;
#[cfg(test)]
mod publication;
#[cfg(test)]
mod receive;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod slot;
#[cfg(test)]
mod stand;
#[cfg(test)]
mod store_contract;
#[cfg(test)]
mod watch;
