//! `skein resume`: clears a pause or a fault, and goes on from where it was.

use super::{Context, NameArg, present, request};
use crate::report::{Exit, Failure};
use proto::v1;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  skein resume main\n\n\
    After a fault: mend its cause first (`skein status` names it); otherwise it comes back.")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let answer = client.resume_migration(request(v1::ResumeMigrationRequest { name })).await?;
    let migration = present(answer.into_inner().migration)?;
    let watch = context.command(&format!("watch {}", migration.name));
    let line = format!("Migration \"{}\" goes on. Follow it with: {watch}", migration.name);
    context.changed(&migration, &line)?;
    Ok(Exit::Ok)
}
