//! `skein list`: every migration of a coordinator, a line each.

use super::{Context, request};
use crate::{
    output::{self, Form},
    progress,
    report::{Exit, Failure},
    view,
};
use proto::v1;
use serde::Serialize;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skein list\n  skein list --json | jq -r '.migrations[].name'")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    migrations: Vec<view::Migration>,
}

pub(crate) async fn run(context: &Context, _args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let answer = client.list_migrations(request(v1::ListMigrationsRequest {})).await?;
    let migrations = answer.into_inner().migrations;
    if context.form == Form::Json {
        let migrations = migrations.iter().map(view::Migration::from).collect();
        output::json(&Document { migrations })?;
        return Ok(Exit::Ok);
    }
    if migrations.is_empty() {
        output::say("There is no migration.");
        return Ok(Exit::Ok);
    }
    let row = |migration: &v1::Migration| {
        vec![
            migration.name.clone(),
            progress::phase_words(migration),
            progress::one_line(&progress::summary(migration)),
        ]
    };
    let rows: Vec<_> = migrations.iter().map(row).collect();
    output::data(&output::table(&["NAME", "PHASE", "PROGRESS"], &rows))?;
    Ok(Exit::Ok)
}
