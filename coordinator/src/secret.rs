//! Secret references: `env:NAME`, `file:PATH`, or a connection string without a password.
//!
//! Promise: what a reference resolves to is never stored and never printed.

use pg::Conninfo;
use proto::status::Report;

/// The connection settings that `reference` names.
///
/// # Errors
/// `SECRET_UNREADABLE` when it names nothing, `CONNINFO_INVALID` when it cannot be read,
/// `SECRET_INLINE` when a password stands in the spec itself.
pub fn resolve(role: &str, reference: &str) -> Result<Conninfo, Report> {
    let unreadable = |what: String| {
        Report::definite("SECRET_UNREADABLE", format!("{role} \"{reference}\" cannot be read"))
            .with_detail(what)
            .with_hint("Set it for the coordinator's process, then run: skein resume")
    };
    let (text, inline) = if let Some(name) = reference.strip_prefix("env:") {
        let value = std::env::var(name)
            .map_err(|_| unreadable(format!("Environment variable {name} is not set.")))?;
        (value, false)
    } else if let Some(path) = reference.strip_prefix("file:") {
        let value = std::fs::read_to_string(path)
            .map_err(|error| unreadable(format!("{path}: {error}.")))?;
        (value, false)
    } else {
        (reference.to_owned(), true)
    };
    let conninfo = Conninfo::parse(text.trim()).map_err(|error| {
        Report::definite("CONNINFO_INVALID", format!("{role} connection string cannot be read"))
            .with_detail(format!("{error}."))
            .with_hint("Give a libpq URI: postgresql://user@host:5432/database?sslmode=verify-full")
    })?;
    // One that ~/.pgpass or PGPASSWORD brings is not in the spec.
    if inline && Conninfo::holds_password(text.trim()) {
        return Err(Report::definite("SECRET_INLINE", format!("{role} holds a password"))
            .with_detail("A spec names a secret, it does not contain it.")
            .with_hint("Put the connection string into a file and give file:PATH, or env:NAME."));
    }
    Ok(conninfo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_spec_is_refused_and_not_repeated() {
        let refused = resolve("source", "postgresql://u:hunter2@h/db").unwrap_err();
        assert_eq!(refused.reason, "SECRET_INLINE");
        assert!(!format!("{refused:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source");
        std::fs::write(&path, "postgresql://u:p@h:5433/db\n").unwrap();
        let conninfo = resolve("source", &format!("file:{}", path.display())).unwrap();
        assert_eq!(conninfo.database(), "db");
        assert_eq!(resolve("source", "file:/nowhere/x").unwrap_err().reason, "SECRET_UNREADABLE");
    }
}
