//! `skein watch`: follows a migration that runs already.

use super::{Context, NameArg};
use crate::{
    follow::{self, Ending, Follower, Goal},
    interrupt::Interrupts,
    output::{self, Form},
    report::{Exit, Failure},
    screen::Screen,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skein watch main\n  skein watch main --until ready\n  \
    skein watch main --json | jq -c '{phase, lag: .progress.lag_bytes}'\n\n\
    Bars on a terminal, a line per event on standard error elsewhere, and with --json a\n\
    document per line on standard output. Ctrl-C leaves; the migration goes on.")]
pub(crate) struct Args {
    #[command(flatten)]
    name: NameArg,
    /// What to wait for
    #[arg(long, value_enum, default_value_t = Until::End)]
    until: Until,
}

/// What a follower waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Until {
    /// The target is open, or a fault
    End,
    /// A cutover may begin
    Ready,
}

impl From<Until> for Goal {
    fn from(until: Until) -> Self {
        match until {
            Until::End => Self::End,
            Until::Ready => Self::Ready,
        }
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::new()?;
    let mut client = context.connect().await?;
    let name = context.name(&mut client, &args.name).await?;
    let screen = if context.form == Form::Json { Screen::json() } else { Screen::new() };
    let follower =
        Follower { context, name: &name, goal: args.until.into(), screen, launcher: None };
    let (ending, migration) = tokio::select! {
        end = follower.run(client) => end?,
        () = interrupts.next() => {
            output::say(&follow::detached_words(context, &name));
            return Ok(Exit::Interrupted);
        }
    };
    let (words, exit) = follow::last_words(context, ending, &migration);
    match (context.form, ending) {
        // The last document has said it.
        (Form::Json, _) => {}
        (Form::Text, Ending::Done) => output::data(&words)?,
        (Form::Text, _) => output::say(&words),
    }
    Ok(exit)
}
