//! The configuration file: what an operator wrote, checked.
//!
//! In: TOML text. Out: [`Settings`]. Promise: an unknown key, or a value out of its bounds,
//! is an error that names the key, the line and what is allowed. Defaults stand in
//! `default.toml`, which a test compares with [`Settings::default`].

use bytesize::ByteSize;
use proto::status::{Classify, ErrorClass};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    collections::BTreeMap, fmt::Display, ops::RangeInclusive, path::PathBuf, time::Duration,
};

/// The file with every default, as `--print-default-config` prints it.
pub(crate) const REFERENCE: &str = include_str!("default.toml");

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// The whole file. Each option is written once, here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) filter: Filter,
    pub(crate) identity: Identity,
    pub(crate) copy: Copy,
    pub(crate) replay: Replay,
    pub(crate) cutover: Cutover,
}

/// `[filter]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Filter {
    pub(crate) include_schemas: Vec<String>,
    pub(crate) exclude_schemas: Vec<String>,
    pub(crate) include_tables: Vec<String>,
    pub(crate) exclude_tables: Vec<String>,
    pub(crate) leave_out: Vec<String>,
    pub(crate) exclude_objects: Vec<String>,
}

/// `[identity]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Identity {
    pub(crate) all: Option<IdentityChoice>,
    pub(crate) tables: BTreeMap<String, IdentityChoice>,
}

/// What happens to a table without a replica identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IdentityChoice {
    /// Set REPLICA IDENTITY FULL on the source, and put it back at the end
    Full,
    /// Publish INSERT and TRUNCATE alone
    AppendOnly,
}

/// `[copy]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Copy {
    pub(crate) workers: u32,
    pub(crate) chunk_size: ByteSize,
    pub(crate) max_open_tables: u32,
    pub(crate) worker_slots: u32,
}

impl Default for Copy {
    fn default() -> Self {
        Self { workers: 2, chunk_size: ByteSize::b(256 * MIB), max_open_tables: 4, worker_slots: 2 }
    }
}

/// `[replay]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Replay {
    pub(crate) lanes: u32,
    pub(crate) spool_limit: ByteSize,
    pub(crate) order: Order,
}

impl Default for Replay {
    fn default() -> Self {
        Self { lanes: 4, spool_limit: ByteSize::b(64 * GIB), order: Order::Lanes }
    }
}

/// Order in which changes reach the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    Lanes,
    Commit,
}

/// `[cutover]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cutover {
    pub(crate) mode: Mode,
    pub(crate) fence: bool,
    pub(crate) max_lag: ByteSize,
    #[serde(deserialize_with = "duration")]
    pub(crate) timeout: Duration,
}

impl Default for Cutover {
    fn default() -> Self {
        Self {
            mode: Mode::Manual,
            fence: true,
            max_lag: ByteSize::b(16 * MIB),
            timeout: Duration::from_secs(60),
        }
    }
}

/// Who begins the cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Wait for `skein cutover`
    Manual,
    /// Begin as soon as lag is low
    Auto,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|_| D::Error::custom(format!("\"{text}\" is not a duration such as \"60s\"")))
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not read configuration file \"{}\"", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration has an unknown key \"{key}\" in line {line}")]
    UnknownKey { key: String, line: usize, known: String },
    #[error("configuration is wrong in line {line}")]
    Parse { line: usize, message: String },
    #[error("{key} is {given}")]
    Bounds { key: &'static str, given: String, allowed: String },
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Read { .. }
            | Self::UnknownKey { .. }
            | Self::Parse { .. }
            | Self::Bounds { .. } => ErrorClass::Definite,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "CONFIG_FILE",
            Self::UnknownKey { .. } => "CONFIG_UNKNOWN_KEY",
            Self::Parse { .. } => "CONFIG_SYNTAX",
            Self::Bounds { .. } => "CONFIG_VALUE",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Read { .. } => String::new(),
            Self::UnknownKey { known, .. } => format!("Known there: {known}."),
            Self::Parse { message, .. } => message.clone(),
            Self::Bounds { allowed, .. } => format!("Allowed: {allowed}."),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Read { .. } => "Check the path given with --config.".to_owned(),
            Self::UnknownKey { .. } | Self::Parse { .. } => {
                "See every key with its default: skein migrate --print-default-config".to_owned()
            }
            Self::Bounds { .. } => String::new(),
        }
    }
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`], with key and line.
    pub(crate) fn read(path: &std::path::Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Reads the text of a file and checks its bounds.
    ///
    /// # Errors
    /// [`Error`], with key and line.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let settings: Self = toml::from_str(text).map_err(|error| located(text, &error))?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`Error::Bounds`], with the key and what is allowed.
    pub(crate) fn check(&self) -> Result<(), Error> {
        within("copy.workers", self.copy.workers, 1..=64)?;
        within("copy.max_open_tables", self.copy.max_open_tables, 1..=64)?;
        within("copy.worker_slots", self.copy.worker_slots, 1..=64)?;
        within("replay.lanes", self.replay.lanes, 1..=64)?;
        within("copy.chunk_size", self.copy.chunk_size, mib(1)..=mib(1024 * 1024))?;
        within("replay.spool_limit", self.replay.spool_limit, mib(64)..=ByteSize::b(u64::MAX))?;
        within("cutover.max_lag", self.cutover.max_lag, ByteSize::b(1)..=ByteSize::b(u64::MAX))?;
        let timeout_s = self.cutover.timeout.as_secs();
        if !(1..=3600).contains(&timeout_s) {
            return Err(Error::Bounds {
                key: "cutover.timeout",
                given: humantime::format_duration(self.cutover.timeout).to_string(),
                allowed: "1s to 1h".to_owned(),
            });
        }
        let unknown = self.filter.leave_out.iter().find(|kind| !KINDS.contains(&kind.as_str()));
        match unknown {
            Some(kind) => Err(Error::Bounds {
                key: "filter.leave_out",
                given: format!("\"{kind}\""),
                allowed: KINDS.join(", "),
            }),
            None => Ok(()),
        }
    }
}

/// Kinds of `filter.leave_out`, as in migration.proto.
const KINDS: [&str; 13] = [
    "roles",
    "large_objects",
    "publications",
    "subscriptions",
    "event_triggers",
    "database_settings",
    "materialized_view_data",
    "comments",
    "security_labels",
    "policies",
    "privileges",
    "owners",
    "extensions",
];

fn mib(count: u64) -> ByteSize {
    ByteSize::b(count * MIB)
}

fn within<T>(key: &'static str, given: T, allowed: RangeInclusive<T>) -> Result<(), Error>
where
    T: PartialOrd + Display,
{
    if allowed.contains(&given) {
        return Ok(());
    }
    let allowed = format!("{} to {}", allowed.start(), allowed.end());
    Err(Error::Bounds { key, given: given.to_string(), allowed })
}

/// The parser's error with its line, and an unknown key in our words.
fn located(text: &str, error: &toml::de::Error) -> Error {
    let start = error.span().map_or(0, |span| span.start);
    let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
    let message = error.message();
    let unknown = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'))
        .map(|(key, rest)| (key, rest.trim_start_matches(", expected ")));
    match unknown {
        Some((key, known)) => Error::UnknownKey {
            key: key.to_owned(),
            line,
            known: known.trim_start_matches("one of ").replace('`', "").replace(" or ", ", "),
        },
        // The first line only: what follows quotes the file.
        None => Error::Parse {
            line,
            message: format!("{}.", message.lines().next().unwrap_or_default()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_reference_is_the_default() {
        assert_eq!(Settings::parse(REFERENCE).unwrap(), Settings::default());
    }

    #[test]
    fn what_the_reference_leaves_out_in_comments_is_taken_too() {
        let text =
            REFERENCE.replace("# all = ", "all = ").replace("# \"shop.events\"", "\"shop.events\"");
        let settings = Settings::parse(&text).unwrap();
        assert_eq!(settings.identity.all, Some(IdentityChoice::Full));
        assert_eq!(settings.identity.tables["shop.events"], IdentityChoice::AppendOnly);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_known_ones() {
        let error = Settings::parse("[copy]\nworkers = 2\n\n[replay]\nlanez = 3\n").unwrap_err();
        let report = error.report();
        assert_eq!(report.primary, "configuration has an unknown key \"lanez\" in line 5");
        assert_eq!(report.detail, "Known there: lanes, spool_limit, order.");
        assert_eq!(report.reason, "CONFIG_UNKNOWN_KEY");
        let section = Settings::parse("[relay]\n").unwrap_err().report();
        assert_eq!(section.detail, "Known there: filter, identity, copy, replay, cutover.");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let report = Settings::parse("[cutover]\ntimeout = \"soon\"\n").unwrap_err().report();
        assert_eq!(report.primary, "configuration is wrong in line 2");
        assert_eq!(report.detail, "\"soon\" is not a duration such as \"60s\".");
        assert!(Settings::parse("[cutover]\nmode = \"maybe\"\n").is_err());
    }

    #[test]
    fn a_value_out_of_bounds_is_named_with_what_is_allowed() {
        let cases = [
            ("[replay]\nlanes = 0", "replay.lanes is 0", "1 to 64"),
            ("[copy]\nworkers = 65", "copy.workers is 65", "1 to 64"),
            ("[copy]\nchunk_size = \"1 KiB\"", "copy.chunk_size is 1.0 KiB", "1.0 MiB to 1.0 TiB"),
            ("[cutover]\ntimeout = \"0s\"", "cutover.timeout is 0s", "1s to 1h"),
            ("[filter]\nleave_out = [\"role\"]", "filter.leave_out is \"role\"", "roles"),
        ];
        for (text, primary, allowed) in cases {
            let report = Settings::parse(text).unwrap_err().report();
            assert_eq!(report.primary, primary);
            assert!(report.detail.contains(allowed), "{}", report.detail);
        }
    }
}
