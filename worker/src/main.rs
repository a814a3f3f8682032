//! `skein-worker`: copies, builds and compares for a coordinator.

use anyhow::Context as _;
use clap::Parser;
use rustix::fs::{FlockOperation, flock};
use std::{fs::File, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker::config::{Config, Settings};

/// Exit code when another process holds the lock file (sysexits.h, EX_TEMPFAIL).
const EXIT_LOCKED: u8 = 75;
/// Exit code for bad flags or a bad configuration file (as clap's).
const EXIT_USAGE: u8 = 2;

/// Copies, builds and compares for a coordinator.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  skein-worker --coordinator unix:/var/lib/skein/coordinator.sock --slots 8\n\n\
        A first SIGTERM or SIGINT drains: running tasks get a few seconds to finish, then they are\n\
        rolled back and handed back. A second one ends at once; nothing is lost by it.\n\n\
        Exit codes: 0 stopped or orphaned, 1 failed, 2 usage, 75 the lock file is held."
)]
struct Args {
    /// Where the coordinator listens: unix:PATH, https://HOST:PORT or http://127.0.0.1:PORT;
    /// several with commas between
    #[arg(long, env = "SKEIN_COORDINATOR", value_name = "URL")]
    coordinator: Option<String>,
    /// Certificate authorities for https, PEM; the system's by default
    #[arg(long, env = "SKEIN_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Token for https: env:NAME or file:PATH
    #[arg(long, value_name = "REFERENCE")]
    token: Option<String>,
    /// Certificate to show, where the coordinator asks for one, PEM
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Name of this worker; HOST-PID by default
    #[arg(long, env = "SKEIN_WORKER_ID")]
    id: Option<String>,
    /// Tasks at once; 4 by default
    #[arg(long, env = "SKEIN_WORKER_SLOTS", value_name = "N")]
    slots: Option<u32>,
    /// Settings in TOML, as --print-default-config prints them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Lock this file while running; exit with 75 when another process holds it
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// How long to go on without a coordinator; 10m by default
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    orphan_timeout: Option<Duration>,
    /// How long running tasks may take to finish when told to stop; 5s by default
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    drain_timeout: Option<Duration>,
    /// Print a configuration file with every setting and its default
    #[arg(long)]
    print_default_config: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_default_config {
        print!("{}", worker::config::DEFAULT);
        return ExitCode::SUCCESS;
    }
    let config = match configure(&args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("skein-worker: error: {error:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    // Held for the life of the process; the kernel lets it go however that ends.
    let _lock = match args.lock.as_deref().map(lock).transpose() {
        Ok(lock) => lock,
        Err(error) => {
            eprintln!("skein-worker: error: {error:#}");
            return ExitCode::from(EXIT_LOCKED);
        }
    };
    let telemetry = telemetry::init(telemetry::Options::new("skein-worker"));
    let ended = telemetry.map_err(anyhow::Error::from).and_then(|_telemetry| serve(config));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skein-worker: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn configure(args: &Args) -> anyhow::Result<Config> {
    let file = match &args.config {
        None => Settings::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("could not read \"{}\"", path.display()))?;
            Settings::parse(&text)?
        }
    };
    let flags = Settings {
        coordinator: args.coordinator.clone(),
        ca_file: args.ca_file.clone(),
        cert_file: args.cert_file.clone(),
        key_file: args.key_file.clone(),
        token: args.token.clone(),
        id: args.id.clone(),
        slots: args.slots,
        orphan_timeout: args.orphan_timeout,
        drain_timeout: args.drain_timeout,
    };
    Ok(Config::try_from(flags.over(file))?)
}

fn lock(path: &std::path::Path) -> anyhow::Result<File> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("could not open lock file \"{}\"", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("lock file \"{}\" is held by another process", path.display()))?;
    // For the supervisor of a later coordinator, which is not our parent.
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

#[tokio::main]
async fn serve(config: Config) -> anyhow::Result<()> {
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let stop = CancellationToken::new();
    tokio::select! {
        end = worker::run::run(config, stop.clone()) => {
            end?;
        }
        ended = signals(stop) => ended?,
    }
    Ok(())
}

/// First signal: drain. Second: return, and with that end. A hang-up is nothing to us.
async fn signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => continue,
        }
        if stop.is_cancelled() {
            warn!("second signal: ending at once");
            return Ok(());
        }
        info!("signal: draining");
        stop.cancel();
    }
}
