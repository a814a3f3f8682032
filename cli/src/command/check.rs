//! `skein check`: the preflight alone. Changes nothing on either server.

use super::{CHECK_TIMEOUT, Context, find, request, request_within};
use crate::{
    checks::{self, Tally},
    connect::{self, Client, Place},
    interrupt::Interrupts,
    launch::Launcher,
    output::{self, Form},
    report::{Exit, Failure},
    secret, settle,
    spec::SpecArgs,
    view,
};
use proto::v1;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    SKEIN_SOURCE=postgres://app@db1/shop SKEIN_TARGET=postgres://app@db2/shop skein check\n  \
    skein check --source file:/etc/skein/source --target file:/etc/skein/target --json \\\n    \
    | jq -r '.checks[] | select(.outcome == \"failure\") | .fix'\n\n\
    Changes nothing. Without a coordinator on this machine it starts one for as long as it\n\
    takes. Exits with 1 when a check failed; warnings alone exit with 0.")]
pub(crate) struct Args {
    /// Check again a migration that exists, with the connection strings it has
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    spec: SpecArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::new()?;
    let mut launcher = None;
    let (client, launched) = connected(context, &args, &mut launcher).await?;
    let checked = tokio::select! {
        checked = check(context, args, client) => Some(checked),
        () = interrupts.next() => None,
    };
    if let Some(launcher) = launched {
        // Asked twice to leave: it ends by itself, since it was told to.
        tokio::select! {
            () = launcher.stop() => {}
            () = interrupts.next() => {}
        }
    }
    let Some(checks) = checked.transpose()? else {
        output::say("Interrupted; nothing was changed.");
        return Ok(Exit::Interrupted);
    };
    print(context, &checks)
}

/// The coordinator that runs, or one for as long as this takes.
async fn connected<'a>(
    context: &Context,
    args: &Args,
    slot: &'a mut Option<Launcher>,
) -> Result<(Client, Option<&'a mut Launcher>), Failure> {
    let Place::Dir(dir) = &context.place else {
        return Ok((context.connect().await?, None));
    };
    if !dir.exists() {
        settle::check_given(&args.spec.ends())?;
    }
    let launcher = slot.insert(Launcher::new(dir));
    let ensured = launcher.ensure().await;
    let (channel, _) = ensured.map_err(|error| Failure::of(Exit::Unreachable, &error))?;
    Ok((connect::client(channel, None), Some(launcher)))
}

async fn check(
    context: &Context,
    args: Args,
    mut client: Client,
) -> Result<Vec<v1::Check>, Failure> {
    let existing = match &args.name {
        Some(name) => find(&mut client, name).await?,
        None => None,
    };
    // Kept under a name of its own, so that the secrets of no migration are touched.
    let passing = format!("check_{}", std::process::id());
    let mut spec = args.spec.spec(args.name.as_deref().unwrap_or("main"))?;
    let _forgotten = match (&context.place, &existing) {
        (Place::Dir(dir), None) => Some(Passing { dir: dir.clone(), name: passing.clone() }),
        _ => None,
    };
    if let Some(held) = existing.and_then(|migration| migration.spec) {
        spec = held;
    } else {
        let name = std::mem::replace(&mut spec.name, passing);
        settle::settle(&context.place, &mut spec, &args.spec.ends(), None)?;
        spec.name = name;
    }
    let asked = request_within(v1::CheckMigrationRequest { spec: Some(spec) }, CHECK_TIMEOUT);
    Ok(client.check_migration(asked).await?.into_inner().checks)
}

/// Secrets that live as long as a check.
struct Passing {
    dir: PathBuf,
    name: String,
}

impl Drop for Passing {
    fn drop(&mut self) {
        secret::forget(&self.dir, &self.name);
    }
}

#[derive(Serialize)]
struct Document {
    ok: bool,
    passed: usize,
    warnings: usize,
    failures: usize,
    checks: Vec<view::Check>,
}

fn print(context: &Context, checks: &[v1::Check]) -> Result<Exit, Failure> {
    let tally = Tally::of(checks);
    match context.form {
        Form::Json => {
            output::json(&Document {
                ok: tally.failed == 0,
                passed: tally.passed,
                warnings: tally.warned,
                failures: tally.failed,
                checks: checks.iter().map(view::Check::from).collect(),
            })?;
        }
        Form::Text => output::data(&checks::text(checks, output::stdout_colour()))?,
    }
    Ok(if tally.failed == 0 { Exit::Ok } else { Exit::Found })
}

/// Whether a coordinator has anything to do.
pub(crate) async fn is_idle(client: &mut Client) -> bool {
    let listed = client.list_migrations(request(v1::ListMigrationsRequest {})).await;
    listed.is_ok_and(|answer| answer.into_inner().migrations.is_empty())
}
