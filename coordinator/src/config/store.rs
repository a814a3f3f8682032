//! `[store]`: where the records of migrations are kept.

use super::invalid;
use crate::store::{Shared, embedded::Embedded, etcd};
use proto::{
    authorization::Secret,
    status::{Classify as _, Report},
};
use serde::Deserialize;
use std::{fs, path::Path, path::PathBuf, sync::Arc};

/// As the operator writes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub kind: Kind,
    pub etcd: Option<EtcdSettings>,
}

/// Which store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A file in the state directory.
    #[default]
    Embedded,
    Etcd,
}

/// `[store.etcd]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdSettings {
    pub endpoints: Vec<String>,
    pub prefix: String,
    pub user: Option<String>,
    /// `env:NAME` or `file:PATH`.
    pub password: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

impl Default for EtcdSettings {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: DEFAULT_PREFIX.to_owned(),
            user: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
        }
    }
}

/// Where several clusters of coordinators share an etcd, each has its own.
const DEFAULT_PREFIX: &str = "/skein/main";

/// Checked.
#[derive(Clone, Debug, Default)]
pub enum Config {
    #[default]
    Embedded,
    Etcd(EtcdSettings),
}

impl TryFrom<Settings> for Config {
    type Error = Report;

    fn try_from(settings: Settings) -> Result<Self, Report> {
        let etcd = match (settings.kind, settings.etcd) {
            (Kind::Embedded, None) => return Ok(Self::Embedded),
            (Kind::Embedded, Some(_)) => {
                return Err(invalid("[store.etcd] is set, and store.kind is \"embedded\"")
                    .with_hint("Set store.kind = \"etcd\", or leave [store.etcd] out."));
            }
            (Kind::Etcd, None) => return Err(no_endpoint()),
            (Kind::Etcd, Some(etcd)) => etcd,
        };
        if etcd.endpoints.is_empty() {
            return Err(no_endpoint());
        }
        let https = etcd.endpoints.iter().all(|url| url.starts_with("https://"));
        let http = etcd.endpoints.iter().all(|url| url.starts_with("http://"));
        if !https && !http {
            return Err(invalid("store.etcd.endpoints has something else than URLs of one kind")
                .with_hint("Give http://HOST:PORT of each node, or https://HOST:PORT of each."));
        }
        if http && (etcd.ca_file.is_some() || etcd.cert_file.is_some()) {
            return Err(invalid("store.etcd has certificates, and its endpoints are http://")
                .with_hint("Give https://HOST:PORT."));
        }
        if etcd.cert_file.is_some() != etcd.key_file.is_some() {
            return Err(invalid("store.etcd has one of cert_file and key_file")
                .with_hint("Give both, or none."));
        }
        if etcd.user.is_some() != etcd.password.is_some() {
            return Err(
                invalid("store.etcd has one of user and password").with_hint("Give both, or none.")
            );
        }
        if !etcd.prefix.starts_with('/') || etcd.prefix.ends_with('/') {
            return Err(invalid(format!("store.etcd.prefix = \"{}\" cannot be", etcd.prefix))
                .with_hint("It begins with / and does not end with one, as \"/skein/main\"."));
        }
        Ok(Self::Etcd(etcd))
    }
}

fn no_endpoint() -> Report {
    invalid("store.etcd.endpoints is missing")
        .with_hint("Set store.etcd.endpoints = [\"https://HOST:2379\", ...].")
}

impl Config {
    /// Opens the store; etcd, which is handed out by itself as well, is not asked anything yet.
    ///
    /// # Errors
    /// When the file cannot be opened, or a secret or certificate not be read.
    pub fn open(&self, dir: &Path) -> Result<(Shared, Option<etcd::Etcd>), Report> {
        match self {
            Self::Embedded => {
                let store = Embedded::open(&dir.join("state.redb"));
                Ok((Arc::new(store.map_err(|error| error.report())?), None))
            }
            Self::Etcd(etcd) => {
                let etcd = etcd::Etcd::new(etcd.options()?);
                Ok((Arc::new(etcd.clone()), Some(etcd)))
            }
        }
    }
}

impl EtcdSettings {
    /// With secrets and certificates read.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn options(&self) -> Result<etcd::Options, Report> {
        let user = match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                Some((user.clone(), Secret::read("password of etcd", password)?))
            }
            _ => None,
        };
        let ca_pem = self.ca_file.as_deref().map(pem).transpose()?;
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((pem(certificate)?, private_key(key)?)),
            _ => None,
        };
        let (endpoints, prefix) = (self.endpoints.clone(), self.prefix.clone());
        Ok(etcd::Options { endpoints, prefix, user, ca_pem, identity })
    }
}

/// A file of certificates.
///
/// # Errors
/// `FILE_UNREADABLE`.
pub fn pem(path: &Path) -> Result<Vec<u8>, Report> {
    fs::read(path).map_err(|error| unreadable(path, &error))
}

/// A file with a private key.
///
/// # Errors
/// `FILE_UNREADABLE`.
pub fn private_key(path: &Path) -> Result<Secret, Report> {
    fs::read_to_string(path).map(Secret::new).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Report {
    Report::definite("FILE_UNREADABLE", format!("could not read \"{}\"", path.display()))
        .with_detail(format!("{error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Report> {
        let settings: Settings = toml::from_str(text).unwrap();
        Config::try_from(settings)
    }

    #[test]
    fn the_embedded_store_needs_no_word() {
        assert!(matches!(read("").unwrap(), Config::Embedded));
    }

    #[test]
    fn what_cannot_be_together_is_refused() {
        for wrong in [
            "[etcd]\nendpoints = [\"http://h:1\"]",
            "kind = \"etcd\"",
            "kind = \"etcd\"\netcd.endpoints = []",
            "kind = \"etcd\"\netcd.endpoints = [\"h:1\"]",
            "kind = \"etcd\"\netcd.endpoints = [\"http://h:1\", \"https://g:1\"]",
            "kind = \"etcd\"\netcd.endpoints = [\"http://h:1\"]\netcd.ca_file = \"/c\"",
            "kind = \"etcd\"\netcd.endpoints = [\"https://h:1\"]\netcd.key_file = \"/c\"",
            "kind = \"etcd\"\netcd.endpoints = [\"http://h:1\"]\netcd.user = \"u\"",
            "kind = \"etcd\"\netcd.endpoints = [\"http://h:1\"]\netcd.prefix = \"skein\"",
        ] {
            assert_eq!(read(wrong).unwrap_err().reason, "CONFIG_INVALID", "{wrong}");
        }
    }

    #[test]
    fn a_password_in_the_file_is_refused_and_not_repeated() {
        let text = "kind = \"etcd\"\netcd.endpoints = [\"http://h:1\"]\n\
                    etcd.user = \"u\"\netcd.password = \"hunter2\"";
        let Config::Etcd(etcd) = read(text).unwrap() else { panic!("it says etcd") };
        let refused = etcd.options().unwrap_err();
        assert_eq!(refused.reason, "SECRET_INLINE");
        assert!(!format!("{refused:?}").contains("hunter2"));
    }
}
