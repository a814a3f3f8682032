//! Startup message and authentication: trust, cleartext, md5, SCRAM-SHA-256 (-PLUS over TLS).

use super::{
    options::STARTUP_PINS,
    wire::{Wire, malformed, unexpected},
};
use crate::{Conninfo, Error, Result, conninfo};
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

/// Who logs in, and with what.
pub(super) struct Login<'a> {
    pub(super) conninfo: &'a Conninfo,
    pub(super) password: Option<&'a str>,
    /// Data of the channel binding `tls-server-end-point`, over TLS.
    pub(super) server_end_point: Option<Vec<u8>>,
}

impl Login<'_> {
    fn password(&self) -> Result<&[u8]> {
        self.password.map(str::as_bytes).ok_or_else(|| {
            // The driver's own words, so that `connect::Failure` knows one text.
            Error::Connection("password missing".to_owned())
        })
    }

    /// channel_binding=require is met by SCRAM-SHA-256-PLUS alone.
    fn may_skip_channel_binding(&self) -> Result<()> {
        if self.conninfo.channel_binding() == conninfo::ChannelBinding::Require {
            return Err(Error::Connection("server did not use channel binding".to_owned()));
        }
        Ok(())
    }
}

pub(super) async fn run(
    wire: &mut Wire,
    login: &Login<'_>,
    application_name: &str,
    client_encoding: &str,
) -> Result<Started> {
    let mut parameters = vec![
        ("user", login.conninfo.user()),
        ("database", login.conninfo.database()),
        ("replication", "database"),
        ("application_name", application_name),
        ("client_encoding", client_encoding),
    ];
    parameters.extend(login.conninfo.options().map(|options| ("options", options)));
    parameters.extend(STARTUP_PINS);
    let mut out = BytesMut::new();
    frontend::startup_message(parameters, &mut out)?;
    wire.send(&out).await?;
    authenticate(wire, login).await?;
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

async fn authenticate(wire: &mut Wire, login: &Login<'_>) -> Result<()> {
    let (kind, body) = next_request(wire).await?;
    if kind != request::SASL {
        login.may_skip_channel_binding()?;
    }
    match kind {
        request::OK => return Ok(()),
        request::CLEARTEXT => send_password(wire, login.password()?).await?,
        request::MD5 => {
            let salt: [u8; 4] = body
                .get(..4)
                .and_then(|salt| salt.try_into().ok())
                .ok_or_else(|| unexpected(b'R'))?;
            let hash = md5_hash(login.conninfo.user().as_bytes(), login.password()?, salt);
            send_password(wire, hash.as_bytes()).await?;
        }
        request::SASL => scram(wire, &body, login).await?,
        other => {
            return Err(Error::Connection(format!("unsupported authentication method {other}")));
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

async fn scram(wire: &mut Wire, mechanisms: &Bytes, login: &Login<'_>) -> Result<()> {
    let password = login.password()?;
    let offers = |name: &str| mechanisms.split(|byte| *byte == 0).any(|m| m == name.as_bytes());
    let wanted = login.conninfo.channel_binding() != conninfo::ChannelBinding::Disable;
    let (mechanism, binding) = match login.server_end_point.clone().filter(|_| wanted) {
        Some(end_point) if offers(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(end_point))
        }
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if mechanism != SCRAM_SHA_256_PLUS {
        login.may_skip_channel_binding()?;
    }
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
