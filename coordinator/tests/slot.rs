//! The slot: what it shows, what it waits for, who may be ended for it.

use crate::stand::{DEADLINE, Stand, each_version, until};
use coordinator::source::{self, slot};
use loadtest::cluster::postgres::Postgres;
use pg::{
    PgLsn, SessionName,
    walsender::{PgoutputOptions, SlotFailover, SlotLifetime, Walsender},
};

async fn walsender(stand: &Stand, name: &SessionName) -> Walsender {
    Walsender::connect(&stand.context.source, name, "UTF8").await.unwrap()
}

async fn streaming(stand: &Stand, name: &SessionName) -> pg::walsender::ReplicationStream {
    let options = PgoutputOptions::new(["skein_m_full"]);
    walsender(stand, name)
        .await
        .start_replication("skein_m", PgLsn::from(0), &options)
        .await
        .unwrap()
}

#[tokio::test]
async fn our_own_walsender_is_ended_for_the_drop_and_a_stranger_s_is_not() {
    for stand in each_version(Postgres::builder) {
        stand.psql("create publication skein_m_full");
        let session = stand.session("teardown").await;
        assert_eq!(slot::inspect(&session, "skein_m").await.unwrap(), None);
        slot::drop(&session, "skein_m", "skein/m/").await.unwrap();

        let ours = stand.context.session_name("receive", 1);
        let created = walsender(&stand, &ours)
            .await
            .create_slot("skein_m", SlotLifetime::Permanent, SlotFailover::Off)
            .await
            .unwrap();
        let state = slot::inspect(&session, "skein_m").await.unwrap().unwrap();
        assert_eq!(state.plugin.as_deref(), Some("pgoutput"));
        assert_eq!(state.database.as_deref(), Some("postgres"));
        assert_eq!(state.confirmed_flush_lsn, Some(created.consistent_point));
        assert_eq!((state.temporary, state.invalidation), (false, None));
        assert_eq!(state.wal_status.as_deref(), Some("reserved"));

        let stranger = SessionName::of_role("x");
        let stream = streaming(&stand, &stranger).await;
        let error = slot::drop(&session, "skein_m", "skein/m/").await.unwrap_err();
        assert!(matches!(error, source::Error::SlotInUse { .. }), "{error:?}");
        drop(stream);
        until("the free slot", async || {
            !slot::inspect(&session, "skein_m").await.unwrap().unwrap().is_active()
        })
        .await;

        let _stream = streaming(&stand, &ours).await;
        until("the active slot", async || {
            slot::inspect(&session, "skein_m").await.unwrap().unwrap().is_active()
        })
        .await;
        slot::drop(&session, "skein_m", "skein/m/").await.unwrap();
        assert_eq!(slot::inspect(&session, "skein_m").await.unwrap(), None);
    }
}

#[tokio::test]
async fn what_a_slot_waits_for_is_named_prepared_transactions_too() {
    for stand in each_version(Postgres::builder) {
        stand.psql("create table t (id int)");
        let writer = stand.stranger().await;
        writer.batch(&"begin; insert into t values (1)".into()).await.unwrap();
        let reader = stand.stranger().await;
        reader
            .batch(&"begin isolation level repeatable read; select * from t".into())
            .await
            .unwrap();
        stand.psql("begin; insert into t values (2); prepare transaction 'it''s pending'");

        let name = stand.context.session_name("receive", 1);
        let mut creating = walsender(&stand, &name).await;
        let slot = creating.create_slot("skein_m", SlotLifetime::Temporary, SlotFailover::Off);
        let watched = async {
            let session = stand.session("watch").await;
            let blockers = slot::blockers(&session).await.unwrap();
            let pids: Vec<_> = blockers.iter().filter_map(|one| one.pid).collect();
            let gids: Vec<_> = blockers.iter().filter_map(|one| one.gid.clone()).collect();
            assert_eq!(pids, [writer.backend_pid()]);
            assert_eq!(gids, ["it's pending"]);
            assert!(blockers.iter().all(|one| one.xid.is_some()));
            let text = blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert!(text.contains("prepared transaction 'it's pending', transaction "), "{text}");
            assert!(slot::oldest_transaction(&session).await.unwrap().is_some());
            until("the slot that waits", async || {
                slot::inspect(&session, "skein_m").await.unwrap().is_some()
            })
            .await;
            writer.batch(&"rollback".into()).await.unwrap();
            stand.psql("rollback prepared 'it''s pending'");
            assert_eq!(slot::blockers(&session).await.unwrap(), []);
        };
        let both = async { tokio::join!(slot, watched) };
        let (created, ()) = tokio::time::timeout(DEADLINE, both).await.unwrap();
        created.unwrap();
    }
}

#[tokio::test]
async fn an_index_built_concurrently_is_seen_to_wait_for_our_snapshot() {
    for stand in each_version(Postgres::builder) {
        stand.psql("create table t (id int)");
        let holder = stand.session("holder").await;
        holder
            .batch(
                &"begin isolation level repeatable read; select 1; select pg_export_snapshot()"
                    .into(),
            )
            .await
            .unwrap();
        let builder = stand.stranger().await;
        let build_sql = "create index concurrently on t (id)".into();
        let build = builder.batch(&build_sql);
        let watched = async {
            let session = stand.session("watch").await;
            until("the waiting build", async || {
                let waiting = slot::waiting_for_us(&session, "skein/m/").await.unwrap();
                waiting.len() == 1 && waiting[0].contains(&builder.backend_pid().to_string())
            })
            .await;
            assert!(slot::waiting_for_us(&session, "skein/n/").await.unwrap().is_empty());
            holder.batch(&"commit".into()).await.unwrap();
        };
        let (built, ()) = tokio::join!(build, watched);
        built.unwrap();
    }
}
