//! What is new about a migration since it was last seen. Pure: the time is an argument.
//!
//! In: each message of WatchMigration. Out: [`News`], for an event line each. Promise: a
//! phase, a step, a notice, a fault is told once; progress at most every [`PROGRESS_PAUSE`].

use crate::{progress, unit, view::phase_name};
use proto::{
    status::Report,
    v1::{self, Phase},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Pause between two progress lines of a log: enough to see life, few enough to read.
const PROGRESS_PAUSE: Duration = Duration::from_secs(10);

/// One thing to tell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    /// Something happened.
    Event(String),
    /// How far it is; left out where a screen shows it anyway.
    Progress(String),
    /// What stops it.
    Fault(Box<Report>),
}

/// Remembers what was told.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    seen: Option<Seen>,
    told: BTreeSet<String>,
    progress_at: Option<Instant>,
    /// The last cutover attempt that is no news, when that is known.
    attempt_before: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    phase: Phase,
    paused: bool,
    fault: Option<v1::ErrorDetail>,
    attempt: u32,
    cutover_state: String,
    step_count: usize,
}

impl Seen {
    fn of(migration: &v1::Migration) -> Self {
        let cutover = migration.cutover.clone().unwrap_or_default();
        Self {
            phase: migration.phase(),
            paused: migration.paused,
            fault: migration.fault.clone(),
            attempt: cutover.attempt,
            cutover_state: cutover.state,
            step_count: cutover.steps.len(),
        }
    }
}

impl Narrator {
    /// Tells the steps of every attempt after this one, even if it was over before we saw it.
    pub(crate) fn after_attempt(attempt: u32) -> Self {
        Self { attempt_before: Some(attempt), ..Self::default() }
    }

    /// What to tell now.
    pub(crate) fn news(&mut self, migration: &v1::Migration, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        let next = Seen::of(migration);
        let last = self.seen.replace(next.clone());
        // The steps of a cutover are told before the phase that it ends in.
        let left_cutover = last.as_ref().is_some_and(|seen| seen.phase == Phase::CuttingOver);
        if left_cutover {
            self.cutover_news(migration, last.as_ref(), &next, &mut news);
        }
        if last.as_ref().map(|seen| seen.phase) != Some(next.phase) {
            news.push(News::Event(phase_line(migration)));
            self.progress_at = None;
        }
        if last.as_ref().is_some_and(|seen| seen.paused) != next.paused {
            let word = if next.paused { "paused" } else { "goes on" };
            news.push(News::Event(word.to_owned()));
        }
        if !left_cutover {
            self.cutover_news(migration, last.as_ref(), &next, &mut news);
        }
        for notice in &migration.notices {
            if self.told.insert(without_numbers(notice)) {
                news.push(News::Event(format!("notice: {}", progress::one_line(notice))));
            }
        }
        // Each trouble once, as long as it is the same.
        if is_trouble(&migration.activity) && self.told.insert(without_numbers(&migration.activity))
        {
            news.push(News::Event(progress::one_line(&migration.activity)));
        }
        if let Some(fault) = &next.fault
            && last.as_ref().and_then(|seen| seen.fault.as_ref()) != Some(fault)
        {
            news.push(News::Fault(Box::new(Report::from(fault.clone()))));
        }
        news.extend(self.progress_line(migration, now));
        news
    }

    fn cutover_news(
        &self,
        migration: &v1::Migration,
        last: Option<&Seen>,
        next: &Seen,
        news: &mut Vec<News>,
    ) {
        let Some(cutover) = &migration.cutover else { return };
        // An attempt that ended before we came is not news, unless we asked for it.
        let known = match (last, self.attempt_before) {
            (Some(seen), _) => seen.attempt == next.attempt,
            (None, Some(before)) => next.attempt <= before,
            (None, None) => next.phase != Phase::CuttingOver,
        };
        let (state_before, steps_before) = match (known, last) {
            (true, Some(seen)) => (seen.cutover_state.as_str(), seen.step_count),
            (true, None) => (next.cutover_state.as_str(), next.step_count),
            (false, _) => ("", 0),
        };
        for step in cutover.steps.iter().skip(steps_before) {
            let line = format!("cutover: {}  {}", step.name, unit::seconds(step.seconds));
            news.push(News::Event(line));
        }
        if state_before != next.cutover_state {
            news.extend(state_line(cutover).map(News::Event));
        }
    }

    fn progress_line(&mut self, migration: &v1::Migration, now: Instant) -> Option<News> {
        let due =
            self.progress_at.is_none_or(|at| now.saturating_duration_since(at) >= PROGRESS_PAUSE);
        let text = progress::summary(migration);
        let over = matches!(migration.phase(), Phase::Done | Phase::Aborted);
        if !due || text.is_empty() || over {
            return None;
        }
        self.progress_at = Some(now);
        Some(News::Progress(format!("{}: {text}", phase_name(migration.phase()))))
    }
}

fn phase_line(migration: &v1::Migration) -> String {
    let phase = phase_name(migration.phase());
    let meaning = match migration.phase() {
        Phase::Preflight => "both servers are checked",
        Phase::Provisioning => "publication, slot, snapshot and schema are made",
        Phase::Copying => "rows are copied, indexes are built",
        Phase::CatchingUp => "every row is in; changes made meanwhile are replayed",
        Phase::Ready => "lag is low; a cutover may begin",
        Phase::CuttingOver => "the target is taking over",
        Phase::Done => "the target is open",
        Phase::Aborting => "what was made on the source is taken back",
        Phase::Aborted => "nothing of it is left on the source",
        Phase::Unspecified => "this skein is older than its coordinator",
    };
    format!("phase {phase}: {meaning}")
}

fn state_line(cutover: &v1::CutoverReport) -> Option<String> {
    let attempt = cutover.attempt;
    let what = match cutover.state.as_str() {
        "fenced" => "writes on the source are stopped",
        "lifting" => "not reached in time, writes on the source are let through again",
        "lifted" => "lifted, the source takes writes again and replay goes on",
        "opened" => "the target is open",
        _ => return None,
    };
    Some(format!("cutover attempt {attempt}: {what}"))
}

/// Something that the coordinator tries again until it works.
fn is_trouble(activity: &str) -> bool {
    activity.contains("tried again") || activity.contains("trying again")
}

/// A notice whose figures have grown is the same notice.
fn without_numbers(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit() && *letter != '.').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: Phase) -> v1::Migration {
        let progress = v1::Progress { tables_total: 2, ..v1::Progress::default() };
        v1::Migration {
            name: "main".into(),
            phase: phase.into(),
            started: true,
            progress: Some(progress),
            ..v1::Migration::default()
        }
    }

    fn cutover(attempt: u32, state: &str, steps: &[&str]) -> Option<v1::CutoverReport> {
        let steps = steps.iter().map(|name| v1::CutoverStep { name: (*name).into(), seconds: 0.5 });
        Some(v1::CutoverReport {
            attempt,
            state: state.into(),
            steps: steps.collect(),
            ..v1::CutoverReport::default()
        })
    }

    fn events(news: Vec<News>) -> Vec<String> {
        let event = |news| match news {
            News::Event(text) => Some(text),
            News::Progress(_) | News::Fault(_) => None,
        };
        news.into_iter().filter_map(event).collect()
    }

    #[test]
    fn a_phase_is_told_once_and_progress_every_ten_seconds() {
        let mut narrator = Narrator::default();
        let begun = Instant::now();
        let seconds = |count| begun + Duration::from_secs(count);
        assert_eq!(narrator.news(&at(Phase::Copying), seconds(0)).len(), 2);
        assert_eq!(narrator.news(&at(Phase::Copying), seconds(9)), []);
        let later = narrator.news(&at(Phase::Copying), seconds(10));
        assert!(
            matches!(later.as_slice(), [News::Progress(text)] if text.starts_with("copying: "))
        );
        let next = events(narrator.news(&at(Phase::CatchingUp), seconds(11)));
        assert!(next[0].starts_with("phase catching_up"));
    }

    #[test]
    fn cutover_steps_are_told_as_they_come() {
        let mut narrator = Narrator::default();
        let now = Instant::now();
        narrator.news(&at(Phase::Ready), now);
        let first = v1::Migration {
            cutover: cutover(1, "fenced", &["settings"]),
            ..at(Phase::CuttingOver)
        };
        let told = events(narrator.news(&first, now));
        assert_eq!(
            told[1..],
            ["cutover: settings  0.500 s", "cutover attempt 1: writes on the source are stopped",]
        );
        let lifted = v1::Migration {
            cutover: cutover(1, "lifted", &["settings", "drain"]),
            ..at(Phase::Ready)
        };
        let told = events(narrator.news(&lifted, now));
        assert_eq!(told[0], "cutover: drain  0.500 s");
        assert!(told[1].starts_with("cutover attempt 1: lifted"));
        assert!(told[2].starts_with("phase ready"));
        let second =
            v1::Migration { cutover: cutover(2, "", &["settings"]), ..at(Phase::CuttingOver) };
        assert_eq!(events(narrator.news(&second, now))[1], "cutover: settings  0.500 s");
    }

    #[test]
    fn an_attempt_that_ended_before_we_came_is_not_news() {
        let mut narrator = Narrator::default();
        let lifted =
            v1::Migration { cutover: cutover(1, "lifted", &["settings"]), ..at(Phase::Ready) };
        assert_eq!(events(narrator.news(&lifted, Instant::now())).len(), 1);
        let told = events(Narrator::after_attempt(0).news(&lifted, Instant::now()));
        assert_eq!(told.len(), 3, "but it is for who asked for it: {told:?}");
    }

    #[test]
    fn a_notice_and_a_fault_are_told_once() {
        let mut narrator = Narrator::default();
        let now = Instant::now();
        let fault = v1::ErrorDetail { reason: "SPOOL_FULL".into(), ..v1::ErrorDetail::default() };
        let mut migration = v1::Migration {
            notices: vec!["slot keeps 1.5 GiB".into()],
            fault: Some(fault),
            ..at(Phase::Copying)
        };
        let first = narrator.news(&migration, now);
        assert!(first.contains(&News::Event("notice: slot keeps 1.5 GiB".into())));
        assert!(first.iter().any(|news| matches!(news, News::Fault(_))));
        migration.notices = vec!["slot keeps 1.6 GiB".into()];
        assert_eq!(narrator.news(&migration, now), []);
    }
}
