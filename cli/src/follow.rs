//! Follows a migration until something ends it.
//!
//! ```text
//! WatchMigration --> Screen --> Ending
//!      ^                |
//!      +-- again, through a coordinator that was lost, waited for or started again
//! ```
//! Promise: a lost connection is no end; what is shown comes from the coordinator alone.

use crate::{
    command::{Context, present},
    connect::{self, Client},
    launch::{Launcher, Started},
    report::{Exit, Failure, is_connection_lost},
    screen::Screen,
    unit,
};
use proto::{
    status::{ErrorClass, Report},
    v1::{self, Phase},
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Status};

/// Wanted pause between two messages, in milliseconds.
const INTERVAL_MS: u32 = 1000;
/// Silence after which a watch is taken for lost: many intervals, since the coordinator asks
/// the source for its position before it answers.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a coordinator that we do not start ourselves is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two attempts to reach it.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a cutover with a fault is watched, for the word that the fence was lifted.
const LIFT_PATIENCE: Duration = Duration::from_secs(15);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The end of the migration.
    End,
    /// A cutover may begin.
    Ready,
    /// The end of the first cutover attempt after this one.
    Cutover { after: u32 },
    /// Everything is taken back.
    Aborted,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Ready,
    Aborted,
    Lifted,
    Fault,
}

/// Whether `migration` is at an end for who has this goal.
pub(crate) fn ending(goal: Goal, migration: &v1::Migration) -> Option<Ending> {
    let phase = migration.phase();
    match (goal, phase) {
        (_, Phase::Done) => return Some(Ending::Done),
        (_, Phase::Aborted) => return Some(Ending::Aborted),
        (Goal::Ready, Phase::Ready) if migration.fault.is_none() => return Some(Ending::Ready),
        (Goal::Cutover { after }, Phase::Ready | Phase::CatchingUp) => {
            let lifted = migration.cutover.as_ref().is_some_and(|cutover| cutover.attempt > after);
            if lifted {
                return Some(Ending::Lifted);
            }
        }
        // A fault that stood when the abort began is no news.
        (Goal::Aborted, phase) if phase != Phase::Aborting => return None,
        _ => {}
    }
    // A cutover with a fault is lifted soon; `Follower` waits for that, for a while.
    (migration.fault.is_some() && phase != Phase::CuttingOver).then_some(Ending::Fault)
}

/// Follows one migration.
#[derive(Debug)]
pub(crate) struct Follower<'a> {
    pub(crate) context: &'a Context,
    pub(crate) name: &'a str,
    pub(crate) goal: Goal,
    pub(crate) screen: Screen,
    /// Starts the coordinator again when it died.
    pub(crate) launcher: Option<&'a mut Launcher>,
}

/// Why one watch ended.
enum Broken {
    Lost(String),
    Failed(Failure),
}

/// A cutover is waited for, and nobody but a person will ask for it.
fn waits_for_a_person(goal: Goal, migration: &v1::Migration) -> bool {
    let cutover = migration.spec.as_ref().and_then(|spec| spec.cutover).unwrap_or_default();
    goal == Goal::End
        && migration.phase() == Phase::Ready
        && cutover.mode() != v1::CutoverMode::Auto
}

/// What lasts from one watch to the next.
#[derive(Default)]
struct Course {
    fault_since: Option<Instant>,
    lost_since: Option<Instant>,
    asked_for_cutover: bool,
}

impl Follower<'_> {
    /// Follows to the end; what was drawn is cleared when this returns.
    ///
    /// # Errors
    /// The coordinator is gone for good, or refuses.
    pub(crate) async fn run(mut self, client: Client) -> Result<(Ending, v1::Migration), Failure> {
        let mut client = client;
        let mut course = Course::default();
        loop {
            match self.watch(client, &mut course).await {
                Ok(end) => return Ok(end),
                Err(Broken::Failed(failure)) => return Err(failure),
                Err(Broken::Lost(cause)) => {
                    if course.lost_since.is_none() {
                        let cause = cause.lines().next().unwrap_or_default();
                        self.screen.event(self.name, &format!("connection lost: {cause}"));
                    }
                    let since = *course.lost_since.get_or_insert_with(Instant::now);
                    client = self.reconnect(since).await?;
                }
            }
        }
    }

    /// Takes the client with it: a coordinator that stops waits for its connections to close.
    async fn watch(
        &mut self,
        mut client: Client,
        course: &mut Course,
    ) -> Result<(Ending, v1::Migration), Broken> {
        let request =
            v1::WatchMigrationRequest { name: self.name.to_owned(), interval_ms: INTERVAL_MS };
        let opened = timeout(SILENCE, client.watch_migration(Request::new(request)));
        let mut stream = opened
            .await
            .map_err(|_| Broken::Lost("no answer".to_owned()))?
            .map_err(broken)?
            .into_inner();
        loop {
            let next = timeout(SILENCE, stream.message()).await;
            let answer = next
                .map_err(|_| Broken::Lost("no word for 30 s".to_owned()))?
                .map_err(broken)?
                .ok_or_else(|| Broken::Lost("the coordinator is stopping".to_owned()))?;
            let migration = present(answer.migration).map_err(Broken::Failed)?;
            if course.lost_since.take().is_some() {
                self.screen.event(self.name, "connected again");
            }
            self.screen.show(&migration).map_err(Broken::Failed)?;
            if let Some(ending) = ending(self.goal, &migration) {
                return Ok((ending, migration));
            }
            if !waits_for_a_person(self.goal, &migration) {
                course.asked_for_cutover = false;
            } else if !std::mem::replace(&mut course.asked_for_cutover, true) {
                for line in ready_words(self.context, self.name).lines() {
                    self.screen.event(self.name, line);
                }
            }
            if migration.fault.is_none() {
                course.fault_since = None;
            } else if course.fault_since.get_or_insert_with(Instant::now).elapsed() > LIFT_PATIENCE
            {
                return Ok((Ending::Fault, migration));
            }
        }
    }

    /// Another client, after the coordinator was found or started again.
    async fn reconnect(&mut self, since: Instant) -> Result<Client, Failure> {
        sleep(RETRY_PAUSE).await;
        if let Some(launcher) = &mut self.launcher {
            let ensured = launcher.ensure().await;
            let (channel, started) =
                ensured.map_err(|error| Failure::of(Exit::Unreachable, &error))?;
            if started == Started::Now {
                self.screen.event(self.name, "the coordinator was gone and was started again");
            }
            return Ok(connect::client(channel, None));
        }
        loop {
            match self.context.connect().await {
                Ok(client) if since.elapsed() <= PATIENCE => return Ok(client),
                Ok(_) => return Err(gave_up(since)),
                Err(failure) if since.elapsed() > PATIENCE => return Err(failure),
                Err(_) => sleep(RETRY_PAUSE).await,
            }
        }
    }
}

/// It takes connections, and breaks off every watch.
fn gave_up(since: Instant) -> Failure {
    let seconds = since.elapsed().as_secs();
    Failure::new(
        Exit::Unreachable,
        Report::definite(
            "COORDINATOR_UNREACHABLE",
            format!("the coordinator has not kept a watch open for {seconds} s"),
        )
        .with_hint("Look into its log."),
    )
}

fn broken(status: Status) -> Broken {
    let passing = Report::from(&status).class == ErrorClass::Transient;
    if is_connection_lost(&status) || passing {
        return Broken::Lost(status.message().to_owned());
    }
    Broken::Failed(status.into())
}

/// The last lines of a command that followed a migration, for people; and its exit code.
pub(crate) fn last_words(
    context: &Context,
    ending: Ending,
    migration: &v1::Migration,
) -> (String, Exit) {
    let name = &migration.name;
    match ending {
        Ending::Done => {
            let late = migration.fault.is_some() || !late_writes(migration).is_empty();
            (done_words(context, migration), if late { Exit::Found } else { Exit::Ok })
        }
        Ending::Ready => (ready_words(context, name), Exit::Ok),
        Ending::Aborted => {
            let cleanup = context.command(&format!("cleanup {name}"));
            (format!("Migration \"{name}\" is aborted. Forget it with: {cleanup}"), Exit::Found)
        }
        Ending::Lifted => (lifted_words(context, migration), Exit::Found),
        Ending::Fault => (fault_words(context, migration), Exit::Found),
    }
}

/// What to run when a cutover may begin.
pub(crate) fn ready_words(context: &Context, name: &str) -> String {
    let plan = context.command(&format!("cutover {name} --dry-run"));
    let cutover = context.command(&format!("cutover {name}"));
    format!("See what a cutover does: {plan}\nHand over with:          {cutover}")
}

fn lifted_words(context: &Context, migration: &v1::Migration) -> String {
    let attempt = migration.cutover.as_ref().map_or(0, |cutover| cutover.attempt);
    let again = context.command(&format!("cutover {}", migration.name));
    format!(
        "Cutover attempt {attempt} was lifted: the source takes writes again, nothing is lost, \
         replay goes on.\nTry again with: {again}"
    )
}

fn fault_words(context: &Context, migration: &v1::Migration) -> String {
    let name = &migration.name;
    let mut lines = Vec::new();
    let cutover = migration.cutover.clone().unwrap_or_default();
    if migration.phase() == Phase::CuttingOver && !cutover.lift_sql.is_empty() {
        lines
            .push("The source may still refuse writes. To let them through by hand, there:".into());
        lines.push(cutover.lift_sql);
    }
    lines.push(
        "Nothing is lost: changes on the source are still received, and work that can go on \
         does."
            .to_owned(),
    );
    lines.push(format!("When the cause is gone: {}", context.command(&format!("resume {name}"))));
    lines.push(format!("Then follow it:         {}", context.command(&format!("watch {name}"))));
    lines.join("\n")
}

fn late_writes(migration: &v1::Migration) -> Vec<v1::LateWrite> {
    migration.cutover.as_ref().map(|cutover| cutover.late_writes.clone()).unwrap_or_default()
}

fn done_words(context: &Context, migration: &v1::Migration) -> String {
    let name = &migration.name;
    let progress = migration.progress.clone().unwrap_or_default();
    let cutover = migration.cutover.clone().unwrap_or_default();
    let mut lines =
        vec![format!("Migration \"{name}\" is done: the target is open."), String::new()];
    let width = cutover.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
    if !cutover.steps.is_empty() {
        lines.push("Cutover".to_owned());
        for step in &cutover.steps {
            lines.push(format!("  {:<width$}  {:>9.3} s", step.name, step.seconds));
        }
        lines.push(String::new());
    }
    let mut row = |label: &str, text: String| lines.push(format!("{label:<15} {text}"));
    row("writes stopped", unit::seconds(cutover.writes_stopped_s));
    row("tables", unit::count(progress.tables_done));
    row("rows copied", unit::count(progress.rows_done));
    row("bytes copied", unit::bytes(progress.copied_bytes));
    row(
        "replayed",
        format!(
            "{} changes in {} transactions",
            unit::count(progress.changes_applied),
            unit::count(progress.transactions_applied)
        ),
    );
    let late = late_writes(migration);
    match late.len() {
        0 => row("late writes", "none".to_owned()),
        _ => row("late writes", "on the source after the end position, not on the target:".into()),
    }
    for write in &late {
        row("", format!("{}: {} changes", write.table, unit::count(write.changes)));
    }
    match migration.not_moved.len() {
        0 => row("not moved", "nothing was left out".to_owned()),
        count => row("not moved", format!("{count}, see below")),
    }
    lines.extend(migration.not_moved.iter().map(|left| format!("  {left}")));
    lines.push(String::new());
    let unfence = migration.cutover.as_ref().map(|cutover| cutover.lift_sql.as_str());
    if let Some(statements) = unfence.filter(|statements| !statements.is_empty()) {
        lines.push(
            "The old database stays read-only. Should it take writes again, on the source:".into(),
        );
        lines.extend(statements.lines().map(|line| format!("  {line}")));
        lines.push(String::new());
    }
    lines.push(format!("Compare every row:   {}", context.command(&format!("verify {name}"))));
    lines.push(format!("Then take Skein out: {}", context.command(&format!("cleanup {name}"))));
    lines.join("\n")
}

/// Says how an interrupted follower comes back, on standard error.
pub(crate) fn detached_words(context: &Context, name: &str) -> String {
    format!(
        "Detached. The migration \"{name}\" goes on in the background.\n\
         Come back with: {}\nStop it with:   {}",
        context.command(&format!("watch {name}")),
        context.command(&format!("pause {name}")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: Phase) -> v1::Migration {
        v1::Migration { phase: phase.into(), ..v1::Migration::default() }
    }

    fn faulty(phase: Phase) -> v1::Migration {
        v1::Migration { fault: Some(v1::ErrorDetail::default()), ..at(phase) }
    }

    fn after_attempt(phase: Phase, attempt: u32) -> v1::Migration {
        let cutover = v1::CutoverReport { attempt, ..v1::CutoverReport::default() };
        v1::Migration { cutover: Some(cutover), ..at(phase) }
    }

    #[test]
    fn a_fault_ends_it_but_not_in_the_middle_of_a_cutover() {
        assert_eq!(ending(Goal::End, &at(Phase::Copying)), None);
        assert_eq!(ending(Goal::End, &faulty(Phase::Copying)), Some(Ending::Fault));
        assert_eq!(ending(Goal::End, &faulty(Phase::CuttingOver)), None);
        assert_eq!(ending(Goal::End, &faulty(Phase::Done)), Some(Ending::Done));
    }

    #[test]
    fn only_a_new_attempt_can_be_lifted() {
        let goal = Goal::Cutover { after: 1 };
        assert_eq!(ending(goal, &after_attempt(Phase::Ready, 1)), None);
        assert_eq!(ending(goal, &after_attempt(Phase::CuttingOver, 2)), None);
        assert_eq!(ending(goal, &after_attempt(Phase::Ready, 2)), Some(Ending::Lifted));
        assert_eq!(ending(goal, &after_attempt(Phase::Done, 2)), Some(Ending::Done));
    }

    #[test]
    fn an_abort_is_not_ended_by_the_fault_it_began_with() {
        assert_eq!(ending(Goal::Aborted, &faulty(Phase::Copying)), None);
        assert_eq!(ending(Goal::Aborted, &faulty(Phase::Aborting)), Some(Ending::Fault));
        assert_eq!(ending(Goal::Aborted, &at(Phase::Aborted)), Some(Ending::Aborted));
    }

    #[test]
    fn ready_is_an_end_only_for_who_waits_for_it() {
        assert_eq!(ending(Goal::Ready, &at(Phase::Ready)), Some(Ending::Ready));
        assert_eq!(ending(Goal::End, &at(Phase::Ready)), None);
    }
}
