//! `skein start`: starts a migration, or goes on after a fault.

use super::{Context, NameArg, present, request};
use crate::report::{Exit, Failure};
use proto::v1;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  skein start main")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let answer = client.start_migration(request(v1::StartMigrationRequest { name })).await?;
    let migration = present(answer.into_inner().migration)?;
    let watch = context.command(&format!("watch {}", migration.name));
    let line = format!("Migration \"{}\" is started. Follow it with: {watch}", migration.name);
    context.changed(&migration, &line)?;
    Ok(Exit::Ok)
}
