//! What the operator wants moved: flags over a file, as the contract's `MigrationSpec`.
//!
//! In: [`SpecArgs`], a configuration file. Out: a spec whose `source` and `target` are still
//! as given; `command::Context::settle` makes them references. Promise: flags win over the
//! file; every number is written out, so that a later default changes no migration.

use crate::{
    config::{IdentityChoice, Mode, Order, Settings},
    report::{Exit, Failure},
};
use proto::v1;
use std::{env, path::PathBuf};

/// Flags that describe a migration, the same for `migrate`, `check` and `create`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct SpecArgs {
    /// The database to move: a libpq URI or key=value string, `env:NAME` or `file:PATH`.
    /// Better in the environment as SKEIN_SOURCE: every user of this machine can read a
    /// command line while it runs
    #[arg(long, value_name = "URI")]
    pub(crate) source: Option<String>,
    /// Where it goes; as --source, SKEIN_TARGET
    #[arg(long, value_name = "URI")]
    pub(crate) target: Option<String>,
    /// Worker processes on this machine [default: 2]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<u32>,
    /// Who begins the cutover [default: manual]
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) cutover: Option<Mode>,
    /// Leave stopping the writers on the source to you; late writes are reported
    #[arg(long)]
    pub(crate) no_fence: bool,
    /// For tables without a replica identity: they are refused without a choice
    #[arg(long, value_name = "CHOICE", value_enum)]
    pub(crate) replica_identity: Option<IdentityChoice>,
    /// Configuration file (TOML); see `skein migrate --print-default-config`
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// The two ends as given, from flag or environment.
#[derive(Clone)]
pub(crate) struct Ends {
    pub(crate) source: Option<String>,
    pub(crate) target: Option<String>,
}

impl SpecArgs {
    /// Source and target: the flag, else SKEIN_SOURCE and SKEIN_TARGET.
    pub(crate) fn ends(&self) -> Ends {
        let given = |flag: &Option<String>, variable: &str| {
            flag.clone()
                .or_else(|| env::var(variable).ok())
                .filter(|text| !text.trim().is_empty())
                .map(|text| text.trim().to_owned())
        };
        Ends {
            source: given(&self.source, "SKEIN_SOURCE"),
            target: given(&self.target, "SKEIN_TARGET"),
        }
    }

    /// File and flags together; `source` and `target` stay empty.
    ///
    /// # Errors
    /// Usage, with the key.
    pub(crate) fn spec(&self, name: &str) -> Result<v1::MigrationSpec, Failure> {
        let mut settings = match &self.config {
            Some(path) => Settings::read(path).map_err(|error| Failure::of(Exit::Usage, &error))?,
            None => Settings::default(),
        };
        settings.copy.workers = self.workers.unwrap_or(settings.copy.workers);
        settings.cutover.mode = self.cutover.unwrap_or(settings.cutover.mode);
        settings.cutover.fence &= !self.no_fence;
        settings.identity.all = self.replica_identity.or(settings.identity.all);
        settings.check().map_err(|error| Failure::of(Exit::Usage, &error))?;
        check_name(name)?;
        Ok(spec_of(name, settings))
    }
}

/// Checks the rule of migration.proto.
///
/// # Errors
/// Usage, with the rule.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    let letters =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if letters && begins && name.len() <= 24 {
        return Ok(());
    }
    Err(Failure::usage("NAME", format!("\"{name}\" is not a name for a migration"))
        .with_detail("A name has 1 to 24 of a-z, 0-9 and _, and begins with a letter."))
}

fn spec_of(name: &str, settings: Settings) -> v1::MigrationSpec {
    let Settings { filter, identity, copy, replay, cutover } = settings;
    let tables =
        identity.tables.into_iter().map(|(table, choice)| (table, choice_of(choice).into()));
    v1::MigrationSpec {
        name: name.to_owned(),
        source: String::new(),
        target: String::new(),
        filter: Some(v1::Filter {
            include_schemas: filter.include_schemas,
            exclude_schemas: filter.exclude_schemas,
            include_tables: filter.include_tables,
            exclude_tables: filter.exclude_tables,
            leave_out: filter.leave_out,
            exclude_objects: filter.exclude_objects,
        }),
        identity: Some(v1::Identity {
            all: identity.all.map_or(v1::IdentityChoice::Unspecified, choice_of).into(),
            tables: tables.collect(),
        }),
        copy: Some(v1::CopyOptions {
            workers: copy.workers,
            chunk_bytes: copy.chunk_size.as_u64(),
            max_open_tables: copy.max_open_tables,
            worker_slots: copy.worker_slots,
        }),
        replay: Some(v1::ReplayOptions {
            lanes: replay.lanes,
            spool_limit_bytes: replay.spool_limit.as_u64(),
            order: match replay.order {
                Order::Lanes => v1::ApplyOrder::Lanes,
                Order::Commit => v1::ApplyOrder::Commit,
            }
            .into(),
        }),
        cutover: Some(v1::CutoverOptions {
            mode: match cutover.mode {
                Mode::Manual => v1::CutoverMode::Manual,
                Mode::Auto => v1::CutoverMode::Auto,
            }
            .into(),
            no_fence: !cutover.fence,
            max_lag_bytes: cutover.max_lag.as_u64(),
            // Checked to be at most an hour.
            timeout_s: u32::try_from(cutover.timeout.as_secs()).unwrap_or(3600),
        }),
    }
}

fn choice_of(choice: IdentityChoice) -> v1::IdentityChoice {
    match choice {
        IdentityChoice::Full => v1::IdentityChoice::Full,
        IdentityChoice::AppendOnly => v1::IdentityChoice::AppendOnly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn without_a_file_every_default_is_written_out() {
        let spec = SpecArgs::default().spec("main").unwrap();
        let copy = spec.copy.unwrap();
        assert_eq!((copy.workers, copy.chunk_bytes), (2, 256 << 20));
        assert_eq!((copy.max_open_tables, copy.worker_slots), (4, 2));
        let replay = spec.replay.unwrap();
        assert_eq!((replay.lanes, replay.spool_limit_bytes), (4, 64 << 30));
        let cutover = spec.cutover.unwrap();
        assert_eq!(cutover.mode(), v1::CutoverMode::Manual);
        assert_eq!((cutover.no_fence, cutover.max_lag_bytes), (false, 16 << 20));
        assert_eq!(cutover.timeout_s, 60);
        assert_eq!(spec.identity.unwrap().all(), v1::IdentityChoice::Unspecified);
    }

    #[test]
    fn flags_win_over_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"[copy]\nworkers = 7\nworker_slots = 3\n[cutover]\nmode = \"auto\"\n")
            .unwrap();
        let args = SpecArgs {
            workers: Some(9),
            no_fence: true,
            replica_identity: Some(IdentityChoice::AppendOnly),
            config: Some(file.path().to_owned()),
            ..SpecArgs::default()
        };
        let spec = args.spec("main").unwrap();
        let copy = spec.copy.unwrap();
        assert_eq!((copy.workers, copy.worker_slots), (9, 3));
        let cutover = spec.cutover.unwrap();
        assert_eq!((cutover.mode(), cutover.no_fence), (v1::CutoverMode::Auto, true));
        assert_eq!(spec.identity.unwrap().all(), v1::IdentityChoice::AppendOnly);
    }

    #[test]
    fn a_flag_is_held_to_the_same_bounds_as_the_file() {
        let args = SpecArgs { workers: Some(0), ..SpecArgs::default() };
        assert_eq!(args.spec("main").unwrap_err().exit, Exit::Usage);
        for name in ["", "Main", "1a", "a-b", "abcdefghijklmnopqrstuvwxy"] {
            assert_eq!(check_name(name).unwrap_err().exit, Exit::Usage, "{name}");
        }
        check_name("a1_b").unwrap();
    }
}
