//! Sessions against real servers.

#[cfg(test)]
mod certificate;
#[cfg(test)]
mod connect;
#[cfg(test)]
mod pins;
#[cfg(test)]
mod tls;
