//! `~/.pgpass`: a password for host, port, database and user.
//!
//! Source: manual, libpq-pgpass. Promise: a file that others may read is not used, and it is
//! said why.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

/// Lines of a password file, or why it was not read.
pub(super) fn lines(path: &Path) -> Result<Vec<String>, String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("password file {}: {error}", path.display())),
    };
    if !metadata.is_file() {
        return Err(format!("password file {} is no plain file", path.display()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!(
            "password file {} was not used: others may read it; run: chmod 0600 {0}",
            path.display()
        ));
    }
    let bytes = fs::read(path)
        .map_err(|error| format!("password file {} cannot be read: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(text.lines().map(str::to_owned).collect())
}

/// The first line that fits `[host, port, database, user]`.
pub(super) fn password(lines: &[String], wanted: [&str; 4]) -> Option<String> {
    lines.iter().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line)?;
        let (password, names) = fields.split_last()?;
        let fits = names.iter().zip(wanted).all(|((name, star), wanted)| *star || name == wanted);
        fits.then(|| password.0.clone())
    })
}

/// The five fields; each with whether it is a bare `*`.
fn fields(line: &str) -> Option<Vec<(String, bool)>> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut escaped_any = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                field.extend(chars.next());
                escaped_any = true;
            }
            ':' if fields.len() < 4 => {
                let star = field == "*" && !escaped_any;
                fields.push((std::mem::take(&mut field), star));
                escaped_any = false;
            }
            c => field.push(c),
        }
    }
    if fields.len() < 4 {
        return None;
    }
    fields.push((field, false));
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(lines: &[&str], wanted: [&str; 4]) -> Option<String> {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        password(&lines, wanted)
    }

    #[test]
    fn the_first_line_that_fits_wins() {
        let lines = ["# a:b:c:d:e", "db1:5432:*:app:one", "*:*:*:app:two", "bad line"];
        assert_eq!(find(&lines, ["db1", "5432", "x", "app"]).as_deref(), Some("one"));
        assert_eq!(find(&lines, ["db2", "5432", "x", "app"]).as_deref(), Some("two"));
        assert_eq!(find(&lines, ["db2", "5432", "x", "other"]), None);
    }

    #[test]
    fn a_backslash_takes_the_meaning_of_a_colon() {
        let lines = [r"fe80\:\:1:5432:*:app:p\:a\\s:s"];
        assert_eq!(find(&lines, ["fe80::1", "5432", "x", "app"]).as_deref(), Some(r"p:a\s:s"));
    }
}
