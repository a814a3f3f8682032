//! Every type and every kind of table, copied and replayed.

use crate::scenario::{DEADLINE, NAME, Scenario};
use loadtest::cluster::postgres::{Builder, Postgres};

const TABLES: &str = include_str!("../sql/every_type.sql");
const CHANGES: &str = include_str!("../sql/every_type_changes.sql");

/// Types of the server that no column can have, or no value was made for.
const WITHOUT_VALUES: &str = "select string_agg(typname, ' ' order by typname) from pg_type t
  where typtype in ('b', 'r', 'm') and typcategory <> 'A' and typnamespace = 'pg_catalog'::regnamespace
    and typname not in ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list',
      'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'gtsvector')
    and not exists (select from types.value v where v.type::regtype = t.oid)";

fn every_type_moves(source: Builder, target: Builder) {
    let Some(scenario) = Scenario::between(source, target) else { return };
    scenario.source.psql("shop", TABLES).unwrap();
    assert_eq!(scenario.source.psql("shop", WITHOUT_VALUES).unwrap(), "", "types without a value");
    let mut migrate = scenario.migrate(&[
        "--replica-identity",
        "full",
        "--cutover",
        "manual",
        "--until",
        "ready",
    ]);
    let status = migrate.wait(DEADLINE).unwrap();
    assert!(status.success(), "{}\n{}", migrate.output(), scenario.run.logs());
    scenario.source.psql("shop", CHANGES).unwrap();
    let finished = scenario.skein(&["cutover", NAME]);
    assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, scenario.run.logs());
    scenario.wait_for_phase(&["done"]);
    // An enum's hash is its OID's, which differs: rows lie in other partitions of the same root.
    let by_root = ["enum_0", "enum_1"].map(|name| pg::TableName::new("part", name));
    let scope = loadtest::check::Scope { except_tables: by_root.into(), ..Default::default() };
    let comparison = scenario.compare(&scope);
    assert!(comparison.is_equal(), "{comparison}\n{}", scenario.run.logs());
    let verified = scenario.json(&["verify", NAME]);
    assert_eq!(verified["summary"]["different"], 0, "{verified:#}");
    assert_eq!(verified["summary"]["failed"], 0, "{verified:#}");
}

#[test]
fn every_type_and_every_kind_of_table_arrives_equal() {
    every_type_moves(Postgres::builder(), Postgres::builder());
}

#[test]
fn every_type_arrives_equal_from_15_to_17() {
    every_type_moves(Postgres::builder(), Postgres::builder().major(17));
}
