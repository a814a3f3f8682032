//! `listen`, `[tls]` and the tokens: who may reach a coordinator over the network.
//!
//! Promise: off loopback nothing is served without TLS and both tokens.

use super::{
    invalid,
    store::{pem, private_key},
};
use proto::{authorization::Secret, status::Report};
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

/// `[tls]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Clients show a certificate of this authority. None: their tokens are enough.
    pub client_ca_file: Option<PathBuf>,
}

/// A TCP listener, checked.
#[derive(Clone, Debug)]
pub struct Listen {
    pub address: SocketAddr,
    pub tls: Option<TlsSettings>,
    /// References, `env:NAME` or `file:PATH`.
    pub worker_token: Option<String>,
    pub operator_token: Option<String>,
}

/// What workers and operators have to show on TCP. None: nothing, on loopback alone.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub worker: Option<Secret>,
    pub operator: Option<Secret>,
}

/// Certificates as read.
#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate_pem: Vec<u8>,
    pub key_pem: Secret,
    pub client_ca_pem: Option<Vec<u8>>,
}

impl Listen {
    /// # Errors
    /// `CONFIG_INVALID`.
    pub fn checked(
        address: Option<SocketAddr>,
        tls: Option<TlsSettings>,
        worker_token: Option<String>,
        operator_token: Option<String>,
    ) -> Result<Option<Self>, Report> {
        let Some(address) = address else {
            if tls.is_some() || worker_token.is_some() || operator_token.is_some() {
                return Err(invalid("[tls] or a token is set, and listen is not").with_hint(
                    "Set listen = \"ADDRESS:PORT\"; the Unix socket needs neither of them.",
                ));
            }
            return Ok(None);
        };
        if !address.ip().is_loopback()
            && (tls.is_none() || worker_token.is_none() || operator_token.is_none())
        {
            return Err(invalid(format!("listen = \"{address}\" is not a loopback address"))
                .with_detail("Off loopback nothing is served without TLS and tokens.")
                .with_hint(
                    "Set [tls] cert_file and key_file, worker_token and operator_token; or listen \
                     on 127.0.0.1, and reach it through an SSH tunnel.",
                ));
        }
        if let Some(tls) = &tls
            && (tls.cert_file.as_os_str().is_empty() || tls.key_file.as_os_str().is_empty())
        {
            return Err(invalid("[tls] has no cert_file or no key_file").with_hint("Give both."));
        }
        if worker_token.is_some() != operator_token.is_some() {
            return Err(invalid("one of worker_token and operator_token is set")
                .with_hint("Give both, or none."));
        }
        Ok(Some(Self { address, tls, worker_token, operator_token }))
    }

    /// Reads the tokens.
    ///
    /// # Errors
    /// When one cannot be read or is too short.
    pub fn tokens(&self) -> Result<Tokens, Report> {
        let read = |role: &str, reference: &Option<String>| {
            reference.as_deref().map(|reference| Secret::token(role, reference)).transpose()
        };
        let tokens = Tokens {
            worker: read("worker_token", &self.worker_token)?,
            operator: read("operator_token", &self.operator_token)?,
        };
        if tokens.worker.is_some() && tokens.worker == tokens.operator {
            return Err(invalid("worker_token and operator_token are the same")
                .with_detail("A worker is given connection settings, an operator is not.")
                .with_hint("Make two with: openssl rand -hex 32"));
        }
        Ok(tokens)
    }

    /// Reads the certificates.
    ///
    /// # Errors
    /// `FILE_UNREADABLE`.
    pub fn certificates(&self) -> Result<Option<Tls>, Report> {
        let Some(tls) = &self.tls else { return Ok(None) };
        Ok(Some(Tls {
            certificate_pem: pem(&tls.cert_file)?,
            key_pem: private_key(&tls.key_file)?,
            client_ca_pem: tls.client_ca_file.as_deref().map(pem).transpose()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> Option<TlsSettings> {
        Some(TlsSettings {
            cert_file: "/c".into(),
            key_file: "/k".into(),
            ..TlsSettings::default()
        })
    }

    #[test]
    fn off_loopback_tls_and_both_tokens_are_compulsory() {
        let open = "0.0.0.0:7450".parse().ok();
        let token = || Some("env:T".to_owned());
        assert!(Listen::checked(open, tls(), token(), token()).unwrap().is_some());
        for (tls, worker, operator) in [
            (None, token(), token()),
            (tls(), None, token()),
            (tls(), token(), None),
            (tls(), None, None),
            (None, None, None),
        ] {
            assert!(Listen::checked(open, tls, worker, operator).is_err());
        }
        let loopback = "127.0.0.1:7450".parse().ok();
        assert!(Listen::checked(loopback, None, None, None).unwrap().is_some());
        assert!(Listen::checked(loopback, None, token(), None).is_err());
        assert!(Listen::checked(None, tls(), None, None).is_err());
    }

    #[test]
    fn one_token_for_both_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let token = Some(format!("file:{}", file.path().display()));
        let address = "127.0.0.1:7450".parse().ok();
        let listen = Listen::checked(address, None, token.clone(), token).unwrap().unwrap();
        assert_eq!(listen.tokens().unwrap_err().reason, "CONFIG_INVALID");
    }
}
