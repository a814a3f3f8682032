//! Takes the schema from the source with pg_dump, under the snapshot.
//!
//! ```text
//! snapshot -> pg_dump -> schema.dump.part -> fsync, rename -> schema.dump
//!                \                                   schema.json: digest, snapshot epoch, notes
//!                 watched: a session that waits for it ends it
//! ```
//! Promise: a file under the final name with its record beside it is whole; repeating the step
//! keeps it. The source's sessions do not queue behind us: our locks wait a few seconds at
//! most, and when somebody waits for us, the dump ends and is tried again.

use super::beside::{self, LeafKey};
use super::client::Clients;
use super::error::{Error, Result};
use super::step;
use crate::migration::context::Context;
use pg::{Session, TableName, sql};
use proto::status::ErrorClass;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Longest wait of pg_dump for one table's lock: others queue behind the wait.
const LOCK_WAIT_MS: u32 = 3000;
/// Pause between two looks for sessions that wait for pg_dump. Two looks in a row end it, so
/// that nobody waits longer than about 4 s (rules, part 1: within 5 s).
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// What stands beside the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dumped {
    /// Of the archive's bytes.
    pub digest: String,
    pub snapshot_epoch: u32,
    /// pg_dump's version.
    pub client: String,
    /// pg_dump's warnings: what it left out, and why.
    pub warnings: Vec<String>,
    /// Relations whose names hold new lines, which the archive's comments do not show.
    pub odd_names: Vec<(u32, TableName)>,
    /// Foreign keys of leaf partitions that belong to one of a partitioned table.
    pub leaf_keys: Vec<LeafKey>,
}

/// Path of the archive.
pub(super) fn archive_path(context: &Context) -> PathBuf {
    context.dir.join("schema.dump")
}

fn record_path(context: &Context) -> PathBuf {
    context.dir.join("schema.json")
}

/// The record of a whole archive; None when there is none, or it is torn.
///
/// # Errors
/// When a file that exists cannot be read.
pub(super) async fn recorded(context: &Context) -> Result<Option<Dumped>> {
    let read = async |path: PathBuf| match tokio::fs::read(&path).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file(path)(error)),
    };
    let Some(record) = read(record_path(context)).await? else { return Ok(None) };
    let Ok(record) = serde_json::from_slice::<Dumped>(&record) else { return Ok(None) };
    let Some(archive) = read(archive_path(context)).await? else { return Ok(None) };
    Ok((digest(&archive) == record.digest).then_some(record))
}

/// Names the archive: size and CRC-32C.
fn digest(bytes: &[u8]) -> String {
    format!("{}-{:08x}", bytes.len(), crc32c::crc32c(bytes))
}

/// Runs pg_dump and keeps its archive.
///
/// # Errors
/// [`Error::Client`], classed by what pg_dump said; [`Error::Waited`] to try again.
pub(super) async fn run(
    context: &Context,
    clients: &Clients,
    snapshot: &str,
    snapshot_epoch: u32,
) -> Result<Dumped> {
    let name = context.session_name("dump", snapshot_epoch);
    end_older(context).await?;
    tokio::fs::create_dir_all(&context.dir).await.map_err(Error::file(&context.dir))?;
    let part = context.dir.join("schema.dump.part");
    private_file(&part).await?;
    let mut command = clients.command("pg_dump");
    // Not what we inherit: a PGSERVICE or PGOPTIONS of ours is in the connection already.
    context.source.apply_to(&mut command);
    command
        .args(["--format=custom", "--section=pre-data", "--section=post-data", "--no-password"])
        // Large objects are copied by us; their entries would be pre-data. The archive is text
        // in UTF-8 whatever the database's encoding, as is our session that replays it.
        .args(["--no-blobs", "--encoding=UTF8"])
        .arg(format!("--lock-wait-timeout={LOCK_WAIT_MS}"))
        .arg(format!("--snapshot={snapshot}"))
        .arg("--file")
        .arg(&part)
        .env("PGAPPNAME", name.as_str())
        .env("PGCONNECT_TIMEOUT", "15")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let stderr = watched(context, command, name.as_str()).await?;
    let source = step::source_session(context, "beside").await?;
    let archive = tokio::fs::read(&part).await.map_err(Error::file(&part))?;
    let dumped = Dumped {
        digest: digest(&archive),
        snapshot_epoch,
        client: clients.version.clone(),
        warnings: stderr.lines().filter_map(warning).collect(),
        odd_names: beside::odd_names(&source).await?,
        leaf_keys: beside::leaf_keys(&source).await?,
    };
    keep(&part, &archive_path(context)).await?;
    let part = context.dir.join("schema.json.part");
    let mut file = private_file(&part).await?;
    let record = serde_json::to_vec(&dumped).map_err(|e| Error::Archive(e.to_string()))?;
    file.write_all(&record).await.map_err(Error::file(&part))?;
    file.flush().await.map_err(Error::file(&part))?;
    keep(&part, &record_path(context)).await?;
    Ok(dumped)
}

/// An empty file that only we may read: an archive can hold a subscription's password.
async fn private_file(path: &PathBuf) -> Result<tokio::fs::File> {
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).await.map_err(Error::file(path))
}

/// Makes a finished file durable under its name.
async fn keep(part: &PathBuf, path: &PathBuf) -> Result<()> {
    let sync = async {
        tokio::fs::File::open(part).await?.sync_all().await?;
        tokio::fs::rename(part, path).await?;
        match path.parent() {
            Some(directory) => tokio::fs::File::open(directory).await?.sync_all().await,
            None => Ok(()),
        }
    };
    sync.await.map_err(Error::file(path))
}

/// Ends dumps of this migration that a killed coordinator left on the source.
async fn end_older(context: &Context) -> Result<()> {
    let session = context
        .source_session("dump-watch", 0)
        .await
        .map_err(Error::server("reach the source for the schema"))?;
    let pattern = format!("skein/{}/%/dump/%", context.name.replace('_', "\\_"));
    session
        .query(
            &sql!(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where application_name like $1 and datname = current_database()
                   and usename = current_user"
            ),
            &[&pattern],
        )
        .await
        .map_err(Error::server("end an older schema dump"))?;
    Ok(())
}

/// Runs pg_dump to its end, unless a session waits for it. Its messages come back.
async fn watched(
    context: &Context,
    mut command: tokio::process::Command,
    name: &str,
) -> Result<String> {
    let session = context
        .source_session("dump-watch", 1)
        .await
        .map_err(Error::server("reach the source for the schema"))?;
    let program = "pg_dump".to_owned();
    let mut child =
        command.spawn().map_err(|source| Error::Run { program: program.clone(), source })?;
    let mut messages = child.stderr.take();
    let read = async {
        let mut text = Vec::new();
        if let Some(stderr) = messages.as_mut() {
            // A pipe that breaks ends with the program, whose status says why.
            let _ = stderr.read_to_end(&mut text).await;
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let run = async {
        let mut tick = tokio::time::interval(WATCH_INTERVAL);
        let mut waited_before = false;
        loop {
            // 1 the program ended   2 look for who waits
            tokio::select! { biased;
                status = child.wait() => {
                    return status.map_err(|source| Error::Run { program, source });
                }
                _ = tick.tick() => {
                    let waiting = waiting_for(&session, name).await?;
                    if let (Some(waiting), true) = (&waiting, waited_before) {
                        // Dropped by our return, and killed by that.
                        return Err(Error::Waited { waiting: waiting.clone() });
                    }
                    waited_before = waiting.is_some();
                }
            }
        }
    };
    let (status, messages) = {
        tokio::pin!(read);
        let mut run = Box::pin(run);
        let mut text = None;
        let status = loop {
            tokio::select! {
                status = &mut run => break status?,
                messages = &mut read, if text.is_none() => text = Some(messages),
            }
        };
        let text = match text {
            Some(text) => text,
            None => read.await,
        };
        (status, text)
    };
    if status.success() {
        return Ok(messages);
    }
    if is_outdated(&messages) {
        return Err(Error::SnapshotOutdated { message: errors(&messages) });
    }
    let class = class_of(&messages, status.code().is_none());
    Err(Error::Client { program: "pg_dump", message: errors(&messages), class })
}

/// A session that waits for a lock of our dump.
async fn waiting_for(session: &Session, name: &str) -> Result<Option<String>> {
    let row = session
        .query_opt(
            &sql!(
                "select format('pid %s (%s)', w.pid, coalesce(nullif(w.application_name, ''), '-'))
                 from pg_stat_activity d
                 join pg_stat_activity w on d.pid = any (pg_blocking_pids(w.pid))
                 where d.application_name = $1 and w.wait_event_type = 'Lock'
                 limit 1"
            ),
            &[&name],
        )
        .await
        .map_err(Error::server("look for sessions that wait for the schema dump"))?;
    Ok(row.map(|row| row.get(0)))
}

/// pg_dump reads the catalogs under the snapshot, and locks what is there now.
fn is_outdated(messages: &str) -> bool {
    (messages.contains("does not exist") && messages.contains("Query was: LOCK TABLE"))
        || messages.contains("could not open relation with OID")
        || messages.contains("cache lookup failed for")
}

/// Whether pg_dump may succeed when it is tried again.
fn class_of(messages: &str, killed: bool) -> ErrorClass {
    /// libpq's and the server's words for what passes (pg_dump prints no SQLSTATE).
    const PASSING: [&str; 12] = [
        // The snapshot is gone, 13 to 16 and 17: the next attempt has another.
        "invalid snapshot identifier",
        "ERROR:  snapshot \"",
        // How pg_dump keeps --lock-wait-timeout.
        "statement timeout",
        "lock timeout",
        "could not connect",
        "connection to server",
        "server closed the connection",
        "terminating connection",
        "the database system is",
        "SSL SYSCALL",
        "too many clients",
        "deadlock detected",
    ];
    if killed || PASSING.iter().any(|words| messages.contains(words)) {
        ErrorClass::Transient
    } else {
        ErrorClass::Definite
    }
}

/// The error lines, without the prefix, in one.
fn errors(messages: &str) -> String {
    let lines: Vec<&str> = messages
        .lines()
        .filter_map(|line| {
            line.strip_prefix("pg_dump: error: ").or(line.strip_prefix("pg_dump: detail: "))
        })
        .map(|line| line.trim_end_matches('.'))
        .collect();
    if lines.is_empty() { "it was ended".to_owned() } else { lines.join(": ") }
}

fn warning(line: &str) -> Option<String> {
    line.strip_prefix("pg_dump: warning: ").map(|text| format!("pg_dump: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_tried_again_and_a_missing_right_is_not() {
        let denied = "pg_dump: error: query failed: ERROR:  permission denied for table t\n\
                      pg_dump: detail: Query was: LOCK TABLE s.t IN ACCESS SHARE MODE";
        assert_eq!(class_of(denied, false), ErrorClass::Definite);
        assert_eq!(
            errors(denied),
            "query failed: ERROR:  permission denied for table t: Query was: LOCK TABLE s.t IN \
             ACCESS SHARE MODE"
        );
        let waited =
            "pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout";
        assert_eq!(class_of(waited, false), ErrorClass::Transient);
        assert_eq!(class_of("", true), ErrorClass::Transient);
    }
}
