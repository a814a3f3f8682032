//! The public contract: messages and services of `migration/v1`, the token that a request
//! carries, and the error that travels with a gRPC status.
//!
//! In: `.proto` files. Out: [`migration::v1`], [`authorization`], [`status`].
//! Promise: no database or state store code, so that the command line stays light.

pub mod authorization;
pub mod status;

/// Generated from `proto/migration/v1`.
pub mod migration {
    /// Version 1 of the contract. Fields are added, never renamed.
    #[allow(
        missing_debug_implementations,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::restriction
    )]
    pub mod v1 {
        tonic::include_proto!("migration.v1");

        impl std::fmt::Debug for Endpoint {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("Endpoint")
                    .field("conninfo", &"[redacted]")
                    .field("server_version", &self.server_version)
                    .finish()
            }
        }
    }
}

pub use migration::v1;

/// Descriptor set for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/migration_v1.bin"));
