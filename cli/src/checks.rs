//! Preflight checks as people read them: what passed on a line each, what did not with its
//! fix. Pure.

use crate::{output::Colour, progress::one_line, unit};
use proto::v1::{self, CheckOutcome};

/// Counts of a preflight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) warned: usize,
    pub(crate) failed: usize,
}

impl Tally {
    pub(crate) fn of(checks: &[v1::Check]) -> Self {
        let count = |outcome| checks.iter().filter(|check| check.outcome() == outcome).count();
        Self {
            passed: count(CheckOutcome::Pass),
            warned: count(CheckOutcome::Warning),
            // An outcome that we do not know is no pass.
            failed: count(CheckOutcome::Failure) + count(CheckOutcome::Unspecified),
        }
    }
}

/// Every check, failures last so that they stand where the eye is, and the tally.
pub(crate) fn text(checks: &[v1::Check], colour: Colour) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let rank = |check: &v1::Check| match check.outcome() {
        CheckOutcome::Pass => 0,
        CheckOutcome::Warning => 1,
        CheckOutcome::Failure | CheckOutcome::Unspecified => 2,
    };
    let mut ordered: Vec<_> = checks.iter().collect();
    ordered.sort_by_key(|check| rank(check));
    let mut lines: Vec<_> =
        ordered.into_iter().flat_map(|check| check_lines(check, width, colour)).collect();
    let tally = Tally::of(checks);
    lines.push(format!(
        "{}: {} passed, {}, {} failed",
        unit::counted(checks.len(), "check"),
        tally.passed,
        unit::counted(tally.warned, "warning"),
        tally.failed
    ));
    lines.join("\n")
}

fn check_lines(check: &v1::Check, width: usize, colour: Colour) -> Vec<String> {
    let outcome = match check.outcome() {
        CheckOutcome::Pass => colour.green("ok     "),
        CheckOutcome::Warning => colour.yellow("warning"),
        CheckOutcome::Failure | CheckOutcome::Unspecified => colour.red("FAILED "),
    };
    let found = one_line(&check.found);
    let head = format!("{outcome}  {:<width$}  {:<11}  {found}", check.name, check.r#where);
    let mut lines = vec![head.trim_end().to_owned()];
    if check.outcome() == CheckOutcome::Pass {
        return lines;
    }
    let part = |label: &str, text: &str| {
        let text = text.trim_end().replace('\n', "\n                ");
        format!("         {label:<6} {text}")
    };
    if !check.detail.is_empty() {
        lines.push(part("why:", &check.detail));
    }
    if !check.fix.is_empty() {
        lines.push(part("fix:", &check.fix));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_come_last_with_their_fix() {
        let check = |name: &str, outcome: CheckOutcome, fix: &str| v1::Check {
            name: name.into(),
            r#where: "source".into(),
            outcome: outcome.into(),
            found: "x".into(),
            detail: String::new(),
            fix: fix.into(),
        };
        let checks = [
            check("wal_level", CheckOutcome::Failure, "alter system set wal_level = logical;"),
            check("versions", CheckOutcome::Pass, ""),
        ];
        assert_eq!(
            text(&checks, Colour::Plain),
            "ok       versions   source       x\n\
             FAILED   wal_level  source       x\n\
             \x20        fix:   alter system set wal_level = logical;\n\
             2 checks: 1 passed, 0 warnings, 1 failed"
        );
    }
}
