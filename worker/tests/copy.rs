//! Rows arrive as they are.

use crate::bench::{Bench, Chunk, PAIRS, copy_of};
use proto::v1::{
    self,
    complete_task_request::Result::{Copy, Verify},
};

/// Values that text or binary might change, and names that quoting might miss.
const ODD: &str = r#"
create type public."Mo od" as enum ('so so', 'f,"{}\');
create type public.pair as (a int, b text);
create table public."Öd""d.T
x" (
  id bigint generated always as identity primary key,
  "we ird, ""name""" text,
  doubled bigint generated always as (id * 2) stored,
  n numeric, f float8, d date, ts timestamptz, b bytea, j jsonb, m public."Mo od",
  ms public."Mo od"[], p public.pair, c "char", i interval, r int4range, big text)"#;
const ODD_ROWS: &str = r#"
insert into public."Öd""d.T
x" ("we ird, ""name""", n, f, d, ts, b, j, m, ms, p, c, i, r, big)
select case g % 4 when 0 then null when 1 then '' when 2 then E'tab\tnew\nline\\back\r' else 'ü日本' end,
  case g % 3 when 0 then 'NaN'::numeric when 1 then 1.00 else -12345678901234567890.123 end,
  case g % 5 when 0 then 'NaN'::float8 when 1 then '-Infinity' when 2 then '-0' else 0.1 + g end,
  case g % 2 when 0 then 'infinity'::date else '4713-01-01 BC' end,
  '2026-02-01 03:04:05.678901+05'::timestamptz, decode('00ff5c0a', 'hex'), '{"a": [1, null]}',
  'so so', array['f,"{}\', null]::public."Mo od"[], row(g, null)::public.pair, 'x',
  '1 mon -2 days 03:04:05.6', '[1,5)', case when g % 50 = 0 then repeat('ab', 100000) end
from generate_series(1, 400) g"#;
const ODD_TABLE: &str = "Öd\"d.T\nx";
const ODD_COLUMNS: &[&str] = &[
    "id",
    "we ird, \"name\"",
    "n",
    "f",
    "d",
    "ts",
    "b",
    "j",
    "m",
    "ms",
    "p",
    "c",
    "i",
    "r",
    "big",
];

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_and_values_arrive_equal_in_chunks_as_text_and_binary() {
    for majors in PAIRS {
        if let Some(bench) = Bench::between(majors).await {
            copy_odd(bench).await;
        }
    }
}

async fn copy_odd(mut bench: Bench) {
    bench.both(ODD).await;
    bench.source.run(ODD_ROWS).await;
    bench.export().await;
    // Not in the snapshot: in no chunk.
    let content = bench.source.content("public.\"Öd\"\"d.T\nx\"").await;
    bench.source.run("insert into public.\"Öd\"\"d.T\nx\" (n) values (7)").await;
    bench.work(3);
    for binary in [false, true] {
        bench.target.run("truncate public.\"Öd\"\"d.T\nx\"").await;
        let mut rows = 0;
        for blocks in [(0, Some(2)), (2, Some(5)), (5, None)] {
            let chunk = Chunk { table: ODD_TABLE, columns: ODD_COLUMNS, binary, blocks };
            let task = bench.chunk(chunk).await;
            bench.coordinator.offer(task);
        }
        for _ in 0..3 {
            match bench.coordinator.completed().await.result.unwrap() {
                Copy(result) => rows += result.rows,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(rows, 400);
        assert_eq!(bench.target.content("public.\"Öd\"\"d.T\nx\"").await, content);
    }
    let marks = "select count(*) from skein.task where finished_at is not null and bytes > 0";
    assert_eq!(bench.target.value(marks).await, "6");
    // And a comparison says so, between these versions too.
    bench.source.run("delete from public.\"Öd\"\"d.T\nx\" where n = 7").await;
    let name = v1::TableName { schema: "public".to_owned(), name: ODD_TABLE.to_owned() };
    let verify = v1::VerifyWork {
        source_table: Some(name.clone()),
        target_table: Some(name),
        columns: ODD_COLUMNS.iter().map(|&name| name.to_owned()).collect(),
        key_columns: vec!["id".to_owned()],
        max_differences: 3,
        ..Default::default()
    };
    let task = bench.task("copy", v1::task::Work::Verify(verify)).await;
    let Verify(result) = bench.coordinator.run(task).await else { panic!("no comparison") };
    assert_eq!((result.source_rows, result.differences.len()), (400, 0));
    assert_eq!(result.source_digest, result.target_digest);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_columns_keeps_its_number_of_rows() {
    let mut bench = Bench::new().await;
    bench.both("create table public.nothing (); create table public.made (x int generated always as (1) stored)").await;
    bench.source.run("insert into public.nothing select from generate_series(1, 7); insert into public.made select from generate_series(1, 5)").await;
    bench.export().await;
    bench.work(1);
    for table in ["nothing", "made"] {
        for binary in [true, false] {
            bench.target.run(&format!("truncate public.{table}")).await;
            let chunk = Chunk { table, columns: &[], binary, blocks: (0, None) };
            let task = bench.chunk(chunk).await;
            bench.coordinator.run(task).await;
            bench.assert_equal(table).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_is_read_without_its_children() {
    let mut bench = Bench::new().await;
    bench.both("create table public.parent (a int); create table public.child () inherits (public.parent)").await;
    bench
        .source
        .run("insert into public.parent values (1); insert into public.child values (2)")
        .await;
    bench.export().await;
    bench.work(1);
    for table in ["parent", "child"] {
        let task = bench.chunk(Chunk::whole(table, &["a"])).await;
        bench.coordinator.run(task).await;
    }
    bench.assert_equal("parent").await;
    assert_eq!(bench.target.value("select count(*) from only public.parent").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_goes_through_the_root_into_other_partitions() {
    let mut bench = Bench::new().await;
    bench.source.run("create table public.root (k int, v text) partition by range (k);
        create table public.leaf (v text, k int); alter table public.root attach partition public.leaf for values from (0) to (100);
        insert into public.root select g, g::text from generate_series(0, 99) g").await;
    bench
        .target
        .run(
            "create table public.root (k int, v text) partition by hash (k);
        create table public.h0 partition of public.root for values with (modulus 2, remainder 0);
        create table public.h1 partition of public.root for values with (modulus 2, remainder 1)",
        )
        .await;
    bench.export().await;
    bench.work(1);
    let mut task = bench.chunk(Chunk::whole("leaf", &["v", "k"])).await;
    copy_of(&mut task).target_root =
        Some(v1::TableName { schema: "public".to_owned(), name: "root".to_owned() });
    bench.coordinator.run(task).await;
    let sum =
        "select count(*) || ' ' || sum(k) || ' ' || count(distinct tableoid) from public.root";
    assert_eq!(bench.target.value(sum).await, "100 4950 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_values_of_another_encoding_arrive() {
    let mut bench =
        Bench::with_source_options("encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'", "LATIN1").await;
    bench.both("create table public.\"größe\" (\"fuß\" text, x int)").await;
    bench.source.run("insert into public.\"größe\" values ('äöü', 1), ('ß', 2)").await;
    bench.export().await;
    bench.work(1);
    for binary in [false, true] {
        bench.target.run("truncate public.\"größe\"").await;
        let chunk = Chunk { table: "größe", columns: &["fuß", "x"], binary, blocks: (0, None) };
        let task = bench.chunk(chunk).await;
        bench.coordinator.run(task).await;
        bench.assert_equal("größe").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_no_known_encoding_arrive_or_are_refused() {
    let options = "encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'";
    let mut bench = Bench::with_source_options(options, "SQL_ASCII").await;
    bench.both("create table public.t (v text)").await;
    bench.source.run("insert into public.t values ('\u{e4} is two bytes')").await;
    bench.export().await;
    bench.work(1);
    let task = bench.chunk(Chunk::whole("t", &["v"])).await;
    bench.coordinator.run(task).await;
    let bytes = "select encode(convert_to(v, getdatabaseencoding()), 'hex') from public.t";
    assert_eq!(bench.source.value(bytes).await, bench.target.value(bytes).await);
    bench.source.run("insert into public.t values (E'\\xe4')").await;
    bench.export().await;
    for binary in [false, true] {
        let chunk = Chunk { table: "t", columns: &["v"], binary, blocks: (0, None) };
        let task = bench.chunk(chunk).await;
        bench.coordinator.offer(task);
        let error = bench.coordinator.released(v1::ReleaseCause::Failed).await;
        assert_eq!(error.class(), v1::ErrorClass::Definite, "{error:?}");
        assert!(error.detail.contains("22021"), "{error:?}");
    }
    assert_eq!(bench.target.value("select count(*) from public.t").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_larger_than_the_read_ahead_passes() {
    let mut bench = Bench::new().await;
    bench.both("create table public.wide (id int, b bytea)").await;
    bench
        .source
        .run("insert into public.wide select g, decode(repeat(md5(g::text), 600000), 'hex') from generate_series(1, 2) g;
              insert into public.wide select g, 'x' from generate_series(3, 2000) g")
        .await;
    bench.export().await;
    bench.work(1);
    for binary in [true, false] {
        bench.target.run("truncate public.wide").await;
        let chunk = Chunk { table: "wide", columns: &["id", "b"], binary, blocks: (0, None) };
        let task = bench.chunk(chunk).await;
        bench.coordinator.run(task).await;
        let sum = "select count(*) || md5(string_agg(md5(b), '' order by id)) from public.wide";
        assert_eq!(bench.source.value(sum).await, bench.target.value(sum).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extensions_condition_chooses_the_rows() {
    let mut bench = Bench::new().await;
    bench.both("create table public.conf (id int)").await;
    bench.source.run("insert into public.conf select generate_series(1, 10)").await;
    bench.export().await;
    bench.work(1);
    let mut task = bench.chunk(Chunk::whole("conf", &["id"])).await;
    copy_of(&mut task).condition = "WHERE id > 7".to_owned();
    bench.coordinator.run(task).await;
    assert_eq!(bench.target.value("select count(*) from public.conf").await, "3");
}
