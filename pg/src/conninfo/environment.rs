//! What a connection string may leave to its surroundings: PG* variables, home, user.
//!
//! Promise: nothing else is looked at, so that the same input always means the same.

use std::{collections::BTreeMap, path::PathBuf};

/// Variables, home directory and operating-system user of a process.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
    user: Option<String>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.variables.keys().collect();
        f.debug_struct("Environment").field("variables", &names).field("home", &self.home).finish()
    }
}

impl Environment {
    /// Nothing set: what a string alone means.
    pub fn empty() -> Self {
        Self::default()
    }

    /// This process's: its PG* variables, HOME, its user's name.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("PG"))
            .collect();
        Self {
            variables,
            home: std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from),
            user: whoami::username().ok(),
        }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    #[must_use]
    pub fn with_home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    #[must_use]
    pub fn with_user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// A variable's value; one that is set to nothing counts as not set.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A file under the home directory.
    pub(super) fn home_file(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(name))
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }
}
