//! Ports for servers of tests that run at the same time, in any number of processes.
//!
//! Promise: a [`Port`] is taken by nobody else who asks here, for as long as it is held: a locked
//! file says so, and the kernel lifts the lock when the process ends. It was free when taken.

use super::{During as _, Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

/// Below the ports that Linux gives to outgoing connections (`ip_local_port_range`, 32768 up).
const DEFAULT_RANGE: (u16, u16) = (21_000, 28_999);

/// A port on the loopback, ours until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a free one from `SKEIN_TEST_PORTS` (`FIRST-LAST`), or 21000 to 28999.
    ///
    /// # Errors
    /// [`Error::NoPort`], or the lock directory cannot be written.
    pub fn take() -> Result<Self> {
        let (first, last) = range();
        let directory = PathBuf::from("/tmp/skein-test-ports");
        std::fs::create_dir_all(&directory).during("make the directory of port locks")?;
        let count = last - first + 1;
        // Processes start at different places, so that they seldom try the same.
        let start = u16::try_from(std::process::id() % u32::from(count)).unwrap_or(0);
        for step in 0..count {
            let number = first + (start + step) % count;
            // Another user's lock file cannot be opened: that port is theirs.
            let Ok(lock) = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(directory.join(number.to_string()))
            else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
            {
                return Ok(Self { number, _lock: lock });
            }
        }
        Err(Error::NoPort { first, last })
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

fn range() -> (u16, u16) {
    std::env::var("SKEIN_TEST_PORTS")
        .ok()
        .and_then(|text| {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first < last).then_some((first, last))
        })
        .unwrap_or(DEFAULT_RANGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ports_are_never_the_same() {
        let ports: Vec<Port> = (0..5).map(|_| Port::take().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 5);
    }
}
