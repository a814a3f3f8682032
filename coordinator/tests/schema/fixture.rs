//! Two servers, a source full of objects, a target with schema `skein`.

use coordinator::{
    migration::context::Context,
    schema::{Archive, Schema, Stage, build_tasks, refresh_tasks},
    target,
};
use loadtest::cluster::postgres::Postgres;
use pg::{Conninfo, Session, Sql, sql};
use proto::v1::{Filter, MigrationSpec};
use std::process::Stdio;

pub(super) const EVERY_OBJECT: &str = include_str!("../../../loadtest/sql/every_object.sql");

pub(super) struct Pair {
    pub(super) source: Postgres,
    pub(super) target: Postgres,
    pub(super) schema: Schema,
    /// Holds the snapshot.
    _holder: Session,
    pub(super) snapshot: String,
    _directory: tempfile::TempDir,
}

/// A source made by `statements`, an empty target.
pub(super) async fn pair(statements: &str, filter: Filter) -> Pair {
    let source = source(15, statements).unwrap();
    let target = Postgres::builder().start().unwrap();
    pair_of(source, target, filter).await
}

/// A source of this version, in which `statements` ran.
pub(super) fn source(major: u32, statements: &str) -> loadtest::cluster::Result<Postgres> {
    let source = Postgres::builder().major(major).start()?;
    source.psql("postgres", "create database app")?;
    source.psql("app", statements)?;
    Ok(source)
}

pub(super) async fn pair_of(source: Postgres, target: Postgres, filter: Filter) -> Pair {
    target.psql("postgres", "create database app").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let version = |major: u32| major * 10_000;
    let context = context(
        &source.conninfo("app"),
        &target.conninfo("app"),
        directory.path().to_owned(),
        filter,
        (version(source.major()), version(target.major())),
    );
    let session = context.target_session("test", 0).await.unwrap();
    session.batch(&target::ddl()).await.unwrap();
    let row = sql!(
        "insert into skein.migration (schema_version, migration_id, name, epoch, spec)
         values (1, 'm', 'm', 1, '{}')"
    );
    session.batch(&row).await.unwrap();
    let holder = context.source_session("holder", 0).await.unwrap();
    holder.batch(&sql!("begin isolation level repeatable read read only")).await.unwrap();
    let snapshot =
        holder.query_one(&sql!("select pg_export_snapshot()"), &[]).await.unwrap().get(0);
    let mut schema = Schema::new(context);
    schema.client_directories = vec![source.client_bin()];
    Pair { source, target, schema, _holder: holder, snapshot, _directory: directory }
}

pub(super) fn context(
    source: &str,
    target: &str,
    dir: std::path::PathBuf,
    filter: Filter,
    (source_version, target_version): (u32, u32),
) -> Context {
    Context {
        name: "m".to_owned(),
        spec: MigrationSpec {
            name: "m".to_owned(),
            filter: Some(filter),
            ..MigrationSpec::default()
        },
        source: Conninfo::parse(source).unwrap(),
        target: Conninfo::parse(target).unwrap(),
        epoch: 1,
        source_encoding: "UTF8".to_owned(),
        source_version,
        target_version,
        dir,
    }
}

impl Pair {
    /// The same under another role on both ends, named `hired`, with the password `pw`.
    pub(super) fn hire(&mut self) {
        let hired = |server: &Postgres| Conninfo::parse(&server.conninfo_as("hired", "pw", "app"));
        self.schema.context.source = hired(&self.source).unwrap();
        self.schema.context.target = hired(&self.target).unwrap();
    }

    pub(super) fn on_target(&self, query: &str) -> String {
        self.target.psql("app", query).unwrap()
    }

    pub(super) async fn archive(&self) -> Archive {
        self.schema.dump(&self.snapshot, 1).await.unwrap();
        self.schema.archive().await.unwrap().0
    }

    /// Rows of every table, by psql: what the workers do in earnest.
    pub(super) fn copy_rows(&self) {
        let tables = self
            .source
            .psql(
                "app",
                "select c.oid::regclass, string_agg(quote_ident(attname), ', ' order by attnum)
                 from pg_class c join pg_attribute a on a.attrelid = c.oid
                 where c.relkind = 'r' and c.relnamespace::regnamespace::text
                   not in ('pg_catalog', 'information_schema') and attnum > 0
                   and not attisdropped and attgenerated = '' group by c.oid
                   having c.oid::regclass::text !~ E'\\n'",
            )
            .unwrap();
        for line in tables.lines() {
            let (table, columns) = line.rsplit_once('|').unwrap();
            let copy = |direction: &str| format!("copy {table} ({columns}) {direction}");
            let mut rows = self
                .source
                .client_program("psql", "app")
                .args(["-X", "-q", "-c", &copy("to stdout")])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let status = self
                .target
                .client_program("psql", "app")
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", &copy("from stdin")])
                .stdin(rows.stdout.take().unwrap())
                .status()
                .unwrap();
            assert!(rows.wait().unwrap().success() && status.success(), "copy of {table}");
        }
    }

    /// Everything after the first stage.
    pub(super) async fn finish(&self, archive: &Archive) {
        self.copy_rows();
        let session = self.schema.context.target_session("worker", 0).await.unwrap();
        let mut plans = build_tasks(archive);
        plans.sort_by_key(|plan| plan.stage);
        for plan in plans {
            assert_ne!(plan.table_oid, 0, "{}", plan.object);
            run(&session, &plan.object, plan.statements).await;
        }
        self.schema.restore(Stage::AfterBuild, archive).await.unwrap();
        for plan in refresh_tasks(archive) {
            run(&session, &plan.object, plan.statements).await;
        }
        // A first attempt whose fence is lifted leaves nothing behind.
        let (_, before) = self.dumps("--schema-only");
        self.schema.restore(Stage::Cutover, archive).await.unwrap();
        self.schema.undo_cutover().await.unwrap();
        let (_, after) = self.dumps("--schema-only");
        let left: Vec<_> = differences(&before, &after)
            .into_iter()
            .filter(|line| !line.contains("DEFAULT PRIVILEGES") && line.len() > 10)
            .collect();
        assert_eq!(left, Vec::<String>::new());
        self.schema.restore(Stage::Cutover, archive).await.unwrap();
        self.schema.restore(Stage::AfterOpen, archive).await.unwrap();
    }

    /// `pg_dump` of both ends by the target's programs, without what is ours.
    pub(super) fn dumps(&self, section: &str) -> (String, String) {
        let dump = |server| dump_of(server, &self.target, "app", section);
        (dump(&self.source), dump(&self.target))
    }
}

async fn run(session: &Session, object: &str, statements: Vec<String>) {
    session.batch(&sql!("begin")).await.unwrap();
    for statement in statements {
        let done = session.batch(&Sql::trusted(statement)).await;
        assert!(done.is_ok(), "{object}: {done:?}");
    }
    session.batch(&sql!("commit")).await.unwrap();
}

/// By the client programs of another server, without what is ours.
pub(super) fn dump_of(
    server: &Postgres,
    client: &Postgres,
    database: &str,
    section: &str,
) -> String {
    let mut command = client.client_program("pg_dump", database);
    let output = command
        .env("PGPORT", server.port().to_string())
        .args([section, "--exclude-schema=skein", "--no-subscriptions", "--no-blobs"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let random = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
    text.lines().filter(random).collect::<Vec<_>>().join("\n")
}

/// Lines that stand in only one of two texts, at most twenty.
pub(super) fn differences(left: &str, right: &str) -> Vec<String> {
    use std::collections::HashMap;
    let mut count: HashMap<&str, i32> = HashMap::new();
    left.lines().for_each(|line| *count.entry(line).or_default() += 1);
    right.lines().for_each(|line| *count.entry(line).or_default() -= 1);
    let mut lines: Vec<String> = count
        .into_iter()
        .filter(|(_, count)| *count != 0)
        .map(|(line, count)| format!("{} {line}", if count > 0 { "source" } else { "target" }))
        .collect();
    lines.sort();
    lines.truncate(20);
    lines
}
