//! `pg_service.conf`: named groups of keywords.
//!
//! Source: manual, libpq-pgservice.

use super::{Environment, ParseError, parse::Pairs};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where Debian's libpq looks when PGSYSCONFDIR is not set (pg_config --sysconfdir).
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// The keywords of `service`: the user's file first, then the system's.
pub(super) fn pairs(
    service: &str,
    file: Option<&str>,
    environment: &Environment,
) -> Result<Pairs, ParseError> {
    let user_file = match file {
        Some(file) => Some(PathBuf::from(file)),
        None => environment.home_file(".pg_service.conf"),
    };
    if let Some(path) = &user_file {
        match read(path, service)? {
            Some(pairs) => return Ok(pairs),
            None if file.is_some() && !path.exists() => {
                return Err(ParseError(format!("service file {} does not exist", path.display())));
            }
            None => {}
        }
    }
    let directory = environment.get("PGSYSCONFDIR").unwrap_or(SYSTEM_DIRECTORY);
    read(&Path::new(directory).join("pg_service.conf"), service)?
        .ok_or_else(|| ParseError(format!("service \"{service}\" is in no service file")))
}

fn read(path: &Path, service: &str) -> Result<Option<Pairs>, ParseError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(ParseError(format!("service file {}: {error}", path.display())));
        }
    };
    section(&text, service)
        .map_err(|error| ParseError(format!("service file {}: {}", path.display(), error.0)))
}

fn section(text: &str, service: &str) -> Result<Option<Pairs>, ParseError> {
    let mut found: Option<Pairs> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if header.strip_suffix(']') == Some(service) {
                found = Some(Vec::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        if line.starts_with("ldap") {
            return Err(ParseError(format!("line {number}: LDAP is not supported")));
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(ParseError(format!("line {number}: \"=\" is missing")));
        };
        if name == "service" || name == "servicefile" {
            return Err(ParseError(format!("line {number}: a service may not name another")));
        }
        pairs.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_ends_where_the_next_begins() {
        let text = "# c\n[one]\nhost=a\nport = 1\n\n[two]\nhost=b\n";
        let one = section(text, "one").unwrap().unwrap();
        assert_eq!(one, [("host".into(), "a".into()), ("port".into(), "1".into())]);
        assert_eq!(section(text, "three").unwrap(), None);
        assert!(section("[one]\nservice=two\n", "one").is_err());
    }
}
