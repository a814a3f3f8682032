//! `skein abort`: ends a migration and takes back what it made on the source.

use super::{Context, NameArg, present, request};
use crate::{
    confirm::{self, ConfirmArgs},
    follow::{self, Ending, Follower, Goal},
    interrupt::Interrupts,
    output::{self, Form},
    report::{Exit, Failure},
    screen::Screen,
    view,
};
use proto::v1;
use serde_json::json;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skein abort main --dry-run\n  skein abort main --yes\n\n\
    The target's tables stay. Afterwards `skein cleanup` drops the rest.")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let plan = v1::AbortMigrationRequest { name: name.clone(), dry_run: true };
    let drops = client.abort_migration(request(plan)).await?.into_inner().drops;
    let words = format!("Aborting \"{name}\" drops:\n{}", confirm::drop_lines(&drops));
    if args.confirm.dry_run {
        match context.form {
            Form::Json => output::json(&json!({ "name": name, "drops": drops }))?,
            Form::Text => output::data(&words)?,
        }
        return Ok(Exit::Ok);
    }
    output::say(&words);
    confirm::ask(&format!("Abort migration \"{name}\"?"), &args.confirm)?;
    let mut interrupts = Interrupts::new()?;
    let order = v1::AbortMigrationRequest { name: name.clone(), dry_run: false };
    let answer = client.abort_migration(request(order)).await?.into_inner();
    present(answer.migration)?;
    let follower = Follower {
        context,
        name: &name,
        goal: Goal::Aborted,
        screen: Screen::new(),
        launcher: None,
    };
    let (ending, migration) = tokio::select! {
        end = follower.run(client) => end?,
        () = interrupts.next() => {
            output::say(&follow::detached_words(context, &name));
            return Ok(Exit::Interrupted);
        }
    };
    match context.form {
        Form::Json => {
            let migration = view::Migration::from(&migration);
            output::json(&json!({ "name": name, "drops": drops, "migration": migration }))?;
        }
        Form::Text => output::data(&follow::last_words(context, ending, &migration).0)?,
    }
    Ok(if ending == Ending::Aborted { Exit::Ok } else { Exit::Found })
}
