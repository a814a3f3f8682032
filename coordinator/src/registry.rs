//! The migrations of this coordinator, the fleet, and the comparisons under way.
//!
//! In: what an operator or a worker asks (`server`). Out: a [`Handle`] per migration, whose
//! driver (`migration::driver`) does the work. Promise: a migration has one driver, and every
//! stored migration gets one when this coordinator leads. One that stands by drives nothing,
//! answers from the store, and names who leads.

use crate::{
    clock,
    config::Config,
    fleet::{Fleet, supervise::Supervisor},
    migration::{
        driver::{self, Command, Driver},
        shared::Shared,
    },
    secret,
    store::{
        self,
        record::{Record, Stored},
    },
    verify,
};
use proto::{
    status::{Classify as _, ErrorClass, Report},
    v1,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How long a coordinator that `skein migrate` started stays without a migration: `skein check`
/// and the next `skein create` find it there.
const IDLE: Duration = Duration::from_secs(60);

/// How long a command may take to be taken: the driver answers between two steps.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// A migration, as seen from outside its driver.
#[derive(Clone, Debug)]
pub struct Handle {
    pub shared: Arc<Shared>,
    commands: mpsc::Sender<driver::Request>,
}

impl Handle {
    /// Hands a command to the driver and waits for its answer.
    ///
    /// # Errors
    /// What the driver refused, and why.
    pub async fn command(&self, command: Command) -> Result<Vec<String>, Report> {
        let (answer, answered) = oneshot::channel();
        let gone = || {
            Report::definite("NOT_RUNNING", "migration is not driven by this coordinator now")
                .with_class(ErrorClass::Transient)
                .with_hint("Try again in a moment.")
        };
        self.commands.send(driver::Request { command, answer }).await.map_err(|_| gone())?;
        match tokio::time::timeout(COMMAND_TIMEOUT, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(gone()),
        }
    }
}

/// What this coordinator is among several. The only one always leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    Leading,
    /// None: nobody leads, or it is not known.
    Standby {
        leader: Option<String>,
    },
}

/// Everything that one coordinator process serves.
#[derive(Debug)]
pub struct Registry {
    config: Config,
    store: store::Shared,
    pub fleet: Arc<Fleet>,
    pub board: verify::Board,
    migrations: Mutex<BTreeMap<String, Handle>>,
    drivers: Mutex<JoinSet<()>>,
    role: Mutex<Role>,
    /// Cancelled when this coordinator leads no longer.
    term: Mutex<CancellationToken>,
    /// Until when nobody else can lead; None: nobody else ever does.
    confirmed_until: Mutex<Option<Instant>>,
    token: CancellationToken,
}

impl Registry {
    /// Stands by: see [`Registry::lead`].
    pub fn new(config: Config, store: store::Shared, token: CancellationToken) -> Arc<Self> {
        let fleet = Fleet::default();
        fleet.set_several(matches!(config.store, crate::config::store::Config::Etcd(_)));
        Arc::new(Self {
            config,
            store,
            fleet: Arc::new(fleet),
            board: verify::Board::default(),
            migrations: Mutex::default(),
            drivers: Mutex::default(),
            role: Mutex::new(Role::Standby { leader: None }),
            term: Mutex::new(token.child_token()),
            confirmed_until: Mutex::default(),
            token,
        })
    }

    /// Reads the stored migrations and starts their drivers.
    ///
    /// # Errors
    /// When the store cannot be read; nothing is driven then.
    pub async fn lead(&self) -> Result<(), store::Error> {
        let stored = Stored::list(&self.store).await?;
        *lock(&self.term) = self.token.child_token();
        for stored in stored {
            self.drive(stored);
        }
        // Only now: who asks sees all migrations, or is sent away.
        *lock(&self.role) = Role::Leading;
        Ok(())
    }

    /// Ends the drivers, as a stop would: each step finds out by itself what it had done.
    pub async fn stand_by(&self, leader: Option<String>) {
        self.follow(leader);
        lock(&self.term).cancel();
        let mut drivers = std::mem::take(&mut *lock(&self.drivers));
        while drivers.join_next().await.is_some() {}
        self.migrations().clear();
    }

    /// Someone else leads, or nobody.
    pub fn follow(&self, leader: Option<String>) {
        *lock(&self.role) = Role::Standby { leader };
    }

    /// Nobody else leads until then.
    pub fn confirm(&self, until: Instant) {
        *lock(&self.confirmed_until) = Some(until);
    }

    /// Whether it is certain that nobody else leads: nothing is granted otherwise.
    pub fn is_confirmed(&self) -> bool {
        lock(&self.confirmed_until).is_none_or(|until| Instant::now() < until)
    }

    /// # Errors
    /// `LEADER_ELSEWHERE`, with its address as the hint; `NO_LEADER`, which passes.
    pub fn check_leading(&self) -> Result<(), Report> {
        match &*lock(&self.role) {
            Role::Leading => Ok(()),
            Role::Standby { leader: Some(leader) } => {
                Err(Report::definite("LEADER_ELSEWHERE", "another coordinator leads")
                    .with_hint(leader.clone()))
            }
            Role::Standby { leader: None } => {
                Err(Report::definite("NO_LEADER", "no coordinator leads now")
                    .with_class(ErrorClass::Transient)
                    .with_hint("Try again in a moment."))
            }
        }
    }

    /// The migrations as `skein` shows them; of a standby, as they are stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn shown(&self) -> Result<Vec<v1::Migration>, Report> {
        if self.check_leading().is_ok() {
            return Ok(self.list().iter().map(|handle| handle.shared.migration()).collect());
        }
        let stored = Stored::list(&self.store).await.map_err(|error| error.report())?;
        Ok(stored.into_iter().map(|stored| Shared::new(stored.record).migration()).collect())
    }

    fn drive(&self, stored: Stored) -> Handle {
        let name = stored.record.spec.name.clone();
        let shared = Arc::new(Shared::new(stored.record.clone()));
        let (commands, requests) = mpsc::channel(16);
        let handle = Handle { shared: Arc::clone(&shared), commands };
        let driver = Driver::new(
            stored,
            shared,
            Arc::clone(&self.fleet),
            self.config.dir.join("migration").join(&name),
        );
        let token = lock(&self.term).child_token();
        self.drivers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(async move { driver.run(requests, token).await });
        self.migrations().insert(name, handle.clone());
        handle
    }

    /// Records a migration and starts its driver; the same spec again finds the same one.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` when one of that name has another spec; `SPEC_INVALID`.
    pub async fn create(&self, spec: v1::MigrationSpec) -> Result<Handle, Report> {
        self.check_leading()?;
        let spec = crate::migration::spec::checked(spec)?;
        if let Ok(handle) = self.get(&spec.name) {
            let existing = handle.shared.record().spec;
            if existing.source == spec.source && existing.target == spec.target {
                return Ok(handle);
            }
            return Err(Report::definite(
                "ALREADY_EXISTS",
                format!("migration \"{}\" exists with another source or target", spec.name),
            )
            .with_detail(format!("It moves {} to {}.", existing.source, existing.target))
            .with_hint("Choose another --name, or end that one: skein abort, skein cleanup."));
        }
        secret::resolve("source", &spec.source)?;
        secret::resolve("target", &spec.target)?;
        let id = format!("{:032x}", rand::random::<u128>());
        let record = Record::new(id, spec, clock::now());
        let stored = Stored::create(store::Shared::clone(&self.store), record)
            .await
            .map_err(|error| error.report())?;
        Ok(self.drive(stored))
    }

    /// Cancelled when the coordinator stops.
    pub fn stopping(&self) -> CancellationToken {
        self.token.clone()
    }

    /// The migration of that name; the only one when the name is empty.
    ///
    /// # Errors
    /// `NOT_FOUND`; on a standby, who leads.
    pub fn get(&self, name: &str) -> Result<Handle, Report> {
        self.check_leading()?;
        let migrations = self.migrations();
        if let Some(handle) = migrations.get(name) {
            return Ok(handle.clone());
        }
        let names: Vec<&str> = migrations.keys().map(String::as_str).collect();
        if name.is_empty()
            && let [only] = names[..]
        {
            return Ok(migrations[only].clone());
        }
        let detail = if names.is_empty() {
            "There are none.".to_owned()
        } else {
            format!("There are: {}.", names.join(", "))
        };
        Err(Report::definite("NOT_FOUND", format!("migration \"{name}\" does not exist"))
            .with_detail(detail)
            .with_hint("See: skein list"))
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Handle> {
        self.migrations().values().cloned().collect()
    }

    /// Forgets one whose driver has cleaned up.
    pub fn forget(&self, name: &str) {
        self.migrations().remove(name);
    }

    /// Keeps as many worker processes as the migrations ask for, until cancelled; then waits for
    /// workers and drivers to end.
    pub async fn supervise(&self) {
        let mut busy_at = Instant::now();
        let mut supervisor = Supervisor::new(self.config.clone(), self.token.child_token());
        loop {
            let started: Vec<v1::CopyOptions> = self
                .list()
                .iter()
                .filter(|handle| handle.shared.record().started)
                .map(copy_options)
                .collect();
            let most = |of: fn(&v1::CopyOptions) -> u32, default: u32| {
                let asked = started.iter().map(of);
                asked.map(|asked| if asked == 0 { default } else { asked }).max()
            };
            let wanted = most(|copy| copy.workers, DEFAULT_WORKERS).unwrap_or(0);
            let slots = most(|copy| copy.worker_slots, DEFAULT_SLOTS).unwrap_or(DEFAULT_SLOTS);
            supervisor.grow(self.config.workers.unwrap_or(wanted), slots);
            if !self.list().is_empty() {
                busy_at = Instant::now();
            } else if self.config.exit_when_idle && busy_at.elapsed() >= IDLE {
                tracing::info!("no migration is left; stopping");
                self.token.cancel();
            }
            tokio::select! {
                () = self.token.cancelled() => break,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
        supervisor.stopped().await;
        let mut drivers = {
            let mut slot = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *slot)
        };
        while drivers.join_next().await.is_some() {}
    }

    /// Where this coordinator keeps its files.
    pub fn dir(&self) -> &std::path::Path {
        &self.config.dir
    }

    fn migrations(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.migrations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Worker processes on one machine when the spec says nothing: source and target are the limit
/// on most machines, two keep both busy.
const DEFAULT_WORKERS: u32 = 2;
/// Tasks a worker runs at once when the spec says nothing.
const DEFAULT_SLOTS: u32 = 2;

fn copy_options(handle: &Handle) -> v1::CopyOptions {
    handle.shared.record().spec.copy.unwrap_or_default()
}
