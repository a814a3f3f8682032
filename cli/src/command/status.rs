//! `skein status`: one migration as it is now. What needs a person stands first.

use super::{Context, NameArg, get};
use crate::{
    output::{self, Colour, Form},
    progress,
    report::{Exit, Failure},
    unit, view,
};
use proto::{status::Report, v1};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skein status main\n  \
    skein status main --json | jq -r .phase\n\n\
    Exits with 1 when a fault stops the migration.")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let migration = get(&mut client, &name).await?;
    match context.form {
        Form::Json => output::json(&view::Migration::from(&migration))?,
        Form::Text => output::data(&text(context, &migration, output::stdout_colour()))?,
    }
    Ok(if migration.fault.is_some() { Exit::Found } else { Exit::Ok })
}

fn text(context: &Context, migration: &v1::Migration, colour: Colour) -> String {
    let since = migration.phase_since.as_ref().and_then(|at| unit::instant(at.seconds));
    let since = since.map(|at| format!(" since {at}")).unwrap_or_default();
    let head = format!("{}: {}{since}", migration.name, progress::phase_words(migration));
    let mut lines = vec![colour.bold(&head)];
    if let Some(fault) = &migration.fault {
        lines.push(output::told(&Report::from(fault.clone()), colour));
        let resume = context.command(&format!("resume {}", migration.name));
        lines.push(format!("When the cause is gone: {resume}"));
    }
    lines.extend(fence_lines(migration, colour));
    if !migration.started {
        let start = context.command(&format!("start {}", migration.name));
        lines.push(format!("Start it with: {start}"));
    } else if migration.paused {
        let resume = context.command(&format!("resume {}", migration.name));
        lines.push(format!("Go on with: {resume}"));
    } else if migration.phase() == v1::Phase::Ready {
        let cutover = context.command(&format!("cutover {}", migration.name));
        lines.push(format!("Hand over with: {cutover}"));
    }
    let mut rows = Vec::new();
    if !migration.activity.is_empty() {
        rows.push(("now", progress::one_line(&migration.activity)));
    }
    rows.extend(progress::rows(migration, 78));
    rows.extend(detail_rows(migration));
    lines.extend(rows.into_iter().map(|(label, text)| format!("  {label:<9} {text}")));
    list(&mut lines, "notices", &migration.notices);
    list(&mut lines, "not moved", &migration.not_moved);
    lines.join("\n")
}

/// Writes are stopped, or were: how to let them through by hand.
fn fence_lines(migration: &v1::Migration, colour: Colour) -> Vec<String> {
    let Some(cutover) = &migration.cutover else { return Vec::new() };
    let mut lines = Vec::new();
    if matches!(cutover.state.as_str(), "fenced" | "lifting") {
        let deadline = cutover.deadline.as_ref().and_then(|at| unit::instant(at.seconds));
        let until = deadline.map(|at| format!("; lifted by itself after {at}")).unwrap_or_default();
        lines.push(colour.yellow(&format!("Writes on the source are stopped{until}.")));
        if !cutover.lift_sql.is_empty() {
            lines.push("To let them through by hand, on the source:".to_owned());
            lines.extend(cutover.lift_sql.lines().map(|line| format!("  {line}")));
        }
    }
    for late in &cutover.late_writes {
        let changes = unit::count(late.changes);
        lines.push(colour.red(&format!("late writes: {}: {changes} changes", late.table)));
    }
    lines
}

fn detail_rows(migration: &v1::Migration) -> Vec<(&'static str, String)> {
    let positions = migration.positions.unwrap_or_default();
    let named = [
        ("source", positions.source_lsn),
        ("received", positions.received_lsn),
        ("spooled", positions.spooled_lsn),
        ("applied", positions.applied_lsn),
        ("confirmed", positions.confirmed_flush_lsn),
        ("end", positions.end_lsn),
    ];
    let known: Vec<_> = named
        .into_iter()
        .filter_map(|(role, value)| unit::position(value).map(|text| format!("{role} {text}")))
        .collect();
    let mut rows = Vec::new();
    // Three to a line: six are wider than a terminal.
    let labels = std::iter::once("WAL").chain(std::iter::repeat(""));
    rows.extend(labels.zip(known.chunks(3).map(|positions| positions.join("  "))));
    let done = migration.progress.clone().unwrap_or_default();
    if migration.phase() == v1::Phase::Done {
        rows.push(("moved", progress::summary(migration)));
    } else if done.rows_done > 0 {
        let rows_done = unit::count(done.rows_done);
        rows.push(("copied", format!("{rows_done} rows, {}", unit::bytes(done.copied_bytes))));
    }
    if done.bytes_at_risk > 0 {
        let bytes = unit::bytes(done.bytes_at_risk);
        rows.push(("at risk", format!("{bytes} to copy again if the snapshot is lost")));
    }
    let source = migration.source.clone().unwrap_or_default();
    if source.oldest_transaction_age_s > 0 {
        let age = unit::whole_seconds(source.oldest_transaction_age_s);
        let who = progress::one_line(&source.oldest_transaction);
        rows.push(("oldest", format!("transaction on the source, open for {age}: {who}")));
    }
    if let Some(cutover) = migration.cutover.as_ref().filter(|cutover| cutover.attempt > 0) {
        let stopped = unit::seconds(cutover.writes_stopped_s);
        let words =
            format!("attempt {} {}, writes stopped {stopped}", cutover.attempt, cutover.state);
        rows.push(("cutover", words));
    }
    rows
}

fn list(lines: &mut Vec<String>, title: &str, entries: &[String]) {
    if entries.is_empty() {
        return;
    }
    lines.push(format!("  {title}:"));
    lines.extend(entries.iter().map(|entry| format!("    - {}", progress::one_line(entry))));
}
