//! A migration in words: one line for logs and lists, a few lines for a terminal. Pure.

use crate::{output::Colour, unit, view::phase_name};
use proto::v1::{self, Phase};

/// Running tasks shown on a terminal; more are counted.
const TASKS_SHOWN: usize = 4;
/// Widest bar, in columns; beyond that it says no more.
const BAR_WIDTH_MAX: usize = 30;

/// What is going on, on one line, without name and phase.
pub(crate) fn summary(migration: &v1::Migration) -> String {
    let progress = migration.progress.clone().unwrap_or_default();
    match migration.phase() {
        Phase::Copying => join([copy_words(&progress), index_words(&progress), lag(&progress)]),
        Phase::CatchingUp | Phase::Ready => {
            join([index_words(&progress), lag(&progress), apply_words(&progress)])
        }
        Phase::CuttingOver => join([migration.activity.clone(), lag(&progress)]),
        Phase::Done => join([
            format!("{} tables", unit::count(progress.tables_done)),
            format!("{} rows", unit::count(progress.rows_done)),
            format!("{} changes replayed", unit::count(progress.changes_applied)),
        ]),
        Phase::Unspecified
        | Phase::Preflight
        | Phase::Provisioning
        | Phase::Aborting
        | Phase::Aborted => migration.activity.clone(),
    }
}

fn join<const N: usize>(parts: [String; N]) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn copy_words(progress: &v1::Progress) -> String {
    join([
        format!("tables {}/{}", progress.tables_done, progress.tables_total),
        format!(
            "{} of {} ({}%)",
            unit::bytes(progress.bytes_done),
            unit::bytes(progress.bytes_total),
            unit::percent(progress.bytes_done, progress.bytes_total)
        ),
        copy_rate(progress),
        eta(progress),
    ])
}

fn copy_rate(progress: &v1::Progress) -> String {
    match unit::rate(progress.copy_rate_bytes_per_s) {
        0 => String::new(),
        rate => format!("{}/s", unit::bytes(rate)),
    }
}

fn eta(progress: &v1::Progress) -> String {
    match progress.eta_s {
        0 => String::new(),
        eta_s => format!("{} left", unit::whole_seconds(eta_s)),
    }
}

fn index_words(progress: &v1::Progress) -> String {
    if progress.indexes_total == progress.indexes_done {
        return String::new();
    }
    format!("indexes {}/{}", progress.indexes_done, progress.indexes_total)
}

fn lag(progress: &v1::Progress) -> String {
    format!("lag {} ({:.1} s)", unit::bytes(progress.lag_bytes), progress.lag_s.max(0.0))
}

fn apply_words(progress: &v1::Progress) -> String {
    format!(
        "{} changes/s, {} applied",
        unit::count(unit::rate(progress.apply_rate_changes_per_s)),
        unit::count(progress.changes_applied)
    )
}

/// Phase as shown to people, with what stands beside it.
pub(crate) fn phase_words(migration: &v1::Migration) -> String {
    let phase = phase_name(migration.phase());
    match (&migration.fault, migration.paused) {
        (Some(fault), _) => format!("{phase}, fault {}", fault.reason),
        (None, true) => format!("{phase}, paused"),
        (None, false) if !migration.started => format!("{phase}, not started"),
        (None, false) => phase.to_owned(),
    }
}

/// The lines that are drawn again and again on a terminal of `width` columns.
pub(crate) fn screen(migration: &v1::Migration, width: usize, colour: Colour) -> Vec<String> {
    let mut lines = vec![head(migration, width, colour)];
    for (label, text) in rows(migration, width) {
        let label = colour.dim(&format!("  {label:<8}"));
        lines.push(format!("{label} {}", clipped(&text, width.saturating_sub(12))));
    }
    lines
}

fn head(migration: &v1::Migration, width: usize, colour: Colour) -> String {
    let phase = phase_words(migration);
    let lead = format!("{}: {phase}", migration.name);
    let room = width.saturating_sub(lead.chars().count() + 3);
    let activity = clipped(&migration.activity, room);
    let painted = if migration.fault.is_some() { colour.red(&lead) } else { colour.bold(&lead) };
    if activity.is_empty() { painted } else { format!("{painted}  {activity}") }
}

/// Label and text of each line below the head.
pub(crate) fn rows(migration: &v1::Migration, width: usize) -> Vec<(&'static str, String)> {
    let progress = migration.progress.clone().unwrap_or_default();
    let phase = migration.phase();
    let mut rows = Vec::new();
    let copied = matches!(phase, Phase::CatchingUp | Phase::Ready | Phase::CuttingOver);
    if phase == Phase::Copying || (copied && progress.tables_done < progress.tables_total) {
        rows.extend(copy_rows(&progress, width));
    }
    if progress.indexes_done < progress.indexes_total {
        let (done, total) = (progress.indexes_done, progress.indexes_total);
        rows.push(("indexes", format!("{} {done}/{total}", bar(done, total, width))));
    }
    if phase == Phase::Copying || copied {
        let text = join([lag(&progress), apply_words(&progress), spool(&progress)]);
        rows.push(("replay", text));
        rows.extend(source_row(&migration.source.clone().unwrap_or_default()));
    }
    rows.extend(waiting_rows(&migration.source.clone().unwrap_or_default()));
    rows.extend(running_rows(&progress));
    rows
}

fn copy_rows(progress: &v1::Progress, width: usize) -> [(&'static str, String); 2] {
    let tables = format!(
        "{} {}/{}",
        bar(progress.tables_done, progress.tables_total, width),
        progress.tables_done,
        progress.tables_total
    );
    let amount =
        format!("{}/{}", unit::bytes(progress.bytes_done), unit::bytes(progress.bytes_total));
    let rest = join([amount, copy_rate(progress), eta(progress)]);
    let bar = bar(progress.bytes_done, progress.bytes_total, width);
    [("tables", tables), ("data", format!("{bar} {rest}"))]
}

fn spool(progress: &v1::Progress) -> String {
    match progress.spool_bytes {
        0 => String::new(),
        bytes => format!("spool {}", unit::bytes(bytes)),
    }
}

fn source_row(source: &v1::SourceState) -> Option<(&'static str, String)> {
    let snapshot = match source.snapshot_age_s {
        0 => String::new(),
        age_s => format!("snapshot {} old", unit::whole_seconds(age_s)),
    };
    let wal = match source.retained_wal_bytes {
        0 => String::new(),
        bytes => format!("slot keeps {} of WAL", unit::bytes(bytes)),
    };
    let text = join([snapshot, wal]);
    (!text.is_empty()).then_some(("source", text))
}

fn waiting_rows(source: &v1::SourceState) -> Vec<(&'static str, String)> {
    source
        .waiting_for_us
        .iter()
        .map(|who| ("waiting", format!("for our snapshot: {who}")))
        .collect()
}

fn running_rows(progress: &v1::Progress) -> Vec<(&'static str, String)> {
    let words = |task: &v1::TaskProgress| {
        let amount = if task.bytes == 0 { String::new() } else { unit::bytes(task.bytes) };
        let rest = join([amount, unit::whole_seconds(task.seconds)]);
        format!("{} {}  {rest}", task.kind, one_line(&task.object))
    };
    let labels = std::iter::once("running").chain(std::iter::repeat(""));
    let mut rows: Vec<_> =
        labels.zip(progress.running.iter().take(TASKS_SHOWN).map(words)).collect();
    let more = progress.running.len().saturating_sub(TASKS_SHOWN);
    if more > 0 {
        rows.push(("", format!("and {more} more")));
    }
    rows
}

/// `[######------]`, a quarter of the terminal wide at most.
fn bar(done: u64, total: u64, width: usize) -> String {
    let cells = (width / 4).clamp(8, BAR_WIDTH_MAX);
    let percent = usize::try_from(unit::percent(done, total)).unwrap_or(100);
    let full = cells * percent / 100;
    format!("[{}{}]", "#".repeat(full), "-".repeat(cells - full))
}

/// A name may hold new lines and escapes; a line of a terminal may not.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// At most `width` characters, with an ellipsis when something is missing.
pub(crate) fn clipped(text: &str, width: usize) -> String {
    let text = one_line(text);
    if text.chars().count() <= width {
        return text;
    }
    let kept: String = text.chars().take(width.saturating_sub(3)).collect();
    format!("{kept}...")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copying() -> v1::Migration {
        let progress = v1::Progress {
            tables_total: 40,
            tables_done: 12,
            bytes_total: 4 << 30,
            bytes_done: 1 << 30,
            copy_rate_bytes_per_s: 85.0 * 1024.0 * 1024.0,
            indexes_total: 22,
            indexes_done: 3,
            eta_s: 42,
            changes_applied: 1234,
            lag_bytes: 12 << 20,
            lag_s: 1.24,
            spool_bytes: 12 << 20,
            running: (1..=6)
                .map(|id| v1::TaskProgress {
                    task_id: id,
                    kind: "copy".into(),
                    object: format!("public.a_table_with_quite_a_long_name_that_goes_on_{id}\n"),
                    worker: "w1".into(),
                    bytes: 1 << 20,
                    seconds: 12,
                })
                .collect(),
            ..v1::Progress::default()
        };
        v1::Migration {
            name: "main".into(),
            phase: Phase::Copying.into(),
            started: true,
            activity: "copying rows under the snapshot".into(),
            progress: Some(progress),
            source: Some(v1::SourceState {
                snapshot_age_s: 130,
                retained_wal_bytes: 3 << 20,
                ..v1::SourceState::default()
            }),
            ..v1::Migration::default()
        }
    }

    #[test]
    fn a_line_says_how_far_the_copy_is_and_when_it_ends() {
        assert_eq!(
            summary(&copying()),
            "tables 12/40, 1.00 GiB of 4.00 GiB (25%), 85.0 MiB/s, 42 s left, indexes 3/22, \
             lag 12.0 MiB (1.2 s)"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [40, 80, 120] {
            for line in screen(&copying(), width, Colour::Plain) {
                assert!(line.chars().count() <= width, "{width}: {line}");
                assert!(!line.contains('\n'));
            }
        }
    }

    #[test]
    fn more_tasks_than_fit_are_counted() {
        let lines = screen(&copying(), 80, Colour::Plain);
        assert_eq!(lines.last().unwrap().trim(), "and 2 more");
        assert!(lines[2].contains("[#####---------------] 1.00 GiB/4.00 GiB"), "{}", lines[2]);
    }

    #[test]
    fn a_fault_stands_beside_the_phase() {
        let fault = v1::ErrorDetail { reason: "SPOOL_FULL".into(), ..v1::ErrorDetail::default() };
        let migration = v1::Migration { fault: Some(fault), ..copying() };
        assert_eq!(phase_words(&migration), "copying, fault SPOOL_FULL");
    }
}
