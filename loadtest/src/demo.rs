//! `skein-loadtest demo`: what `make demo` shows.
//!
//! ```text
//! two servers -> load -> writers go on -> skein migrate --cutover auto -> skein verify
//!                                                       -> our own comparison -> summary
//! ```
//! Promise: exits with 0 only when nothing is missing: Skein's own `verify`, a comparison that
//! shares no code with it, and the ledger's acknowledged commits all agree. Servers and processes
//! end with this process, however it ends (watchdogs stand beside them).

use anyhow::{Context as _, ensure};
use loadtest::{
    check::{Scope, compare},
    cluster::{postgres::Postgres, process::Run},
    workload::{self, Options, mixed::Scale},
};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

/// A demonstration is over long before; a hang must not go on for ever.
const MIGRATE_DEADLINE: Duration = Duration::from_secs(900);
const NAME: &str = "demo";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Size of the database
    #[arg(long, default_value_t = 500, value_name = "MB")]
    megabytes: u32,
    /// Major version of the source server
    #[arg(long, default_value_t = 15)]
    source_major: u32,
    /// Major version of the target server
    #[arg(long, default_value_t = 15)]
    target_major: u32,
    /// Worker processes
    #[arg(long, default_value_t = 2)]
    workers: u32,
}

/// What the summary says.
#[derive(Default)]
struct Figures {
    table_count: u64,
    row_count: u64,
    table_bytes: u64,
    copy: Option<Duration>,
    replayed: u64,
    stopped: f64,
    difference_count: u64,
}

pub(crate) fn run(
    runtime: &tokio::runtime::Runtime,
    arguments: &Arguments,
) -> anyhow::Result<ExitCode> {
    say("starting two throw-away PostgreSQL servers, as an ordinary user");
    let source = server(arguments.source_major)?;
    let target = server(arguments.target_major)?;
    target.psql("postgres", "create database shop")?;
    source.psql("postgres", "create database shop")?;
    let (from, to) = (source.conninfo("shop"), target.conninfo("shop"));

    say(&format!("loading about {} MB of mixed tables", arguments.megabytes));
    runtime.block_on(workload::prepare(&from, Scale::megabytes(arguments.megabytes)))?;
    let mut figures = Figures { table_bytes: table_bytes(&source)?, ..Figures::default() };

    say("writers at work: a ledger whose sum is known, updates, deletes, wide rows, NaN");
    let options = Options { ledger_clients: 4, mixed_clients: 2, ..Options::default() };
    let writers = workload::start(&from, &options)?;

    let run = Run::new()?;
    let mut figures_of_copy = None;
    migrate(&run, arguments, &from, &to, &mut figures_of_copy)?;
    figures.copy = figures_of_copy;
    let outcome = writers.stop();
    say(&format!("writers: {outcome}"));

    let status = json(&run, &["status", NAME, "--json"])?;
    figures.replayed = status["progress"]["changes_applied"].as_u64().unwrap_or(0);
    figures.stopped = status["cutover"]["writes_stopped_s"].as_f64().unwrap_or(0.0);

    say("skein verify");
    let verified = json(&run, &["verify", NAME, "--json"])?;
    let summary = &verified["summary"];
    let by_skein = summary["different"].as_u64().zip(summary["failed"].as_u64());
    let by_skein = by_skein.map(|(different, failed)| different + failed);

    println!(
        "    {} tables, {} rows: {} different, {} failed",
        summary["tables"], summary["source_rows"], summary["different"], summary["failed"]
    );

    say("comparing again, by other means");
    let comparison = runtime.block_on(compare(&from, &to, &Scope::default()))?;
    let lost = runtime.block_on(outcome.check(&to))?;
    figures.table_count = comparison.table_count;
    figures.row_count = comparison.row_count;
    figures.difference_count = by_skein.unwrap_or(1)
        + u64::try_from(comparison.differences.len() + lost.len() + outcome.failures.len())?;
    print(&figures);
    for line in lost.iter().chain(&outcome.failures) {
        println!("  {line}");
    }
    if !comparison.is_equal() {
        println!("{comparison}");
    }
    if by_skein != Some(0) {
        println!("skein verify: {summary}");
    }
    Ok(if figures.difference_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn server(major: u32) -> anyhow::Result<Postgres> {
    let builder = Postgres::builder().major(major).durable();
    Ok(builder.setting("shared_buffers", "128MB").setting("max_wal_size", "2GB").start()?)
}

fn table_bytes(server: &Postgres) -> anyhow::Result<u64> {
    let bytes = "select sum(pg_table_size(c.oid))::bigint from pg_class c \
                 join pg_namespace n on n.oid = c.relnamespace \
                 where c.relkind = 'r' and n.nspname in ('mixed', 'ledger')";
    Ok(server.psql("shop", bytes)?.parse()?)
}

/// Runs `skein migrate`, its output shown, and measures how long the copy took.
fn migrate(
    run: &Run,
    arguments: &Arguments,
    from: &str,
    to: &str,
    copy: &mut Option<Duration>,
) -> anyhow::Result<()> {
    let workers = arguments.workers.to_string();
    let directory = run.state_directory().display().to_string();
    let words = [
        "migrate",
        "--source",
        from,
        "--target",
        to,
        "--name",
        NAME,
        "--dir",
        &directory,
        "--cutover",
        "auto",
        "--workers",
        &workers,
    ];
    say(&format!("skein {}", words.join(" ")));
    let mut child = run.command("skein", &words).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("skein has no output")?;
    let shown = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("    {line}");
        }
    });
    let begun = Instant::now();
    let mut copying_since = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let phase = phase(run);
        match phase.as_str() {
            "copying" if copying_since.is_none() => copying_since = Some(Instant::now()),
            "catching_up" | "ready" | "cutting_over" | "done" if copy.is_none() => {
                *copy = copying_since.map(|since| since.elapsed());
            }
            _ => {}
        }
        if begun.elapsed() > MIGRATE_DEADLINE {
            child.kill()?;
            anyhow::bail!("skein migrate did not end in {MIGRATE_DEADLINE:?}\n{}", run.logs());
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    let _ = shown.join();
    ensure!(status.success(), "skein migrate ended with {status}\n{}", run.logs());
    Ok(())
}

/// The phase, or nothing while there is no coordinator yet.
fn phase(run: &Run) -> String {
    json(run, &["status", NAME, "--json"])
        .ok()
        .and_then(|status| status["phase"].as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

/// What a command prints with `--json`, whatever its exit code.
fn json(run: &Run, words: &[&str]) -> anyhow::Result<Value> {
    let directory = run.state_directory().display().to_string();
    let mut words = words.to_vec();
    words.extend(["--dir", &directory]);
    let finished = run.finish("skein", &words, Duration::from_secs(600))?;
    serde_json::from_str(&finished.stdout)
        .with_context(|| format!("skein {}: {}", words.join(" "), finished.stderr.trim()))
}

fn print(figures: &Figures) {
    #[allow(clippy::cast_precision_loss)] // for people
    let megabytes = figures.table_bytes as f64 / 1e6;
    let rate = figures.copy.map(|copy| megabytes / copy.as_secs_f64().max(0.001));
    println!();
    println!("  tables                     {:>12}", figures.table_count);
    println!("  rows                       {:>12}", figures.row_count);
    println!("  MB of tables               {megabytes:>12.0}");
    match rate {
        Some(rate) => println!("  MB/s copied                {rate:>12.1}"),
        None => println!("  MB/s copied                {:>12}", "not measured"),
    }
    println!("  changes replayed           {:>12}", figures.replayed);
    println!("  seconds of stopped writes  {:>12.2}", figures.stopped);
    println!("  differences                {:>12}", figures.difference_count);
    println!();
}

fn say(line: &str) {
    println!("==> {line}");
}
