//! A source, its slot, a spool, a receiver; and a replica in memory that takes each change once.

use coordinator::replay::{
    receive::{Config, Error, ReceiveState, Receiver, ReceiverHandle, Retain, State},
    spool::{Item, Reader, Spool, SpoolIdentity},
};
use loadtest::cluster::postgres::{Builder, Postgres};
use pg::{
    Conninfo, PgLsn, SessionName, Walsender,
    pgoutput::{self, Message, OldTuple, Tuple, Value},
    walsender::{PgoutputOptions, SlotFailover, SlotLifetime},
};
use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) const SLOT: &str = "skein_m";
pub(crate) const DATABASE: &str = "postgres";
/// Longest wait for anything, on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Decoding memory is the smallest, so that anything larger than 64 kB is streamed.
pub(crate) fn streaming() -> Builder {
    Postgres::builder().setting("logical_decoding_work_mem", "64kB")
}

pub(crate) struct Rig {
    pub(crate) server: Postgres,
    pub(crate) dir: TempDir,
    pub(crate) limit_bytes: u64,
    pub(crate) retain: Retain,
    pub(crate) consistent_point: PgLsn,
}

/// A receiver that runs.
pub(crate) struct Running {
    pub(crate) spool: Spool,
    pub(crate) state: watch::Receiver<ReceiveState>,
    pub(crate) applied: watch::Sender<PgLsn>,
    cancel: CancellationToken,
    tasks: JoinSet<Result<(), Error>>,
}

pub(crate) async fn walsender(server: &Postgres) -> Walsender {
    let conninfo = Conninfo::parse(&server.conninfo(DATABASE)).unwrap();
    Walsender::connect(&conninfo, &SessionName::new("m", 7, "slot", 0), "UTF8").await.unwrap()
}

impl Rig {
    /// Table `t (id, v)`, published; a slot; an empty spool.
    pub(crate) async fn new(builder: Builder) -> Self {
        Self::on(builder.start().unwrap()).await
    }

    pub(crate) async fn on(server: Postgres) -> Self {
        let statements = "create table t (id bigint primary key, v text);
             alter table t alter column v set storage external;
             create publication p for table t";
        server.psql(DATABASE, statements).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut walsender = walsender(&server).await;
        let system = walsender.identify_system().await.unwrap();
        let slot =
            walsender.create_slot(SLOT, SlotLifetime::Permanent, SlotFailover::Off).await.unwrap();
        let identity = SpoolIdentity::new(&system, &slot);
        let limit_bytes = 1 << 30;
        Spool::create(&dir.path().join("spool"), identity, limit_bytes).unwrap();
        let consistent_point = slot.consistent_point;
        Self { server, dir, limit_bytes, retain: Retain::Spool, consistent_point }
    }

    pub(crate) fn spool_dir(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    pub(crate) fn start(&self) -> Running {
        self.start_at(&self.server.conninfo(DATABASE))
    }

    pub(crate) fn start_at(&self, conninfo: &str) -> Running {
        start(conninfo, &self.spool_dir(), self.limit_bytes, self.retain, self.consistent_point)
    }

    /// Adds a last transaction; the position behind it.
    pub(crate) fn end(&self) -> PgLsn {
        let statement = "select pg_logical_emit_message(true, 'end', ''); \
             select pg_current_wal_insert_lsn()";
        self.server.psql(DATABASE, statement).unwrap().lines().last().unwrap().parse().unwrap()
    }

    /// Content of `t` on the source.
    pub(crate) fn content(&self) -> BTreeMap<i64, String> {
        self.server
            .psql(DATABASE, "select id, v from t")
            .unwrap()
            .lines()
            .map(|line| line.split_once('|').unwrap())
            .map(|(id, v)| (id.parse().unwrap(), v.to_owned()))
            .collect()
    }

    pub(crate) fn walsender_pid(&self) -> Option<i32> {
        let statement = "select active_pid from pg_replication_slots where active";
        self.server.psql(DATABASE, statement).unwrap().parse().ok()
    }

    /// Content of the source and of `replica`, read up to now, are the same.
    pub(crate) async fn assert_equal(&self, running: &Running, replica: &mut Replica) {
        let end = self.end();
        let mut reader = running.spool.reader(replica.end_lsn.max(self.consistent_point));
        let read = replica.read_until(&mut reader, end);
        // 1 read   2 what stopped it
        tokio::select! { biased;
            () = read => {}
            () = tokio::time::sleep(DEADLINE / 2) => {
                panic!("{end} not read in time: {:?}, {:?}", running.state.borrow(), running.spool);
            }
        }
        assert_eq!(replica.rows, self.content());
    }
}

pub(crate) fn start(
    conninfo: &str,
    spool_dir: &Path,
    limit_bytes: u64,
    retain: Retain,
    applied_lsn: PgLsn,
) -> Running {
    let spool = Spool::open(spool_dir, limit_bytes).unwrap();
    let config = Config {
        source: Conninfo::parse(conninfo).unwrap(),
        name: SessionName::new("m", 7, "receive", 0),
        client_encoding: "UTF8".to_owned(),
        options: PgoutputOptions::new(["p"]),
        retain,
    };
    let (applied, seen) = watch::channel(applied_lsn);
    let (receiver, ReceiverHandle { state }) = Receiver::new(config, spool.clone(), seen);
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(receiver.run(cancel.clone()));
    Running { spool, state, applied, cancel, tasks }
}

impl Running {
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&ReceiveState) -> bool) {
        let waited = tokio::time::timeout(DEADLINE, self.state.wait_for(|state| wanted(state)));
        assert!(waited.await.is_ok_and(|seen| seen.is_ok()), "not seen in time: {what}");
    }

    pub(crate) async fn until_streaming(&mut self) {
        self.until("streaming", |state| state.state == State::Streaming).await;
    }

    pub(crate) async fn until_spooled(&self, lsn: PgLsn) {
        let mut spooled = self.spool.watch();
        let waited = tokio::time::timeout(DEADLINE, spooled.wait_for(|spooled| *spooled >= lsn));
        assert!(waited.await.is_ok(), "not spooled in time: {lsn}");
    }

    /// Waits for its end by itself: its fault.
    pub(crate) async fn ended(&mut self) -> Error {
        let ended = tokio::time::timeout(DEADLINE, self.tasks.join_next()).await;
        ended.expect("in time").unwrap().unwrap().unwrap_err()
    }

    pub(crate) async fn stop(mut self) {
        self.cancel.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.tasks.join_next()).await;
        ended.expect("in time").unwrap().unwrap().unwrap();
        assert_eq!(self.state.borrow().state, State::Stopped);
    }
}

/// Waits for something that only asking shows.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "not seen in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Files of one kind in the spool.
pub(crate) fn files(spool_dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(spool_dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

/// Table `t`, as the items make it. Every insert must be new, every delete must hit.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) rows: BTreeMap<i64, String>,
    pub(crate) end_lsn: PgLsn,
    pub(crate) transactions: Vec<u32>,
    pub(crate) changes: u64,
    relations: HashSet<u32>,
    is_open: bool,
}

impl Replica {
    pub(crate) fn new() -> Self {
        Self {
            rows: BTreeMap::new(),
            end_lsn: PgLsn::from(0),
            transactions: Vec::new(),
            changes: 0,
            relations: HashSet::new(),
            is_open: false,
        }
    }

    pub(crate) async fn read_until(&mut self, reader: &mut Reader, lsn: PgLsn) {
        loop {
            let item = tokio::time::timeout(DEADLINE, reader.next()).await;
            let item = item.unwrap_or_else(|_| panic!("{lsn} not read in time")).unwrap();
            self.take(&item);
            if !self.is_open && self.end_lsn >= lsn {
                return;
            }
        }
    }

    /// Within a transaction.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    pub(crate) fn take(&mut self, item: &Item) {
        match item {
            Item::Relation(bytes) => {
                let Message::Relation(relation) = pgoutput::decode(bytes, false).unwrap() else {
                    panic!("not a relation");
                };
                self.relations.insert(relation.relid);
            }
            Item::Type(_) => {}
            Item::Begin(begin) => {
                assert!(
                    !self.is_open && begin.end_lsn > self.end_lsn,
                    "{begin:?} after {}",
                    self.end_lsn
                );
                self.is_open = true;
                self.end_lsn = begin.end_lsn;
                self.transactions.push(begin.xid);
            }
            Item::Commit { end_lsn } => {
                assert!(self.is_open && *end_lsn == self.end_lsn);
                self.is_open = false;
            }
            Item::Position(lsn) => {
                assert!(!self.is_open && *lsn > self.end_lsn);
                self.end_lsn = *lsn;
            }
            Item::Change(bytes) => {
                assert!(self.is_open);
                self.change(pgoutput::decode(bytes, false).unwrap());
            }
        }
    }

    fn change(&mut self, message: Message) {
        self.changes += 1;
        match message {
            Message::Insert(insert) => {
                assert!(self.relations.contains(&insert.relid), "relation first");
                assert!(self.rows.insert(id(&insert.new), text(&insert.new)).is_none(), "twice");
            }
            Message::Update(update) => {
                let old = update.old.as_ref().map_or(&update.new, OldTuple::tuple);
                let before = self.rows.remove(&id(old)).expect("row is there");
                let after = match &update.new[1] {
                    Value::UnchangedToast => before,
                    _ => text(&update.new),
                };
                assert!(self.rows.insert(id(&update.new), after).is_none());
            }
            Message::Delete(delete) => {
                assert!(self.rows.remove(&id(delete.old.tuple())).is_some(), "row is there");
            }
            Message::Truncate(_) => self.rows.clear(),
            Message::Message(_) => {}
            other => panic!("no change: {other:?}"),
        }
    }
}

fn id(tuple: &Tuple) -> i64 {
    text_of(&tuple[0]).parse().unwrap()
}

fn text(tuple: &Tuple) -> String {
    text_of(&tuple[1])
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Text(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}
