//! A random workload through every way that replay has, compared at the end.

use super::world::World;
use std::fmt::Write as _;

/// A small generator, so that a seed says it all.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

const TABLES: &str = "
create type mood as enum ('sad', 'ok', 'happy');
create table by_int (id int primary key, v text, n numeric, w text default 'w');
alter table by_int alter v set storage external;
create table by_pair (a text, b mood, v text, n numeric, primary key (a, b));
create table by_numeric (id numeric primary key, v text, n numeric);
create table second (id int primary key, u int unique deferrable initially deferred, v text, n numeric);
create table image (id int, v text, n numeric); alter table image replica identity full;
create table always (id int primary key, g int generated always as identity, v text, n numeric,
  l int generated always as (length(v)) stored);
create table plain (id int, v text)";

/// One statement that cannot fail, or whose failure takes nothing along.
fn statement(draw: &mut Draw) -> String {
    let id = draw.below(40);
    let many = draw.below(30) + 1;
    let other = draw.below(40);
    let v =
        draw.of(&["''", "null", "repeat(md5(random()::text), 100)", "E'\\t\\\\\\n'", "'é'", "v"]);
    let new = if v == "v" { "'v'" } else { v };
    let n = draw.of(&["'NaN'", "1.0", "1.00", "null", "'Infinity'", "-0.5"]);
    let table = draw.of(&["by_int", "by_numeric", "second", "always"]);
    let choice = draw.below(16);
    match choice {
        0..=2 => format!(
            "insert into {table} (id, v, n) select i, {new}, {n} from generate_series({id}, {id} + {many}) i on conflict do nothing"
        ),
        3 | 4 => {
            format!("update {table} set v = {v}, n = {n} where id between {id} and {id} + {many}")
        }
        5 => format!("update {table} set n = n + 1 where id % 3 = {id} % 3"),
        6 => format!("delete from {table} where id between {id} and {id} + {many}"),
        7 => format!(
            "update {table} set id = {other} where id = {id} and not exists (select from {table} where id = {other})"
        ),
        8 => format!(
            "insert into by_pair select i::text, '{}', {new}, {n} from generate_series({id}, {id} + {many}) i on conflict do nothing",
            draw.of(&["sad", "ok", "happy"])
        ),
        9 => match draw.below(3) {
            0 => format!("update by_pair set v = {v} where a::int > {id}"),
            1 => format!("delete from by_pair where a::int < {id} and b = 'ok'"),
            _ => format!(
                "update by_pair p set b = 'sad' where a = '{id}' and b = 'happy'
                 and not exists (select from by_pair where a = '{id}' and b = 'sad')"
            ),
        },
        10 => format!(
            "update second set u = case id when {id} then {other} else {id} end where id in ({id}, {other})"
        ),
        11 => format!("update second set u = -id where id > {id}"),
        12 => match draw.below(3) {
            0 => format!(
                "insert into image select {id} % 5, {new}, {n} from generate_series(1, {many})"
            ),
            1 => format!(
                "delete from image where ctid in (select ctid from image where id = {id} % 5 limit {many})"
            ),
            _ => format!(
                "update image set n = {n}, v = {v} where ctid in (select ctid from image where id = {id} % 5 limit 3)"
            ),
        },
        13 => format!("insert into plain select {id}, {new} from generate_series(1, {many})"),
        14 => format!("update always set g = default where id = {id}"),
        _ => match draw.below(8) {
            0 => format!("truncate {table}"),
            1 => "truncate plain, by_pair".to_owned(),
            _ => format!("update by_numeric set id = {id}.0 where id = {id}"),
        },
    }
}

/// Statements of one transaction; each in a savepoint of its own, some rolled back.
fn transaction(draw: &mut Draw) -> String {
    let mut text = "begin;".to_owned();
    for _ in 0..draw.below(6) + 1 {
        let undo = draw.below(8) == 0;
        let made = statement(draw).replace('\'', "''");
        // A failed statement is undone by its block, as a savepoint would.
        let raised = if undo { "raise unique_violation;" } else { "" };
        let _ = write!(
            text,
            "do $do$ begin execute '{made}'; {raised} exception when unique_violation or check_violation then null; end $do$;"
        );
    }
    text.push_str("set constraints all immediate; commit");
    text
}

async fn run(seed: u64) {
    println!("SEED={seed}");
    let mut draw = Draw(seed);
    let mut world = World::new(TABLES).await;
    world.lanes = u16::try_from(draw.below(5)).unwrap() + 1;
    for _ in 0..6 {
        for _ in 0..draw.below(60) + 5 {
            let statements = transaction(&mut draw);
            // A swap that stays a violation is refused at its end; nothing of it counts.
            if world.source.batch(&pg::Sql::trusted(statements)).await.is_err() {
                world.write("rollback").await;
            }
        }
        let end = world.capture().await;
        for _ in 0..draw.below(4) {
            let running = world.start(Some(end));
            tokio::time::sleep(std::time::Duration::from_millis(draw.below(60))).await;
            running.stop().await.unwrap();
        }
        world.catch_up().await;
        world.assert_equal();
    }
}

#[tokio::test]
async fn a_random_workload_arrives_equal() {
    let seed = std::env::var("REPLAY_SEED").ok().and_then(|seed| seed.parse().ok());
    run(seed.unwrap_or_else(rand::random)).await;
}

#[tokio::test]
async fn known_seeds_arrive_equal() {
    for seed in [1, 2] {
        run(seed).await;
    }
}
