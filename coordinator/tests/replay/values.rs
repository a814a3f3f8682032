//! Values, identities and shapes of tables.

use super::world::World;

#[tokio::test]
async fn inserts_updates_and_deletes_arrive() {
    let world = World::new("create table t (id int primary key, v text, w text default 'd')").await;
    world.write("insert into t select i, 'v' || i from generate_series(1, 500) i").await;
    world.write("update t set v = v || '!' where id % 2 = 0").await;
    world.write("delete from t where id % 3 = 0").await;
    world.write("insert into t values (3, 'again', null)").await;
    let status = world.catch_up().await;
    world.assert_equal();
    assert_eq!(status.transactions, 4);
    assert_eq!(status.late_writes, vec![]);
}

#[tokio::test]
async fn keys_that_change_in_chains_and_swaps_arrive() {
    let world = World::new("create table t (id int primary key, v text)").await;
    world.write("insert into t values (1, 'a'), (2, 'b'), (3, 'c'), (10, 'x')").await;
    world.write("update t set id = id + 100 where id = 3").await;
    world.write("update t set id = 3 where id = 2; update t set id = 2 where id = 1").await;
    world
        .write("begin; update t set id = -1 where id = 2; update t set id = 2 where id = 3; update t set id = 3 where id = -1; commit")
        .await;
    world.write("update t set id = id + 1000, v = v || '+'").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_deferred_swap_of_unique_values_arrives() {
    let tables = "create table t (id int primary key, u int unique deferrable initially deferred);
                  create table i (id int primary key, u int unique deferrable)";
    let world = World::new(tables).await;
    world.write("insert into t values (1, 1), (2, 2); insert into i values (1, 1), (2, 2)").await;
    world
        .write("begin; update t set u = 2 where id = 1; update t set u = 1 where id = 2; commit")
        .await;
    world
        .write("begin; set constraints all deferred; update i set u = 2 where id = 1; update i set u = 1 where id = 2; commit")
        .await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_second_unique_value_that_goes_from_row_to_row_arrives() {
    let world = World::new("create table t (id int primary key, u text unique)").await;
    world.write("insert into t select i, i from generate_series(1, 40) i").await;
    // Each value is free before it is taken; folded into one statement it would not be.
    for _ in 0..3 {
        for id in 1..40 {
            world
                .write(&format!(
                    "update t set u = 'free' where id = {id};
                     update t set u = '{id}-' || random() where id = {id} + 1;
                     update t set u = 'was free' where u = 'free'"
                ))
                .await;
            world.write("update t set u = id || '#' || random() where u = 'was free'").await;
        }
    }
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn numeric_keys_that_are_equal_but_not_the_same_arrive() {
    let world = World::new("create table t (id numeric primary key, v int)").await;
    world.write("insert into t select i, i from generate_series(1, 50) i").await;
    world.write("delete from t where id = 1; insert into t values (1.00, 7)").await;
    world.write("update t set id = 1.0 where id = 1").await;
    world.write("update t set v = v + 1").await;
    world.write("delete from t where id = 1.000").await;
    world.write("insert into t values (1, 9)").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn unchanged_toast_values_stay() {
    let tables = "create table t (id int primary key, big text, small int, other text);
                  alter table t alter big set storage external, alter other set storage external;
                  create table k (id text primary key, v int);
                  alter table k alter id set storage external";
    let world = World::new(tables).await;
    world
        .write("insert into t select i, repeat(md5(i::text), 200), i, repeat('o', 5000) from generate_series(1, 60) i")
        .await;
    world
        .write("insert into k select repeat(md5(i::text), 78), i from generate_series(1, 20) i")
        .await;
    world.catch_up().await;
    world.write("update t set small = small + 1").await;
    world
        .write("update t set big = repeat('b', 4000) where id <= 30; update t set small = 0")
        .await;
    world
        .write("update t set other = null where id > 50; update t set small = 5 where id > 40")
        .await;
    world.write("update k set v = v + 1").await;
    world.write("delete from k where v = 5").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_new_row_with_the_key_of_a_deleted_one_arrives_whole() {
    let world = World::new("create table t (id int primary key, big text, v int)").await;
    world.write("alter table t alter big set storage external").await;
    world
        .write("insert into t select i, repeat(i::text, 4000), i from generate_series(1, 40) i")
        .await;
    world.catch_up().await;
    for _ in 0..3 {
        world.write("update t set v = v + 1; delete from t where id <= 30").await;
        world
            .write("insert into t select i, repeat('n', 5000), -i from generate_series(1, 30) i; update t set v = v - 1")
            .await;
    }
    world.catch_up().await;
    world.assert_equal();
}

/// Few rows take prepared statements, many COPY and staging tables: both must read every value.
#[tokio::test]
async fn every_kind_of_value_arrives_by_both_ways() {
    every_kind_of_value("").await;
}

#[tokio::test]
async fn every_kind_of_value_is_found_by_its_image() {
    every_kind_of_value("alter table v replica identity full").await;
}

async fn every_kind_of_value(identity: &str) {
    let tables = r#"
create extension if not exists citext;
create type mood as enum ('sad', 'it''s', 'Ünïcode \ ok');
create type pair as (a int, "B b" text);
create domain positive as int check (value > 0);
create table v (
  id int primary key, b bool, i2 int2, i8 int8, n numeric, n2 numeric(20, 4), f4 float4, f8 float8,
  t text, vc varchar(30), c char(8), nm name, ch "char", by bytea, d date, ts timestamp,
  tz timestamptz, ti time, tt timetz, iv interval, u uuid, j json, jb jsonb, x xml, ine inet,
  ci cidr, mac macaddr, bi bit(5), vb varbit, p point, bo box, m money, tsv tsvector, r int4range,
  mr int4multirange, ia int[], ta text[], mo mood, moa mood[], pa pair, paa pair[], po positive,
  o oid, lsn pg_lsn, ct citext)"#;
    let world = World::new(tables).await;
    world.write(identity).await;
    let insert = r#"insert into v select i, i % 2 = 0, i, i * 10000000000,
  (array['NaN', 'Infinity', '-Infinity', '1.0', '1.00', '0'])[i % 6 + 1]::numeric, i / 7.0,
  (array['NaN', 'Infinity', '-0', '1e-30'])[i % 4 + 1]::float4,
  (array['NaN', '-Infinity', '-0', '0.1'])[i % 4 + 1]::float8,
  (array['', E'tab\there', E'new\nline\r', '\N', '\.', 'quote''"', 'é漢字😀', null])[i % 8 + 1],
  'vc' || i, 'c', 'name', 'x', decode(lpad(to_hex(i), 2, '0') || '005c0a27', 'hex'),
  (array['infinity', '-infinity', '4713-01-01 BC', '2024-02-29'])[i % 4 + 1]::date,
  (array['infinity', '-infinity', '0044-03-15 10:00:00 BC', '2024-02-29 23:59:59.999999'])[i % 4 + 1]::timestamp,
  '2024-02-29 23:59:59.999999+13', '24:00', '12:00+05:30', '1 mon -3 days 04:05:06.789',
  '00000000-0000-0000-0000-00000000000a', '{"a":  1, "a": 2}', '{"z": [1, null]}', '<a>b</a>', '10.0.0.1/8',
  '10.0.0.0/8', '08:00:2b:01:02:03', '10101', '1', '(1,2.5)', '(1,1),(0,0)', 12.34, 'fat & rat'::text::tsvector,
  '[1,5)', '{[1,3),[5,9)}', '{{1,2},{3,NULL}}', '{"",NULL,"NULL","a,b","\"q\"","\\"}', 'it''s',
  '{sad,"Ünïcode \\ ok"}', row(1, 'x,"y')::pair, array[row(null, '')::pair, null], i, 4294967295, '16/B374D848', 'CiText'
  from generate_series($lo, $hi) i"#;
    let fill =
        |lo: i32, hi: i32| insert.replace("$lo", &lo.to_string()).replace("$hi", &hi.to_string());
    for (lo, hi) in [(1, 9), (10, 100)] {
        world.write(&fill(lo, hi)).await;
        world.catch_up().await;
        world.assert_equal();
    }
    for range in ["id <= 9", "id > 9"] {
        let update = "update v set t = coalesce(t, '') || '\\', n = n + 1, pa = null, paa = '{}', ia = null,
            mo = 'Ünïcode \\ ok', iv = -iv, jb = null, x = null, c = '', vc = '', by = '', ct = 'other', d = null
            where ";
        world.write(&format!("{update} {range}")).await;
        world.catch_up().await;
        world.assert_equal();
    }
    world.write("delete from v where id % 3 = 0").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn keys_of_odd_types_arrive() {
    let tables = "create extension if not exists citext;
        create collation anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create type pair as (a int, b text); create domain short as varchar(12) check (value <> '');
        create table k1 (id citext primary key, v text);
        create table k2 (id text collate anycase primary key, v text);
        create table k3 (id pair primary key, v text);
        create table k4 (id jsonb primary key, v text);
        create table k5 (id float8 primary key, v text);
        create table k6 (id int[] primary key, v text);
        create table k7 (id int4range primary key, v text);
        create table k8 (id short primary key, v text);
        create table k9 (id char(5) primary key, v text);
        create table k10 (id interval primary key, v text);
        create table k11 (id inet primary key, v text);
        create table k12 (id name primary key, v text)";
    let keys = [
        "'K' || i",
        "'K' || i",
        "row(i, 'b')::pair",
        "jsonb_build_object('i', i)",
        "case i when 1 then '-0' when 2 then 'NaN' else i::text end::float8",
        "array[i, null]",
        "int4range(i, i + 5)",
        "('K' || i)::short",
        "'K' || i",
        "make_interval(days => i)",
        "'10.0.0.0'::inet + i",
        "('K' || i)::name",
    ];
    let world = World::new(tables).await;
    for rows in ["i = 1", "i between 2 and 40", "i between 41 and 45"] {
        for (at, key) in keys.iter().enumerate() {
            let table = format!("k{}", at + 1);
            world.write(&format!("insert into {table} select {key}, 'v' from generate_series(1, 45) i where {rows}")).await;
        }
        world.catch_up().await;
        world.assert_equal();
    }
    for rows in ["i <= 3", "i > 3"] {
        for (at, key) in keys.iter().enumerate() {
            let table = format!("k{}", at + 1);
            world.write(&format!("update {table} set v = 'w' where id in (select {key} from generate_series(1, 40) i where {rows})")).await;
        }
        world.catch_up().await;
        world.assert_equal();
    }
    world.write("update k1 set id = upper(id::text) where id = 'k7'; update k2 set id = 'k7' where id = 'K7'").await;
    world.write("update k10 set id = '24 hours' where id = '1 day'").await;
    for rows in ["i = 5", "i > 9"] {
        for (at, key) in keys.iter().enumerate() {
            let table = format!("k{}", at + 1);
            world.write(&format!("delete from {table} where id in (select {key} from generate_series(1, 40) i where {rows})")).await;
        }
    }
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn a_source_in_latin1_arrives_in_utf8() {
    let tables = "create table t (id text primary key, v text, c char(3)); create table f (v text);
        alter table f replica identity full";
    let world = World::encoded(tables, tables, None, "LATIN1").await;
    for rows in [3, 100] {
        world.write(&format!("insert into t select 'é' || i, 'ÿ', 'ü' from generate_series(1, {rows}) i on conflict do nothing")).await;
        world
            .write(&format!("insert into f select 'é' || i from generate_series(1, {rows}) i"))
            .await;
        world.catch_up().await;
        world.assert_equal();
        world
            .write("update t set v = v || 'ö', c = 'ß'; update f set v = 'å' where v = 'é2'")
            .await;
        world.write("delete from t where id like 'é1%'; delete from f where v = 'é1'").await;
        world.catch_up().await;
        world.assert_equal();
    }
}

#[tokio::test]
async fn odd_names_arrive() {
    let tables = "create schema \"Sch.ema\";
        create table \"Sch.ema\".\"we\"\"ird\n.Table\" (\"Key.\"\"1\" int, \"key 2\" text, \"select\" text, \"ünï\" text,
          primary key (\"Key.\"\"1\", \"key 2\"))";
    let world = World::new(tables).await;
    let table = "\"Sch.ema\".\"we\"\"ird\n.Table\"";
    world
        .write(&format!(
            "insert into {table} select i, 'k', 's', 'u' from generate_series(1, 50) i"
        ))
        .await;
    world.catch_up().await;
    world.write(&format!("update {table} set \"select\" = 'x', \"ünï\" = 'ü'")).await;
    world.write(&format!("update {table} set \"key 2\" = 'moved' where \"Key.\"\"1\" = 5")).await;
    world.write(&format!("delete from {table} where \"Key.\"\"1\" > 20")).await;
    world.write(&format!("delete from {table} where \"Key.\"\"1\" = 20")).await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn of_duplicate_rows_under_full_exactly_one_changes() {
    let tables = "create table f (a numeric, j json, f float8, b bool, c char(4), p point);
        alter table f replica identity full;
        create table z (); alter table z replica identity full;
        create table n (a int, b int); alter table n replica identity full; create index on n (a)";
    let world = World::new(tables).await;
    world
        .write(
            "insert into f select x, '{\"a\": 1}', 'NaN', true, 'x', '(1,2)'
                from unnest(array[1.0, 1.00, 1.0, 1.00, null, null]) x",
        )
        .await;
    world.write("insert into z default values; insert into z default values; insert into z default values").await;
    world
        .write("insert into n select i % 5, nullif(i % 3, 0) from generate_series(1, 300) i")
        .await;
    world.catch_up().await;
    world.assert_equal();
    let one =
        |table: &str| format!("ctid = (select min(ctid) from {table} where a::text = '1.00')");
    world.write(&format!("delete from f where {}", one("f"))).await;
    world.write("update f set b = false, p = '(3,4)' where ctid = (select min(ctid) from f where a is null)").await;
    world.write("delete from z where ctid = (select min(ctid) from z)").await;
    world
        .write("update n set b = 100 where ctid in (select ctid from n where a = 3 limit 7)")
        .await;
    world.write("delete from n where ctid in (select ctid from n where a = 2 limit 9)").await;
    world.catch_up().await;
    world.assert_equal();
    assert_eq!(world.on_target("select count(*) from z").trim(), "2");
}

/// How often the target was read from end to end, or by an index, for table `f`.
fn scans(world: &World, kind: &str) -> u64 {
    world.on_target("select pg_stat_force_next_flush()");
    let question =
        format!("select coalesce({kind}, 0) from pg_stat_user_tables where relname = 'f'");
    world.on_target(&question).trim().parse().unwrap()
}

#[tokio::test]
async fn many_changes_under_full_read_the_table_once_and_not_once_a_row() {
    let tables = "create table f (a int, b text, j json, n numeric, g text generated always as (b || '!') stored);
        alter table f replica identity full";
    let mut world = World::new(tables).await;
    world.lanes = 1;
    world
        .write(
            "insert into f select nullif(i % 500, 7), 'v' || i % 100, '{\"a\": 1}', \
             case i % 3 when 0 then 1.0 when 1 then 1.00 end from generate_series(1, 3000) i",
        )
        .await;
    world.catch_up().await;
    let before = scans(&world, "seq_scan");
    world.write("update f set b = b || 'x' where a % 2 = 0").await;
    world.write("delete from f where ctid in (select ctid from f where a is null limit 4)").await;
    world.write("insert into f select 1000, 'new' from generate_series(1, 50)").await;
    world.write("delete from f where ctid in (select ctid from f where a = 1000 limit 30)").await;
    world.write("update f set n = 1.00 where n = 1.0 and a % 5 = 1").await;
    world.catch_up().await;
    let read = scans(&world, "seq_scan") - before;
    world.assert_equal();
    assert!(read < 20, "{read} times");
}

#[tokio::test]
async fn changes_under_full_are_found_by_an_index_where_one_serves() {
    let tables = "create table f (a int, b text); alter table f replica identity full;
        create index on f (a)";
    let mut world = World::new(tables).await;
    world.lanes = 1;
    world.write("insert into f select i, 'v' from generate_series(1, 30000) i").await;
    world.catch_up().await;
    world.on_target("analyze f");
    let before = scans(&world, "seq_scan");
    world.write("update f set b = 'w' where a % 1000 = 0").await;
    world.write("update f set b = 'w' where a = 5").await;
    world.catch_up().await;
    assert_eq!(scans(&world, "seq_scan") - before, 0);
    world.assert_equal();
}

#[tokio::test]
async fn generated_always_columns_arrive() {
    let tables = "create table k (id int generated always as identity primary key, v text,
            g text generated always as (v || '!') stored);
        create table n (k int primary key, id int generated always as identity, v text, big text);
        alter table n alter big set storage external;
        create table f (id int generated always as identity, v text); alter table f replica identity full";
    let world = World::new(tables).await;
    world.write("insert into k (v) select i from generate_series(1, 60) i").await;
    world.write("insert into n (k, v, big) select i, i, repeat(md5(i::text), 200) from generate_series(1, 60) i").await;
    world.write("insert into f (v) select i from generate_series(1, 60) i").await;
    world.write("update k set v = v || '+'; update n set v = v || '+' where k > 30; update f set v = 'x' where id < 9").await;
    world.write("update n set id = default, v = 'again' where k < 20; update f set id = default where id > 50").await;
    world.write("update k set id = default where id = 7; delete from k where id = 8").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn truncates_between_writes_arrive() {
    let tables = "create table a (id int primary key, s serial); create table b (id int primary key references a);
                  create table c (id int primary key) ; create table d () inherits (c)";
    let world = World::with_target(tables, &tables.replace(" references a", "")).await;
    world
        .write(
            "insert into a select i from generate_series(1, 100) i; insert into b select id from a",
        )
        .await;
    world.write("begin; insert into a values (200); truncate a, b restart identity; insert into a values (1); insert into b values (1); commit").await;
    world.write("truncate a cascade").await;
    world.write("insert into a select i from generate_series(1, 30) i").await;
    world.write("insert into c values (1); insert into d values (2); truncate only c; insert into c values (3)").await;
    world.catch_up().await;
    world.assert_equal();
}

#[tokio::test]
async fn leaves_go_through_a_root_that_is_partitioned_otherwise() {
    through_a_root("").await;
}

#[tokio::test]
async fn leaves_under_full_go_through_a_root_that_is_partitioned_otherwise() {
    through_a_root("alter table low replica identity full; alter table high replica identity full")
        .await;
}

async fn through_a_root(identity: &str) {
    let there =
        "create table p (id int, r int, v text, primary key (id, r)) partition by hash (id);
        create table h0 partition of p for values with (modulus 2, remainder 0);
        create table h1 partition of p for values with (modulus 2, remainder 1)";
    let here = "create table p (id int, r int, v text, primary key (id, r)) partition by range (r);
        create table low partition of p for values from (0) to (100);
        create table high (v text, r int not null, id int not null, primary key (id, r));
        alter table p attach partition high for values from (100) to (200)";
    let mut world = World::with_target(&format!("{here}; {identity}"), there).await;
    let bounds = |name: &str| {
        let question = format!("select pg_get_partition_constraintdef('{name}'::regclass)");
        world.source_server.psql("source", &question).unwrap().trim().to_owned()
    };
    let constraints = [bounds("low"), bounds("high")];
    for plan in &mut world.plans {
        plan.through_root = true;
        plan.target.name = "p".to_owned();
        let at = usize::from(plan.source.name == "high");
        plan.partition_constraint = Some(constraints[at].clone());
    }
    let equal = |world: &World| {
        let rows = "select id, r, v from p order by 1, 2, 3";
        assert_eq!(world.source_server.psql("source", rows).unwrap(), world.on_target(rows));
    };
    world.write("insert into p select i, i % 200, i from generate_series(1, 400) i").await;
    world
        .write(
            "update p set r = 199 - r where id % 5 = 0; update p set v = v || '!' where id % 3 = 0",
        )
        .await;
    world.write("delete from p where id % 7 = 0").await;
    world.catch_up().await;
    equal(&world);
    world.write("truncate low").await;
    world.write("insert into p values (1000, 5, 'after')").await;
    world.catch_up().await;
    equal(&world);
    world.write("truncate p; insert into p values (1, 1, 'x')").await;
    world.catch_up().await;
    equal(&world);
}
