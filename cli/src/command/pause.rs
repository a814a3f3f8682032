//! `skein pause`: nothing new is copied or applied; changes are still received.

use super::{Context, NameArg, present, request};
use crate::report::{Exit, Failure};
use proto::v1;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  skein pause main\n\n\
    Changes on the source are still received, so that it can recycle its WAL. Go on with\n  \
    skein resume main")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let answer = client.pause_migration(request(v1::PauseMigrationRequest { name })).await?;
    let migration = present(answer.into_inner().migration)?;
    let resume = context.command(&format!("resume {}", migration.name));
    let line = format!("Migration \"{}\" is paused. Go on with: {resume}", migration.name);
    context.changed(&migration, &line)?;
    Ok(Exit::Ok)
}
