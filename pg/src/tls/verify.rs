//! Whether a server's certificate is trusted.
//!
//! webpki checks the chain. Two things that libpq accepts and webpki does not are handled here,
//! since they are how PostgreSQL servers are set up: a self-signed certificate that is itself
//! the root file, and a certificate that has its host name in the common name alone
//! (manual: ssl-tcp, "Creating Certificates").

use crate::connect::Failure;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use std::sync::{Arc, Mutex};
use x509_cert::{
    Certificate,
    der::{Decode as _, asn1},
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// What a certificate must be.
pub(super) enum Trust {
    /// No root certificate: encryption without trust (sslmode up to require).
    Anyone,
    Roots {
        chain: Arc<WebPkiServerVerifier>,
        roots: Vec<CertificateDer<'static>>,
        /// The name it must carry (verify-full).
        host: Option<String>,
    },
}

impl Trust {
    pub(super) fn roots(
        roots: Vec<CertificateDer<'static>>,
        revoked: Vec<CertificateRevocationListDer<'static>>,
        host: Option<String>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Failure> {
        let fail = |text: String| Failure::File { what: "sslrootcert".to_owned(), text };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        if store.is_empty() {
            return Err(fail("it holds no usable certificate".to_owned()));
        }
        let chain = WebPkiServerVerifier::builder_with_provider(
            Arc::new(store),
            Arc::<CryptoProvider>::clone(provider),
        )
        .with_crls(revoked)
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| fail(error.to_string()))?;
        Ok(Self::Roots { chain, roots, host })
    }
}

pub(super) struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
    /// Names of a certificate that was trusted but is another host's.
    mismatched: Mutex<Option<String>>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    pub(super) fn new(trust: Trust, provider: &Arc<CryptoProvider>) -> Self {
        let provider = Arc::<CryptoProvider>::clone(provider);
        Self { trust, provider, mismatched: Mutex::new(None) }
    }

    pub(super) fn mismatched_names(&self) -> Option<String> {
        self.mismatched.lock().ok().and_then(|names| names.clone())
    }

    fn check_name(&self, certificate: &CertificateDer<'_>, host: &str) -> Result<(), Error> {
        let names = Names::of(certificate)?;
        if names.include(host) {
            return Ok(());
        }
        if let Ok(mut mismatched) = self.mismatched.lock() {
            *mismatched = Some(names.to_string());
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidForName))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Roots { chain, roots, host } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if roots.iter().any(|root| root.as_ref() == end_entity.as_ref()) {
            check_dates(end_entity, now)?;
        } else {
            let checked = chain.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
            match checked {
                // The chain was found good before the name was looked at; the name is ours.
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ))
                | Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(host) = host {
            self.check_name(end_entity, host)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.trust {
            // Whoever made the certificate up could sign with its key too: nothing is gained,
            // and webpki cannot read the version 1 certificates that are about.
            Trust::Anyone => Ok(HandshakeSignatureValid::assertion()),
            Trust::Roots { .. } => rustls::crypto::verify_tls12_signature(
                message,
                cert,
                dss,
                &self.provider.signature_verification_algorithms,
            ),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.trust {
            Trust::Anyone => Ok(HandshakeSignatureValid::assertion()),
            Trust::Roots { .. } => rustls::crypto::verify_tls13_signature(
                message,
                cert,
                dss,
                &self.provider.signature_verification_algorithms,
            ),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn parsed(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = parsed(certificate)?.tbs_certificate.validity;
    let now = now.as_secs();
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    Ok(())
}

/// Names that a certificate carries: the alternative names, or else the common name.
#[derive(Default)]
struct Names {
    dns: Vec<String>,
    ip: Vec<Vec<u8>>,
    common: Option<String>,
}

impl Names {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let tbs = parsed(certificate)?.tbs_certificate;
        let mut names = Self::default();
        if let Ok(Some((_, SubjectAltName(alternatives)))) = tbs.get::<SubjectAltName>() {
            for name in alternatives {
                match name {
                    GeneralName::DnsName(dns) => names.dns.push(dns.to_string()),
                    GeneralName::IpAddress(ip) => names.ip.push(ip.as_bytes().to_vec()),
                    _ => {}
                }
            }
        }
        let common_name = "2.5.4.3";
        names.common = tbs
            .subject
            .0
            .iter()
            .flat_map(|part| part.0.iter())
            .filter(|attribute| attribute.oid.to_string() == common_name)
            .find_map(|attribute| {
                let value = &attribute.value;
                asn1::Utf8StringRef::try_from(value)
                    .map(|text| text.as_str().to_owned())
                    .or_else(|_| {
                        asn1::PrintableStringRef::try_from(value)
                            .map(|text| text.as_str().to_owned())
                    })
                    .ok()
            });
        Ok(names)
    }

    fn include(&self, host: &str) -> bool {
        if let Ok(ip) = host.parse::<std::net::IpAddr>() {
            let octets = match ip {
                std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            return self.ip.contains(&octets)
                || self.dns.iter().any(|name| name == host)
                || (self.nothing_alternative() && self.common.as_deref() == Some(host));
        }
        if self.dns.iter().any(|pattern| fits(pattern, host)) {
            return true;
        }
        // libpq looks at the common name when there is no dNSName (manual: libpq-ssl).
        self.dns.is_empty() && self.common.as_deref().is_some_and(|common| fits(common, host))
    }

    fn nothing_alternative(&self) -> bool {
        self.dns.is_empty() && self.ip.is_empty()
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut names: Vec<String> = self.dns.iter().map(|name| format!("\"{name}\"")).collect();
        if names.is_empty() {
            names.extend(self.common.iter().map(|name| format!("\"{name}\"")));
        }
        if !self.ip.is_empty() {
            names.push(format!("{} IP addresses", self.ip.len()));
        }
        if names.is_empty() { f.write_str("nothing") } else { f.write_str(&names.join(", ")) }
    }
}

/// Whether a name, or `*.name` for one label, is `host`.
fn fits(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(rest), Some((label, domain))) => {
            !label.is_empty() && rest.contains('.') && rest.eq_ignore_ascii_case(domain)
        }
        _ => false,
    }
}

/// Why a certificate was refused, for people.
pub(super) fn explain(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "it was not issued by an authority in the root certificates".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired".to_owned()
        }
        CertificateError::Revoked => "it was revoked".to_owned(),
        other => {
            let text = other.to_string();
            if text.contains("UnsupportedCertVersion") {
                "it is an X.509 version 1 certificate, which is not supported here; issue it again \
                 with a subjectAltName extension"
                    .to_owned()
            } else {
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        assert!(fits("*.example.com", "DB1.example.com"));
        assert!(!fits("*.example.com", "a.b.example.com"));
        assert!(!fits("*.com", "example.com"));
        assert!(!fits("*.example.com", ".example.com"));
        assert!(fits("Db.example", "db.EXAMPLE"));
    }

    #[test]
    fn the_common_name_counts_only_without_alternatives() {
        let common = Names { common: Some("db".to_owned()), ..Names::default() };
        assert!(common.include("db"));
        let both = Names { dns: vec!["other".to_owned()], ..common };
        assert!(!both.include("db"));
        let ip = Names { ip: vec![vec![10, 0, 0, 1]], ..Names::default() };
        assert!(ip.include("10.0.0.1"));
        assert!(!ip.include("10.0.0.2"));
    }
}
