//! What goes in comes out.

use super::fixture::{EVERY_OBJECT, Pair, differences, dump_of, pair, pair_of, source};
use coordinator::schema::{OriginalIdentity, Stage};
use loadtest::cluster::postgres::Postgres;
use pg::TableName;
use proto::v1::Filter;

#[tokio::test]
async fn every_object_arrives_as_it_was() {
    every_object_arrives(&pair(EVERY_OBJECT, Filter::default()).await).await;
}

#[tokio::test]
async fn every_object_arrives_on_a_newer_server() {
    let Some(target) = Postgres::builder().major(17).start_or_skip().unwrap() else { return };
    let source = source(15, EVERY_OBJECT).unwrap();
    every_object_arrives(&pair_of(source, target, Filter::default()).await).await;
}

#[tokio::test]
async fn every_object_of_17_arrives_on_17() {
    let Some(target) = Postgres::builder().major(17).start_or_skip().unwrap() else { return };
    let source = source(17, EVERY_OBJECT).unwrap();
    every_object_arrives(&pair_of(source, target, Filter::default()).await).await;
}

async fn every_object_arrives(pair: &Pair) {
    let kept = pair.schema.roles().await.unwrap();
    assert_eq!(kept, ["roles kept as the target has them: \"postgres\""]);
    let archive = pair.archive().await;
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    pair.schema.large_objects(&pair.snapshot).await.unwrap();
    assert!(pair.schema.database_settings(Stage::PreData).await.unwrap().is_empty());
    let unset = "select count(*) from pg_db_role_setting";
    assert_eq!(pair.target.psql("app", unset).unwrap(), "2");
    pair.finish(&archive).await;
    pair.source.psql("app", "alter database app set default_transaction_read_only = on").unwrap();
    assert!(pair.schema.database_settings(Stage::Cutover).await.unwrap().is_empty());
    pair.source
        .psql(
            "app",
            "begin read write; alter database app reset default_transaction_read_only; commit",
        )
        .unwrap();
    let (mut source, target) = pair.dumps("--schema-only");
    assert!(source.lines().count() > 1000);
    if pair.source.major() != pair.target.major() {
        // Versions print views differently: compare with what pg_dump and psql bring about.
        pair.target.psql("postgres", "create database plain").unwrap();
        pair.target
            .psql("plain", &dump_of(&pair.source, &pair.source, "app", "--schema-only"))
            .unwrap();
        source = dump_of(&pair.target, &pair.target, "plain", "--schema-only");
    }
    assert_eq!(differences(&source, &target), Vec::<String>::new());
    assert_eq!(large_objects(&pair.source), large_objects(&pair.target));
    assert_eq!(roles(&pair.source), roles(&pair.target));
    let unfinished = "select count(*) from pg_constraint where contype = 'f' and conparentid = 0
        and conrelid in (select inhrelid from pg_inherits)";
    assert_eq!(
        pair.target.psql("app", unfinished).unwrap(),
        "0",
        "the root adopts its leaves' keys"
    );
    let subscription = "select subname, subenabled, subslotname is null from pg_subscription";
    assert_eq!(pair.target.psql("app", subscription).unwrap(), "every_subscription|f|t");
}

/// Roles and the database, from the catalogs.
fn roles(server: &Postgres) -> String {
    server
        .psql(
            "app",
            "select r.rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin,
                    rolreplication, rolbypassrls, rolconnlimit, rolvaliduntil, rolpassword,
                    shobj_description(r.oid, 'pg_authid')
             from pg_authid r where rolname !~ '^pg_' order by 1;
             select roleid::regrole::text, member::regrole::text, admin_option from pg_auth_members
             order by 1, 2;
             select setrole::regrole::text, setdatabase = 0, setconfig from pg_db_role_setting
             order by 1, 2;
             select datdba::regrole, (select array_agg(a::text order by a::text) from unnest(datacl) a),
                    datconnlimit, shobj_description(oid, 'pg_database')
             from pg_database where datname = 'app'",
        )
        .unwrap()
}

fn large_objects(server: &Postgres) -> String {
    server
        .psql(
            "app",
            "select oid, lomowner::regrole, lomacl, md5(lo_get(oid)),
                    obj_description(oid, 'pg_largeobject')
             from pg_largeobject_metadata order by oid",
        )
        .unwrap()
}

#[tokio::test]
async fn large_objects_are_brought_up_to_date_at_cutover() {
    let pair = pair(EVERY_OBJECT, Filter::default()).await;
    pair.schema.roles().await.unwrap();
    pair.schema.large_objects(&pair.snapshot).await.unwrap();
    // Twice is once.
    pair.schema.large_objects(&pair.snapshot).await.unwrap();
    assert_eq!(large_objects(&pair.source), large_objects(&pair.target));
    pair.source
        .psql(
            "app",
            "select lo_unlink(770002); select lo_from_bytea(5, repeat('x', 3000000)::bytea);
             select lo_put(770003, 1, 'new'); revoke select on large object 770001 from every_reader;
             select lo_create(4000000000); comment on large object 5 is 'five'",
        )
        .unwrap();
    assert_ne!(large_objects(&pair.source), large_objects(&pair.target));
    for _ in 0..2 {
        pair.schema.sync_large_objects().await.unwrap();
        let bytes = |text: String| text.replace("{every_owner=rw/every_owner}", "");
        assert_eq!(bytes(large_objects(&pair.source)), bytes(large_objects(&pair.target)));
    }
}

#[tokio::test]
async fn an_event_trigger_that_arrived_does_not_stop_what_comes_after_it() {
    let source = "create table t (id int primary key); create table u (a int references t);
        create table k (a int not null); create unique index k_a on k (a);
        create function no() returns event_trigger language plpgsql
          as $$ begin raise exception 'no DDL here'; end $$;
        create event trigger no on ddl_command_start execute function no();";
    let pair = pair(source, Filter::default()).await;
    let archive = pair.archive().await;
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    pair.finish(&archive).await;
    let original = OriginalIdentity::Index("k_a".to_owned());
    let originals = [(TableName::new("public", "k"), original)];
    pair.schema.replica_identities(&originals).await.unwrap();
    pair.schema.sync_large_objects().await.unwrap();
    assert_eq!(pair.on_target("select evtenabled from pg_event_trigger"), "O");
    assert_eq!(pair.on_target("select convalidated from pg_constraint where contype = 'f'"), "t");
}

#[tokio::test]
async fn names_of_another_encoding_arrive() {
    let source = Postgres::builder().start().unwrap();
    let latin = "create database app encoding 'LATIN1' template template0 lc_collate 'C'
        lc_ctype 'C'";
    source.psql("postgres", latin).unwrap();
    let made = "set client_encoding = 'UTF8'; create role \"françois\";
        create table \"été\" (id int primary key, \"garçon\" text default 'ü');
        comment on table \"été\" is 'l''été'; alter table \"été\" owner to \"françois\"";
    source.psql("app", made).unwrap();
    let target = Postgres::builder().start().unwrap();
    let pair = pair_of(source, target, Filter::default()).await;
    pair.schema.roles().await.unwrap();
    let archive = pair.archive().await;
    pair.schema.restore(Stage::PreData, &archive).await.unwrap();
    let found = "set client_encoding = 'UTF8'; select tablename, tableowner,
        obj_description(format('%I', tablename)::regclass) from pg_tables
        where schemaname = 'public'";
    assert_eq!(pair.on_target(found), pair.source.psql("app", found).unwrap());
    assert!(pair.on_target(found).contains("françois"));
}
