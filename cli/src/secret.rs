//! Connection strings: references are passed on, the rest is moved out of sight.
//!
//! ```text
//! env:NAME, file:PATH    -> as it is (the path made absolute)
//! URI or key=value       -> DIR/secrets/NAME.source, and `file:` with that path
//! ```
//! Promise: a file is 0600 in a directory that is 0700, whole or not there, and on disk when
//! [`store`] returns. Nothing here prints a password.

use proto::status::{Classify, ErrorClass};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Which end of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Target,
}

impl End {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// Why a connection string was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not write \"{}\"", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("could not read \"{}\"", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("migration \"{name}\" moves another {}", end.name())]
    OtherServer { name: String, end: End, held: String, given: String },
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Write { .. } | Self::Read { .. } | Self::OtherServer { .. } => {
                ErrorClass::Definite
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Write { .. } | Self::Read { .. } => "SECRET_FILE",
            Self::OtherServer { .. } => "ALREADY_EXISTS",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::OtherServer { held, given, .. } => {
                format!("It was created with {held}; given was {given}.")
            }
            Self::Write { .. } | Self::Read { .. } => String::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::OtherServer { .. } => "Choose another --name, or end that migration with \
                                         `skein abort` and `skein cleanup`."
                .to_owned(),
            Self::Write { .. } | Self::Read { .. } => {
                "Check who owns the directory and whether its disk is full.".to_owned()
            }
        }
    }
}

/// A reference that the coordinator resolves, not a connection string itself.
pub(crate) fn is_reference(text: &str) -> bool {
    text.starts_with("env:") || text.starts_with("file:")
}

/// A reference with its path made absolute: the coordinator works in another directory.
pub(crate) fn absolute(reference: &str) -> String {
    match reference.strip_prefix("file:") {
        Some(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
            format!("file:{}", path.display())
        }
        None => reference.to_owned(),
    }
}

/// Where the connection string of one end of a migration is kept.
pub(crate) fn path(dir: &Path, name: &str, end: End) -> PathBuf {
    dir.join("secrets").join(format!("{name}.{}", end.name()))
}

/// Makes a directory that only its owner enters, and those above it.
///
/// # Errors
/// What the system says, with the path.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: dir.to_owned(), source };
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
}

/// What is kept for one end, or nothing.
///
/// # Errors
/// [`Error::Read`] for anything but a file that is not there.
pub(crate) fn read(dir: &Path, name: &str, end: End) -> Result<Option<String>, Error> {
    let path = path(dir, name, end);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Keeps a connection string and returns its reference.
///
/// # Errors
/// [`Error::Write`], with the path.
pub(crate) fn store(dir: &Path, name: &str, end: End, conninfo: &str) -> Result<String, Error> {
    let path = path(dir, name, end);
    let folder = dir.join("secrets");
    make_private_dir(&folder)?;
    let fresh = folder.join(format!(".{name}.{}.{}", end.name(), std::process::id()));
    let written = write_durably(&fresh, conninfo)
        .and_then(|()| fs::rename(&fresh, &path))
        .and_then(|()| File::open(&folder)?.sync_all());
    if let Err(source) = written {
        let _may_be_gone = fs::remove_file(&fresh);
        return Err(Error::Write { path, source });
    }
    Ok(format!("file:{}", path.display()))
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// Forgets what was kept for a migration. What is not there is forgotten already.
pub(crate) fn forget(dir: &Path, name: &str) {
    for end in [End::Source, End::Target] {
        let _gone_already = fs::remove_file(path(dir, name, end));
    }
}

/// Refuses to put another server behind the name of a migration that exists. A new password
/// is let through.
///
/// # Errors
/// [`Error::OtherServer`], in words without a password.
pub(crate) fn check_same_server(
    name: &str,
    end: End,
    held: &str,
    given: &str,
) -> Result<(), Error> {
    let (held, given) = (without_password(held), without_password(given));
    if held == given {
        return Ok(());
    }
    Err(Error::OtherServer { name: name.to_owned(), end, held, given })
}

/// Whether a password stands in it.
pub(crate) fn holds_password(conninfo: &str) -> bool {
    let normal = |text: &str| text.split_whitespace().collect::<String>();
    normal(&without_password(conninfo)) != normal(conninfo)
}

/// A reference as it is, anything else without its password.
pub(crate) fn shown(text: &str) -> String {
    if is_reference(text) { text.to_owned() } else { without_password(text) }
}

/// Keys of a connection string that hold a secret.
const SECRET_KEYS: [&str; 2] = ["password", "sslpassword"];

/// The connection string without its password, in libpq's two forms.
pub(crate) fn without_password(conninfo: &str) -> String {
    match conninfo.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['=', ' ']) => uri_without_password(scheme, rest),
        _ => pairs_without_password(conninfo),
    }
}

fn uri_without_password(scheme: &str, rest: &str) -> String {
    let (body, query) = rest.split_once('?').map_or((rest, None), |(b, q)| (b, Some(q)));
    // The last @ ends the user part, wherever a slash stands: a password may hold both raw,
    // and then it is better to lose a slash than to show a password.
    let body = match body.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user, |(user, _)| user);
            format!("{user}@{host}")
        }
        None => body.to_owned(),
    };
    let kept: Vec<&str> = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|pair| !SECRET_KEYS.contains(&pair.split('=').next().unwrap_or_default()))
        .collect();
    if kept.is_empty() {
        format!("{scheme}://{body}")
    } else {
        format!("{scheme}://{body}?{}", kept.join("&"))
    }
}

/// `key = 'va lue' key2=value`: the pairs, in order, secret ones dropped.
fn pairs_without_password(text: &str) -> String {
    let mut kept = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = split_value(after.trim_start());
        let key = key.trim();
        if !SECRET_KEYS.contains(&key) {
            kept.push(format!("{key}={value}"));
        }
        rest = next.trim_start();
    }
    kept.join(" ")
}

/// A value as libpq reads it (quoted or up to a blank, backslash escapes), and what follows.
fn split_value(text: &str) -> (&str, &str) {
    let quoted = text.starts_with('\'');
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(usize::from(quoted)) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return text.split_at(at + 1),
            letter if !quoted && letter.is_whitespace() => return text.split_at(at),
            _ => {}
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_password_is_taken_out_of_both_forms() {
        let cases = [
            ("postgres://u:hunter2@h:5432/db", "postgres://u@h:5432/db"),
            (
                "postgresql://u:hun%40ter2@h/db?sslmode=require",
                "postgresql://u@h/db?sslmode=require",
            ),
            ("postgres://u:hunter2/x@h/db", "postgres://u@h/db"),
            ("postgres:///db?host=/tmp&password=hunter2", "postgres:///db?host=/tmp"),
            ("host=h password='hunter2 \\' x' dbname=d", "host=h dbname=d"),
            ("host=h password = hunter2", "host=h"),
            ("host=/tmp dbname='a b'", "host=/tmp dbname='a b'"),
        ];
        for (given, expected) in cases {
            assert_eq!(without_password(given), expected, "{given}");
        }
    }

    #[test]
    fn a_secret_is_kept_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let reference = store(&dir, "main", End::Source, "postgres://u:pw@h/db").unwrap();
        let kept = dir.join("secrets/main.source");
        assert_eq!(reference, format!("file:{}", kept.display()));
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
        for folder in [&dir, &dir.join("secrets")] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert_eq!(fs::read_dir(dir.join("secrets")).unwrap().count(), 1);
        let read_back = read(&dir, "main", End::Source).unwrap();
        assert_eq!(read_back.as_deref(), Some("postgres://u:pw@h/db"));
        forget(&dir, "main");
        assert_eq!(read(&dir, "main", End::Source).unwrap(), None);
    }

    #[test]
    fn a_new_password_passes_and_another_server_does_not() {
        let held = "postgres://u:old@h/db";
        check_same_server("main", End::Target, held, "postgres://u:new@h/db").unwrap();
        let error = check_same_server("main", End::Target, held, "postgres://u:new@other/db");
        let report = error.unwrap_err().report();
        assert_eq!(report.reason, "ALREADY_EXISTS");
        assert!(!format!("{report:?}").contains("old") && !format!("{report:?}").contains("new"));
    }
}
