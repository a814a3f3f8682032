//! Where a follower draws: a screen on a terminal, an event line each elsewhere, JSON lines
//! on request. Everything but JSON goes to standard error.

use crate::{
    narrate::{Narrator, News},
    output::{self, Colour},
    progress,
    report::Failure,
    unit, view,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::{status::Report, v1};
use std::{
    io::{self, IsTerminal as _},
    time::Instant,
};

/// Narrowest terminal that is drawn for; a narrower one wraps.
const WIDTH_MIN: usize = 40;

/// Shows a migration as it changes; what was drawn is cleared when it is dropped.
#[derive(Debug)]
pub(crate) struct Screen {
    kind: Kind,
    narrator: Narrator,
    colour: Colour,
}

#[derive(Debug)]
enum Kind {
    Terminal(ProgressBar),
    Lines,
    /// One JSON document a line on standard output; faults still go to standard error.
    Json,
}

impl Screen {
    /// Bars on a terminal, lines elsewhere.
    pub(crate) fn new() -> Self {
        let colour = output::stderr_colour();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let kind = if io::stderr().is_terminal() && !dumb {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            // The template is ours and has one key, so it parses; the default would show more.
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            Kind::Terminal(bar)
        } else {
            Kind::Lines
        };
        Self { kind, narrator: Narrator::default(), colour }
    }

    /// The same for who asked for the cutover attempt after this one.
    pub(crate) fn after_attempt(attempt: u32) -> Self {
        let mut screen = Self::new();
        screen.narrator = Narrator::after_attempt(attempt);
        screen
    }

    /// A JSON document for each change.
    pub(crate) fn json() -> Self {
        Self { kind: Kind::Json, narrator: Narrator::default(), colour: Colour::Plain }
    }

    /// Shows what is new.
    ///
    /// # Errors
    /// Only JSON: when standard output cannot be written.
    pub(crate) fn show(&mut self, migration: &v1::Migration) -> Result<(), Failure> {
        if matches!(self.kind, Kind::Json) {
            return output::json_line(&view::Migration::from(migration));
        }
        for news in self.narrator.news(migration, Instant::now()) {
            match (&self.kind, news) {
                (_, News::Event(text)) => self.event(&migration.name, &text),
                (_, News::Fault(report)) => self.fault(&report),
                (Kind::Lines, News::Progress(text)) => self.event(&migration.name, &text),
                (Kind::Terminal(_) | Kind::Json, News::Progress(_)) => {}
            }
        }
        if let Kind::Terminal(bar) = &self.kind {
            let lines = progress::screen(migration, terminal_width(), self.colour);
            // The empty line sets the events above apart. It is also what stays when the
            // terminal echoes ^C: the echo wraps, and clearing starts a line too low.
            bar.set_message(format!("\n{}", lines.join("\n")));
            bar.tick();
        }
        Ok(())
    }

    /// One line that stays.
    pub(crate) fn event(&self, name: &str, text: &str) {
        let text = progress::one_line(text);
        match &self.kind {
            Kind::Terminal(bar) => {
                let now = unit::now();
                // 23:41:07 of 2026-11-20T23:41:07Z: the day is known to who sits there.
                let time = self.colour.dim(now.get(11..19).unwrap_or(&now));
                bar.suspend(|| output::say(&format!("{time} {text}")));
            }
            Kind::Lines | Kind::Json => output::say(&format!("{} {name}: {text}", unit::now())),
        }
    }

    fn fault(&self, report: &Report) {
        let text = output::told(report, self.colour);
        match &self.kind {
            Kind::Terminal(bar) => bar.suspend(|| output::say(&text)),
            Kind::Lines | Kind::Json => output::say(&text),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Kind::Terminal(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}

fn terminal_width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| size.ws_col);
    // The last column stays free: a full line would wrap on some terminals.
    usize::from(columns).saturating_sub(1).max(WIDTH_MIN)
}
