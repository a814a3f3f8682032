//! `skein-coordinator`: arguments, configuration, telemetry, then run.

use anyhow::Context as _;
use clap::Parser;
use coordinator::{config, config::Config, leader, registry::Registry, server, store::etcd::Etcd};
use proto::status::{Classify as _, Report};
use std::{fs, os::unix::fs::DirBuilderExt as _, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Owns slots, snapshots and replay streams of migrations, and leases tasks to workers.
#[derive(Debug, Parser)]
#[command(
    name = "skein-coordinator",
    version,
    after_help = "Example:\n  skein-coordinator --dir /var/lib/skein\n  skein --dir /var/lib/skein list\n\n\
                  Exit codes: 0 stopped by a signal, 1 failed, 2 usage, 75 another one holds the directory."
)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory; wins over the file. Default: $XDG_STATE_HOME/skein.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Ends when there was no migration for a minute, as `skein migrate` starts it.
    #[arg(long)]
    exit_when_idle: bool,
    /// Prints the reference configuration file and exits.
    #[arg(long)]
    print_default_config: bool,
}

/// Exit code when another coordinator holds the directory (EX_TEMPFAIL of sysexits.h).
const ALREADY_RUNNING: u8 = 75;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_default_config {
        print!("{}", config::DEFAULT_FILE);
        return ExitCode::SUCCESS;
    }
    match start(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error:  {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let text = match &arguments.config {
        Some(path) => fs::read_to_string(path)
            .with_context(|| format!("could not read {}", path.display()))?,
        None => String::new(),
    };
    let mut config = Config::load(&text, arguments.dir).map_err(told)?;
    config.exit_when_idle = arguments.exit_when_idle;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.dir)
        .with_context(|| format!("could not make {}", config.dir.display()))?;
    let lock = fs::File::create(config.dir.join("coordinator.lock"))?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("another coordinator holds {}", config.dir.display());
        return Ok(ExitCode::from(ALREADY_RUNNING));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(config))?;
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

/// A report with all its parts, for standard error.
fn told(report: Report) -> anyhow::Error {
    anyhow::anyhow!("{report}\ndetail: {}\nhint:   {}", report.detail, report.hint)
}

/// Takes part in the election, where the store is etcd; else it leads already.
async fn campaigning(etcd: Option<Etcd>, registry: Arc<Registry>, config: &Config) {
    if let Some(etcd) = etcd {
        let (address, token) = (config.advertise_url.clone(), registry.stopping());
        leader::run(etcd, registry, address, token).await;
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(telemetry::Options::new("skein-coordinator"))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), dir = %config.dir.display(), "starting");
    let token = CancellationToken::new();
    let (store, etcd) = config.store.open(&config.dir).map_err(told)?;
    let registry = Registry::new(config.clone(), store, token.clone());
    if etcd.is_none() {
        registry.lead().await.map_err(|error| told(error.report()))?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A hang-up of the terminal it was started from is not meant for it.
    let mut hang_up = signal(SignalKind::hangup())?;
    let served = server::serve(&config, Arc::clone(&registry), token.clone());
    let signals = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => {}
            }
        }
        tracing::info!("stopping");
        token.cancel();
        // A second signal: at once. Nothing is lost by it.
        tokio::select! {
            _ = terminate.recv() => std::process::exit(1),
            _ = interrupt.recv() => std::process::exit(1),
            () = std::future::pending() => Ok(()),
        }
    };
    let campaign = campaigning(etcd, Arc::clone(&registry), &config);
    let supervised = async { tokio::join!(registry.supervise(), served, campaign).1 };
    tokio::select! {
        result = supervised => result,
        result = signals => result,
    }
}
