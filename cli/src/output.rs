//! Where words go: data to standard output, everything else to standard error.
//!
//! In: text, tables, values for JSON. Promise: a closed terminal or pipe never ends the
//! process with a panic; colour only on a terminal and without `NO_COLOR`.

use crate::report::{Exit, Failure};
use proto::status::Report;
use serde::Serialize;
use std::io::{self, IsTerminal as _, Write as _};

/// Whether data is printed for people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
}

/// Prints data, with a new line at its end.
///
/// # Errors
/// Only when standard output cannot be written for another reason than a closed pipe.
pub(crate) fn data(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.trim_end_matches('\n').as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(()),
        // `skein list | head -1`: who reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(
            Exit::Internal,
            Report::definite("OUTPUT", "could not write to standard output")
                .with_detail(format!("Cause: {error}.")),
        )),
    }
}

/// Prints a value as JSON, indented, on standard output.
///
/// # Errors
/// As [`data`].
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    data(&encoded(serde_json::to_string_pretty(value))?)
}

/// Prints a value as JSON on one line.
///
/// # Errors
/// As [`data`].
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    data(&encoded(serde_json::to_string(value))?)
}

fn encoded(text: serde_json::Result<String>) -> Result<String, Failure> {
    text.map_err(|error| {
        Failure::new(
            Exit::Internal,
            Report::definite("OUTPUT", "could not write JSON")
                .with_detail(format!("Cause: {error}.")),
        )
    })
}

/// Says something on standard error. A terminal that is gone is no reason to stop.
pub(crate) fn say(text: &str) {
    let mut stderr = io::stderr().lock();
    let _gone = stderr.write_all(format!("{text}\n").as_bytes());
}

/// Prints an error as `error:`, `detail:` and `hint:` lines on standard error.
pub(crate) fn error(report: &Report) {
    say(&told(report, stderr_colour()));
}

/// An error as people read it: primary, detail, hint, and the reason to search by.
pub(crate) fn told(report: &Report, colour: Colour) -> String {
    let mut lines = vec![format!("{} {}", colour.red("error: "), report.primary)];
    if !report.detail.is_empty() {
        lines.push(format!("{} {}", colour.bold("detail:"), indented(&report.detail)));
    }
    if !report.hint.is_empty() {
        lines.push(format!("{} {}", colour.bold("hint:  "), indented(&report.hint)));
    }
    if let Some(last) = lines.last_mut() {
        last.push_str(&colour.dim(&format!("   [{}]", report.reason)));
    }
    lines.join("\n")
}

/// Later lines of a text stand under its first.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n        ")
}

/// ANSI colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Ansi,
    Plain,
}

impl Colour {
    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Ansi => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain => text.to_owned(),
        }
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

fn colour_for(terminal: bool) -> Colour {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if terminal && !refused && !dumb { Colour::Ansi } else { Colour::Plain }
}

pub(crate) fn stderr_colour() -> Colour {
    colour_for(io::stderr().is_terminal())
}

pub(crate) fn stdout_colour() -> Colour {
    colour_for(io::stdout().is_terminal())
}

/// Columns side by side, two blanks between; the last one is not padded.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let header = header.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    std::iter::once(&header)
        .chain(rows)
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_three_parts_with_its_reason() {
        let report = Report::definite("X_Y", "table \"a.b\" cannot be replicated")
            .with_detail("It has no key.\nNone at all.")
            .with_hint("Add one.");
        assert_eq!(
            told(&report, Colour::Plain),
            "error:  table \"a.b\" cannot be replicated\n\
             detail: It has no key.\n        None at all.\n\
             hint:   Add one.   [X_Y]"
        );
        let bare = Report::definite("X", "stop");
        assert_eq!(told(&bare, Colour::Plain), "error:  stop   [X]");
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = vec![vec!["a".into(), String::new()], vec!["long".into(), "b".into()]];
        assert_eq!(table(&["NAME", "X"], &rows), "NAME  X\na\nlong  b");
    }
}
