//! `skein`: what a person types to move a PostgreSQL database. A gRPC client of the
//! coordinator, and for `migrate` and `check` the one that starts it.
//!
//! In: arguments, environment. Out: data on standard output, the rest on standard error, an
//! exit code of [`report::Exit`]. Read on in `command.rs`, then `command/migrate.rs`.

mod checks;
mod command;
mod config;
mod confirm;
mod connect;
mod follow;
mod interrupt;
mod launch;
mod narrate;
mod output;
mod progress;
mod report;
mod screen;
mod secret;
mod settle;
mod spec;
mod unit;
mod view;

use clap::Parser as _;
use command::Context;
use connect::Credentials;
use output::Form;
use proto::{authorization::Secret, status::Report};
use report::{EXIT_CODES, Exit, Failure};
use std::{ffi::OsString, io, path::PathBuf, process::ExitCode};
use tracing::Instrument as _;

/// Moves a live PostgreSQL database to another server while applications write.
///
/// One migration moves one source database to one target database. A coordinator does the work
/// in the background; `skein` tells it what to do and shows what it does.
#[derive(Debug, clap::Parser)]
#[command(name = "skein", version, after_help = format!(
    "Example:\n  export SKEIN_SOURCE=postgres://app:secret@db1/shop\n  \
     export SKEIN_TARGET=postgres://app:secret@db2/shop\n  \
     skein check && skein migrate\n\n{EXIT_CODES}"
))]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// State directory of a coordinator on this machine
    /// [env: SKEIN_DIR] [default: $XDG_STATE_HOME/skein or ~/.local/state/skein]
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "coordinator")]
    dir: Option<PathBuf>,
    /// Another coordinator: https://HOST:PORT, http://127.0.0.1:PORT or unix:/PATH
    /// [env: SKEIN_COORDINATOR]
    #[arg(long, global = true, value_name = "URL")]
    coordinator: Option<String>,
    /// Certificate authorities for https, PEM [default: the system's]
    #[arg(long, global = true, value_name = "FILE", env = "SKEIN_CA_FILE", hide_env_values = true)]
    ca_file: Option<PathBuf>,
    /// Token for https: env:NAME or file:PATH [default: what SKEIN_TOKEN holds]
    #[arg(long, global = true, value_name = "REFERENCE")]
    token: Option<String>,
    /// Certificate to show, where the coordinator asks for one, PEM
    #[arg(long, global = true, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, global = true, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Print data as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Move a database: check, copy, replay and, with --cutover auto, hand over
    Migrate(Box<command::migrate::Args>),
    /// Check both servers; changes nothing
    Check(Box<command::check::Args>),
    /// Record a migration without starting it
    Create(Box<command::create::Args>),
    /// Start a migration, or go on after a fault
    Start(command::start::Args),
    /// List migrations
    List(command::list::Args),
    /// Show a migration as it is now
    Status(command::status::Args),
    /// Follow a migration
    Watch(command::watch::Args),
    /// Hold a migration: nothing new is copied or applied, changes are still received
    Pause(command::pause::Args),
    /// Go on after a pause or a fault
    Resume(command::resume::Args),
    /// Hand over to the target
    Cutover(command::cutover::Args),
    /// Compare source and target, row by row
    Verify(command::verify::Args),
    /// End a migration and take back what it made on the source
    Abort(command::abort::Args),
    /// Drop what is left of a migration that is done or aborted, and forget it
    Cleanup(command::cleanup::Args),
    /// List workers
    Workers(command::workers::Args),
    /// Leave the session and become a program; for `migrate` alone
    #[command(name = "__launch", hide = true)]
    Launch {
        #[arg(last = true, required = true)]
        words: Vec<OsString>,
    },
}

impl Command {
    /// As typed, for the span of the command.
    fn name(&self) -> &'static str {
        match self {
            Self::Migrate(_) => "migrate",
            Self::Check(_) => "check",
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::List(_) => "list",
            Self::Status(_) => "status",
            Self::Watch(_) => "watch",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Cutover(_) => "cutover",
            Self::Verify(_) => "verify",
            Self::Abort(_) => "abort",
            Self::Cleanup(_) => "cleanup",
            Self::Workers(_) => "workers",
            Self::Launch { .. } => "__launch",
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match &cli.command {
        Command::Launch { words } => Err(launched(&launch::become_program(words))),
        _ => begin(cli),
    };
    match exit {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::error(&failure.report);
            failure.exit.into()
        }
    }
}

/// `__launch` did not become the coordinator.
fn launched(error: &io::Error) -> Failure {
    let report = Report::definite("COORDINATOR_PROGRAM", "could not become the coordinator");
    Failure::new(Exit::Internal, report.with_detail(format!("Cause: {error}.")))
}

fn begin(cli: Cli) -> Result<Exit, Failure> {
    let internal = |primary: &str, cause: String| {
        let report = Report::definite("START", primary).with_detail(format!("Cause: {cause}."));
        Failure::new(Exit::Internal, report)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| internal("could not start", error.to_string()))?;
    // Log lines are for who asks with SKEIN_LOG; people are told in words.
    let options =
        telemetry::Options { filter: "off".to_owned(), ..telemetry::Options::new("skein") };
    let telemetry = telemetry::init(options)
        .map_err(|error| internal("could not set up telemetry", error.to_string()))?;
    let span = tracing::info_span!("skein", command = cli.command.name());
    let ended = runtime.block_on(followed(cli).instrument(span));
    runtime.block_on(interrupt::unless_interrupted(move || drop(telemetry)));
    ended
}

/// Runs the command; where another coordinator leads, once more there. The first has done
/// nothing then.
async fn followed(cli: Cli) -> Result<Exit, Failure> {
    match Box::pin(run(cli)).await {
        Err(failure) if failure.report.reason == "LEADER_ELSEWHERE" => {
            let mut again = Cli::parse();
            again.global.dir = None;
            again.global.coordinator = Some(failure.report.hint);
            Box::pin(run(again)).await
        }
        ended => ended,
    }
}

/// The token that --token names, else the one that stands in SKEIN_TOKEN.
fn token_of(reference: Option<&str>) -> Result<Option<Secret>, Report> {
    let reference = match reference {
        Some(reference) => reference,
        None if std::env::var_os("SKEIN_TOKEN").is_some_and(|token| !token.is_empty()) => {
            "env:SKEIN_TOKEN"
        }
        None => return Ok(None),
    };
    Secret::token("token", reference).map(Some)
}

async fn run(cli: Cli) -> Result<Exit, Failure> {
    let Global { dir, coordinator, ca_file, token, cert_file, key_file, json } = cli.global;
    let place = connect::place(coordinator.as_deref(), dir.as_deref())
        .map_err(|error| command::unanswered(&error))?;
    let form = if json { Form::Json } else { Form::Text };
    let credentials = Credentials {
        ca_file,
        identity: cert_file.zip(key_file),
        token: token_of(token.as_deref()).map_err(|report| Failure::new(Exit::Usage, report))?,
    };
    let context = Context { place, credentials, form };
    match cli.command {
        Command::Migrate(args) => Box::pin(command::migrate::run(&context, *args)).await,
        Command::Check(args) => Box::pin(command::check::run(&context, *args)).await,
        Command::Create(args) => Box::pin(command::create::run(&context, *args)).await,
        Command::Start(args) => command::start::run(&context, args).await,
        Command::List(args) => command::list::run(&context, args).await,
        Command::Status(args) => command::status::run(&context, args).await,
        Command::Watch(args) => Box::pin(command::watch::run(&context, args)).await,
        Command::Pause(args) => command::pause::run(&context, args).await,
        Command::Resume(args) => command::resume::run(&context, args).await,
        Command::Cutover(args) => Box::pin(command::cutover::run(&context, args)).await,
        Command::Verify(args) => command::verify::run(&context, args).await,
        Command::Abort(args) => Box::pin(command::abort::run(&context, args)).await,
        Command::Cleanup(args) => command::cleanup::run(&context, args).await,
        Command::Workers(args) => command::workers::run(&context, args).await,
        // Handled before there is a runtime: it becomes another program.
        Command::Launch { .. } => Ok(Exit::Internal),
    }
}
