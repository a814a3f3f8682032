//! From a spec to a [`Context`]: secrets resolved, both servers reached, the epoch issued.
//!
//! Promise: after [`claim`] no session of a lower epoch writes on the target any more, but the
//! workers' tasks, which their tokens fence.

use super::context::Context;
use crate::{secret, source::catalog, source::holder::like_escaped, store::record::Record, target};
use pg::{Conninfo, Session, SessionName, Settings, sql};
use proto::{
    status::{ErrorClass, Report},
    v1::MigrationSpec,
};
use std::{path::PathBuf, time::Duration};
use tokio::time::Instant;

/// How long sessions of an older coordinator may take to be gone: a cut peer's was gone in at
/// most 10.6 s with our keepalives.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Reason of the fault that the target's schema `skein` is another migration's.
pub const TARGET_TAKEN: &str = "TARGET_TAKEN";

/// An error of a server as a report: what was done, and what the server said.
pub fn refused(what: &str, error: &pg::Error) -> Report {
    let class = if error.is_transient() { ErrorClass::Transient } else { ErrorClass::Definite };
    let failure = error.failure();
    let hint = match (error, failure) {
        (pg::Error::Server(server), _) => server.hint.clone().unwrap_or_default(),
        (_, Some(failure)) => failure.hint(),
        _ => String::new(),
    };
    let reason = failure.map_or("SERVER_REFUSED", pg::connect::Failure::reason);
    Report::definite(reason, format!("could not {what}"))
        .with_detail(format!("{error}."))
        .with_hint(hint)
        .with_class(class)
}

impl Context {
    /// For reading only: checks and comparisons. Epoch 0.
    ///
    /// # Errors
    /// When a secret cannot be read or a server not be reached.
    pub async fn read_only(spec: &MigrationSpec) -> Result<Self, Report> {
        let source = secret::resolve("source", &spec.source)?;
        let target = secret::resolve("target", &spec.target)?;
        let session = connect("source", &source).await?;
        let facts = catalog::server_facts(&session)
            .await
            .map_err(|error| refused("read the source's settings", &error))?;
        let target_version = connect("target", &target).await?.server_version();
        Ok(Self {
            name: spec.name.clone(),
            spec: spec.clone(),
            source,
            target,
            epoch: 0,
            source_encoding: facts.encoding,
            source_version: facts.version,
            target_version,
            dir: PathBuf::new(),
        })
    }
}

async fn connect(role: &str, conninfo: &Conninfo) -> Result<Session, Report> {
    let settings = Settings::read(SessionName::of_role("connect"));
    Session::connect(conninfo, &settings)
        .await
        .map_err(|error| refused(&format!("reach the {role}"), &error))
}

/// Makes this coordinator the one that acts on the migration: schema `skein` stands, its epoch
/// is raised, and sessions of lower epochs are gone.
///
/// # Errors
/// `TARGET_TAKEN` when the target belongs to another migration; else what the server refused.
pub async fn claim(record: &Record, dir: PathBuf) -> Result<Context, Report> {
    let mut context = Context::read_only(&record.spec).await?;
    context.dir = dir;
    let settings = Settings::write(SessionName::of_role("claim"));
    let session = Session::connect(&context.target, &settings)
        .await
        .map_err(|error| refused("reach the target", &error))?;
    let failed = |error: pg::Error| refused("set up schema skein on the target", &error);
    let spec = serde_json::to_string(&record.spec).unwrap_or_default();
    session.batch(&target::ddl()).await.map_err(failed)?;
    session
        .execute(
            &sql!(
                "insert into skein.migration (schema_version, migration_id, name, spec)
 values ($1, $2, $3, $4::text::jsonb) on conflict do nothing"
            ),
            &[&target::SCHEMA_VERSION, &record.migration_id, &context.name, &spec],
        )
        .await
        .map_err(failed)?;
    let raised = session
        .query_opt(
            &sql!(
                "update skein.migration set epoch = epoch + 1
 where migration_id = $1 and schema_version = $2 returning epoch"
            ),
            &[&record.migration_id, &target::SCHEMA_VERSION],
        )
        .await
        .map_err(failed)?;
    let Some(row) = raised else {
        return Err(Report::definite(TARGET_TAKEN, "target belongs to another migration")
            .with_detail("Its schema skein was made by another migration, or by a newer Skein.")
            .with_hint("Clean that one up first (skein cleanup), or choose another target."));
    };
    context.epoch = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    end_older_sessions(&session, &context).await?;
    tracing::info!(epoch = context.epoch, "acting on the target");
    Ok(context)
}

/// Ends the target sessions of lower epochs, workers' tasks excepted, and waits until they are
/// gone: only then are positions read.
async fn end_older_sessions(session: &Session, context: &Context) -> Result<(), Report> {
    let failed = |error: pg::Error| refused("end sessions of an older coordinator", &error);
    let started = Instant::now();
    let epoch = i64::try_from(context.epoch).unwrap_or(i64::MAX);
    loop {
        let ended = session
            .query(
                &sql!(
                    "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
 where application_name like $1 and datname = current_database() and pid <> pg_backend_pid()
   and split_part(application_name, '/', 3) ~ '^[0-9]+$'
   and split_part(application_name, '/', 3)::bigint < $2
   and split_part(application_name, '/', 4) not in ('copy', 'build')"
                ),
                &[&format!("skein/{}/%", like_escaped(&context.name)), &epoch],
            )
            .await
            .map_err(failed)?;
        if ended.is_empty() {
            return Ok(());
        }
        if started.elapsed() > GONE_WITHIN {
            return Err(Report::definite(
                "STALE_SESSION",
                "sessions of an older coordinator are still on the target",
            )
            .with_class(ErrorClass::Transient)
            .with_hint(
                "See: select pid, application_name from pg_stat_activity \
                 where application_name like 'skein/%';",
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
