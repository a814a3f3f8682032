//! `skein-loadtest`: the demonstration, and load for trials by hand.

mod demo;

use clap::{Parser, Subcommand};
use loadtest::workload;
use std::{process::ExitCode, time::Duration};

/// Makes servers and load, and checks what came of it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Moves a busy database between two throw-away servers, and proves that nothing is missing
    Demo(demo::Arguments),
    /// Makes the tables of the workload in a database, or keeps writing to them
    ///
    /// Example: skein-loadtest load --to postgresql://postgres@127.0.0.1/shop --megabytes 100
    Load {
        /// Connection string of the database
        #[arg(long, value_name = "URI")]
        to: String,
        /// Make and fill the tables first
        #[arg(long, value_name = "MB")]
        megabytes: Option<u32>,
        /// Write for so long
        #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
        seconds: Duration,
    },
    /// Compares two quiet databases row by row; exits with 1 on a difference
    Compare {
        #[arg(long, value_name = "URI")]
        source: String,
        #[arg(long, value_name = "URI")]
        target: String,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let _telemetry = telemetry::init(telemetry::Options {
        filter: "warn".to_owned(),
        ..telemetry::Options::new("skein-loadtest")
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&runtime, &arguments),
        Command::Load { to, megabytes, seconds } => {
            if let Some(megabytes) = megabytes {
                let scale = workload::mixed::Scale::megabytes(megabytes);
                runtime.block_on(workload::prepare(&to, scale))?;
            }
            let running = workload::start(&to, &workload::Options::default())?;
            std::thread::sleep(seconds);
            println!("{}", running.stop());
            Ok(ExitCode::SUCCESS)
        }
        Command::Compare { source, target } => {
            let scope = loadtest::check::Scope::default();
            let found = runtime.block_on(loadtest::check::compare(&source, &target, &scope))?;
            println!("{found}");
            Ok(if found.is_equal() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
