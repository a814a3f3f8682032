//! One file per command; here is what they share: where the coordinator is, which migration
//! is meant, how long a call may take.

pub(crate) mod abort;
pub(crate) mod check;
pub(crate) mod cleanup;
pub(crate) mod create;
pub(crate) mod cutover;
pub(crate) mod list;
pub(crate) mod migrate;
pub(crate) mod pause;
pub(crate) mod resume;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod verify;
pub(crate) mod watch;
pub(crate) mod workers;

use crate::{
    connect::{self, Client, Credentials, Place, quoted},
    output::{self, Form},
    report::{Exit, Failure},
    view,
};
use proto::{status::Report, v1};
use std::time::Duration;
use tonic::Request;

/// Longest wait for an answer that needs a look at the two servers at most.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for preflight: it asks both servers some fifty questions, and waits for
/// locks and for a server that is slow to connect.
pub(crate) const CHECK_TIMEOUT: Duration = Duration::from_secs(300);

/// What every command is given.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) place: Place,
    pub(crate) credentials: Credentials,
    pub(crate) form: Form,
}

/// The migration that a command is about.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NameArg {
    /// Name of the migration; may be left out when there is only one
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
}

impl Context {
    /// Connects to a coordinator that runs already.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let channel = connect::channel(&self.place, &self.credentials).await;
        let token = match &self.place {
            Place::Url(_) => self.credentials.token.as_ref(),
            Place::Dir(_) | Place::Socket(_) => None,
        };
        channel.map(|channel| connect::client(channel, token)).map_err(|error| unanswered(&error))
    }

    /// A `skein` command that reaches the same coordinator from the same machine.
    pub(crate) fn command(&self, words: &str) -> String {
        match &self.place {
            Place::Dir(dir) if connect::default_dir().as_ref() == Some(dir) => {
                format!("skein {words}")
            }
            Place::Dir(dir) => {
                format!("skein {words} --dir {}", quoted(&dir.display().to_string()))
            }
            Place::Socket(path) => {
                format!(
                    "skein {words} --coordinator {}",
                    quoted(&format!("unix:{}", path.display()))
                )
            }
            Place::Url(url) => format!("skein {words} --coordinator {}", quoted(url)),
        }
    }

    /// The name given, or the only one there is.
    pub(crate) async fn name(
        &self,
        client: &mut Client,
        given: &NameArg,
    ) -> Result<String, Failure> {
        if let Some(name) = &given.name {
            return Ok(name.clone());
        }
        let listed = client.list_migrations(request(v1::ListMigrationsRequest {})).await?;
        let mut names: Vec<String> =
            listed.into_inner().migrations.into_iter().map(|migration| migration.name).collect();
        match names.len() {
            0 => Err(Failure::new(
                Exit::NotFound,
                Report::definite("NOT_FOUND", "there is no migration")
                    .with_hint(format!("Begin one with: {}", self.command("migrate --help"))),
            )),
            1 => Ok(names.remove(0)),
            _ => Err(Failure::usage("NAME_MISSING", "there is more than one migration")
                .with_detail(format!("Their names: {}.", names.join(", ")))
                .with_hint("Give the name of one.")),
        }
    }

    /// Prints what a command changed: the migration as JSON, or one line.
    pub(crate) fn changed(&self, migration: &v1::Migration, line: &str) -> Result<(), Failure> {
        match self.form {
            Form::Json => output::json(&view::Migration::from(migration)),
            Form::Text => output::data(line),
        }
    }
}

/// No coordinator answered: exit code 4, but for an address that cannot be one.
pub(crate) fn unanswered(error: &connect::Error) -> Failure {
    let exit = match error {
        connect::Error::Unreachable { .. } => Exit::Unreachable,
        connect::Error::Address { .. }
        | connect::Error::Open { .. }
        | connect::Error::Authorities { .. }
        | connect::Error::NoDirectory
        | connect::Error::SocketPath { .. } => Exit::Usage,
    };
    Failure::of(exit, error)
}

/// A call with a deadline.
pub(crate) fn request<T>(message: T) -> Request<T> {
    request_within(message, CALL_TIMEOUT)
}

pub(crate) fn request_within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// The migration of an answer; the contract says that it is there.
pub(crate) fn present(migration: Option<v1::Migration>) -> Result<v1::Migration, Failure> {
    migration.ok_or_else(|| {
        Failure::new(
            Exit::Internal,
            Report::definite("ANSWER_INCOMPLETE", "the coordinator's answer holds no migration")
                .with_hint("Check that skein and skein-coordinator are of one version."),
        )
    })
}

/// The migration of that name, or nothing.
pub(crate) async fn find(
    client: &mut Client,
    name: &str,
) -> Result<Option<v1::Migration>, Failure> {
    let asked = client.get_migration(request(v1::GetMigrationRequest { name: name.to_owned() }));
    match asked.await {
        Ok(answer) => present(answer.into_inner().migration).map(Some),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// The migration of that name; exit code 3 when there is none.
pub(crate) async fn get(client: &mut Client, name: &str) -> Result<v1::Migration, Failure> {
    let asked = client.get_migration(request(v1::GetMigrationRequest { name: name.to_owned() }));
    present(asked.await?.into_inner().migration)
}
