//! A relation that is no longer the planned one is not read (rules, part 1).

use crate::bench::{Bench, Chunk};
use proto::v1::ReleaseCause;

const COLUMNS: &[&str] = &["id", "v"];

/// First half copied, then `statement` on the source, then the second half offered.
async fn between_two_chunks(bench: &mut Bench, statement: &str) -> ReleaseCause {
    bench.both("create table public.t (id int primary key, v text)").await;
    bench
        .source
        .run(
            "insert into public.t select g, repeat('v', 100) from generate_series(1, 2000) g;
              delete from public.t where id % 3 = 0; create table public.other (like public.t)",
        )
        .await;
    bench.export().await;
    bench.work(1);
    let half = |blocks| Chunk { table: "t", columns: COLUMNS, binary: true, blocks };
    let first = bench.chunk(half((0, Some(10)))).await;
    let second = bench.chunk(half((10, None))).await;
    bench.coordinator.run(first).await;
    let before = bench.target.content("public.t").await;
    bench.source.run(statement).await;
    bench.coordinator.offer(second.clone());
    let crate::coordinator::Heard::Released(released) = bench.coordinator.heard().await else {
        panic!("a chunk of another file was copied after: {statement}");
    };
    assert_eq!(bench.target.content("public.t").await, before, "{statement}");
    assert!(!bench.is_marked(&second).await);
    bench.stop().await;
    released.cause()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_table_is_not_read_under_the_old_snapshot() {
    for statement in [
        "vacuum full public.t",
        "cluster public.t using t_pkey",
        "truncate public.t",
        "alter table public.t alter id type bigint",
        "alter table public.t add w float default random()",
        "alter table public.t set unlogged",
    ] {
        for majors in [(15, 15), (17, 17)] {
            let Some(mut bench) = Bench::between(majors).await else { continue };
            let cause = between_two_chunks(&mut bench, statement).await;
            assert_eq!(cause, ReleaseCause::Rewritten, "{statement}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_table_of_the_same_name_is_not_read() {
    for statement in [
        "begin; alter table public.t rename to old; alter table public.other rename to t; commit",
        "drop table public.t",
    ] {
        for majors in [(15, 15), (17, 17)] {
            let Some(mut bench) = Bench::between(majors).await else { continue };
            let cause = between_two_chunks(&mut bench, statement).await;
            assert_eq!(cause, ReleaseCause::Replaced, "{statement}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vacuum_or_an_added_column_between_two_chunks_does_no_harm() {
    let mut bench = Bench::new().await;
    bench.both("create table public.t (id int primary key, v text)").await;
    bench
        .source
        .run("insert into public.t select g, repeat('v', 100) from generate_series(1, 2000) g")
        .await;
    bench.export().await;
    let content = bench.source.content("public.t").await;
    bench.work(1);
    let half = |blocks| Chunk { table: "t", columns: COLUMNS, binary: true, blocks };
    let (first, second) =
        (bench.chunk(half((0, Some(10)))).await, bench.chunk(half((10, None))).await);
    bench.coordinator.run(first).await;
    bench.source.run("update public.t set v = 'new'; delete from public.t where id < 900").await;
    bench.source.run("vacuum public.t").await;
    bench.source.run("alter table public.t add w int").await;
    bench
        .source
        .run("insert into public.t select g, 'late' from generate_series(3000, 9000) g")
        .await;
    bench.coordinator.run(second).await;
    assert_eq!(bench.target.content("public.t").await, content);
}
