//! Makes one [`Check`]. Pure.

use proto::v1::{Check, CheckOutcome};

/// Where something was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Source,
    Target,
    Both,
    Coordinator,
}

impl Place {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Both => "both",
            Self::Coordinator => "coordinator",
        }
    }
}

pub(super) fn pass(name: &str, place: Place, found: impl Into<String>) -> Check {
    made(name, place, CheckOutcome::Pass, found.into())
}

pub(super) fn warning(name: &str, place: Place, found: impl Into<String>) -> Check {
    made(name, place, CheckOutcome::Warning, found.into())
}

pub(super) fn failure(name: &str, place: Place, found: impl Into<String>) -> Check {
    made(name, place, CheckOutcome::Failure, found.into())
}

fn made(name: &str, place: Place, outcome: CheckOutcome, found: String) -> Check {
    Check {
        name: name.to_owned(),
        r#where: place.as_str().to_owned(),
        outcome: outcome.into(),
        found,
        ..Check::default()
    }
}

/// The check, or a warning that it could not be made.
pub(super) fn or_not_made<T: IntoIterator<Item = Check>>(
    name: &str,
    place: Place,
    attempt: pg::Result<T>,
) -> Vec<Check> {
    match attempt {
        Ok(checks) => checks.into_iter().collect(),
        Err(error) => vec![
            warning(name, place, "could not be checked")
                .detail(format!("The server said: {error}."))
                .fix("Give the role the right to read the catalogs named, then check again."),
        ],
    }
}

/// Adds a sentence, a statement.
pub(super) trait CheckExt {
    fn detail(self, detail: impl Into<String>) -> Self;
    fn fix(self, fix: impl Into<String>) -> Self;
}

impl CheckExt for Check {
    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }
}

/// Names shown of a long list; the rest is counted.
const SHOWN: usize = 20;

/// The first names, and how many more there are.
pub(super) fn some<T: ToString>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN).map(ToString::to_string).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The first statements, and how many more there are as a comment.
pub(super) fn statements(all: &[String]) -> String {
    let mut lines: Vec<String> = all.iter().take(SHOWN).cloned().collect();
    if all.len() > SHOWN {
        lines.push(format!("-- and {} more of the same kind", all.len() - SHOWN));
    }
    lines.join("\n")
}

/// `1 table`, `2 tables`.
pub(super) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let names: Vec<usize> = (0..23).collect();
        assert!(some(&names).ends_with("18, 19 and 3 more"));
        assert_eq!(some(&names[..2]), "0, 1");
    }
}
