//! Work whose outcome can be checked afterwards.
//!
//! ```text
//! prepare -> start: clients, each with its own session -> Outcome: what was acknowledged
//!                      until told to stop, or until the fence refuses them
//! Outcome::check(target): every acknowledged commit is there exactly once
//! ```
//! Promise: a commit counts as acknowledged only when the server said so; one whose connection
//! broke during COMMIT is *unknown*, and may be there or not. Clients connect again by themselves.

pub mod ledger;
pub mod mixed;

use crate::background::Background;
use pg::{Conninfo, Session, SessionName, Settings};
use rand::{SeedableRng as _, rngs::StdRng};
use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What clients do when the source refuses writes (25006) or ends their session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtFence {
    /// The end for that client.
    Stop,
    /// Try again until told to stop: for attempts that are lifted.
    #[default]
    GoOn,
}

/// How much work.
#[derive(Clone, Debug)]
pub struct Options {
    pub ledger_clients: u32,
    pub mixed_clients: u32,
    /// Between two transactions of a client.
    pub pause: Duration,
    pub at_fence: AtFence,
    /// Of the random choices; two runs with one seed and one client do the same.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ledger_clients: 2,
            mixed_clients: 1,
            pause: Duration::from_millis(5),
            at_fence: AtFence::GoOn,
            seed: 1,
        }
    }
}

/// A commit of the ledger: client and its number there.
pub type Commit = (i32, i64);

/// What the clients know at the end.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub acknowledged: HashSet<Commit>,
    /// The connection broke during COMMIT.
    pub unknown: HashSet<Commit>,
    /// Transactions of all clients that were acknowledged.
    pub transaction_count: u64,
    /// How often the fence refused a client.
    pub fenced_count: u64,
    /// When the last commit was acknowledged.
    pub last_commit: Option<Instant>,
    /// Statements that failed for a reason that a source must not give (ours would be one).
    pub failures: Vec<String>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.unknown.extend(other.unknown);
        self.transaction_count += other.transaction_count;
        self.fenced_count += other.fenced_count;
        self.last_commit = self.last_commit.max(other.last_commit);
        self.failures.extend(other.failures);
    }

    /// Looks for every acknowledged commit on a database: each once, none that nobody made, and
    /// the ledger's sum unchanged. Says what is wrong; nothing when all is right.
    ///
    /// # Errors
    /// The database could not be read.
    pub async fn check(&self, conninfo: &str) -> pg::Result<Vec<String>> {
        ledger::check(self, &session(conninfo, "check").await?).await
    }
}

/// Makes the tables and the first rows of ledger and mixed work.
///
/// # Errors
/// The database refused.
pub async fn prepare(conninfo: &str, scale: mixed::Scale) -> pg::Result<()> {
    let session = session(conninfo, "prepare").await?;
    ledger::prepare(&session).await?;
    mixed::prepare(&session, scale).await
}

/// Clients at work; they stop when this is dropped.
#[derive(Debug)]
pub struct Running {
    background: Background<Outcome>,
    transactions: Arc<AtomicU64>,
    is_fenced: Arc<AtomicBool>,
}

impl Running {
    /// Transactions acknowledged so far.
    pub fn transaction_count(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Whether a client met the fence.
    pub fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Relaxed)
    }

    /// Tells the clients to stop after the transaction they are in.
    pub fn stop(self) -> Outcome {
        self.background.stop().unwrap_or_default()
    }

    /// Waits for the fence to stop all clients ([`AtFence::Stop`]); None at the deadline, and then
    /// they are told to stop.
    pub fn stopped_by_fence(self, deadline: Duration) -> Option<Outcome> {
        let begun = Instant::now();
        while !self.background.has_ended() {
            if begun.elapsed() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.background.join()
    }
}

/// Starts clients against a prepared database, on a thread of their own.
///
/// # Errors
/// The thread could not be had.
pub fn start(conninfo: &str, options: &Options) -> std::io::Result<Running> {
    let conninfo = conninfo.to_owned();
    let options = options.clone();
    let transactions = Arc::new(AtomicU64::new(0));
    let is_fenced = Arc::new(AtomicBool::new(false));
    let (count, fenced) = (Arc::clone(&transactions), Arc::clone(&is_fenced));
    let background = Background::start(move |stop| async move {
        let mut clients = JoinSet::new();
        let total = options.ledger_clients + options.mixed_clients;
        for number in 0..total {
            let is_ledger = number < options.ledger_clients;
            let client = Client {
                number: i32::try_from(number).unwrap_or(0),
                conninfo: conninfo.clone(),
                work: if is_ledger { Work::Ledger } else { Work::Mixed },
                options: options.clone(),
                stop: stop.clone(),
                count: Arc::clone(&count),
                fenced: Arc::clone(&fenced),
            };
            clients.spawn(client.run());
        }
        let mut outcome = Outcome::default();
        while let Some(client) = clients.join_next().await {
            match client {
                Ok(one) => outcome.add(one),
                Err(error) => outcome.failures.push(format!("a client panicked: {error}")),
            }
        }
        outcome
    })?;
    Ok(Running { background, transactions, is_fenced })
}

#[derive(Clone, Copy)]
enum Work {
    Ledger,
    Mixed,
}

struct Client {
    number: i32,
    conninfo: String,
    work: Work,
    options: Options,
    stop: CancellationToken,
    count: Arc<AtomicU64>,
    fenced: Arc<AtomicBool>,
}

/// How a try went wrong.
enum Failed {
    /// Nothing was committed.
    Before(pg::Error),
    /// COMMIT was sent and not answered.
    DuringCommit(pg::Error),
}

impl Client {
    async fn run(self) -> Outcome {
        let mut outcome = Outcome::default();
        let mut random =
            StdRng::seed_from_u64(self.options.seed ^ u64::from(self.number.unsigned_abs()) << 32);
        let mut session = None;
        let mut sequence = 0;
        while !self.stop.is_cancelled() {
            sequence += 1;
            let commit = (self.number, sequence);
            match self.once(&mut session, commit, &mut random).await {
                Ok(()) => {
                    outcome.transaction_count += 1;
                    outcome.last_commit = Some(Instant::now());
                    self.count.fetch_add(1, Ordering::Relaxed);
                    if matches!(self.work, Work::Ledger) {
                        outcome.acknowledged.insert(commit);
                    }
                    self.rest(self.options.pause).await;
                }
                Err(failed) => {
                    session = None;
                    if self.give_up(failed, commit, &mut outcome) {
                        break;
                    }
                    self.rest(Duration::from_millis(100)).await;
                }
            }
        }
        outcome
    }

    /// Records a failure; true when it ends the client.
    fn give_up(&self, failed: Failed, commit: Commit, outcome: &mut Outcome) -> bool {
        let error = match failed {
            Failed::Before(error) => error,
            Failed::DuringCommit(error) => {
                if matches!(self.work, Work::Ledger) {
                    outcome.unknown.insert(commit);
                }
                error
            }
        };
        if error.sqlstate() == Some(READ_ONLY) {
            outcome.fenced_count += 1;
            self.fenced.store(true, Ordering::Relaxed);
            return self.options.at_fence == AtFence::Stop;
        }
        if !error.is_transient() && !is_ended_by_server(&error) && !self.is_race(&error) {
            outcome.failures.push(format!("client {}: {error}", self.number));
            // One reason is enough; a table that refuses every update would give millions.
            return outcome.failures.len() >= 20;
        }
        false
    }

    /// Two mixed clients chose the same new key.
    fn is_race(&self, error: &pg::Error) -> bool {
        matches!(self.work, Work::Mixed) && error.sqlstate() == Some(UNIQUE_VIOLATION)
    }

    async fn once(
        &self,
        slot: &mut Option<Session>,
        commit: Commit,
        random: &mut StdRng,
    ) -> Result<(), Failed> {
        let session = match slot {
            Some(session) => session,
            None => {
                let opened = session(&self.conninfo, "client").await.map_err(Failed::Before)?;
                slot.insert(opened)
            }
        };
        match self.work {
            Work::Ledger => ledger::transfer(session, commit, random).await,
            Work::Mixed => mixed::change(session, random).await,
        }
    }

    async fn rest(&self, pause: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// SQLSTATE read_only_sql_transaction.
const READ_ONLY: &str = "25006";

const UNIQUE_VIOLATION: &str = "23505";

/// Class 57: the operator ended the session, or the server starts or stops.
fn is_ended_by_server(error: &pg::Error) -> bool {
    error.sqlstate().is_some_and(|state| state.starts_with("57"))
}

/// An application's session: it takes `default_transaction_read_only` as the server gives it,
/// which is what a fence relies on; ours would override it.
async fn session(conninfo: &str, role: &str) -> pg::Result<Session> {
    let conninfo = Conninfo::parse(conninfo)?;
    let name = SessionName::new("loadtest", 0, role, std::process::id());
    let session = Session::connect(&conninfo, &Settings::write(name)).await?;
    session.batch(&pg::sql!("reset default_transaction_read_only")).await?;
    Ok(session)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions, {} ledger commits acknowledged, {} unknown, \
             {} refused by the fence, {} failures",
            self.transaction_count,
            self.acknowledged.len(),
            self.unknown.len(),
            self.fenced_count,
            self.failures.len()
        )
    }
}
