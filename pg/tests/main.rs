//! Sessions against real servers.

mod certificate;
mod connect;
mod pins;
mod tls;
