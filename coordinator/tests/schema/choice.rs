//! What is left out, what is ours, and what a role without superuser can do.

use super::fixture::{EVERY_OBJECT, differences, pair};
use coordinator::schema::{OriginalIdentity, Stage, extension_config_tables};
use pg::TableName;
use proto::v1::Filter;

#[tokio::test]
async fn a_filter_leaves_a_whole_schema_behind_that_can_be_restored() {
    let filter = Filter {
        include_schemas: vec!["app".into(), "public".into()],
        exclude_tables: vec!["app.made_later".into(), "app.measure*".into()],
        leave_out: vec!["comments".into(), "policies".into(), "subscriptions".into()],
        ..Filter::default()
    };
    let pair = pair(EVERY_OBJECT, filter).await;
    pair.schema.roles().await.unwrap();
    // Needed by citext, which is an extension and so in.
    pair.target.psql("app", "create schema \"odd schema\"").unwrap();
    pair.schema.dump(&pair.snapshot, 1).await.unwrap();
    let (archive, not_moved) = pair.schema.archive().await.unwrap();
    // All stages: the later ones are rehearsed.
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    let said = |text: &str| not_moved.iter().any(|line| line == text);
    assert!(said("TABLE app.made_later: left out"), "{not_moved:#?}");
    assert!(said("VIEW app.by_key: left out, since it needs RULE app.by_key _RETURN"));
    assert!(said("SCHEMA odd schema: left out"));
    assert_eq!(pair.on_target("select to_regclass('app.made_later') is null"), "t");
    assert_eq!(pair.on_target("select to_regclass('app.keyless') is null"), "f");
    assert_eq!(
        pair.on_target(
            "select count(*) from pg_description d join pg_class c on c.oid = d.objoid
            where c.relnamespace = 'app'::regnamespace"
        ),
        "0"
    );
}

#[tokio::test]
async fn our_publications_and_identities_do_not_arrive() {
    let source = "create table t (id int primary key); create table k (a int);
        create unique index k_a on k (a); alter table k alter a set not null;
        create table n (a int); alter table n replica identity nothing;
        create publication skein_m_full for table t, k; create publication theirs for table t;
        alter table k replica identity full; alter table n replica identity full";
    let pair = pair(source, Filter::default()).await;
    let archive = pair.archive().await;
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    pair.finish(&archive).await;
    let originals = [
        (TableName::new("public", "k"), OriginalIdentity::Index("k_a".into())),
        (TableName::new("public", "n"), OriginalIdentity::Nothing),
    ];
    for _ in 0..2 {
        pair.schema.replica_identities(&originals).await.unwrap();
    }
    assert_eq!(pair.on_target("select string_agg(pubname, ' ') from pg_publication"), "theirs");
    let identities = "select string_agg(relname || relreplident::text, ' ' order by relname)
        from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace";
    assert_eq!(pair.on_target(identities), "ki nn td");
    let index =
        "select relname from pg_index join pg_class on oid = indexrelid where indisreplident";
    assert_eq!(pair.on_target(index), "k_a");
}

#[tokio::test]
async fn configuration_tables_of_extensions_are_found_with_their_condition() {
    // No extension of Debian's has one: hstore gets one by hand.
    let source = "create extension hstore; create table conf (a int); create sequence conf_seq;
        alter extension hstore add table conf; alter extension hstore add sequence conf_seq;
        update pg_extension set extconfig = array['conf'::regclass, 'conf_seq'::regclass]::oid[],
          extcondition = array['WHERE a > 5', ''] where extname = 'hstore'";
    let pair = pair(source, Filter::default()).await;
    let session = pair.schema.context.source_session("test", 1).await.unwrap();
    let found = extension_config_tables(&session).await.unwrap();
    let all: Vec<_> =
        found.iter().map(|t| (t.name.name.as_str(), t.condition.as_str(), t.sequence)).collect();
    assert_eq!(all, [("conf", "WHERE a > 5", false), ("conf_seq", "", true)]);
    assert!(pair.archive().await.entries.iter().all(|entry| entry.kind != "TABLE"));
}

#[tokio::test]
async fn without_superuser_what_is_refused_is_said_or_named() {
    let source =
        "create role hired login password 'pw'; create role boss superuser login password 'x';
        create role other; grant hired to other;
        grant create on schema public to hired;
        create table t (id int primary key); alter table t owner to hired;
        create table u (id int references t); alter table u owner to hired;
        create publication p for table t; alter database app set work_mem = '5MB';
        alter database app set log_statement = 'none'; select lo_from_bytea(7, 'seven');
        alter large object 7 owner to hired; create subscription s connection 'dbname=x'
        publication p with (connect = false)";
    let mut pair = pair(source, Filter::default()).await;
    pair.target
        .psql(
            "app",
            "create role hired login password 'pw' createrole; alter database app owner to hired;
             alter schema skein owner to hired; grant all on all tables in schema skein to hired;
             grant create on schema public to hired",
        )
        .unwrap();
    pair.hire();
    let roles = pair.schema.roles().await.unwrap();
    let said = |notes: &[String], text: &str| notes.iter().any(|line| line.contains(text));
    assert!(said(&roles, "passwords of roles"), "{roles:#?}");
    assert!(said(&roles, "role \"boss\", superuser: must be superuser"), "{roles:#?}");
    assert!(said(&roles, "roles kept as the target has them: \"postgres\", \"hired\""));
    // Asked again, the same is said.
    assert_eq!(pair.schema.roles().await.unwrap(), roles);
    assert_eq!(pair.on_target("select count(*) from pg_roles where rolname = 'boss'"), "1");

    pair.schema.dump(&pair.snapshot, 1).await.unwrap();
    let (archive, not_moved) = pair.schema.archive().await.unwrap();
    assert!(said(&not_moved, "subscriptions not dumped"), "{not_moved:#?}");
    // The publication belongs to postgres: refused now, not at the cutover.
    let error = pair.schema.restore(Stage::PreData, &archive).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("PUBLICATION p") && text.contains("42501"), "{text}");
    pair.schema.context.spec.filter =
        Some(Filter { leave_out: vec!["publications".into()], ..Filter::default() });
    let (archive, not_moved) = pair.schema.archive().await.unwrap();
    assert!(said(&not_moved, "PUBLICATION p: left out"));
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    let settings = pair.schema.database_settings(Stage::PreData).await.unwrap();
    assert!(said(&settings, "log_statement") && !said(&settings, "work_mem"), "{settings:#?}");
    assert!(pair.schema.large_objects(&pair.snapshot).await.unwrap().is_empty());
    pair.finish(&archive).await;
    let _ = pair.schema.database_settings(Stage::Cutover).await.unwrap();
    let (source, target) = pair.dumps("--schema-only");
    let differences = differences(&source, &target);
    assert!(
        differences.iter().all(|line| line.contains("PUBLICATION") || line.len() < 10),
        "{differences:#?}"
    );
}
