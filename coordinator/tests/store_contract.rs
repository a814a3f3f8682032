//! What every store promises, shown on each of them: the embedded one, etcd with one node, etcd
//! with three.

use coordinator::store::{
    Error, Revision, Shared, Store,
    embedded::Embedded,
    etcd,
    etcd::{
        Etcd as EtcdStore,
        election::{Campaign, Renewal, TTL},
    },
};
use loadtest::cluster::{
    certificate::Authority,
    etcd::{Etcd, Options},
};
use proto::authorization::Secret;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// What must be back after an election, on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn on(server: &Etcd) -> Shared {
    let options = etcd::Options {
        endpoints: server.endpoints(),
        prefix: "/skein/test".into(),
        ..etcd::Options::default()
    };
    Arc::new(EtcdStore::new(options))
}

/// The contract. `store` is empty.
async fn keeps_the_contract(store: &Shared) {
    a_key_is_made_once(store).await;
    of_writers_at_one_revision_one_wins(store).await;
    a_deletion_wants_the_revision_too(store).await;
    a_list_is_in_order_and_of_its_prefix_alone(store).await;
}

async fn a_key_is_made_once(store: &Shared) {
    assert_eq!(store.get("/made").await.unwrap(), None);
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let store = Shared::clone(store);
        writers.spawn(async move {
            store.put_if("/made", format!("{writer}").into_bytes(), None).await
        });
    }
    let ended = writers.join_all().await;
    assert_eq!(ended.iter().filter(|ended| ended.is_ok()).count(), 1, "{ended:?}");
    assert!(ended.iter().all(|ended| matches!(ended, Ok(_) | Err(Error::Conflict { .. }))));
}

async fn of_writers_at_one_revision_one_wins(store: &Shared) {
    let mut revision = store.put_if("/raced", b"0".to_vec(), None).await.unwrap();
    for round in 0..10 {
        let mut writers = JoinSet::new();
        for writer in 0..6 {
            let store = Shared::clone(store);
            writers.spawn(async move {
                let value = format!("{round}/{writer}").into_bytes();
                let ended = store.put_if("/raced", value.clone(), Some(revision)).await;
                (value, ended)
            });
        }
        let won: Vec<(Vec<u8>, Revision)> = writers
            .join_all()
            .await
            .into_iter()
            .filter_map(|(value, ended)| Some((value, ended.ok()?)))
            .collect();
        assert_eq!(won.len(), 1, "round {round}: {won:?}");
        let there = store.get("/raced").await.unwrap().unwrap();
        assert_eq!((there.value, there.revision), won[0].clone(), "round {round}");
        assert!(there.revision.0 > revision.0);
        revision = there.revision;
    }
}

async fn a_deletion_wants_the_revision_too(store: &Shared) {
    let old = store.put_if("/dropped", b"1".to_vec(), None).await.unwrap();
    let new = store.put_if("/dropped", b"2".to_vec(), Some(old)).await.unwrap();
    assert!(matches!(store.delete_if("/dropped", old).await, Err(Error::Conflict { .. })));
    store.delete_if("/dropped", new).await.unwrap();
    assert_eq!(store.get("/dropped").await.unwrap(), None);
    assert!(matches!(store.delete_if("/dropped", new).await, Err(Error::Conflict { .. })));
    let stale = store.put_if("/dropped", b"3".to_vec(), Some(new)).await;
    assert!(matches!(stale, Err(Error::Conflict { .. })));
}

/// More of them than one page of etcd's answers.
async fn a_list_is_in_order_and_of_its_prefix_alone(store: &Shared) {
    let mut names: Vec<String> = (0..70).map(|number| format!("/listed/{number:03}")).collect();
    for name in names.iter().rev() {
        store.put_if(name, name.clone().into_bytes(), None).await.unwrap();
    }
    store.put_if("/listed0", b"behind".to_vec(), None).await.unwrap();
    store.put_if("/liste", b"before".to_vec(), None).await.unwrap();
    let listed = store.list("/listed/").await.unwrap();
    for (name, there) in &listed {
        assert_eq!(name.as_bytes(), there.value);
        assert_eq!(store.get(name).await.unwrap().as_ref(), Some(there));
    }
    names.sort();
    assert_eq!(listed.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
}

/// Reads until the store answers again.
async fn answers(store: &Shared, key: &str) -> Vec<u8> {
    let begun = Instant::now();
    loop {
        match store.get(key).await {
            Ok(found) => return found.unwrap().value,
            Err(error) => assert!(begun.elapsed() < DEADLINE, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    {
        let store: Shared = Arc::new(Embedded::open(&path).unwrap());
        keeps_the_contract(&store).await;
    }
    let store: Shared = Arc::new(Embedded::open(&path).unwrap());
    assert!(store.get("/raced").await.unwrap().unwrap().value.starts_with(b"9/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract_and_what_was_written_survives_its_kill() {
    let Some(mut server) = Etcd::start(&Options::default()).unwrap() else { return };
    let store = on(&server);
    keeps_the_contract(&store).await;
    let before = store.list("/").await.unwrap();
    server.kill9(0);
    server.restart(0).unwrap();
    answers(&store, "/raced").await;
    assert_eq!(store.list("/").await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_keep_the_contract_and_lose_their_leader_without_losing_a_write() {
    let Some(mut server) = Etcd::start(&Options { nodes: 3, tls: None }).unwrap() else { return };
    let store = on(&server);
    keeps_the_contract(&store).await;

    let mut revision = store.put_if("/counted", b"0".to_vec(), None).await.unwrap();
    let leader = server.leader().expect("a cluster that answers has a leader");
    server.kill9(leader);
    let begun = Instant::now();
    for count in 1..=20_u32 {
        // Writes go on through the election: each is tried until it is answered.
        revision = loop {
            match store.put_if("/counted", count.to_string().into_bytes(), Some(revision)).await {
                Ok(revision) => break revision,
                Err(Error::Unusable { .. }) if begun.elapsed() < DEADLINE => {}
                Err(error) => panic!("write {count}: {error}"),
            }
        };
        if count == 1 {
            println!(
                "etcd's leader killed: first write {:.1} s later",
                begun.elapsed().as_secs_f64()
            );
        }
    }
    assert_eq!(answers(&store, "/counted").await, b"20");
    server.restart(leader).unwrap();

    // A leader that stands still is no different from one that is gone.
    let leader = server.leader().expect("a cluster that answers has a leader");
    server.pause(leader);
    let begun = Instant::now();
    let written = loop {
        match store.put_if("/counted", b"21".to_vec(), Some(revision)).await {
            Ok(_) => break begun.elapsed(),
            Err(Error::Unusable { .. }) if begun.elapsed() < DEADLINE => {}
            Err(error) => panic!("{error}"),
        }
    };
    println!("etcd's leader stopped: write {:.1} s later", written.as_secs_f64());
    server.go_on(leader);
    assert_eq!(answers(&store, "/counted").await, b"21");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_gone_is_said_within_the_deadline_and_a_lost_answer_is_resolved() {
    let Some(mut server) = Etcd::start(&Options::default()).unwrap() else { return };
    let store = on(&server);
    let first = store.put_if("/kept", b"1".to_vec(), None).await.unwrap();
    // The connection takes the request and nobody answers: it may be carried out later.
    server.pause(0);
    let begun = Instant::now();
    let lost = store.put_if("/kept", b"2".to_vec(), Some(first)).await.unwrap_err();
    assert!(matches!(lost, Error::Unusable { .. }), "{lost}");
    assert!(begun.elapsed() < etcd::DEADLINE + Duration::from_secs(5), "{:?}", begun.elapsed());
    server.go_on(0);
    // Another value by the same owner, who never heard of revision 2.
    let begun = Instant::now();
    let second = loop {
        match store.put_if("/kept", b"3".to_vec(), Some(first)).await {
            Ok(revision) => break revision,
            Err(Error::Unusable { .. }) if begun.elapsed() < DEADLINE => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert!(second.0 > first.0);
    assert_eq!(answers(&store, "/kept").await, b"3");
    server.kill9(0);
    assert!(matches!(store.get("/kept").await, Err(Error::Unusable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_wants_the_right_password() {
    let Some(server) = Etcd::start(&Options::default()).unwrap() else { return };
    server.require_password("right-password").unwrap();
    let with = |password: Option<&str>| {
        EtcdStore::new(etcd::Options {
            endpoints: server.endpoints(),
            prefix: "/skein/test".into(),
            user: password.map(|password| ("root".to_owned(), Secret::new(password))),
            ..etcd::Options::default()
        })
    };
    for refused in [with(None), with(Some("wrong-password"))] {
        let error = refused.get("/k").await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(!format!("{error:?}").contains("wrong-password"));
    }
    with(Some("right-password")).put_if("/k", b"v".to_vec(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_behind_tls_wants_the_right_certificates() {
    let authority = Authority::new().unwrap();
    authority.issue("etcd", "IP:127.0.0.1").unwrap();
    authority.issue("skein", "DNS:skein").unwrap();
    let tls =
        Some((authority.path("etcd.crt"), authority.path("etcd.key"), authority.path("root.crt")));
    let Some(server) = Etcd::start(&Options { nodes: 1, tls }).unwrap() else { return };
    let read = |authority: &Authority, name: &str| std::fs::read(authority.path(name)).unwrap();
    let identity = || {
        let key = String::from_utf8(read(&authority, "skein.key")).unwrap();
        Some((read(&authority, "skein.crt"), Secret::new(key)))
    };
    let with = |ca_pem, identity| {
        EtcdStore::new(etcd::Options {
            endpoints: server.endpoints(),
            prefix: "/skein/test".into(),
            ca_pem: Some(ca_pem),
            identity,
            ..etcd::Options::default()
        })
    };
    let store: Shared = Arc::new(with(read(&authority, "root.crt"), identity()));
    keeps_the_contract(&store).await;
    let other = Authority::new().unwrap();
    assert!(with(read(&other, "root.crt"), identity()).get("/k").await.is_err());
    assert!(with(read(&authority, "root.crt"), None).get("/k").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_leads_until_it_resigns_or_falls_silent() {
    let Some(server) = Etcd::start(&Options::default()).unwrap() else { return };
    let of = || {
        EtcdStore::new(etcd::Options {
            endpoints: server.endpoints(),
            prefix: "/skein/test".into(),
            ..etcd::Options::default()
        })
    };
    let (one, two) = (of(), of());
    assert_eq!(one.leader().await.unwrap(), None);
    let Campaign::Won { lease, .. } = one.campaign("https://one").await.unwrap() else {
        panic!("nobody else campaigned")
    };
    let lost = two.campaign("https://two").await.unwrap();
    assert_eq!(lost, Campaign::Lost { leader: "https://one".into() });
    assert!(matches!(one.renew(lease).await.unwrap(), Renewal::Until(_)));
    one.resign(lease).await;
    assert_eq!(one.renew(lease).await.unwrap(), Renewal::Gone);

    // Two takes over, and is never heard of again.
    let Campaign::Won { lease, .. } = two.campaign("https://two").await.unwrap() else {
        panic!("one resigned")
    };
    let silent_since = Instant::now();
    while one.leader().await.unwrap().is_some() {
        assert!(silent_since.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(silent_since.elapsed() + Duration::from_secs(1) > TTL, "{silent_since:?}");
    assert_eq!(two.renew(lease).await.unwrap(), Renewal::Gone);
    assert!(matches!(one.campaign("https://one").await.unwrap(), Campaign::Won { .. }));
}
