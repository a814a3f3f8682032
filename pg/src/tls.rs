//! TLS as libpq's sslmode means it.
//!
//! ```text
//! TlsOptions + host name -> rustls ClientConfig (verify.rs decides on trust) -> handshake
//! ```
//! Promise: `verify-ca` and `verify-full` let nothing in that libpq would not; a root
//! certificate that exists is used in every mode, so that `require` behaves as `verify-ca`
//! then (manual: libpq-ssl). Keys that others may read are refused.

mod verify;

use crate::{
    connect::Failure,
    conninfo::{RootCert, SslMode, TlsOptions, TlsVersion},
};
use rustls::{ClientConfig, crypto::CryptoProvider};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, pem::PemObject as _,
};
use sha2::Digest as _;
use std::{net::IpAddr, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use verify::{Trust, Verifier};
use x509_cert::{Certificate, der::Decode as _};

/// Protocol name of PostgreSQL in ALPN; a server asks for it when TLS begins at once (17).
const ALPN: &[u8] = b"postgresql";

/// A TLS stream and what binds a password exchange to it.
pub(crate) struct Secured {
    pub(crate) stream: TlsStream<TcpStream>,
    /// `tls-server-end-point` (RFC 5929); none for a signature without a hash of its own.
    pub(crate) server_end_point: Option<Vec<u8>>,
}

/// Shakes hands over `stream`.
pub(crate) async fn handshake(
    stream: TcpStream,
    options: &TlsOptions,
    host: Option<&str>,
    address: &str,
) -> Result<Secured, Failure> {
    let peer_ip = stream.peer_addr().map_err(|error| Failure::from_io(address, &error))?.ip();
    let (config, verifier) = client_config(options, host)?;
    let name = server_name(host, peer_ip);
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| refusal(&error, &verifier, address, host))?;
    let (_, session) = stream.get_ref();
    let server_end_point =
        session.peer_certificates().and_then(|chain| chain.first()).and_then(end_point);
    Ok(Secured { stream, server_end_point })
}

/// Name for SNI; whether it must be the certificate's is [`Verifier`]'s matter.
fn server_name(host: Option<&str>, peer_ip: IpAddr) -> ServerName<'static> {
    host.and_then(|host| ServerName::try_from(host.to_owned()).ok())
        .unwrap_or(ServerName::IpAddress(peer_ip.into()))
}

fn client_config(
    options: &TlsOptions,
    host: Option<&str>,
) -> Result<(ClientConfig, Arc<Verifier>), Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Verifier::new(trust(options, host, &provider)?, &provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(options))
        .map_err(|error| Failure::File { what: "TLS".to_owned(), text: error.to_string() })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Verifier>::clone(&verifier));
    let mut config = match &options.identity {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert, "sslcert")?;
            config.with_client_auth_cert(chain, private_key(key)?).map_err(|error| {
                file_failure("sslcert", cert, &format!("does not fit its key: {error}"))
            })?
        }
    };
    config.enable_sni = options.server_name_indication;
    if options.direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok((config, verifier))
}

fn versions(options: &TlsOptions) -> Vec<&'static rustls::SupportedProtocolVersion> {
    let mut versions = Vec::new();
    if options.min_version != Some(TlsVersion::Tls13) {
        versions.push(&rustls::version::TLS12);
    }
    if options.max_version != Some(TlsVersion::Tls12) {
        versions.push(&rustls::version::TLS13);
    }
    versions
}

/// What the server's certificate must be, by sslmode and the root certificates at hand.
fn trust(
    options: &TlsOptions,
    host: Option<&str>,
    provider: &Arc<CryptoProvider>,
) -> Result<Trust, Failure> {
    let must = matches!(options.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let roots = match &options.root_cert {
        None if must => return Err(Failure::RootCertMissing { mode: options.mode.text() }),
        None => return Ok(Trust::Anyone),
        Some(RootCert::File(file)) if !file.exists() && !must => return Ok(Trust::Anyone),
        Some(RootCert::File(file)) => certificates(file, "sslrootcert")?,
        Some(RootCert::System) => system_roots()?,
    };
    let host = match (options.mode, host) {
        (SslMode::VerifyFull, None) => return Err(Failure::HostNameMissing),
        (SslMode::VerifyFull, Some(host)) => Some(host.to_owned()),
        (
            SslMode::Disable
            | SslMode::Allow
            | SslMode::Prefer
            | SslMode::Require
            | SslMode::VerifyCa,
            _,
        ) => None,
    };
    let revoked = match &options.revoked {
        Some(file) if file.exists() => CertificateRevocationListDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| file_failure("sslcrl", file, &error.to_string()))?,
        Some(_) | None => Vec::new(),
    };
    Trust::roots(roots, revoked, host, provider)
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let text = found.errors.first().map_or("none found".to_owned(), ToString::to_string);
        return Err(Failure::File { what: "sslrootcert=system".to_owned(), text });
    }
    Ok(found.certs)
}

fn certificates(file: &Path, keyword: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file_failure(keyword, file, &error.to_string()))?;
    if found.is_empty() {
        return Err(file_failure(keyword, file, "it holds no certificate"));
    }
    Ok(found)
}

/// A private key that nobody else may read: at most 0600, or 0640 when root's (libpq).
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    let fail = |text: &str| file_failure("sslkey", file, text);
    let metadata = std::fs::metadata(file).map_err(|error| fail(&error.to_string()))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(fail("others may read it; run: chmod 0600 on it"));
    }
    PrivateKeyDer::from_pem_file(file).map_err(|error| {
        let encrypted = std::fs::read_to_string(file).is_ok_and(|text| text.contains("ENCRYPTED"));
        if encrypted {
            fail("it is encrypted; decrypt it with: openssl pkey -in KEY -out PLAIN")
        } else {
            fail(&error.to_string())
        }
    })
}

fn file_failure(keyword: &str, file: &Path, text: &str) -> Failure {
    Failure::File { what: format!("{keyword} {}", file.display()), text: text.to_owned() }
}

/// What a failed handshake means.
fn refusal(
    error: &std::io::Error,
    verifier: &Verifier,
    address: &str,
    host: Option<&str>,
) -> Failure {
    let address = address.to_owned();
    if let Some(names) = verifier.mismatched_names() {
        let host = host.unwrap_or_default().to_owned();
        return Failure::CertificateName { address, host, names };
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => {
            Failure::CertificateNotTrusted { address, text: verify::explain(reason) }
        }
        Some(other) => Failure::TlsFailed { address, text: other.to_string() },
        None => Failure::from_io(&address, error),
    }
}

/// Hash of the certificate with its signature's hash function, MD5 and SHA-1 as SHA-256
/// (RFC 5929, 4.1).
fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let hash = match parsed.signature_algorithm.oid.to_string().as_str() {
        // MD5, SHA-1 and SHA-256 with RSA; SHA-1 and SHA-256 with ECDSA
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => sha2::Sha256::digest(certificate).to_vec(),
        // SHA-384 and SHA-512 with RSA or ECDSA
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => {
            sha2::Sha384::digest(certificate).to_vec()
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => {
            sha2::Sha512::digest(certificate).to_vec()
        }
        _ => return None,
    };
    Some(hash)
}
