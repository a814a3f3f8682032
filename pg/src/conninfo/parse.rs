//! Text of a connection string to its keywords and values.
//!
//! In: a URI or `keyword=value` pairs, read as libpq reads them (fe-connect.c's grammar, by
//! the manual: libpq-connect, "Connection Strings"). Out: pairs in the order given.
//! Promise: pure, and never panics.

use super::ParseError;

pub(super) type Pairs = Vec<(String, String)>;

/// Reads either form.
pub(super) fn pairs(text: &str) -> Result<Pairs, ParseError> {
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return uri(rest);
        }
    }
    keyword_values(text)
}

fn keyword_values(text: &str) -> Result<Pairs, ParseError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let name = &rest[..end];
        rest = rest[end..].trim_start();
        let Some(value) = rest.strip_prefix('=') else {
            // The word may be half of a password with a space in it: only a keyword is shown.
            let shown = if super::keyword::find(name).is_some() { name } else { "a word" };
            return Err(ParseError(format!(
                "\"=\" is missing after {shown}; expected postgresql://user@host/database \
                 or keyword=value pairs"
            )));
        };
        let (value, after) = value_of(value.trim_start(), name)?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// A value, quoted or bare, and what follows it.
fn value_of<'a>(text: &'a str, name: &str) -> Result<(String, &'a str), ParseError> {
    let quoted = text.starts_with('\'');
    let body = if quoted { &text[1..] } else { text };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(ParseError(format!("the quoted value of \"{name}\" has no end")));
    }
    Ok((value, ""))
}

fn uri(text: &str) -> Result<Pairs, ParseError> {
    let mut pairs = Vec::new();
    let mut rest = text;
    // Credentials stand before the first `@`, if it comes before the first `/`.
    let end = rest.find(['@', '/']).unwrap_or(rest.len());
    if rest[end..].starts_with('@') {
        let (user, password) = match rest[..end].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&rest[..end], None),
        };
        push(&mut pairs, "user", decode(user, "user")?);
        push(&mut pairs, "password", decode(password.unwrap_or(""), "password")?);
        rest = &rest[end + 1..];
    }
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    loop {
        let (host, after) = host_of(rest)?;
        hosts.push(host);
        rest = after;
        let mut port = "";
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            (port, rest) = after.split_at(end);
        }
        ports.push(port);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    push(&mut pairs, "host", decode(&joined(&hosts), "host")?);
    push(&mut pairs, "port", decode(&joined(&ports), "port")?);
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, query),
        None => (rest, ""),
    };
    let database = path.strip_prefix('/').unwrap_or(path);
    push(&mut pairs, "dbname", decode(database, "dbname")?);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        pairs.push(parameter_of(parameter)?);
    }
    Ok(pairs)
}

/// `a,b` with empty places kept, or nothing when all are empty.
fn joined(parts: &[&str]) -> String {
    if parts.iter().all(|part| part.is_empty()) { String::new() } else { parts.join(",") }
}

fn host_of(text: &str) -> Result<(&str, &str), ParseError> {
    let Some(address) = text.strip_prefix('[') else {
        let end = text.find([':', '/', '?', ',']).unwrap_or(text.len());
        return Ok(text.split_at(end));
    };
    let Some((address, after)) = address.split_once(']') else {
        return Err(ParseError("\"]\" is missing after an IPv6 address".to_owned()));
    };
    if address.is_empty() {
        return Err(ParseError("an IPv6 address may not be empty".to_owned()));
    }
    if !(after.is_empty() || after.starts_with([':', '/', '?', ','])) {
        return Err(ParseError(format!("unexpected text after \"[{address}]\"")));
    }
    Ok((address, after))
}

fn parameter_of(parameter: &str) -> Result<(String, String), ParseError> {
    let Some((name, value)) = parameter.split_once('=') else {
        let name = decode(parameter, "a URI parameter")?;
        return Err(ParseError(format!("\"=\" is missing after URI parameter \"{name}\"")));
    };
    if value.contains('=') {
        return Err(ParseError(format!(
            "URI parameter \"{name}\" has a second \"=\"; write it as %3D"
        )));
    }
    let name = decode(name, "a URI parameter")?;
    let value = decode(value, &name)?;
    // JDBC's way of asking for TLS, as libpq takes it.
    if name == "ssl" && value == "true" {
        return Ok(("sslmode".to_owned(), "require".to_owned()));
    }
    Ok((name, value))
}

fn push(pairs: &mut Pairs, name: &str, value: String) {
    if !value.is_empty() {
        pairs.push((name.to_owned(), value));
    }
}

/// Undoes %XX. The text is not in the error: it may be a password.
fn decode(text: &str, of: &str) -> Result<String, ParseError> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let digits = rest.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        if digits.len() < 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(ParseError(format!(
                "{of}: \"%\" is not followed by two hexadecimal digits; write % itself as %25"
            )));
        }
        if digits == b"00" {
            return Err(ParseError(format!("{of}: %00 is not allowed")));
        }
        rest = &rest[at + 3..];
    }
    match percent_encoding::percent_decode_str(text).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(ParseError(format!("{of}: is not UTF-8 once percent-decoded"))),
    }
}
