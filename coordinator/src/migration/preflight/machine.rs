//! The coordinator's machine: client programs, room for the spool.

use super::{
    check::{CheckExt as _, Place, failure, pass, warning},
    server::Server,
};
use crate::schema::Clients;
use proto::{
    status::Classify as _,
    v1::{Check, MigrationSpec},
};
use std::path::Path;

/// Default of the contract (`ReplayOptions.spool_limit_bytes`).
const DEFAULT_SPOOL_BYTES: u64 = 64 << 30;

/// With less the spool would be full within minutes of a busy source.
const SMALLEST_SPOOL_BYTES: u64 = 1 << 30;

pub(super) async fn checks(
    source: Option<&Server>,
    spec: &MigrationSpec,
    dir: &Path,
) -> Vec<Check> {
    let mut checks = vec![disk(spec, dir)];
    if let Some(source) = source {
        checks.push(programs(source.major()).await);
    }
    checks
}

fn disk(spec: &MigrationSpec, dir: &Path) -> Check {
    let name = "spool_disk";
    let limit = spec.replay.as_ref().map_or(0, |replay| replay.spool_limit_bytes);
    let limit = if limit == 0 { DEFAULT_SPOOL_BYTES } else { limit };
    // the directory may not be made yet: what will hold it is asked
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let free = match rustix::fs::statvfs(existing) {
        Ok(disk) => disk.f_bavail * disk.f_frsize,
        Err(error) => {
            return warning(name, Place::Coordinator, "could not be checked")
                .detail(format!("{}: {error}.", existing.display()))
                .fix("Make the directory, and check again.");
        }
    };
    let show = |bytes: u64| bytesize::ByteSize(bytes).to_string();
    let found = format!("{} free in {}", show(free), existing.display());
    if free < SMALLEST_SPOOL_BYTES {
        return failure(name, Place::Coordinator, found)
            .detail("Changes that wait to be applied are kept there.")
            .fix("Free space there, or name another directory with --dir.");
    }
    if free < limit {
        return warning(name, Place::Coordinator, found)
            .detail(format!(
                "The spool may take {}. When the disk is full, reading stops and the source keeps \
                 the WAL.",
                show(limit)
            ))
            .fix(
                "Free space there, name another directory with --dir, or lower replay.spool_limit.",
            );
    }
    pass(name, Place::Coordinator, found)
}

/// pg_dump and pg_restore, as provisioning will pick them.
async fn programs(source_major: u32) -> Check {
    let name = "client_programs";
    match Clients::find(source_major).await {
        Ok(clients) if clients.major == source_major => {
            pass(name, Place::Coordinator, format!("pg_dump {}", clients.version))
        }
        Ok(clients) => warning(name, Place::Coordinator, format!("pg_dump {}", clients.version))
            .detail(format!(
                "A newer pg_dump may write what only a newer server reads; that of version \
                 {source_major} is taken where it is installed."
            ))
            .fix(install(source_major)),
        Err(error) => {
            let report = error.report();
            failure(name, Place::Coordinator, report.primary)
                .detail(report.detail)
                .fix(install(source_major))
        }
    }
}

fn install(major: u32) -> String {
    format!("apt install postgresql-client-{major}  # or your system's package of it")
}
