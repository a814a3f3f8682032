//! Takes away what a migration left on both servers.
//!
//! ```text
//! abort    fence lifted -> sessions ended -> slots -> publications -> replica identities
//! cleanup  the same (a fence before an open target stays) -> schema skein on the target
//! ```
//! In: who we are ([`Context`]); the caller has stopped its own receivers and workers. Out: what
//! was done, and what a person should know. Promise: each part is asked for and then taken
//! away, so that it may run twice and be killed anywhere; only what carries this migration's
//! name is touched; schema `skein` goes last, since it says what to put back.

use super::{
    context::Context,
    cutover::{self, Attempt, State, attempt, attempt::Move, fence},
};
use crate::{
    source::{self, identity, identity::Originals, publication, slot},
    target,
};
use pg::{Session, Settings, sql};
use proto::status::{Classify, ErrorClass};
use std::time::Duration;
use tokio::time::Instant;

/// Step under which the replaced replica identities are written down (see `provision`).
const ORIGINALS: &str = "source/identity_originals";

/// How long sessions that were told to end may take.
const SESSION_END: Duration = Duration::from_secs(20);

/// How long the locks for replica identities may take, over all attempts on one table.
const IDENTITY_DEADLINE: Duration = Duration::from_secs(120);

/// Pause between two looks at sessions that are ending.
const POLL: Duration = Duration::from_millis(50);

/// How much is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What stands on the source.
    Abort,
    /// That, and schema `skein` on the target.
    Cleanup,
}

/// What was taken away, and what a person should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TornDown {
    pub done: Vec<String>,
    pub notices: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not connect to the {side}")]
    Connect { side: &'static str, source: pg::Error },
    #[error("could not read or drop {what}")]
    Server { what: &'static str, source: pg::Error },
    #[error("could not take back what stands on the source")]
    Source(#[source] source::Error),
    #[error("could not lift the fence on the source")]
    Fence(#[source] cutover::Error),
    #[error("a coordinator with a newer epoch than {epoch} acts")]
    Superseded { epoch: u64 },
    #[error("{count} sessions of this migration did not end on the {side}")]
    SessionsRemain { side: &'static str, count: usize },
}

impl Error {
    fn server(what: &'static str) -> impl FnOnce(pg::Error) -> Self {
        move |source| Self::Server { what, source }
    }
}

impl Classify for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Connect { source, .. } | Self::Server { source, .. } => source::class_of(source),
            Self::Source(error) => error.class(),
            Self::Fence(error) => error.class(),
            Self::Superseded { .. } => ErrorClass::Fenced,
            Self::SessionsRemain { .. } => ErrorClass::Transient,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Connect { source, .. } => {
                source.failure().map_or("CONNECTION_FAILED", |failure| failure.reason())
            }
            Self::Server { .. } => "TEARDOWN_REFUSED",
            Self::Source(error) => error.reason(),
            Self::Fence(error) => error.reason(),
            Self::Superseded { .. } => "EPOCH_SUPERSEDED",
            Self::SessionsRemain { .. } => "SESSIONS_REMAIN",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Connect { source, .. } => {
                source.failure().map(pg::connect::Failure::hint).unwrap_or_default()
            }
            Self::Source(error) => error.hint(),
            Self::Fence(error) => error.hint(),
            Self::SessionsRemain { .. } => {
                "Stop the workers of this migration, then run it again.".to_owned()
            }
            Self::Server { .. } | Self::Superseded { .. } => String::new(),
        }
    }
}

/// What is there of this migration.
struct Found {
    source: Session,
    target: Session,
    /// `application_name` of our sessions begins so.
    ours: String,
    source_sessions: Vec<String>,
    target_sessions: Vec<String>,
    slots: Vec<String>,
    publications: Vec<String>,
    originals: Originals,
    attempt: Option<Attempt>,
    has_schema: bool,
}

/// What would be taken away, line by line. Changes nothing.
///
/// # Errors
/// When a server cannot be reached or read.
pub async fn plan(context: &Context, scope: Scope) -> Result<Vec<String>, Error> {
    let found = look(context).await?;
    let mut lines = Vec::new();
    if found.is_fenced() {
        lines.push("on the source: lift the fence".to_owned());
    }
    lines.extend(
        found.source_sessions.iter().map(|one| format!("on the source: end session {one}")),
    );
    lines.extend(
        found.target_sessions.iter().map(|one| format!("on the target: end session {one}")),
    );
    lines.extend(
        found.slots.iter().map(|one| format!("on the source: drop replication slot \"{one}\"")),
    );
    lines.extend(
        found.publications.iter().map(|one| format!("on the source: drop publication \"{one}\"")),
    );
    lines.extend(
        found
            .originals
            .0
            .iter()
            .map(|one| format!("on the source: restore the replica identity of {}", one.table)),
    );
    if scope == Scope::Cleanup && found.has_schema {
        lines.push("on the target: drop schema skein".to_owned());
    }
    Ok(lines)
}

/// Takes it away. The caller has stopped what it runs itself: sessions by this migration's name
/// are ended wherever they come from.
///
/// # Errors
/// Transient: run it again. Definite: a person has to do what the hint says, then run it again.
pub async fn run(context: &Context, scope: Scope) -> Result<TornDown, Error> {
    let found = look(context).await?;
    let mut torn = TornDown::default();
    found.lift(context, &mut torn).await?;
    end_sessions("source", &found.source, &found.ours).await?;
    for slot in &found.slots {
        slot::drop(&found.source, slot, &found.ours).await.map_err(Error::Source)?;
        torn.done.push(format!("dropped replication slot \"{slot}\" on the source"));
    }
    publication::drop(&found.source, context).await.map_err(Error::Source)?;
    for publication in &found.publications {
        torn.done.push(format!("dropped publication \"{publication}\" on the source"));
    }
    let restored =
        identity::restore_identities(&found.source, &found.originals, IDENTITY_DEADLINE).await;
    torn.notices.extend(restored.map_err(Error::Source)?);
    for original in &found.originals.0 {
        torn.done.push(format!("restored the replica identity of {}", original.table));
    }
    end_sessions("target", &found.target, &found.ours).await?;
    if scope == Scope::Cleanup && found.has_schema {
        drop_schema(&found.target, context.epoch).await?;
        torn.done.push("dropped schema skein on the target".to_owned());
    }
    Ok(torn)
}

impl Found {
    fn is_fenced(&self) -> bool {
        let state = self.attempt.as_ref().map(|attempt| attempt.state);
        matches!(state, Some(State::Fenced | State::Lifting))
    }

    async fn lift(&self, context: &Context, torn: &mut TornDown) -> Result<(), Error> {
        let Some(attempt) = &self.attempt else { return Ok(()) };
        if self.is_fenced() {
            let number = attempt.number;
            cutover::lift(&self.source, &self.target, context).await.map_err(Error::Fence)?;
            attempt::advance(&self.target, context.epoch, number, Move::FinishLift)
                .await
                .map_err(Error::Fence)?;
            torn.done.push("lifted the fence on the source".to_owned());
        }
        if attempt.state == State::Opened {
            let before = attempt::before(&self.target, attempt.number).await;
            let (before, _) = before.map_err(Error::Fence)?;
            if before.fence {
                torn.notices.push(format!(
                    "The source stays read-only, since the target is open. To undo that, run on \
                     the source:\n{}",
                    fence::lift_sql(context.source.database(), &before)
                ));
            }
        }
        Ok(())
    }
}

async fn look(context: &Context) -> Result<Found, Error> {
    let settings = Settings::write(context.session_name("teardown", 0))
        .encoding(crate::migration::context::UTF_8);
    let connect = |side| move |source| Error::Connect { side, source };
    let source = Session::connect(&context.source, &settings).await.map_err(connect("source"))?;
    let target = Session::connect(&context.target, &settings).await.map_err(connect("target"))?;
    let ours = format!("skein/{}/", context.name);
    let has = sql!("select to_regclass('skein.migration') is not null");
    let has = target.query_one(&has, &[]).await.map_err(Error::server("schema skein"))?;
    let has_schema = has.get(0);
    let (mut attempt, mut originals) = (None, Originals::default());
    if has_schema {
        attempt = Some(attempt::read(&target).await.map_err(Error::Fence)?);
        originals = read_originals(&target).await.map_err(Error::server("schema skein"))?;
    }
    Ok(Found {
        source_sessions: sessions(&source, &ours).await.map_err(Error::server("sessions"))?,
        target_sessions: sessions(&target, &ours).await.map_err(Error::server("sessions"))?,
        slots: slots(&source, context).await.map_err(Error::server("replication slots"))?,
        publications: publications(&source, context)
            .await
            .map_err(Error::server("publications"))?,
        source,
        target,
        ours,
        originals,
        attempt,
        has_schema,
    })
}

async fn read_originals(target: &Session) -> pg::Result<Originals> {
    let statement = sql!("select detail::text from skein.step where step = $1");
    let row = target.query_opt(&statement, &[&ORIGINALS]).await?;
    let Some(text) = row.and_then(|row| row.get::<_, Option<String>>(0)) else {
        return Ok(Originals::default());
    };
    serde_json::from_str(&text).map_err(|error| pg::Error::Result(format!("{ORIGINALS}: {error}")))
}

/// Sessions of this migration but for our own.
async fn sessions(session: &Session, ours: &str) -> pg::Result<Vec<String>> {
    let statement = sql!(
        "select application_name from pg_stat_activity
          where starts_with(coalesce(application_name, ''), $1) and pid <> pg_backend_pid()
            and (datname = current_database() or datname is null)
          order by 1"
    );
    let rows = session.query(&statement, &[&ours]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The slot, and temporary ones of later snapshots (`skein_NAME_NUMBER`): a permanent one of
/// that form is another migration's, whose name ends in a number.
async fn slots(source: &Session, context: &Context) -> pg::Result<Vec<String>> {
    let name = context.slot_name();
    let statement = sql!(
        "select slot_name::text from pg_replication_slots
          where slot_name = $1
             or (temporary and starts_with(slot_name, $1 || '_')
                 and substr(slot_name, length($1) + 2) ~ '^[0-9]+$')
          order by 1"
    );
    let rows = source.query(&statement, &[&name]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn publications(source: &Session, context: &Context) -> pg::Result<Vec<String>> {
    let names = vec![context.full_publication(), context.append_publication()];
    let statement =
        sql!("select pubname::text from pg_publication where pubname = any($1) order by 1");
    let rows = source.query(&statement, &[&names]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Ends every session of this migration in this database, and waits until they are gone.
async fn end_sessions(side: &'static str, session: &Session, ours: &str) -> Result<(), Error> {
    let failed = || Error::server("sessions");
    let statement = sql!(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where starts_with(coalesce(application_name, ''), $1) and pid <> pg_backend_pid()
            and (datname = current_database() or datname is null)"
    );
    let deadline = Instant::now() + SESSION_END;
    loop {
        let count = session.query(&statement, &[&ours]).await.map_err(failed())?.len();
        if count == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::SessionsRemain { side, count });
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn drop_schema(session: &Session, epoch: u64) -> Result<(), Error> {
    let dropped = target::fenced(session, epoch, &sql!("drop schema skein cascade")).await;
    match dropped.map_err(Error::server("schema skein"))? {
        true => Ok(()),
        false => Err(Error::Superseded { epoch }),
    }
}
