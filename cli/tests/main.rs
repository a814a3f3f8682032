//! `skein` as a person runs it: the real program against a coordinator that is faked behind
//! the real contract.
//!
//! `cfg(test)` on each module lets its helper functions unwrap, too (clippy.toml).

#[cfg(test)]
mod coordinator;
#[cfg(test)]
mod exit;
#[cfg(test)]
mod json;
#[cfg(test)]
mod launch;
#[cfg(test)]
mod program;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod words;
