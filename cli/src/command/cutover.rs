//! `skein cutover`: hands over to the target, and says how long writes were stopped.

use super::{Context, NameArg, get, request};
use crate::{
    follow::{self, Ending, Follower, Goal},
    interrupt::Interrupts,
    output::{self, Form},
    report::{Exit, Failure},
    screen::Screen,
    view,
};
use proto::v1::{self, Phase};
use serde_json::json;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skein cutover main --dry-run\n  \
    skein cutover main --timeout 30s\n\n\
    Exits with 0 only when the target is open. When it is not in time, writes on the source\n\
    are let through again, replay goes on, and the exit code is 1: try again. Ctrl-C leaves\n\
    the cutover to the coordinator, which ends it either way.")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
    /// Leave stopping the writers on the source to you; late writes are reported
    #[arg(long)]
    no_fence: bool,
    /// Time after which writes on the source go on if the target was not opened, for
    /// example 30s [default: as created, 60s]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    /// Only print what it would do
    #[arg(long)]
    dry_run: bool,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
    match humantime::parse_duration(text) {
        Ok(time) if allowed.contains(&time) => Ok(time),
        Ok(_) => Err("allowed: 1s to 1h".to_owned()),
        Err(_) => Err("give a time such as 30s or 2m".to_owned()),
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let before = get(&mut client, &name).await?;
    let created = before.spec.as_ref().and_then(|spec| spec.cutover).unwrap_or_default();
    let order = v1::CutoverMigrationRequest {
        name: name.clone(),
        // What was chosen at creation holds for each cutover.
        no_fence: args.no_fence || created.no_fence,
        // Parsed to be at most an hour.
        timeout_s: args.timeout.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(3600)),
        dry_run: args.dry_run,
    };
    let mut interrupts = Interrupts::new()?;
    // A cutover that runs already is followed, not begun twice.
    let attempt = before.cutover.as_ref().map_or(0, |cutover| cutover.attempt);
    let running = before.phase() == Phase::CuttingOver && !args.dry_run;
    if !running {
        let answer = client.cutover_migration(request(order)).await?.into_inner();
        if args.dry_run {
            return print_plan(context, &name, &answer.plan);
        }
    }
    let after = if running { attempt.saturating_sub(1) } else { attempt };
    let follower = Follower {
        context,
        name: &name,
        goal: Goal::Cutover { after },
        screen: Screen::after_attempt(after),
        launcher: None,
    };
    let (ending, migration) = tokio::select! {
        end = follower.run(client) => end?,
        () = interrupts.next() => {
            output::say(&format!(
                "Detached. The cutover goes on: the target is opened, or the source is let \
                 through again.\nSee which: {}",
                context.command(&format!("status {name}"))
            ));
            return Ok(Exit::Interrupted);
        }
    };
    let (words, exit) = follow::last_words(context, ending, &migration);
    match (context.form, ending) {
        (Form::Json, _) => output::json(&view::Migration::from(&migration))?,
        (Form::Text, Ending::Done) => output::data(&words)?,
        (Form::Text, _) => output::say(&words),
    }
    Ok(exit)
}

fn print_plan(context: &Context, name: &str, plan: &[String]) -> Result<Exit, Failure> {
    match context.form {
        Form::Json => output::json(&json!({ "name": name, "plan": plan }))?,
        Form::Text => {
            let step = |(at, step): (usize, &String)| format!("{:>3}. {step}", at + 1);
            let steps: Vec<_> = plan.iter().enumerate().map(step).collect();
            output::data(&format!("A cutover of \"{name}\" would:\n{}", steps.join("\n")))?;
        }
    }
    Ok(Exit::Ok)
}
