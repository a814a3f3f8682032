//! Startup message and authentication: trust, cleartext, md5, SCRAM-SHA-256 (-PLUS over TLS).

use super::{
    options::STARTUP_PINS,
    wire::{Wire, malformed, unexpected},
};
use crate::{Conninfo, Error, Result};
use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{backend, frontend},
};

/// What the server said before its first ReadyForQuery.
pub(super) struct Started {
    pub(super) server_version: u32,
    pub(super) backend_pid: i32,
}

pub(super) async fn run(
    wire: &mut Wire,
    conninfo: &Conninfo,
    server_end_point: Option<Vec<u8>>,
    application_name: &str,
    client_encoding: &str,
) -> Result<Started> {
    let mut parameters = vec![
        ("user", conninfo.user()),
        ("database", conninfo.database()),
        ("replication", "database"),
        ("application_name", application_name),
        ("client_encoding", client_encoding),
    ];
    parameters.extend(STARTUP_PINS);
    let mut out = BytesMut::new();
    frontend::startup_message(parameters, &mut out)?;
    wire.send(&out).await?;
    authenticate(wire, conninfo, server_end_point).await?;
    let mut started = Started { server_version: 0, backend_pid: 0 };
    loop {
        let (tag, mut body) = wire.receive().await?;
        match tag {
            backend::PARAMETER_STATUS_TAG => {
                if let Some(version) = body.strip_prefix(b"server_version\0") {
                    started.server_version = version_number(version);
                }
            }
            backend::BACKEND_KEY_DATA_TAG => {
                started.backend_pid = body.try_get_i32().map_err(|_| unexpected(tag))?;
            }
            backend::READY_FOR_QUERY_TAG => return Ok(started),
            _ => return Err(unexpected(tag)),
        }
    }
}

/// `15.18 (Debian 15.18-1)` is 150018; `18beta1` is 180000.
fn version_number(text: &[u8]) -> u32 {
    let text = String::from_utf8_lossy(text);
    let number = |part: Option<&str>| -> u32 {
        let digits: String = part.unwrap_or("").chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    let mut parts = text.split('.');
    let major = number(parts.next());
    major * 10_000 + number(parts.next())
}

/// Requests of the server, as the protocol numbers them (manual, "Message Formats").
mod request {
    pub(super) const OK: u32 = 0;
    pub(super) const CLEARTEXT: u32 = 3;
    pub(super) const MD5: u32 = 5;
    pub(super) const SASL: u32 = 10;
}

async fn authenticate(
    wire: &mut Wire,
    conninfo: &Conninfo,
    server_end_point: Option<Vec<u8>>,
) -> Result<()> {
    let password = conninfo.config.get_password();
    let needed = || {
        password.ok_or_else(|| {
            Error::Connection("the server asks for a password, none is given".to_owned())
        })
    };
    let (kind, body) = next_request(wire).await?;
    match kind {
        request::OK => return Ok(()),
        request::CLEARTEXT => send_password(wire, needed()?).await?,
        request::MD5 => {
            let salt: [u8; 4] = body
                .get(..4)
                .and_then(|salt| salt.try_into().ok())
                .ok_or_else(|| unexpected(b'R'))?;
            let hash = md5_hash(conninfo.user().as_bytes(), needed()?, salt);
            send_password(wire, hash.as_bytes()).await?;
        }
        request::SASL => scram(wire, &body, needed()?, server_end_point).await?,
        other => {
            return Err(Error::Connection(format!(
                "authentication method {other} is not supported"
            )));
        }
    }
    match next_request(wire).await? {
        (request::OK, _) => Ok(()),
        _ => Err(unexpected(backend::AUTHENTICATION_TAG)),
    }
}

async fn next_request(wire: &mut Wire) -> Result<(u32, Bytes)> {
    let (tag, mut body) = wire.receive().await?;
    if tag != backend::AUTHENTICATION_TAG {
        return Err(unexpected(tag));
    }
    let kind = body.try_get_u32().map_err(|_| unexpected(tag))?;
    Ok((kind, body))
}

async fn send_password(wire: &mut Wire, password: &[u8]) -> Result<()> {
    let mut out = BytesMut::new();
    frontend::password_message(password, &mut out)?;
    wire.send(&out).await
}

async fn scram(
    wire: &mut Wire,
    mechanisms: &Bytes,
    password: &[u8],
    server_end_point: Option<Vec<u8>>,
) -> Result<()> {
    let offers = |name: &str| mechanisms.split(|byte| *byte == 0).any(|m| m == name.as_bytes());
    let (mechanism, binding) = match server_end_point {
        Some(end_point) if offers(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(end_point))
        }
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    let mut scram = ScramSha256::new(password, binding);
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(mechanism, scram.message(), &mut out)?;
    wire.send(&out).await?;
    let (_, first) = next_request(wire).await?;
    scram.update(&first).map_err(|error| malformed(&error))?;
    out.clear();
    frontend::sasl_response(scram.message(), &mut out)?;
    wire.send(&out).await?;
    let (_, last) = next_request(wire).await?;
    scram.finish(&last).map_err(|error| malformed(&error))
}

#[cfg(test)]
mod tests {
    use super::version_number;

    #[test]
    fn a_version_is_read_as_the_server_numbers_it() {
        assert_eq!(version_number(b"15.18 (Debian 15.18-1)\0"), 150_018);
        assert_eq!(version_number(b"18beta1\0"), 180_000);
        assert_eq!(version_number(b"13.4\0"), 130_004);
    }
}
