//! Two servers, a workload, and the product between them: what every end-to-end test begins with.
//!
//! The product sees the source through a slow [`Proxy`], so that a small copy lasts long enough
//! to be disturbed; the workload does not.

use loadtest::{
    check::{Comparison, Scope, compare},
    cluster::{
        postgres::{Builder, Postgres},
        process::{Finished, Process, Run},
        proxy::{Fault, Proxy},
    },
    workload::{self, Options, Outcome, Running, mixed::Scale},
};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

pub(crate) const NAME: &str = "demo";
/// A run takes seconds; two cores with two tests and their builds may need more.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);

pub(crate) struct Scenario {
    pub(crate) source: Postgres,
    pub(crate) target: Postgres,
    pub(crate) proxy: Proxy,
    pub(crate) run: Run,
    runtime: Runtime,
}

impl Scenario {
    /// Servers of version 15 with an empty database `shop` each.
    pub(crate) fn new() -> Self {
        Self::between(Postgres::builder(), Postgres::builder()).expect("PostgreSQL 15 is installed")
    }

    /// None where a version is not on this machine.
    pub(crate) fn between(source: Builder, target: Builder) -> Option<Self> {
        let source = source.start_or_skip().unwrap()?;
        let target = target.start_or_skip().unwrap()?;
        for server in [&source, &target] {
            server.psql("postgres", "create database shop").unwrap();
        }
        let proxy = Proxy::start(source.port()).unwrap();
        // pg_dump and pg_restore of versions that are installed nowhere else.
        let programs =
            format!("{}:{}", source.client_bin().display(), target.client_bin().display());
        let run = Run::new().unwrap().env("SKEIN_PG_BIN_DIRS", programs);
        std::fs::write(run.directory().join("skein.toml"), "[copy]\nchunk_size = \"1 MiB\"\n")
            .unwrap();
        Some(Self { source, target, proxy, run, runtime: Runtime::new().unwrap() })
    }

    /// The product's programs get another variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.run = self.run.env(name, value);
        self
    }

    /// Makes the workload's tables, and has clients write to them from now on.
    pub(crate) fn under_load(&self) -> Running {
        self.under(Scale::megabytes(24), &Options::default())
    }

    pub(crate) fn under(&self, scale: Scale, options: &Options) -> Running {
        let source = self.source.conninfo("shop");
        self.runtime.block_on(workload::prepare(&source, scale)).unwrap();
        workload::start(&source, options).unwrap()
    }

    /// `skein WORDS --dir ...`, to its end.
    pub(crate) fn skein(&self, words: &[&str]) -> Finished {
        let directory = self.run.state_directory().display().to_string();
        let mut words = words.to_vec();
        words.extend(["--dir", &directory]);
        self.run.finish("skein", &words, DEADLINE).unwrap()
    }

    /// `skein WORDS --dir ...`, left running.
    pub(crate) fn begin(&self, words: &[&str]) -> Process {
        let directory = self.run.state_directory().display().to_string();
        let mut words = words.to_vec();
        words.extend(["--dir", &directory]);
        self.run.start("skein", &words).unwrap()
    }

    /// A session of the application on the source.
    pub(crate) fn session(&self) -> Talk<'_> {
        let session = self.runtime.block_on(self.source.client("shop")).unwrap();
        Talk { session, runtime: &self.runtime }
    }

    /// Nobody else can touch this table on the target, until dropped.
    pub(crate) fn hold_target(&self, table: &'static str) -> Held {
        Held::lock(&self.target, table, &self.runtime)
    }

    /// Runs a command that must succeed, and reads what it prints with `--json`.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.push("--json");
        let finished = self.skein(&words);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| {
            panic!("skein {words:?}: {error}: {} {}", finished.stdout, finished.stderr)
        })
    }

    /// Starts `skein migrate` and leaves it running.
    pub(crate) fn migrate(&self, more: &[&str]) -> Process {
        self.migrate_from(&self.source.conninfo_at(self.proxy.port(), "shop"), more)
    }

    pub(crate) fn migrate_from(&self, source: &str, more: &[&str]) -> Process {
        let directory = self.run.state_directory().display().to_string();
        let config = self.run.directory().join("skein.toml").display().to_string();
        let target = self.target.conninfo("shop");
        let mut words = vec![
            "migrate",
            "--source",
            source,
            "--target",
            &target,
            "--name",
            NAME,
            "--dir",
            &directory,
            "--config",
            &config,
            "--workers",
            "2",
        ];
        words.extend(more);
        self.run.start("skein", &words).unwrap()
    }

    /// The status as JSON; None while no coordinator answers.
    pub(crate) fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.skein(&["status", NAME, "--json"]).stdout).ok()
    }

    /// Waits until the migration is in one of these phases.
    pub(crate) fn wait_for_phase(&self, phases: &[&str]) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.status().unwrap_or_default();
            if status["phase"].as_str().is_some_and(|phase| phases.contains(&phase)) {
                return status;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "in vain: a phase of {phases:?}; {status:#}\n{}",
                self.run.logs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Brings the migration into mid-copy and holds it there, until the guard is dropped: a
    /// lock on `mixed.bulk` on the source keeps the copy from ending.
    pub(crate) fn in_mid_copy(&self) -> Held {
        self.proxy.set(Fault::Delay(Duration::from_millis(10)));
        let status = self.wait_for_phase(&["copying", "catching_up", "ready"]);
        assert_eq!(status["phase"], "copying", "the copy was over before it could be disturbed");
        let held = Held::lock(&self.source, "mixed.bulk", &self.runtime);
        self.proxy.set(Fault::None);
        held
    }

    /// Waits until replay has applied more than it has now.
    pub(crate) fn wait_for_replay(&self, running: &Running) {
        let applied = || {
            let status = self.status().unwrap_or_default();
            status["progress"]["transactions_applied"].as_u64().unwrap_or(0)
        };
        let (before, written) = (applied(), running.transaction_count());
        super::wait_for("replay goes on", || {
            applied() > before + 20 && running.transaction_count() > written + 20
        });
    }

    /// Waits for `skein migrate` to end well, under a limit that a stuck run exceeds.
    pub(crate) fn wait_for_end(&self, mut migrate: Process) -> Value {
        let status = migrate.wait(DEADLINE).unwrap();
        assert!(status.success(), "{status}\n{}\n{}", migrate.output(), self.run.logs());
        let status = self.json(&["status", NAME]);
        assert_eq!(status["phase"], "done", "{status:#}");
        status
    }

    /// Source equals target row for row, Skein says so too, and every acknowledged commit is on
    /// the target exactly once.
    pub(crate) fn assert_moved(&self, outcome: &Outcome) {
        self.assert_moved_but(outcome, &Scope::default());
    }

    pub(crate) fn assert_moved_but(&self, outcome: &Outcome, scope: &Scope) {
        assert_eq!(outcome.failures, Vec::<String>::new(), "the source failed its clients");
        let comparison = self.compare(scope);
        assert!(comparison.is_equal(), "{comparison}\n{}", self.run.logs());
        let target = self.target.conninfo("shop");
        let wrong = self.runtime.block_on(outcome.check(&target)).unwrap();
        assert_eq!(wrong, Vec::<String>::new(), "{}", self.run.logs());
        let verified = self.json(&["verify", NAME]);
        assert_eq!(verified["summary"]["different"], 0, "{verified:#}");
        assert_eq!(verified["summary"]["failed"], 0, "{verified:#}");
        let late = &self.json(&["status", NAME])["cutover"]["late_writes"];
        assert_eq!(late.as_array().map(Vec::len), Some(0), "late writes: {late:#}");
    }

    pub(crate) fn compare(&self, scope: &Scope) -> Comparison {
        let (source, target) = (self.source.conninfo("shop"), self.target.conninfo("shop"));
        self.runtime.block_on(compare(&source, &target, scope)).unwrap()
    }

    /// What Skein made on the source and has not taken back.
    pub(crate) fn left_on_source(&self) -> String {
        self.source
            .psql(
                "shop",
                "select 'slot ' || slot_name from pg_replication_slots \
                 union all select 'publication ' || pubname from pg_publication \
                 union all select 'schema ' || nspname from pg_namespace where nspname ~ 'skein' \
                 union all select 'session ' || application_name from pg_stat_activity \
                   where application_name like 'skein/demo/%' \
                 union all select 'identity ' || oid::regclass from pg_class \
                   where relreplident <> 'd' and relnamespace = to_regnamespace('mixed') \
                     and relkind = 'r' and relname <> 'heap' \
                 union all select 'setting ' || array_to_string(setconfig, ',') from pg_db_role_setting",
            )
            .unwrap()
    }
}

/// A session that a test talks to.
pub(crate) struct Talk<'a> {
    session: pg::Session,
    runtime: &'a Runtime,
}

impl Talk<'_> {
    pub(crate) fn run(&self, statement: &str) {
        self.runtime.block_on(self.session.batch(&pg::Sql::trusted(statement))).unwrap();
    }
}

/// A table locked against everybody, until dropped.
pub(crate) struct Held {
    // In this order: the session ends in its runtime.
    session: Option<pg::Session>,
    runtime: tokio::runtime::Handle,
}

impl Held {
    fn lock(server: &Postgres, table: &'static str, runtime: &Runtime) -> Self {
        let session = runtime.block_on(async {
            let session = server.client("shop").await.unwrap();
            session.batch(&pg::Sql::from("begin")).await.unwrap();
            session
                .batch(&pg::sql!("lock table {} in access exclusive mode", table))
                .await
                .unwrap();
            session
        });
        Self { session: Some(session), runtime: runtime.handle().clone() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // The server may have been stopped meanwhile: then the lock is gone as well.
            let _ = self.runtime.block_on(session.batch(&pg::Sql::from("rollback")));
        }
    }
}
