//! `skein cleanup`: after a migration is done or aborted, drops what is Skein's and forgets it.

use super::{Context, NameArg, request};
use crate::{
    confirm::{self, ConfirmArgs},
    connect::Place,
    output::{self, Form},
    report::{Exit, Failure},
    secret,
};
use proto::v1;
use serde_json::json;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skein cleanup main --dry-run\n  skein cleanup main --yes\n\n\
    Late writes on the source are no longer noticed afterwards: stop its writers first.")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let plan = v1::CleanupMigrationRequest { name: name.clone(), dry_run: true };
    let mut drops = client.cleanup_migration(request(plan)).await?.into_inner().drops;
    let words = format!("Cleaning up \"{name}\" drops:\n{}", confirm::drop_lines(&drops));
    if !args.confirm.dry_run {
        output::say(&words);
        confirm::ask(&format!("Clean up migration \"{name}\"?"), &args.confirm)?;
        let order = v1::CleanupMigrationRequest { name: name.clone(), dry_run: false };
        drops = client.cleanup_migration(request(order)).await?.into_inner().drops;
        if let Place::Dir(dir) = &context.place {
            secret::forget(dir, &name);
        }
    }
    match (context.form, args.confirm.dry_run) {
        (Form::Json, dry_run) => {
            output::json(&json!({ "name": name, "drops": drops, "dry_run": dry_run }))?;
        }
        (Form::Text, true) => output::data(&words)?,
        (Form::Text, false) => {
            output::data(&format!("Migration \"{name}\" is cleaned up and forgotten."))?;
        }
    }
    Ok(Exit::Ok)
}
