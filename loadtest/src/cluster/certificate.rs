//! Certificates for tests, made with the openssl program: an authority, and what it signs.

use super::{During as _, Result, program::output_of};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A certificate authority in a directory of its own.
#[derive(Debug)]
pub struct Authority {
    directory: tempfile::TempDir,
}

fn openssl(directory: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(arguments.split_whitespace()).current_dir(directory);
    output_of("openssl", &mut command).map(|_| ())
}

impl Authority {
    /// Its certificate is `root.crt`.
    ///
    /// # Errors
    /// openssl is not installed, or refused.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir().during("make a directory for certificates")?;
        openssl(
            directory.path(),
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority \
             -keyout root.key -out root.crt",
        )?;
        Ok(Self { directory })
    }

    /// `NAME.crt` or `NAME.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes `NAME.crt` and `NAME.key`, signed, with these alternative names
    /// (`DNS:host,IP:127.0.0.1`).
    ///
    /// # Errors
    /// openssl refused.
    pub fn issue(&self, name: &str, alternative: &str) -> Result<()> {
        let directory = self.directory.path();
        openssl(
            directory,
            &format!(
                "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ),
        )?;
        std::fs::write(self.path("ext"), format!("subjectAltName={alternative}\n"))
            .during("write a certificate's names")?;
        openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA root.crt -CAkey root.key -CAcreateserial -days 2 \
                 -sha384 -extfile ext -out {name}.crt"
            ),
        )
    }
}
