//! Tests with real servers: the harness itself, then the product, end to end.
//!
//! `cfg(test)` on each module lets its helper functions unwrap, too (clippy.toml).

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod every_type;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod large;
#[cfg(test)]
mod late;
#[cfg(test)]
mod moves;
#[cfg(test)]
mod network;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod remote;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod server;
#[cfg(test)]
mod workload;

/// Waits for an effect; a test never sleeps for one.
#[cfg(test)]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
