//! The worker against real PostgreSQL servers and a coordinator that is faked through the
//! contract.
//!
//! `cfg(test)` on each module lets its helper functions unwrap, too (clippy.toml).

#[cfg(test)]
mod bench;
#[cfg(test)]
mod build;
#[cfg(test)]
mod coordinator;
#[cfg(test)]
mod copy;
#[cfg(test)]
mod fault;
#[cfg(test)]
mod fence;
#[cfg(test)]
mod holder;
#[cfg(test)]
mod process;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod rewrite;
#[cfg(test)]
mod verify;
