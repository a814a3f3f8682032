//! Keywords and their surroundings to a checked [`Conninfo`].
//!
//! Priority, highest first, as libpq has it: the string, the service, PG* variables, defaults.

use super::{
    ChannelBinding, Conninfo, Environment, Host, ParseError, Place, RootCert, SslMode,
    TargetSession, TlsOptions, TlsVersion,
    keyword::{self, Use},
    parse::Pairs,
    passfile, service,
};
use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// What libpq takes for `port` when nothing says otherwise.
const DEFAULT_PORT: u16 = 5432;
/// Least that libpq takes for `connect_timeout` (manual: libpq-connect).
const MIN_CONNECT_TIMEOUT: u64 = 2;
/// Where packaged servers put their socket, then where others do.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Keywords with the value that won.
struct Values<'a> {
    given: HashMap<String, String>,
    environment: &'a Environment,
}

impl Values<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        // Given but empty: the default, whatever the environment says.
        if let Some(value) = self.given.get(name) {
            return Some(value.as_str()).filter(|value| !value.is_empty());
        }
        let variable = keyword::find(name).and_then(|keyword| keyword.variable)?;
        self.environment.get(variable)
    }

    fn one_of<T>(
        &self,
        name: &str,
        read: fn(&str) -> Option<T>,
        allowed: &str,
    ) -> Result<Option<T>, ParseError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        read(text)
            .map(Some)
            .ok_or_else(|| ParseError(format!("{name} \"{text}\" is not known; one of {allowed}")))
    }
}

pub(super) fn resolve(pairs: Pairs, environment: &Environment) -> Result<Conninfo, ParseError> {
    let mut values = Values { given: HashMap::new(), environment };
    take(&mut values, pairs, false)?;
    if let Some(name) = values.get("service").map(str::to_owned) {
        let pairs = service::pairs(&name, values.get("servicefile"), environment)?;
        take(&mut values, pairs, true)?;
    }
    refuse_variables(environment)?;
    if values.get("gssencmode") == Some("require") {
        return Err(ParseError("gssencmode=require: GSSAPI is not supported".to_owned()));
    }
    let user = match values.get("user").or(environment.user()) {
        Some(user) => user.to_owned(),
        None => return Err(ParseError("no user is given; write user@host or user=".to_owned())),
    };
    let database = values.get("dbname").unwrap_or(&user).to_owned();
    let mut conninfo = Conninfo {
        hosts: hosts(&values)?,
        options: values.get("options").map(str::to_owned),
        connect_timeout: connect_timeout(&values)?,
        channel_binding: values
            .one_of("channel_binding", ChannelBinding::from_text, "disable, prefer, require")?
            .unwrap_or(ChannelBinding::Prefer),
        target_session: values
            .one_of(
                "target_session_attrs",
                TargetSession::from_text,
                "any, read-write, read-only, primary, standby, prefer-standby",
            )?
            .unwrap_or(TargetSession::Any),
        shuffled: values.one_of("load_balance_hosts", balance, "disable, random")?.unwrap_or(false),
        tls: tls(&values)?,
        passfile: None,
        passfile_note: None,
        user,
        database,
    };
    passwords(&mut conninfo, &values);
    Ok(conninfo)
}

fn balance(text: &str) -> Option<bool> {
    match text {
        "random" => Some(true),
        "disable" => Some(false),
        _ => None,
    }
}

/// Adds pairs; `below`: they give way to what is there.
fn take(values: &mut Values<'_>, pairs: Pairs, below: bool) -> Result<(), ParseError> {
    let mut fresh = HashMap::new();
    for (name, value) in pairs {
        match keyword::find(&name).map(|keyword| keyword.usage) {
            None => {
                return Err(ParseError(format!("connection option \"{name}\" is not known")));
            }
            Some(Use::Refuse(why)) if !value.is_empty() => {
                return Err(ParseError(format!("{name} is not supported: {why}")));
            }
            Some(Use::Obey | Use::Ignore | Use::Refuse(_)) => {}
        }
        if value.contains('\0') {
            return Err(ParseError(format!("{name} holds a zero byte")));
        }
        fresh.insert(name, value);
    }
    for (name, value) in fresh {
        if below {
            values.given.entry(name).or_insert(value);
        } else {
            values.given.insert(name, value);
        }
    }
    Ok(())
}

fn refuse_variables(environment: &Environment) -> Result<(), ParseError> {
    for keyword in keyword::KEYWORDS {
        if let (Use::Refuse(why), Some(variable)) = (keyword.usage, keyword.variable)
            && environment.get(variable).is_some()
        {
            return Err(ParseError(format!("{variable} is set, and not supported: {why}")));
        }
    }
    Ok(())
}

fn hosts(values: &Values<'_>) -> Result<Vec<Host>, ParseError> {
    let list = |name| -> Vec<&str> {
        values.get(name).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(ParseError(format!(
            "{} host names do not fit {} hostaddr values",
            names.len(),
            addresses.len()
        )));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ParseError(format!("{} ports do not fit {count} hosts", ports.len())));
    }
    (0..count)
        .map(|i| {
            let port = ports.get(i).or(ports.first()).copied().unwrap_or("");
            Ok(Host {
                place: place(
                    names.get(i).copied().unwrap_or(""),
                    addresses.get(i).copied().unwrap_or(""),
                )?,
                port: port_number(port)?,
                password: None,
            })
        })
        .collect()
}

fn place(name: &str, address: &str) -> Result<Place, ParseError> {
    if !address.is_empty() {
        let ip = address.parse::<IpAddr>().map_err(|_| {
            ParseError(format!("hostaddr \"{address}\" is not an IPv4 or IPv6 address"))
        })?;
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        return Ok(Place::Address { ip, name });
    }
    if name.is_empty() {
        let directory = SOCKET_DIRECTORIES.iter().find(|path| Path::new(path).is_dir());
        return Ok(Place::Unix(PathBuf::from(directory.unwrap_or(&SOCKET_DIRECTORIES[1]))));
    }
    if name.starts_with('/') {
        return Ok(Place::Unix(PathBuf::from(name)));
    }
    if name.starts_with('@') {
        return Err(ParseError("abstract Unix sockets (@name) are not supported".to_owned()));
    }
    Ok(Place::Name(name.to_owned()))
}

fn port_number(text: &str) -> Result<u16, ParseError> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ParseError(format!("port \"{text}\" is not a number from 1 to 65535"))),
    }
}

fn connect_timeout(values: &Values<'_>) -> Result<Option<Duration>, ParseError> {
    let Some(text) = values.get("connect_timeout") else { return Ok(None) };
    let seconds: i32 = text.trim().parse().map_err(|_| {
        ParseError(format!("connect_timeout \"{text}\" is not a whole number of seconds"))
    })?;
    // Zero and below: no limit of the user's; ours stands.
    Ok(u64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(|seconds| Duration::from_secs(seconds.max(MIN_CONNECT_TIMEOUT))))
}

fn tls(values: &Values<'_>) -> Result<TlsOptions, ParseError> {
    let existing = |name: &str| {
        values.environment.home_file(&format!(".postgresql/{name}")).filter(|path| path.exists())
    };
    let root_cert = match values.get("sslrootcert") {
        Some("system") => Some(RootCert::System),
        Some(path) => Some(RootCert::File(PathBuf::from(path))),
        None => existing("root.crt").map(RootCert::File),
    };
    let given = values.one_of(
        "sslmode",
        SslMode::from_text,
        "disable, allow, prefer, require, verify-ca, verify-full",
    )?;
    let mode = match (given, &root_cert) {
        (None, Some(RootCert::System)) => SslMode::VerifyFull,
        (Some(mode), Some(RootCert::System)) if mode != SslMode::VerifyFull => {
            return Err(ParseError(format!(
                "sslmode \"{}\" is too weak for sslrootcert=system; use verify-full",
                mode.text()
            )));
        }
        (given, _) => given.unwrap_or(SslMode::Prefer),
    };
    let direct = match values.get("sslnegotiation") {
        None | Some("postgres") => false,
        Some("direct") if matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) => {
            return Err(ParseError(format!(
                "sslmode \"{}\" is too weak for sslnegotiation=direct; use require or more",
                mode.text()
            )));
        }
        Some("direct") => true,
        Some(other) => {
            return Err(ParseError(format!(
                "sslnegotiation \"{other}\" is not known; one of postgres, direct"
            )));
        }
    };
    let (min_version, max_version) = (
        version(values, "ssl_min_protocol_version")?,
        version(values, "ssl_max_protocol_version")?,
    );
    if matches!((min_version, max_version), (Some(min), Some(max)) if min > max) {
        return Err(ParseError("ssl_min_protocol_version is above the maximum".to_owned()));
    }
    Ok(TlsOptions {
        mode,
        direct,
        root_cert,
        identity: identity(values, existing)?,
        revoked: values.get("sslcrl").map(PathBuf::from).or_else(|| existing("root.crl")),
        server_name_indication: values.get("sslsni") != Some("0"),
        min_version,
        max_version,
    })
}

/// Certificate and key of the client: as given, else the default files where they exist.
fn identity(
    values: &Values<'_>,
    existing: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Option<(PathBuf, PathBuf)>, ParseError> {
    match values.get("sslcertmode") {
        Some("disable") => return Ok(None),
        None | Some("allow") => {}
        Some("require") => {
            return Err(ParseError(
                "sslcertmode=require is not supported; the server's pg_hba.conf can ask for a \
                 certificate (clientcert)"
                    .to_owned(),
            ));
        }
        Some(other) => {
            return Err(ParseError(format!(
                "sslcertmode \"{other}\" is not known; one of disable, allow"
            )));
        }
    }
    let cert = values.get("sslcert").map(PathBuf::from).or_else(|| existing("postgresql.crt"));
    let Some(cert) = cert else { return Ok(None) };
    let key = values.get("sslkey").map(PathBuf::from).or_else(|| existing("postgresql.key"));
    match key {
        Some(key) => Ok(Some((cert, key))),
        None => Err(ParseError(format!(
            "certificate {} is given but no key; name it with sslkey",
            cert.display()
        ))),
    }
}

fn version(values: &Values<'_>, name: &str) -> Result<Option<TlsVersion>, ParseError> {
    match values.get(name) {
        None => Ok(None),
        // Older ones are not spoken at all, so a lower bound there asks for nothing.
        Some("TLSv1" | "TLSv1.1") if name == "ssl_min_protocol_version" => Ok(None),
        Some(text) => TlsVersion::from_text(text).map(Some).ok_or_else(|| {
            ParseError(format!("{name} \"{text}\" is not spoken; one of TLSv1.2, TLSv1.3"))
        }),
    }
}

/// The password of each host: the one given, else the password file's.
fn passwords(conninfo: &mut Conninfo, values: &Values<'_>) {
    if let Some(password) = values.get("password") {
        for host in &mut conninfo.hosts {
            host.password = Some(password.to_owned());
        }
        return;
    }
    let path = values.get("passfile").map(PathBuf::from);
    let Some(path) = path.or_else(|| values.environment.home_file(".pgpass")) else { return };
    let lines = match passfile::lines(&path) {
        Ok(lines) => lines,
        Err(note) => {
            conninfo.passfile_note = Some(note);
            return;
        }
    };
    let (user, database) = (conninfo.user.clone(), conninfo.database.clone());
    for host in &mut conninfo.hosts {
        let name = passfile_host(host);
        let port = host.port.to_string();
        host.password = passfile::password(&lines, [&name, &port, &database, &user]);
    }
    let first = conninfo.hosts[0].password.clone();
    if conninfo.hosts.iter().any(|host| host.password != first) {
        conninfo.passfile = Some(path);
    }
}

/// The name that a password file has for a host: `localhost` for the default socket.
fn passfile_host(host: &Host) -> String {
    match &host.place {
        Place::Unix(directory)
            if SOCKET_DIRECTORIES.iter().any(|path| Path::new(path) == directory.as_path()) =>
        {
            "localhost".to_owned()
        }
        Place::Unix(_) | Place::Name(_) | Place::Address { .. } => host.host_text(),
    }
}
