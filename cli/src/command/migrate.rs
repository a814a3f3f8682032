//! `skein migrate`: one command from a check of both servers to the open target.
//!
//! ```text
//! coordinator (found or started) -> CheckMigration -> Create -> Start -> follow -> summary
//!                                   left out when the migration runs already
//! ```
//! Promise: nothing is changed before the checks passed; leaving it stops nothing; the same
//! command again attaches, or goes on.

use super::{CHECK_TIMEOUT, Context, check, find, present, request, request_within};
use crate::{
    checks::{self, Tally},
    command::watch::Until,
    config,
    connect::{self, Client, Place},
    follow::{self, Ending, Follower},
    interrupt::Interrupts,
    launch::{Launcher, Started},
    output::{self, Form},
    report::{Exit, Failure},
    screen::Screen,
    secret, settle,
    spec::SpecArgs,
    view,
};
use proto::v1::{self, Phase};
use std::cell::Cell;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    export SKEIN_SOURCE=postgres://app:secret@db1/shop SKEIN_TARGET=postgres://app:secret@db2/shop\n  \
    skein migrate                        # copy, replay, wait for `skein cutover`\n  \
    skein migrate --cutover auto         # hand over as soon as lag is low\n  \
    skein migrate --until ready && skein cutover\n\n\
    Ctrl-C, a hang-up and SIGTERM detach (exit code 130): the work goes on in the background.\n\
    The same command attaches again, or goes on after a fault or a reboot.\n\n\
    Connection strings are moved to DIR/secrets, readable by you alone. Give them in the\n\
    environment: every user of this machine can read a command line while it runs.")]
pub(crate) struct Args {
    /// Name of the migration: 1 to 24 of a-z, 0-9 and _
    #[arg(long, value_name = "NAME", default_value = "main")]
    name: String,
    #[command(flatten)]
    spec: SpecArgs,
    /// What to wait for
    #[arg(long, value_enum, default_value_t = Until::End)]
    until: Until,
    /// Start it and leave at once
    #[arg(long)]
    detach: bool,
    /// Print a configuration file with every default, and end
    #[arg(long)]
    print_default_config: bool,
}

/// How far it came, for who interrupts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    NothingChanged,
    Started,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    if args.print_default_config {
        output::data(config::REFERENCE)?;
        return Ok(Exit::Ok);
    }
    let mut interrupts = Interrupts::new()?;
    let stage = Cell::new(Stage::NothingChanged);
    tokio::select! {
        exit = migrate(context, &args, &stage) => exit,
        () = interrupts.next() => {
            match stage.get() {
                Stage::NothingChanged => output::say("Interrupted; nothing was started."),
                Stage::Started => output::say(&follow::detached_words(context, &args.name)),
            }
            Ok(Exit::Interrupted)
        }
    }
}

async fn migrate(context: &Context, args: &Args, stage: &Cell<Stage>) -> Result<Exit, Failure> {
    let spec = args.spec.spec(&args.name)?;
    let mut launcher = match &context.place {
        Place::Dir(dir) => {
            if !dir.exists() {
                settle::check_given(&args.spec.ends())?;
            }
            Some(Launcher::new(dir))
        }
        Place::Socket(_) | Place::Url(_) => None,
    };
    let mut client = connected(context, launcher.as_mut()).await?;
    let begun = begin(context, args, spec, &mut client).await;
    let begun = match (begun, &mut launcher) {
        (Ok(Begun::Refused), Some(launcher)) => {
            // Nothing to do for a coordinator that we started for this alone.
            if launcher.is_ours() && check::is_idle(&mut client).await {
                launcher.stop().await;
            }
            return Ok(Exit::Found);
        }
        (Ok(Begun::Refused), None) => return Ok(Exit::Found),
        (Err(failure), Some(launcher)) => {
            if launcher.is_ours() && check::is_idle(&mut client).await {
                launcher.stop().await;
            }
            return Err(failure);
        }
        (Err(failure), None) => return Err(failure),
        (Ok(Begun::Started(migration)), _) => *migration,
    };
    stage.set(Stage::Started);
    if args.detach {
        let line = format!("Migration \"{}\" is started.", args.name);
        context.changed(&begun, &line)?;
        output::say(&follow::detached_words(context, &args.name));
        return Ok(Exit::Ok);
    }
    let follower = Follower {
        context,
        name: &args.name,
        goal: args.until.into(),
        screen: Screen::new(),
        launcher: launcher.as_mut(),
    };
    let (ending, migration) = follower.run(client).await?;
    finish(context, ending, &migration)
}

fn finish(context: &Context, ending: Ending, migration: &v1::Migration) -> Result<Exit, Failure> {
    let (words, exit) = follow::last_words(context, ending, migration);
    match (context.form, ending) {
        (Form::Json, _) => output::json(&view::Migration::from(migration))?,
        (Form::Text, Ending::Done) => output::data(&words)?,
        (Form::Text, _) => output::say(&words),
    }
    Ok(exit)
}

/// The coordinator of the directory, started if there is none; or the one that was named.
async fn connected(context: &Context, launcher: Option<&mut Launcher>) -> Result<Client, Failure> {
    let Some(launcher) = launcher else { return context.connect().await };
    let ensured = launcher.ensure().await;
    let (channel, started) = ensured.map_err(|error| Failure::of(Exit::Unreachable, &error))?;
    if started == Started::Now {
        output::say(&format!(
            "Started a coordinator in the background; its log: {}",
            launcher.log().display()
        ));
    }
    Ok(connect::client(channel, None))
}

enum Begun {
    Started(Box<v1::Migration>),
    /// A check failed; that was printed.
    Refused,
}

async fn begin(
    context: &Context,
    args: &Args,
    mut spec: v1::MigrationSpec,
    client: &mut Client,
) -> Result<Begun, Failure> {
    let existing = find(client, &args.name).await?;
    settle::settle(&context.place, &mut spec, &args.spec.ends(), existing.as_ref())?;
    let asked = spec.clone();
    if let Some(held) = existing.as_ref().and_then(|migration| migration.spec.clone()) {
        // What it was created with holds; only another source or target is refused.
        spec = v1::MigrationSpec { source: spec.source, target: spec.target, ..held };
    }
    let begun_before = existing
        .as_ref()
        .is_some_and(|migration| migration.started || migration.phase() != Phase::Preflight);
    if !begun_before && !checks_pass(client, &spec).await? {
        if let (Place::Dir(dir), None) = (&context.place, &existing) {
            // They belong to no migration, and may be wrong.
            secret::forget(dir, &args.name);
        }
        return Ok(Begun::Refused);
    }
    let order = v1::CreateMigrationRequest { spec: Some(spec) };
    let created = client.create_migration(request(order)).await?.into_inner();
    let created = present(created.migration)?;
    if let Some(existing) = &existing
        && begun_before
    {
        output::say(&attached_words(context, existing));
    }
    if let Some(words) =
        kept_words(&asked, existing.as_ref().and_then(|migration| migration.spec.as_ref()))
    {
        output::say(&words);
    }
    if matches!(created.phase(), Phase::Done | Phase::Aborting | Phase::Aborted) {
        return Ok(Begun::Started(Box::new(created)));
    }
    let order = v1::StartMigrationRequest { name: args.name.clone() };
    let started = client.start_migration(request(order)).await?.into_inner();
    Ok(Begun::Started(Box::new(present(started.migration)?)))
}

fn attached_words(context: &Context, migration: &v1::Migration) -> String {
    let name = &migration.name;
    if migration.paused {
        let resume = context.command(&format!("resume {name}"));
        return format!("Attached to migration \"{name}\", which is paused. Go on with: {resume}");
    }
    match &migration.fault {
        Some(fault) => {
            format!("Migration \"{name}\" goes on after its fault {}.", fault.reason)
        }
        None => format!("Attached to migration \"{name}\", which runs already."),
    }
}

/// Which of the settings given now are not those that the migration was created with.
fn kept_words(given: &v1::MigrationSpec, held: Option<&v1::MigrationSpec>) -> Option<String> {
    let held = held?;
    let differing: Vec<&str> = [
        ("filter", given.filter != held.filter),
        ("identity", given.identity != held.identity),
        ("copy", given.copy != held.copy),
        ("replay", given.replay != held.replay),
        ("cutover", given.cutover != held.cutover),
    ]
    .into_iter()
    .filter_map(|(section, differs)| differs.then_some(section))
    .collect();
    (!differing.is_empty()).then(|| {
        format!(
            "It keeps the settings it was created with; given otherwise now: {}.",
            differing.join(", ")
        )
    })
}

async fn checks_pass(client: &mut Client, spec: &v1::MigrationSpec) -> Result<bool, Failure> {
    output::say("Checking both servers; nothing is changed yet.");
    let asked = v1::CheckMigrationRequest { spec: Some(spec.clone()) };
    let answer = client.check_migration(request_within(asked, CHECK_TIMEOUT)).await?;
    let checks = answer.into_inner().checks;
    output::say(&checks::text(&checks, output::stderr_colour()));
    if Tally::of(&checks).failed == 0 {
        return Ok(true);
    }
    output::say("Stopped before anything was changed. Mend what failed and run it again.");
    Ok(false)
}
