//! A source and a target database, a slot, a spool, and replay between them.

use coordinator::{
    migration::context::Context,
    replay::{
        Inputs, RelationPlan, Replay, ReplayHandle, ReplayStatus,
        spool::{self, Begin, Item, Spool, SpoolIdentity},
    },
    target,
};
use loadtest::cluster::postgres::Postgres;
use pg::{Conninfo, PgLsn, Session, Sql, TableName, pgoutput, sql};
use proto::v1::{ApplyOrder, MigrationSpec};
use std::time::Duration;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Longest wait for anything here.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) source_server: Postgres,
    /// None: the same server.
    pub(crate) target_server: Option<Postgres>,
    pub(crate) source: Session,
    pub(crate) spool: Spool,
    pub(crate) plans: Vec<RelationPlan>,
    pub(crate) start: PgLsn,
    pub(crate) lanes: u16,
    pub(crate) order: ApplyOrder,
    pub(crate) epoch: u64,
    /// Port under which replay reaches the target.
    pub(crate) target_port: Option<u16>,
    /// The source's server encoding.
    pub(crate) encoding: String,
    /// Who replay is there; the superuser unless said.
    pub(crate) target_role: Option<String>,
    last_end: std::cell::Cell<PgLsn>,
    dir: tempfile::TempDir,
}

pub(crate) type Finished = coordinator::replay::error::Result<()>;

/// Replay under way.
pub(crate) struct Running {
    pub(crate) handle: ReplayHandle,
    pub(crate) end: watch::Sender<Option<PgLsn>>,
    pub(crate) paused: watch::Sender<bool>,
    pub(crate) token: CancellationToken,
    tasks: JoinSet<Finished>,
}

impl Running {
    /// Waits until the status fulfils something.
    pub(crate) async fn until(&mut self, what: impl FnMut(&ReplayStatus) -> bool) -> ReplayStatus {
        let mut status = self.handle.status.clone();
        let waited = tokio::time::timeout(DEADLINE, status.wait_for(what)).await;
        if let Ok(Ok(status)) = waited {
            return status.clone();
        }
        panic!("not in time: {:?}", self.handle.status.borrow());
    }

    pub(crate) async fn stop(mut self) -> Finished {
        self.token.cancel();
        self.ended().await
    }

    /// Waits for the end that it comes to by itself.
    pub(crate) async fn ended(&mut self) -> Finished {
        tokio::time::timeout(DEADLINE, self.tasks.join_next()).await.unwrap().unwrap().unwrap()
    }
}

impl World {
    /// Both databases on one server, with the same tables.
    pub(crate) async fn new(tables: &str) -> Self {
        Self::with_target(tables, tables).await
    }

    /// The target's tables differ.
    pub(crate) async fn with_target(tables: &str, there: &str) -> Self {
        Self::build(tables, there, None).await
    }

    pub(crate) async fn build(tables: &str, there: &str, target_server: Option<Postgres>) -> Self {
        Self::encoded(tables, there, target_server, "UTF8").await
    }

    /// The source's database has this encoding, the target's UTF8.
    pub(crate) async fn encoded(
        tables: &str,
        there: &str,
        target_server: Option<Postgres>,
        encoding: &str,
    ) -> Self {
        let source_server = Postgres::builder().start().unwrap();
        let make =
            format!("create database source template template0 locale 'C' encoding '{encoding}'");
        source_server.psql("postgres", &make).unwrap();
        let target_at = target_server.as_ref().unwrap_or(&source_server);
        target_at.psql("postgres", "create database target").unwrap();
        source_server.psql("source", tables).unwrap();
        target_at.psql("target", there).unwrap();
        let skein = target::ddl();
        target_at.psql("target", skein.as_str()).unwrap();
        target_at
            .psql(
                "target",
                "insert into skein.migration (schema_version, migration_id, name, epoch, spec)
                 values (1, 'x', 'x', 1, '{}')",
            )
            .unwrap();
        let source = source_server.client("source").await.unwrap();
        source
            .batch(&sql!("set search_path = public; create publication p for all tables"))
            .await
            .unwrap();
        let start: PgLsn = source
            .query_one(
                &sql!("select lsn from pg_create_logical_replication_slot('s', 'pgoutput')"),
                &[],
            )
            .await
            .unwrap()
            .get(0);
        let system_id: String = source
            .query_one(&sql!("select system_identifier::text from pg_control_system()"), &[])
            .await
            .unwrap()
            .get(0);
        let dir = tempfile::tempdir().unwrap();
        let identity = SpoolIdentity {
            spool_id: "x".to_owned(),
            system_id,
            timeline: 1,
            slot: "s".to_owned(),
            database: "source".to_owned(),
            consistent_point: start,
        };
        let spool = spool_in(&dir.path().join("spool"), identity).await;
        let mut world = Self {
            source_server,
            target_server,
            source,
            spool,
            plans: Vec::new(),
            start,
            lanes: 4,
            order: ApplyOrder::Lanes,
            epoch: 1,
            target_port: None,
            target_role: None,
            encoding: encoding.to_owned(),
            last_end: std::cell::Cell::new(start),
            dir,
        };
        world.plan().await;
        world
    }

    /// Every table of the source, to the one of the same name.
    async fn plan(&mut self) {
        let rows = self
            .source
            .query(
                &sql!(
                    "select c.oid, n.nspname::text, c.relname::text from pg_class c
                     join pg_namespace n on n.oid = c.relnamespace
                     where c.relkind = 'r' and n.nspname !~ '^pg_|information_schema'"
                ),
                &[],
            )
            .await
            .unwrap();
        self.plans = rows
            .iter()
            .map(|row| {
                let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
                RelationPlan {
                    relid: row.get(0),
                    source: name.clone(),
                    target: name,
                    consistent_point: self.start,
                    append_only: false,
                    through_root: false,
                    partition_constraint: None,
                }
            })
            .collect();
    }

    pub(crate) fn target_at(&self) -> &Postgres {
        self.target_server.as_ref().unwrap_or(&self.source_server)
    }

    /// Statements on the source, by simple protocol: one transaction unless they say otherwise.
    pub(crate) async fn write(&self, statements: &str) {
        self.source.batch(&Sql::trusted(statements)).await.unwrap();
    }

    pub(crate) fn on_target(&self, statements: &str) -> String {
        self.target_at().psql("target", statements).unwrap()
    }

    /// What the slot has goes into the spool. The source's position after it.
    pub(crate) async fn capture(&self) -> PgLsn {
        let end: PgLsn = self
            .source
            .query_one(&sql!("select pg_current_wal_insert_lsn()"), &[])
            .await
            .unwrap()
            .get(0);
        // As the walsender prints: pgoutput writes in the session's encoding, UTF-8.
        self.source.batch(&sql!("set client_encoding = 'UTF8'")).await.unwrap();
        let rows = self
            .source
            .query(
                &sql!(
                    "select data from pg_logical_slot_get_binary_changes('s', null, null,
                       'proto_version', '1', 'publication_names', 'p')"
                ),
                &[],
            )
            .await
            .unwrap();
        self.source.batch(&sql!("set client_encoding = 'UTF8'")).await.unwrap();
        let messages: Vec<bytes::Bytes> =
            rows.iter().map(|row| bytes::Bytes::from(row.get::<_, Vec<u8>>(0))).collect();
        let mut items = items(&messages);
        let ends = items.iter().filter_map(|item| match item {
            Item::Commit { end_lsn } => Some(*end_lsn),
            _ => None,
        });
        if let Some(last) = ends.max() {
            self.last_end.set(last);
        }
        items.push(Item::Position(end));
        self.spool.append(&items).unwrap();
        end
    }

    /// End of the last transaction that was captured.
    pub(crate) fn last_end(&self) -> PgLsn {
        self.last_end.get()
    }

    pub(crate) fn context(&self) -> Context {
        let at = |server: &Postgres, port: Option<u16>, database: &str| {
            let text = server.conninfo_at(port.unwrap_or(server.port()), database);
            Conninfo::parse(&text).unwrap()
        };
        let mut target = at(self.target_at(), self.target_port, "target");
        if let Some(role) = &self.target_role {
            let text = self.target_at().conninfo_as(role, "", "target");
            target = Conninfo::parse(&text).unwrap();
        }
        Context {
            name: "x".to_owned(),
            spec: MigrationSpec::default(),
            source: at(&self.source_server, None, "source"),
            target,
            epoch: self.epoch,
            source_encoding: self.encoding.clone(),
            source_version: 150_000,
            target_version: 150_000,
            dir: self.dir.path().to_owned(),
        }
    }

    /// Starts replay, up to `end` if there is one.
    pub(crate) fn start(&self, end: Option<PgLsn>) -> Running {
        let (end, end_position) = watch::channel(end);
        let (paused, is_paused) = watch::channel(false);
        let (replay, handle) = Replay::new(Inputs {
            context: self.context(),
            spool: self.spool.clone(),
            relations: self.plans.clone(),
            start: self.start,
            lanes: self.lanes,
            order: self.order,
            end_position,
            paused: is_paused,
        });
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(replay.run(token.clone()));
        Running { handle, end, paused, token, tasks }
    }

    /// Captures and replays everything.
    pub(crate) async fn catch_up(&self) -> ReplayStatus {
        let end = self.capture().await;
        let mut running = self.start(Some(end));
        let status = running.until(|status| status.drained || is_stopped(status)).await;
        let fault = status.fault.clone();
        assert!(status.drained, "fault: {fault:?}");
        running.stop().await.unwrap();
        status
    }

    /// Captures, replays, and gives the fault that it stops at.
    pub(crate) async fn fault(&self) -> proto::status::Report {
        let end = self.capture().await;
        let mut running = self.start(Some(end));
        let status = running.until(|status| status.drained || is_stopped(status)).await;
        assert!(running.ended().await.is_err(), "drained: {}", status.drained);
        status.fault.unwrap()
    }

    /// Rows of every planned target table are equal on both sides.
    pub(crate) fn assert_equal(&self) {
        for plan in &self.plans {
            let read = |server: &Postgres, database: &str, table: &TableName| {
                let rows = format!(
                    "set client_encoding = UTF8; set extra_float_digits = 3; select t::text from {table} as t order by t::text collate \"C\""
                );
                server.psql(database, &rows).unwrap()
            };
            let here = read(&self.source_server, "source", &plan.source);
            let there = read(self.target_at(), "target", &plan.target);
            assert!(here == there, "{}:\nsource\n{here}\ntarget\n{there}", plan.source);
        }
    }
}

/// A program that another test starts just now holds a copy of our lock until its exec.
async fn spool_in(dir: &std::path::Path, identity: SpoolIdentity) -> Spool {
    let mut made = Spool::create(dir, identity, u64::MAX);
    while matches!(made, Err(spool::Error::Locked { .. })) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        made = Spool::open(dir, u64::MAX);
    }
    made.unwrap()
}

pub(crate) fn is_stopped(status: &ReplayStatus) -> bool {
    status.fault.as_ref().is_some_and(|fault| fault.class != proto::status::ErrorClass::Transient)
}

/// As the spool gives them: each Begin knows its end.
pub(crate) fn items(messages: &[bytes::Bytes]) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let mut began = 0;
    for bytes in messages {
        let item = match pgoutput::decode(bytes, false).unwrap() {
            pgoutput::Message::Begin(begin) => {
                began = items.len();
                Item::Begin(Begin {
                    xid: begin.xid,
                    end_lsn: begin.commit_lsn,
                    commit_lsn: begin.commit_lsn,
                    commit_time_us: begin.commit_time_us,
                    bytes: 0,
                })
            }
            pgoutput::Message::Commit(commit) => {
                if let Item::Begin(begin) = &mut items[began] {
                    begin.end_lsn = commit.end_lsn;
                }
                Item::Commit { end_lsn: commit.end_lsn }
            }
            pgoutput::Message::Relation(_) => Item::Relation(bytes.clone()),
            pgoutput::Message::Type(_) => Item::Type(bytes.clone()),
            _ => Item::Change(bytes.clone()),
        };
        items.push(item);
    }
    items
}
