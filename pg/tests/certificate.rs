//! Certificates for tests, made with the openssl program.

use loadtest::cluster::postgres::Postgres;
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A certificate authority in a directory of its own.
pub(crate) struct Authority {
    directory: tempfile::TempDir,
}

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Authority {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        openssl(
            directory.path(),
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority \
             -keyout root.key -out root.crt",
        );
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes `NAME.crt` and `NAME.key`, signed, with these alternative names.
    pub(crate) fn issue(&self, name: &str, alternative: &str) {
        let directory = self.directory.path();
        openssl(
            directory,
            &format!(
                "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ),
        );
        std::fs::write(self.path("ext"), format!("subjectAltName={alternative}\n")).unwrap();
        openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA root.crt -CAkey root.key -CAcreateserial -days 2 \
                 -sha384 -extfile ext -out {name}.crt"
            ),
        );
    }

    /// Writes a self-signed `NAME.crt` whose only name is the common name.
    pub(crate) fn self_signed(&self, name: &str) {
        openssl(
            self.directory.path(),
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} \
                 -keyout {name}.key -out {name}.crt"
            ),
        );
    }

    /// Turns on TLS with the certificate `name`.
    pub(crate) fn install(&self, server: &Postgres, name: &str) {
        let data = server.data_directory();
        let owner = std::fs::metadata(&data).unwrap();
        for (from, to) in [
            (format!("{name}.crt"), "server.crt"),
            (format!("{name}.key"), "server.key"),
            ("root.crt".to_owned(), "clients.crt"),
        ] {
            let to = data.join(to);
            std::fs::copy(self.path(&from), &to).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&to, mode).unwrap();
            std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        server.set("ssl_ca_file", "clients.crt").unwrap();
        server.set("ssl", "on").unwrap();
        server.reload();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while server.psql("postgres", "show ssl").unwrap() != "on" {
            assert!(std::time::Instant::now() < deadline, "{}", server.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
