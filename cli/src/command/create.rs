//! `skein create`: records a migration; `skein start` begins it.

use super::{Context, find, present, request};
use crate::{
    report::{Exit, Failure},
    settle,
    spec::SpecArgs,
};
use proto::v1;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    SKEIN_SOURCE=postgres://app@db1/shop SKEIN_TARGET=postgres://app@db2/shop \\\n    \
    skein create main --config shop.toml\n  skein start main")]
pub(crate) struct Args {
    /// Name of the migration: 1 to 24 of a-z, 0-9 and _
    #[arg(value_name = "NAME", default_value = "main")]
    name: String,
    #[command(flatten)]
    spec: SpecArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut spec = args.spec.spec(&args.name)?;
    let mut client = context.connect().await?;
    let existing = find(&mut client, &args.name).await?;
    settle::settle(&context.place, &mut spec, &args.spec.ends(), existing.as_ref())?;
    let order = v1::CreateMigrationRequest { spec: Some(spec) };
    let answer = client.create_migration(request(order)).await?;
    let migration = present(answer.into_inner().migration)?;
    let start = context.command(&format!("start {}", migration.name));
    let line = format!("Migration \"{}\" is created. Start it with: {start}", migration.name);
    context.changed(&migration, &line)?;
    Ok(Exit::Ok)
}
