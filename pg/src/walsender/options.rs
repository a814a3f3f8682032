//! What is asked of which server version: one table. Pure.
//!
//! | version | pgoutput protocol | options |
//! | --- | --- | --- |
//! | 13 | 1 | publication_names |
//! | 14 and later | 2 | + binary, messages, streaming (in progress, not parallel) |
//!
//! Left alone: `origin` (16; its default sends everything), `two_phase` (a prepared transaction
//! arrives at COMMIT PREPARED), parallel streaming (16; pieces would carry abort positions that
//! nobody here needs).

use super::{SlotFailover, SlotLifetime};
use crate::{PgLsn, sql::quote_ident};

/// What a stream is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgoutputOptions {
    pub publications: Vec<String>,
    /// Values in binary, where the server can; one switch for the whole stream.
    pub binary: bool,
}

impl PgoutputOptions {
    /// Text values from these publications.
    pub fn new(publications: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { publications: publications.into_iter().map(Into::into).collect(), binary: false }
    }

    /// Keys and values of START_REPLICATION, unquoted.
    fn pairs(&self, server_version: u32) -> Vec<(&'static str, String)> {
        let names: Vec<String> = self.publications.iter().map(|name| quote_ident(name)).collect();
        let can_stream = server_version >= 140_000;
        let protocol = if can_stream { "2" } else { "1" };
        let mut pairs =
            vec![("proto_version", protocol.to_owned()), ("publication_names", names.join(","))];
        if can_stream {
            pairs.push(("streaming", "on".to_owned()));
            pairs.push(("messages", "true".to_owned()));
            if self.binary {
                pairs.push(("binary", "true".to_owned()));
            }
        }
        pairs
    }
}

/// START_REPLICATION. The grammar of replication commands takes quoted names and plain literals
/// (a quote is doubled, a backslash is itself).
pub(super) fn start_replication(
    server_version: u32,
    slot: &str,
    start: PgLsn,
    options: &PgoutputOptions,
) -> String {
    let pairs: Vec<String> = options
        .pairs(server_version)
        .into_iter()
        .map(|(key, value)| format!("{} '{}'", quote_ident(key), value.replace('\'', "''")))
        .collect();
    let slot = quote_ident(slot);
    format!("START_REPLICATION SLOT {slot} LOGICAL {start} ({})", pairs.join(", "))
}

/// CREATE_REPLICATION_SLOT; named options since 15.
pub(super) fn create_slot(
    server_version: u32,
    name: &str,
    lifetime: SlotLifetime,
    failover: SlotFailover,
) -> String {
    let temporary = match lifetime {
        SlotLifetime::Permanent => "",
        SlotLifetime::Temporary => " TEMPORARY",
    };
    let options = match (server_version, failover) {
        (..150_000, _) => "EXPORT_SNAPSHOT",
        (170_000.., SlotFailover::On) => "(SNAPSHOT 'export', FAILOVER true)",
        (_, SlotFailover::On | SlotFailover::Off) => "(SNAPSHOT 'export')",
    };
    format!("CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput {options}", quote_ident(name))
}

/// Settings of the startup message: what every supported version knows. As in
/// [`crate::Session`]; `wal_sender_timeout` stays the server's, since preflight reads it.
pub(super) const STARTUP_PINS: [(&str, &str); 13] = [
    ("datestyle", "ISO, YMD"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("timezone", "UTC"),
    ("xmloption", "content"),
    ("search_path", ""),
    ("row_security", "off"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Settings that only later versions know, as statements.
pub(super) fn version_pins(server_version: u32) -> Vec<&'static str> {
    let mut pins = Vec::new();
    if server_version >= 140_000 {
        pins.push("set idle_session_timeout = 0");
        pins.push("set client_connection_check_interval = 2000");
    }
    if server_version >= 170_000 {
        pins.push("set transaction_timeout = 0");
    }
    pins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_13_gets_protocol_1_and_no_later_option() {
        let mut options = PgoutputOptions::new(["a"]);
        options.binary = true;
        let keys: Vec<_> = options.pairs(130_012).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["proto_version", "publication_names"]);
        assert_eq!(options.pairs(130_012)[0].1, "1");
        let keys: Vec<_> = options.pairs(140_000).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["proto_version", "publication_names", "streaming", "messages", "binary"]);
    }

    #[test]
    fn no_version_is_asked_for_parallel_streaming_or_two_phase() {
        for version in [130_000, 140_000, 150_000, 160_000, 170_000, 180_000] {
            for (key, value) in PgoutputOptions::new(["a"]).pairs(version) {
                assert_ne!(key, "two_phase");
                assert_ne!(value, "parallel");
            }
        }
    }

    #[test]
    fn a_slot_is_asked_for_in_the_words_of_its_version() {
        let slot = |version, failover| create_slot(version, "s", SlotLifetime::Temporary, failover);
        assert_eq!(
            slot(140_005, SlotFailover::On),
            r#"CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"#
        );
        assert!(slot(150_000, SlotFailover::On).ends_with("(SNAPSHOT 'export')"));
        assert!(slot(170_000, SlotFailover::On).ends_with("FAILOVER true)"));
        assert!(slot(170_000, SlotFailover::Off).ends_with("(SNAPSHOT 'export')"));
    }

    #[test]
    fn publication_names_are_quoted() {
        let pairs = PgoutputOptions::new(["a\"b", "C"]).pairs(150_000);
        assert_eq!(pairs[1].1, r#""a""b","C""#);
    }
}
