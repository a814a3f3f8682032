//! Makes references of the two connection strings, before they go into a spec.
//!
//! ```text
//! Place::Dir              moved to DIR/secrets, the spec holds file:PATH
//! another coordinator     references, and strings that hold no password, as they are
//! ```
//! Promise: the name of a migration that exists never comes to mean another server.

use crate::{
    connect::Place,
    report::{Exit, Failure},
    secret::{self, End},
    spec::Ends,
};
use proto::v1;

/// What the spec should hold for source and target.
///
/// # Errors
/// Usage when one is missing; refused when it belongs to another migration's server, or would
/// send a password to another machine.
pub(crate) fn settle(
    place: &Place,
    spec: &mut v1::MigrationSpec,
    ends: &Ends,
    existing: Option<&v1::Migration>,
) -> Result<(), Failure> {
    let held = existing.and_then(|migration| migration.spec.as_ref());
    let name = spec.name.clone();
    let source = held.map(|held| held.source.as_str());
    let target = held.map(|held| held.target.as_str());
    spec.source = settle_end(place, &name, (End::Source, ends.source.as_deref()), source)?;
    spec.target = settle_end(place, &name, (End::Target, ends.target.as_deref()), target)?;
    Ok(())
}

fn settle_end(
    place: &Place,
    name: &str,
    (end, given): (End, Option<&str>),
    held: Option<&str>,
) -> Result<String, Failure> {
    let Some(given) = given else {
        // Attaching to what exists needs no connection string.
        return held.map(str::to_owned).ok_or_else(|| missing(end));
    };
    if secret::is_reference(given) {
        return Ok(secret::absolute(given));
    }
    match place {
        Place::Dir(dir) => {
            let failed = |error: secret::Error| {
                let exit = match error {
                    secret::Error::OtherServer { .. } => Exit::Refused,
                    secret::Error::Read { .. } | secret::Error::Write { .. } => Exit::Internal,
                };
                Failure::of(exit, &error)
            };
            let kept = secret::read(dir, name, end).map_err(failed)?;
            if kept.as_deref() == Some(given) {
                return Ok(format!("file:{}", secret::path(dir, name, end).display()));
            }
            if let (Some(_exists), Some(kept)) = (held, &kept) {
                secret::check_same_server(name, end, kept, given).map_err(failed)?;
            }
            secret::store(dir, name, end, given).map_err(failed)
        }
        Place::Socket(_) | Place::Url(_) if secret::holds_password(given) => Err(Failure::usage(
            "SECRET_REFERENCE",
            format!("the {} holds a password, and the coordinator is not ours", end.name()),
        )
        .with_detail("Passwords are not sent: a migration names a secret, it does not hold it.")
        .with_hint(format!(
            "Put it into a file or the environment there, and give --{} file:PATH or env:NAME.",
            end.name()
        ))),
        Place::Socket(_) | Place::Url(_) => Ok(given.to_owned()),
    }
}

/// Both ends must be given where no migration can exist yet.
///
/// # Errors
/// Usage, with the end that is missing.
pub(crate) fn check_given(ends: &Ends) -> Result<(), Failure> {
    match (&ends.source, &ends.target) {
        (None, _) => Err(missing(End::Source)),
        (_, None) => Err(missing(End::Target)),
        (Some(_), Some(_)) => Ok(()),
    }
}

fn missing(end: End) -> Failure {
    let (name, variable) = (end.name(), end.name().to_uppercase());
    Failure::usage("END_MISSING", format!("there is no {name}"))
        .with_hint(format!("Set SKEIN_{variable} to its URI, or give --{name}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn ends(source: &str, target: &str) -> Ends {
        Ends { source: Some(source.into()), target: Some(target.into()) }
    }

    fn spec() -> v1::MigrationSpec {
        v1::MigrationSpec { name: "main".into(), ..v1::MigrationSpec::default() }
    }

    #[test]
    fn a_connection_string_becomes_a_file_and_a_reference_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Dir(dir.path().to_owned());
        let mut spec = spec();
        settle(&place, &mut spec, &ends("postgres://u:pw@h/a", "env:TARGET"), None).unwrap();
        assert_eq!(spec.source, format!("file:{}/secrets/main.source", dir.path().display()));
        assert_eq!(spec.target, "env:TARGET");
    }

    #[test]
    fn an_existing_migration_keeps_its_servers() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Dir(dir.path().to_owned());
        let mut first = spec();
        settle(&place, &mut first, &ends("postgres://u:pw@h/a", "env:TARGET"), None).unwrap();
        let existing = v1::Migration { spec: Some(first.clone()), ..v1::Migration::default() };
        let again = |source: &str| {
            let mut spec = spec();
            settle(&place, &mut spec, &ends(source, "env:TARGET"), Some(&existing)).map(|()| spec)
        };
        assert_eq!(again("postgres://u:pw@h/a").unwrap(), first);
        assert_eq!(again("postgres://u:new@h/a").unwrap(), first);
        let refused = again("postgres://u:pw@h/b").unwrap_err();
        assert_eq!((refused.exit, &*refused.report.reason), (Exit::Refused, "ALREADY_EXISTS"));
        let kept = secret::read(dir.path(), "main", End::Source).unwrap();
        assert_eq!(kept.as_deref(), Some("postgres://u:new@h/a"));
        let mut attached = spec();
        let nothing = Ends { source: None, target: None };
        settle(&place, &mut attached, &nothing, Some(&existing)).unwrap();
        assert_eq!(attached, first);
    }

    #[test]
    fn no_password_is_sent_to_another_machine() {
        let place = Place::Url("http://h:1".into());
        let refused = settle(&place, &mut spec(), &ends("postgres://u:pw@h/a", "env:T"), None);
        assert_eq!(refused.unwrap_err().exit, Exit::Usage);
        let mut spec = spec();
        let socket = Place::Socket(PathBuf::from("/run/skein.sock"));
        settle(&socket, &mut spec, &ends("postgres://u@h/a", "file:/x"), None).unwrap();
        assert_eq!((&*spec.source, &*spec.target), ("postgres://u@h/a", "file:/x"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Dir(dir.path().to_owned());
        let nothing = Ends { source: None, target: None };
        let failure = settle(&place, &mut spec(), &nothing, None).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.report.hint.contains("SKEIN_SOURCE"));
    }
}
