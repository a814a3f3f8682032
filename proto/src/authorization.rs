//! The token that a request off the machine carries: `authorization: Bearer TOKEN`.
//!
//! In: a reference, `env:NAME` or `file:PATH`. Out: a [`Secret`], its header, and the comparison
//! on the other side. Promise: a secret is never printed, and comparing takes the same time
//! whatever was sent.

use crate::status::Report;
use std::fmt;
use subtle::ConstantTimeEq as _;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The shortest token: below that, guessing it over the network is a matter of patience.
pub const TOKEN_LENGTH_MIN: usize = 16;

const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";

/// A password, key or token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What `reference` names, without white space around it. `role` is for messages.
    ///
    /// # Errors
    /// `SECRET_INLINE` when it is no reference, `SECRET_UNREADABLE` when it names nothing.
    pub fn read(role: &str, reference: &str) -> Result<Self, Report> {
        let unreadable = |what: String| {
            Report::definite("SECRET_UNREADABLE", format!("{role} cannot be read"))
                .with_detail(what)
                .with_hint("Give env:NAME or file:PATH, and set it for this process.")
        };
        let text = if let Some(name) = reference.strip_prefix("env:") {
            std::env::var(name)
                .map_err(|_| unreadable(format!("Environment variable {name} is not set.")))?
        } else if let Some(path) = reference.strip_prefix("file:") {
            std::fs::read_to_string(path)
                .map_err(|error| unreadable(format!("{path}: {error}.")))?
        } else {
            // What stands there may be the secret itself: it is not repeated.
            return Err(Report::definite("SECRET_INLINE", format!("{role} is no reference"))
                .with_detail("A configuration names a secret, it does not contain it.")
                .with_hint("Give env:NAME or file:PATH."));
        };
        match text.trim() {
            "" => Err(unreadable(format!("{reference} is empty."))),
            text => Ok(Self::new(text)),
        }
    }

    /// The same, for a token: long enough, and fit for a header.
    ///
    /// # Errors
    /// As [`Secret::read`], and `TOKEN_INVALID`.
    pub fn token(role: &str, reference: &str) -> Result<Self, Report> {
        Self::read(role, reference)?.checked_token(role)
    }

    /// The secret itself, if it can be a token.
    ///
    /// # Errors
    /// `TOKEN_INVALID`.
    pub fn checked_token(self, role: &str) -> Result<Self, Report> {
        if self.0.len() < TOKEN_LENGTH_MIN || !self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Report::definite("TOKEN_INVALID", format!("{role} cannot be a token"))
                .with_detail(format!(
                    "A token has at least {TOKEN_LENGTH_MIN} visible ASCII characters, no spaces."
                ))
                .with_hint("Make one with: openssl rand -hex 32"));
        }
        Ok(self)
    }

    /// The secret in the clear, for who must have it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Value of the header; not shown by its `Debug` either. None: it is no token.
    pub fn bearer(&self) -> Option<MetadataValue<Ascii>> {
        let mut value = MetadataValue::try_from(format!("{SCHEME}{}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Whether the request carries this token. Takes as long for a wrong one as for a right one
    /// of the same length.
    pub fn is_carried_by(&self, metadata: &MetadataMap) -> bool {
        metadata
            .get(HEADER)
            .and_then(|value| value.as_bytes().strip_prefix(SCHEME.as_bytes()))
            .is_some_and(|given| bool::from(given.ct_eq(self.0.as_bytes())))
    }
}

/// Puts the header of [`Secret::bearer`] into a request.
pub fn carry(metadata: &mut MetadataMap, bearer: Option<&MetadataValue<Ascii>>) {
    if let Some(bearer) = bearer {
        metadata.insert(HEADER, bearer.clone());
    }
}

/// Whether `url` may be spoken to without TLS: a loopback address, or the name `localhost`.
pub fn is_on_this_machine(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_token_passes_and_no_other_does() {
        let token = Secret::new("0123456789abcdef");
        let mut metadata = MetadataMap::new();
        assert!(!token.is_carried_by(&metadata));
        carry(&mut metadata, token.bearer().as_ref());
        assert!(token.is_carried_by(&metadata));
        assert!(!Secret::new("0123456789abcdeg").is_carried_by(&metadata));
        assert!(!Secret::new("0123456789abcde").is_carried_by(&metadata));
        metadata.insert("authorization", MetadataValue::from_static("0123456789abcdef"));
        assert!(!token.is_carried_by(&metadata));
    }

    #[test]
    fn a_secret_is_not_printed() {
        let token = Secret::new("0123456789abcdef");
        let printed = format!("{token:?} {:?}", token.bearer());
        assert!(!printed.contains("0123"), "{printed}");
        let refused = Secret::read("worker token", "hunter2-in-the-open").unwrap_err();
        assert_eq!(refused.reason, "SECRET_INLINE");
        assert!(!format!("{refused:?}").contains("hunter2"));
    }

    #[test]
    fn a_short_token_is_refused() {
        let refused = Secret::new("short").checked_token("worker token").unwrap_err();
        assert_eq!(refused.reason, "TOKEN_INVALID");
    }

    #[test]
    fn only_loopback_is_this_machine() {
        for (url, here) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost:1", true),
            ("http://10.0.0.1:1", false),
            ("http://skein.example:1", false),
        ] {
            assert_eq!(is_on_this_machine(&url.parse().unwrap()), here, "{url}");
        }
    }
}
