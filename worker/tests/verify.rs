//! Comparison finds what differs, and nothing else.

use crate::bench::Bench;
use proto::v1::{self, complete_task_request::Result as Done};

async fn compare(bench: &mut Bench, table: &str, only: bool, keys: &[&str]) -> v1::VerifyResult {
    let name = v1::TableName { schema: "public".to_owned(), name: table.to_owned() };
    let work = v1::VerifyWork {
        source_table: Some(name.clone()),
        target_table: Some(name),
        only,
        columns: vec!["id".to_owned(), "V \"x\"".to_owned()],
        key_columns: keys.iter().map(|&key| key.to_owned()).collect(),
        max_differences: 10,
    };
    let task = bench.task("copy", v1::task::Work::Verify(work)).await;
    let Done::Verify(mut result) = bench.coordinator.run(task.clone()).await else {
        panic!("not a verification")
    };
    assert!(!bench.is_marked(&task).await);
    assert_eq!(result.source_digest.len(), 16);
    result.differences.sort();
    result
}

const TABLE: &str = "create table public.t (id int, \"V \"\"x\"\"\" text)";
const ROWS: &str = "insert into public.t select g, 'ü' || g from generate_series(1, 5000) g";

#[tokio::test(flavor = "multi_thread")]
async fn one_changed_one_missing_and_one_extra_row_are_named() {
    let mut bench = Bench::new().await;
    bench.both(TABLE).await;
    bench.source.run(ROWS).await;
    // Another order.
    bench.target.run(&format!("{ROWS} order by g desc")).await;
    bench.work(2);
    let equal = compare(&mut bench, "t", false, &["id"]).await;
    assert_eq!(equal.source_digest, equal.target_digest);
    assert_eq!((equal.source_rows, equal.target_rows), (5000, 5000));
    assert!(equal.differences.is_empty());
    bench
        .target
        .run("update public.t set \"V \"\"x\"\"\" = 'other' where id = 7; delete from public.t where id = 8; insert into public.t values (-9, null)")
        .await;
    let unequal = compare(&mut bench, "t", false, &["id"]).await;
    assert_ne!(unequal.source_digest, unequal.target_digest);
    assert_eq!((unequal.source_rows, unequal.target_rows), (5000, 5000));
    assert_eq!(unequal.differences, ["changed (7)", "extra (-9)", "missing (8)"]);
    bench.target.run("delete from public.t where id % 2 = 0").await;
    assert_eq!(compare(&mut bench, "t", false, &["id"]).await.differences.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_counted() {
    let mut bench = Bench::new().await;
    bench.both(TABLE).await;
    bench.source.run("insert into public.t values (1, 'a'), (1, 'a'), (1, 'a'), (2, null)").await;
    bench.target.run("insert into public.t values (1, 'a'), (2, null), (2, null), (3, '')").await;
    bench.work(1);
    let result = compare(&mut bench, "t", false, &[]).await;
    assert_eq!((result.source_rows, result.target_rows), (4, 4));
    let expected = [
        "extra (2,): 1 on the source, 2 on the target",
        "extra (3,\"\")",
        "missing (1,a): 3 on the source, 1 on the target",
    ];
    assert_eq!(result.differences, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_left_out_when_told_and_partitions_are_not() {
    let mut bench = Bench::new().await;
    bench.both(TABLE).await;
    bench
        .both("create table public.child () inherits (public.t); insert into public.t values (1)")
        .await;
    bench.target.run("insert into public.child values (2)").await;
    bench.work(1);
    let only = compare(&mut bench, "t", true, &["id"]).await;
    assert_eq!(only.source_digest, only.target_digest);
    assert_eq!(compare(&mut bench, "t", false, &["id"]).await.differences, ["extra (2)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_different_encodings_are_compared_by_characters() {
    let options = "encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'";
    let mut bench = Bench::with_source_options(options, "LATIN1").await;
    bench.both(TABLE).await;
    bench.both(ROWS).await;
    bench.work(1);
    let equal = compare(&mut bench, "t", false, &["id"]).await;
    assert_eq!(equal.source_digest, equal.target_digest);
    bench.target.run("insert into public.t values (0, 'ü')").await;
    let keyless = compare(&mut bench, "t", false, &[]).await;
    assert_eq!(keyless.differences.len(), 1);
}
