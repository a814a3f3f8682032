//! What a connection string says about TLS; read by `crate::tls`.

use super::{RootCert, SslMode};
use std::path::PathBuf;

/// What TLS is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) mode: SslMode,
    /// TLS from the first byte (libpq 17, sslnegotiation).
    pub(crate) direct: bool,
    pub(crate) root_cert: Option<RootCert>,
    /// Certificate and key of the client.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) revoked: Option<PathBuf>,
    pub(crate) server_name_indication: bool,
    pub(crate) min_version: Option<TlsVersion>,
    pub(crate) max_version: Option<TlsVersion>,
}

/// Versions that this program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    Tls12,
    Tls13,
}

impl TlsOptions {
    /// Keywords and values, as libpq has them.
    pub(super) fn values(&self) -> Vec<(&'static str, Option<String>)> {
        let path = |path: &PathBuf| path.display().to_string();
        let mut values = vec![
            ("sslmode", Some(self.mode.text().to_owned())),
            (
                "sslrootcert",
                self.root_cert.as_ref().map(|root| match root {
                    RootCert::System => "system".to_owned(),
                    RootCert::File(file) => path(file),
                }),
            ),
            ("sslcert", self.identity.as_ref().map(|(cert, _)| path(cert))),
            ("sslkey", self.identity.as_ref().map(|(_, key)| path(key))),
            ("sslcrl", self.revoked.as_ref().map(path)),
            ("ssl_min_protocol_version", self.min_version.map(|v| v.text().to_owned())),
            ("ssl_max_protocol_version", self.max_version.map(|v| v.text().to_owned())),
        ];
        if self.direct {
            values.push(("sslnegotiation", Some("direct".to_owned())));
        }
        if !self.server_name_indication {
            values.push(("sslsni", Some("0".to_owned())));
        }
        values
    }
}
