//! Looks at both servers before anything changes, and says what would fail at hour nine.
//!
//! ```text
//! connect to both -> server, settings, rights, tables, activity, target, objects, machine
//!                 -> Vec<Check>: name, where, pass | warning | failure, found, detail, fix
//! ```
//! Promise: nothing changes on either server; a server that cannot be reached does not stop the
//! checks of the other; a check that cannot be made is a warning that says so. Every failure
//! has a fix: a statement to paste, or an action. No passwords, no row values.

use crate::{filter::Filter, source::identity::Choices};
use pg::Conninfo;
use proto::{
    status::Report,
    v1::{Check, CheckOutcome, MigrationSpec},
};
use std::path::Path;

mod activity;
mod check;
mod extensions;
mod machine;
mod objects;
mod pair;
mod rights;
mod server;
mod settings;
mod tables;
mod target;

use check::{CheckExt as _, Place, failure};
use server::Server;

/// What the checks compare against.
#[derive(Debug)]
struct Plan<'a> {
    spec: &'a MigrationSpec,
    filter: Filter,
    choices: Choices,
}

/// Every check. The order is the one in which a person reads them.
pub async fn run(
    spec: &MigrationSpec,
    source: &Conninfo,
    target: &Conninfo,
    dir: &Path,
) -> Vec<Check> {
    let plan = match plan_of(spec) {
        Ok(plan) => plan,
        Err(report) => {
            return vec![
                failure("spec", Place::Coordinator, report.primary)
                    .detail(report.detail)
                    .fix(report.hint),
            ];
        }
    };
    let (from, to) = tokio::join!(
        Server::connect(source, Place::Source),
        Server::connect(target, Place::Target)
    );
    let mut checks = Vec::new();
    checks.push(from.as_ref().map_or_else(Clone::clone, Server::reached));
    checks.push(to.as_ref().map_or_else(Clone::clone, Server::reached));
    if let Ok(from) = &from {
        checks.extend(of_source(from, source, &plan).await);
    }
    if let Ok(to) = &to {
        checks.extend(of_target(to, target, &plan).await);
    }
    if let (Ok(from), Ok(to)) = (&from, &to) {
        checks.extend(pair::checks(from, to, &plan).await);
    }
    checks.extend(machine::checks(from.as_ref().ok(), spec, dir).await);
    checks
}

fn plan_of(spec: &MigrationSpec) -> Result<Plan<'_>, Report> {
    Ok(Plan {
        spec,
        filter: Filter::try_from(spec.filter.as_ref())?,
        choices: Choices::try_from(spec.identity.as_ref())?,
    })
}

async fn of_source(source: &Server, conninfo: &Conninfo, plan: &Plan<'_>) -> Vec<Check> {
    let mut checks = server::version(source);
    checks.extend(server::standby(source));
    checks.extend(server::encryption(source).await);
    checks.extend(server::pooler(source, conninfo).await);
    checks.extend(settings::of_source(source, plan).await);
    checks.extend(rights::of_source(source, plan).await);
    checks.extend(server::replication_connection(source, conninfo).await);
    checks.extend(tables::checks(source, plan).await);
    checks.extend(activity::checks(source, plan).await);
    checks.extend(objects::of_source(source, plan).await);
    checks
}

async fn of_target(target: &Server, conninfo: &Conninfo, plan: &Plan<'_>) -> Vec<Check> {
    let mut checks = server::version(target);
    checks.extend(server::standby(target));
    checks.extend(server::encryption(target).await);
    checks.extend(server::pooler(target, conninfo).await);
    checks.extend(settings::of_target(target, plan).await);
    checks.extend(rights::of_target(target).await);
    checks.extend(target::checks(target, plan).await);
    checks
}

/// One report of all failures; None when there is none.
pub fn failures(checks: &[Check]) -> Option<Report> {
    let failed: Vec<&Check> =
        checks.iter().filter(|check| check.outcome() == CheckOutcome::Failure).collect();
    let count = failed.len();
    if count == 0 {
        return None;
    }
    let lines = |of: fn(&Check) -> String| {
        failed.iter().map(|check| of(check)).filter(|s| !s.is_empty()).collect::<Vec<_>>()
    };
    let plural = if count == 1 { "" } else { "s" };
    Some(
        Report::definite("PREFLIGHT_FAILED", format!("preflight found {count} failure{plural}"))
            .with_detail(lines(|c| format!("{} ({}): {}.", c.name, c.r#where, c.found)).join("\n"))
            .with_hint(lines(|c| c.fix.clone()).join("\n")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use check::{pass, warning};

    #[test]
    fn failures_are_summed_up_and_warnings_are_not() {
        let checks = [
            pass("wal_level", Place::Source, "logical"),
            warning("disk", Place::Coordinator, "small"),
        ];
        assert!(failures(&checks).is_none());
        let checks = [
            failure("a", Place::Source, "one").fix("do this;"),
            failure("b", Place::Target, "two").fix("do that;"),
        ];
        let report = failures(&checks).unwrap();
        assert_eq!(report.primary, "preflight found 2 failures");
        assert_eq!(report.detail, "a (source): one.\nb (target): two.");
        assert_eq!(report.hint, "do this;\ndo that;");
    }
}
