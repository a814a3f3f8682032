//! `skein verify`: compares source and target, a line per table.

use super::{Context, NameArg};
use crate::{
    output::{self, Colour, Form},
    progress,
    report::{Exit, Failure},
    unit, view,
};
use proto::{
    status::Report,
    v1::{self, verify_migration_response::Event},
};
use serde::Serialize;
use tonic::Request;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skein verify main\n  \
    skein verify main --json | jq '.tables[] | select(.equal | not)'\n\n\
    Compares row counts and a digest of every row, table by table. Both sides must be quiet:\n\
    after a cutover, or while nobody writes. Exits with 1 on a difference. Differing keys are\n\
    values of your rows: mind where you keep the output.")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
    /// Differing keys reported for each table at most
    #[arg(long, value_name = "N", default_value_t = 20)]
    max_differences: u32,
}

#[derive(Serialize)]
struct Document {
    tables: Vec<view::TableVerdict>,
    summary: view::VerifySummary,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let request = v1::VerifyMigrationRequest { name, max_differences: args.max_differences };
    // No deadline: it reads every row of two databases.
    let mut stream = client.verify_migration(Request::new(request)).await?.into_inner();
    let colour = output::stdout_colour();
    let mut tables = Vec::new();
    let mut summary = None;
    while let Some(answer) = stream.message().await? {
        match answer.event {
            Some(Event::Table(verdict)) if context.form == Form::Json => {
                tables.push(view::TableVerdict::from(&verdict));
            }
            Some(Event::Table(verdict)) => output::data(&verdict_text(&verdict, colour))?,
            Some(Event::Summary(last)) => summary = Some(last),
            None => {}
        }
    }
    let Some(summary) = summary else {
        return Err(Failure::new(
            Exit::Transient,
            Report::definite("VERIFY_BROKEN_OFF", "the comparison ended before its summary")
                .with_hint("Run the same command again."),
        ));
    };
    match context.form {
        Form::Json => {
            let summary = view::VerifySummary::from(&summary);
            output::json(&Document { tables, summary })?;
        }
        Form::Text => output::data(&summary_text(&summary, colour))?,
    }
    Ok(if summary.different + summary.failed == 0 { Exit::Ok } else { Exit::Found })
}

fn verdict_text(verdict: &v1::TableVerdict, colour: Colour) -> String {
    let table = progress::one_line(&verdict.table);
    let (source, target) = (unit::count(verdict.source_rows), unit::count(verdict.target_rows));
    if let Some(error) = &verdict.error {
        let told = output::told(&Report::from(error.clone()), colour).replace('\n', "\n  ");
        return format!("{}     {table}\n  {told}", colour.red("failed"));
    }
    if verdict.equal {
        return format!("{}      {table}  {source} rows", colour.green("equal"));
    }
    let rows = if verdict.source_rows == verdict.target_rows {
        format!("{source} rows on both sides, contents differ")
    } else {
        format!("{source} rows on the source, {target} on the target")
    };
    let mut lines = vec![format!("{}  {table}  {rows}", colour.red("different"))];
    lines.extend(verdict.differences.iter().map(|key| format!("  {}", progress::one_line(key))));
    lines.join("\n")
}

fn summary_text(summary: &v1::VerifySummary, colour: Colour) -> String {
    let mut lines = vec![String::new()];
    let counts = format!(
        "{} tables compared in {}: {} differences, {} failed, {} rows on the source, {} on the target",
        unit::count(summary.tables),
        unit::seconds(summary.seconds),
        unit::count(summary.different),
        unit::count(summary.failed),
        unit::count(summary.source_rows),
        unit::count(summary.target_rows),
    );
    let good = summary.different + summary.failed == 0;
    lines.push(if good { colour.green(&counts) } else { colour.red(&counts) });
    lines.extend(summary.notes.iter().map(|note| format!("note: {}", progress::one_line(note))));
    lines.join("\n")
}
