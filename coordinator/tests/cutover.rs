//! Cutover on a real server: what the fence lets through, what is taken back, who wins.

mod driver;
mod fence;
mod sequence;
mod teardown;

use coordinator::{
    migration::{
        context::Context,
        cutover::{Cutover, Outcome, Parts, Request},
    },
    target,
};
use loadtest::cluster::postgres::{Builder, Postgres};
use pg::{Conninfo, PgLsn, Session, SessionName, Settings, TableName, sql};
use proto::status::Report;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

/// One server with a source and a target database, and a migration that is ready.
pub(crate) struct World {
    pub(crate) server: Postgres,
    pub(crate) context: Context,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Postgres::builder()).await
    }

    pub(crate) async fn with(builder: Builder) -> Self {
        let server = builder.setting("max_prepared_transactions", "5").start().unwrap();
        for database in ["src", "tgt"] {
            server.psql("postgres", &format!("create database {database}")).unwrap();
        }
        let conninfo = |database| Conninfo::parse(&server.conninfo(database)).unwrap();
        let context = Context {
            name: "m".to_owned(),
            spec: proto::v1::MigrationSpec::default(),
            source: conninfo("src"),
            target: conninfo("tgt"),
            epoch: 1,
            source_encoding: "UTF8".to_owned(),
            source_version: 150_000,
            target_version: 150_000,
            dir: "/nonexistent".into(),
        };
        let world = Self { server, context };
        let target = world.target().await;
        target.batch(&target::ddl()).await.unwrap();
        target
            .batch(&sql!(
                "insert into skein.migration (schema_version, migration_id, name, epoch, spec)
                 values (1, 'id', 'm', 1, '{}')"
            ))
            .await
            .unwrap();
        world
    }

    pub(crate) async fn source(&self) -> Session {
        coordinator::migration::cutover::fence::session(&self.context).await.unwrap()
    }

    pub(crate) async fn target(&self) -> Session {
        self.context.target_session("test", 0).await.unwrap()
    }

    /// A session of an application on the source.
    pub(crate) async fn application(&self, text: &str) -> pg::Result<Session> {
        let conninfo = format!("{} {text}", self.context.source.expose());
        // No pins of ours: an application takes what the server gives.
        let conninfo = Conninfo::parse(&conninfo).unwrap();
        let session =
            Session::connect(&conninfo, &Settings::write(SessionName::of_role("app"))).await?;
        session.batch(&sql!("reset all; set application_name = 'app'")).await?;
        Ok(session)
    }

    /// Every setting of databases and roles, and every subscription, as text.
    pub(crate) fn settings(&self) -> String {
        self.server
            .psql(
                "src",
                "select setdatabase, setrole, setconfig from pg_db_role_setting order by 1, 2;
                 select subname, subenabled from pg_subscription order by 1",
            )
            .unwrap()
    }

    pub(crate) fn state(&self) -> String {
        self.server
            .psql("tgt", "select cutover_attempt || ' ' || cutover_state from skein.migration")
            .unwrap()
    }

    /// Another coordinator takes over.
    pub(crate) fn take_over(&mut self) {
        self.context.epoch += 1;
        let statement = format!("update skein.migration set epoch = {}", self.context.epoch);
        self.server.psql("tgt", &statement).unwrap();
    }

    pub(crate) async fn cut_over(&self, request: Request, parts: Script) -> Outcome {
        let filter = coordinator::filter::Filter::default();
        Cutover::new(&self.context, &filter, request, parts).run().await.unwrap()
    }
}

pub(crate) fn request(attempt: u32) -> Request {
    Request { attempt, fence: true, timeout: Duration::from_secs(30) }
}

/// Parts that do what a test says.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) drains: bool,
    pub(crate) restores: bool,
    pub(crate) late: Vec<(TableName, u64)>,
    pub(crate) steps: watch::Sender<&'static str>,
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
}

impl Default for Script {
    fn default() -> Self {
        let calls = Arc::default();
        Self {
            drains: true,
            restores: true,
            late: Vec::new(),
            steps: watch::Sender::new(""),
            calls,
        }
    }
}

impl Script {
    fn call(&self, what: impl Into<String>) {
        self.calls.lock().unwrap().push(what.into());
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Parts for Script {
    async fn drain(&mut self, end_position: PgLsn) -> Result<(), Report> {
        self.call(format!("drain {end_position}"));
        if !self.drains {
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn restore(&mut self) -> Result<(), Report> {
        self.call("restore");
        tokio::task::yield_now().await;
        if self.restores { Ok(()) } else { Err(Report::definite("NO", "cannot be restored")) }
    }

    async fn undo_restore(&mut self) -> Result<(), Report> {
        self.call("undo");
        Ok(())
    }

    fn late_writes(&mut self) -> Vec<(TableName, u64)> {
        self.late.clone()
    }

    fn tell(&mut self, step: &'static str) {
        self.call(step);
        self.steps.send_replace(step);
    }
}
