//! Asks before something is dropped.

use crate::{
    output, progress,
    report::{Exit, Failure},
};
use proto::status::Report;
use std::io::{self, IsTerminal as _, Write as _};

/// Flags of a command that drops something.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ConfirmArgs {
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    /// Only print what it would drop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What will be dropped, one line each.
pub(crate) fn drop_lines(drops: &[String]) -> String {
    if drops.is_empty() {
        return "  nothing".to_owned();
    }
    let line = |object: &String| format!("  {}", progress::one_line(object));
    drops.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Asks on a terminal. Without one, only `--yes` is consent.
///
/// # Errors
/// Refused, when there is no terminal or the answer is not yes.
pub(crate) fn ask(question: &str, confirm: &ConfirmArgs) -> Result<(), Failure> {
    if confirm.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new(
            Exit::Refused,
            Report::definite("NOT_CONFIRMED", "nothing was done: there is no terminal to ask on")
                .with_hint("Give --yes when you mean it."),
        ));
    }
    let _terminal_gone = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    output::say("Nothing was done.");
    Err(Failure::new(Exit::Refused, Report::definite("NOT_CONFIRMED", "you did not confirm")))
}
