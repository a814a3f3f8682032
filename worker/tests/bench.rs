//! Two databases, a coordinator, a worker: what most tests need.

use crate::coordinator::{Coordinator, until};
use loadtest::cluster::postgres::Postgres;
use pg::{Conninfo, Session, SessionName, Settings, Sql, sql};
use proto::v1;
use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;
use worker::config::{Address, Config, Credentials};

/// The part of schema `skein` that a worker touches (coordinator/src/target.rs).
pub(crate) const TASK_TABLE: &str = "create schema skein;
create table skein.task (
  task_id bigint primary key, kind text not null, relid oid, snapshot_epoch int not null,
  stage int not null, size_bytes bigint not null, plan jsonb not null,
  token bigint not null default 0, worker text, finished_at timestamptz, rows bigint,
  bytes bigint, failures int not null default 0);";

/// Major versions of source and target.
pub(crate) type Majors = (u32, u32);

/// The pairs of versions that tests of values and of the server's behaviour run on.
pub(crate) const PAIRS: [Majors; 3] = [(15, 15), (15, 17), (17, 17)];

/// One server of each version for all tests; they die with this process. None: not installed,
/// which a line on stderr says.
pub(crate) fn server(major: u32) -> Option<&'static Postgres> {
    static SERVERS: [OnceLock<Option<Postgres>>; 2] = [OnceLock::new(), OnceLock::new()];
    let start = || {
        let builder = Postgres::builder().major(major).setting("max_connections", "200");
        builder.start_or_skip().unwrap()
    };
    SERVERS[usize::from(major != 15)].get_or_init(start).as_ref()
}

/// A database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) conninfo: String,
    pub(crate) session: Session,
}

impl Database {
    pub(crate) async fn open(conninfo: String) -> Self {
        let settings = Settings::write(SessionName::of_role("test"));
        let session =
            Session::connect(&Conninfo::parse(&conninfo).unwrap(), &settings).await.unwrap();
        Self { conninfo, session }
    }

    /// Runs statements.
    pub(crate) async fn run(&self, text: &str) {
        let done = self.session.batch(&Sql::trusted(text)).await;
        done.unwrap_or_else(|error| panic!("{error}: {text}"));
    }

    /// First column of the first row, as text.
    pub(crate) async fn value(&self, text: &str) -> String {
        let rows = self.session.simple(&Sql::trusted(text)).await;
        let rows = rows.unwrap_or_else(|error| panic!("{error}: {text}"));
        rows.iter()
            .find_map(|row| match row {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
                _ => None,
            })
            .unwrap_or_default()
    }

    /// Rows of a query, in no order: count and text.
    pub(crate) async fn content(&self, table: &str) -> String {
        self.value(&format!(
            "select count(*) || E':\n' || coalesce(string_agg(r::text, E'\n' order by r::text \
             collate \"C\"), '') from {table} r"
        ))
        .await
    }

    /// Waits until a query's value is `expected`.
    pub(crate) async fn until(&self, text: &str, expected: &str) {
        until(text, async || (self.value(text).await == expected).then_some(())).await;
    }
}

/// Where a chunk's rows come from and go to.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    pub(crate) table: &'a str,
    pub(crate) columns: &'a [&'a str],
    pub(crate) binary: bool,
    pub(crate) blocks: (u64, Option<u64>),
}

impl<'a> Chunk<'a> {
    /// A whole table of schema public, as text.
    pub(crate) fn whole(table: &'a str, columns: &'a [&'a str]) -> Self {
        Self { table, columns, binary: false, blocks: (0, None) }
    }
}

async fn create(server: &Postgres, name: &str, options: &str) {
    let postgres = Database::open(server.conninfo("postgres")).await;
    postgres.run(&format!("create database {name} template template0 {options}")).await;
}

/// Source, target, coordinator, and workers in this process.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) source: Database,
    pub(crate) target: Database,
    pub(crate) coordinator: Coordinator,
    /// The session whose snapshot the chunks are read under.
    exporter: Option<Session>,
    pub(crate) snapshot: String,
    /// Where workers find the servers, if not directly.
    pub(crate) source_conninfo: Option<String>,
    pub(crate) target_conninfo: Option<String>,
    encoding: &'static str,
    next_task: AtomicU32,
    workers: JoinSet<worker::run::End>,
    stop: CancellationToken,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with_source_options("encoding 'UTF8'", "UTF8").await
    }

    /// `encoding`: the source's, as in the options.
    pub(crate) async fn with_source_options(options: &str, encoding: &'static str) -> Self {
        Self::start((15, 15), options, encoding).await.expect("PostgreSQL 15 is installed")
    }

    /// None where one of the versions is not installed.
    pub(crate) async fn between(majors: Majors) -> Option<Self> {
        Self::start(majors, "encoding 'UTF8'", "UTF8").await
    }

    async fn start((left, right): Majors, options: &str, encoding: &'static str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let servers = tokio::task::spawn_blocking(move || Some((server(left)?, server(right)?)));
        let (left, right) = servers.await.unwrap()?;
        let (source, target) = (format!("source{number}"), format!("target{number}"));
        create(left, &source, options).await;
        create(right, &target, "encoding 'UTF8'").await;
        let bench = Self {
            source: Database::open(left.conninfo(&source)).await,
            target: Database::open(right.conninfo(&target)).await,
            coordinator: Coordinator::start(),
            exporter: None,
            snapshot: String::new(),
            source_conninfo: None,
            target_conninfo: None,
            encoding,
            next_task: AtomicU32::new(1),
            workers: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        bench.target.run(TASK_TABLE).await;
        Some(bench)
    }

    /// The same statements on both sides.
    pub(crate) async fn both(&self, text: &str) {
        self.source.run(text).await;
        self.target.run(text).await;
    }

    /// Takes the snapshot under which chunks are read.
    pub(crate) async fn export(&mut self) {
        let exporter = Database::open(self.source.conninfo.clone()).await;
        exporter.run("begin isolation level repeatable read read only").await;
        self.snapshot = exporter.value("select pg_export_snapshot()").await;
        self.exporter = Some(exporter.session);
    }

    /// The snapshot's only holder goes away.
    pub(crate) fn lose_snapshot(&mut self) {
        self.exporter = None;
    }

    /// Starts a worker with `slots` in this process; its id.
    pub(crate) fn work(&mut self, slots: u32) -> String {
        let id = format!("worker-{}", self.workers.len());
        let config = Config {
            coordinators: vec![Address::Unix(self.coordinator.socket().to_owned())],
            credentials: Credentials::default(),
            id: id.clone(),
            slots: slots.try_into().unwrap(),
            orphan_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_millis(200),
        };
        let stop = self.stop.clone();
        self.workers.spawn(async move { worker::run::run(config, stop).await.unwrap() });
        id
    }

    /// Stops the workers and waits for their end.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            assert_eq!(ended.unwrap(), worker::run::End::Drained);
        }
    }

    /// A task with a row in the target and its first token.
    pub(crate) async fn task(&self, kind: &str, work: v1::task::Work) -> v1::Task {
        let task_id = u64::from(self.next_task.fetch_add(1, Ordering::Relaxed));
        self.target
            .run(&format!(
                "insert into skein.task (task_id, kind, snapshot_epoch, stage, size_bytes, plan, \
                 token) values ({task_id}, '{kind}', 1, 0, 0, '{{}}', 10)"
            ))
            .await;
        let endpoint = |conninfo: &Option<String>, database: &Database| {
            let conninfo = conninfo.clone().unwrap_or_else(|| database.conninfo.clone());
            Some(v1::Endpoint { conninfo, server_version: database.session.server_version() })
        };
        v1::Task {
            migration: "m".to_owned(),
            task_id,
            fencing_token: 10,
            epoch: 3,
            snapshot_epoch: 1,
            source: endpoint(&self.source_conninfo, &self.source),
            target: endpoint(&self.target_conninfo, &self.target),
            client_encoding: self.encoding.to_owned(),
            work: Some(work),
        }
    }

    /// A copy task as planned now.
    pub(crate) async fn chunk(&self, chunk: Chunk<'_>) -> v1::Task {
        let row = self
            .source
            .session
            .query_one(
                &sql!(
                    "select c.oid, coalesce(pg_relation_filenode(c.oid), 0) from pg_class c \
                     where relname = $1 and relnamespace = 'public'::regnamespace"
                ),
                &[&chunk.table],
            )
            .await
            .unwrap();
        let name = v1::TableName { schema: "public".to_owned(), name: chunk.table.to_owned() };
        let work = v1::CopyWork {
            source_table: Some(name.clone()),
            target_table: Some(name),
            source_oid: row.get(0),
            filenode: row.get(1),
            columns: chunk.columns.iter().map(|&name| name.to_owned()).collect(),
            binary: chunk.binary,
            first_block: chunk.blocks.0,
            end_block: chunk.blocks.1,
            snapshots: vec![self.snapshot.clone()],
            ..Default::default()
        };
        self.task("copy", v1::task::Work::Copy(work)).await
    }

    /// Whether the task has its mark.
    pub(crate) async fn is_marked(&self, task: &v1::Task) -> bool {
        let id = task.task_id;
        let mark = format!("select finished_at is not null from skein.task where task_id = {id}");
        self.target.value(&mark).await == "t"
    }

    /// A newer grant of the same task.
    pub(crate) async fn granted_again(&self, task: &v1::Task) -> v1::Task {
        let mut task = task.clone();
        task.fencing_token += 1;
        let (id, token) = (task.task_id, task.fencing_token);
        self.target
            .run(&format!("update skein.task set token = {token} where task_id = {id}"))
            .await;
        task
    }

    /// Source and target hold the same rows of a table of schema public.
    pub(crate) async fn assert_equal(&self, table: &str) {
        let table = format!("public.{}", pg::sql::quote_ident(table));
        let (left, right) = tokio::join!(self.source.content(&table), self.target.content(&table));
        assert_eq!(left, right, "{table}");
    }
}

/// The copy work of a task.
pub(crate) fn copy_of(task: &mut v1::Task) -> &mut v1::CopyWork {
    match task.work.as_mut().unwrap() {
        v1::task::Work::Copy(work) => work,
        other => panic!("not a copy: {other:?}"),
    }
}
