//! Marks of finished work in `skein.step`, in the transaction of the work itself.

use super::error::{Error, Result};
use crate::migration::context::Context;
use pg::{Session, Settings, Sql, sql, sql::Literal};
use serde::{Serialize, de::DeserializeOwned};

/// The statement that leaves a mark.
pub(super) fn mark(step: &str, detail: &impl Serialize) -> Sql {
    let detail = serde_json::to_string(detail).unwrap_or_else(|_| "null".to_owned());
    sql!(
        "insert into skein.step (step, detail) values ({}, {}::jsonb)
         on conflict (step) do update set detail = excluded.detail, finished_at = now()",
        Literal(step),
        Literal(&detail),
    )
}

/// What a mark says; None when the step was not done.
///
/// # Errors
/// When the target does not answer, or another version of ours wrote the mark.
pub(super) async fn read<D: DeserializeOwned>(session: &Session, step: &str) -> Result<Option<D>> {
    let row = session
        .query_opt(&sql!("select detail::text from skein.step where step = $1"), &[&step])
        .await
        .map_err(Error::server("read what was done on the target"))?;
    row.map_or(Ok(None), |row| parse(step, row.get(0)))
}

/// What a mark says, taken for this transaction: a forerunner whose connection broke during
/// COMMIT has either committed by now, and is seen, or will not.
///
/// # Errors
/// As [`read`].
pub(super) async fn claim<D: DeserializeOwned>(session: &Session, step: &str) -> Result<Option<D>> {
    let server = || Error::server("take a step of the target");
    session
        .execute(
            &sql!("insert into skein.step (step) values ($1) on conflict (step) do nothing"),
            &[&step],
        )
        .await
        .map_err(server())?;
    let row = session
        .query_one(
            &sql!("select detail::text from skein.step where step = $1 for update"),
            &[&step],
        )
        .await
        .map_err(server())?;
    parse(step, row.get(0))
}

fn parse<D: DeserializeOwned>(step: &str, detail: Option<String>) -> Result<Option<D>> {
    let Some(detail) = detail else { return Ok(None) };
    serde_json::from_str(&detail)
        .map(Some)
        .map_err(|_| Error::Archive(format!("mark of step {step} in schema skein")))
}

/// A session of the target that makes objects. Its text is UTF-8, as the archive is.
///
/// # Errors
/// When the server cannot be reached or refuses us.
pub(super) async fn target_session(context: &Context, id: &str) -> Result<Session> {
    let settings = Settings::write(context.session_name("schema", id)).encoding("UTF8");
    let connected = async {
        let session = Session::connect(&context.target, &settings).await?;
        session
            .batch(&sql!(
                "set check_function_bodies = off; set client_min_messages = warning;
                 set default_tablespace = ''; set default_table_access_method = heap"
            ))
            .await?;
        Ok(session)
    };
    connected.await.map_err(Error::server("reach the target for the schema"))
}

/// As [`target_session`], for when the database's own event triggers are there: they speak of
/// what its users do, and do not fire in the replica role. Without superuser (or the right to
/// that setting) they do.
///
/// # Errors
/// As [`target_session`].
pub(super) async fn quiet_session(context: &Context, id: &str) -> Result<Session> {
    let session = target_session(context, id).await?;
    match session.batch(&sql!("set session_replication_role = replica")).await {
        Ok(()) => {}
        // insufficient_privilege
        Err(error) if error.sqlstate() == Some("42501") => {
            tracing::debug!("event triggers of the target fire on what the schema steps do");
        }
        Err(error) => return Err(Error::server("reach the target for the schema")(error)),
    }
    Ok(session)
}

/// A reading session of the source, in UTF-8.
///
/// # Errors
/// As [`target_session`].
pub(super) async fn source_session(context: &Context, id: &str) -> Result<Session> {
    let settings = Settings::read(context.session_name("schema", id)).encoding("UTF8");
    Session::connect(&context.source, &settings)
        .await
        .map_err(Error::server("reach the source for the schema"))
}
