//! Attempts: killed anywhere and gone on with, lifted at the deadline, opened or lifted.

use super::{Outcome, Script, World, request};
use coordinator::{
    filter::Filter,
    migration::cutover::{self, Cutover, Lifted, Request, attempt, attempt::Move, fence},
};
use pg::{TableName, sql};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

fn fenced(world: &World) -> bool {
    world.settings().contains("default_transaction_read_only=on")
}

#[tokio::test]
async fn the_steps_run_in_order_and_the_source_stays_fenced() {
    let world = World::new().await;
    for database in ["src", "tgt"] {
        world.server.psql(database, "create sequence s").unwrap();
    }
    world.server.psql("src", "select setval('s', 7)").unwrap();
    let script = Script::default();
    let Outcome::Opened(opened) = world.cut_over(request(1), script.clone()).await else {
        panic!("not opened")
    };
    let steps: Vec<&str> = opened.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["fence", "drain", "sequences", "restore", "open"]);
    assert!(opened.writes_stopped_s > 0.0 && opened.writes_stopped_s < 20.0);
    let drain = format!("drain {}", opened.end_position);
    let expected = ["check", "fence", "drain", &drain, "sequences", "restore", "restore", "open"];
    assert_eq!(script.calls(), expected);
    assert_eq!(world.state(), "1 opened");
    assert_eq!(world.server.psql("tgt", "select last_value from s").unwrap(), "7");
    assert!(fenced(&world));
    // Run again by another coordinator: the same answer, and nothing is done.
    let again = Script::default();
    let Outcome::Opened(same) = world.cut_over(request(1), again.clone()).await else {
        panic!("not opened")
    };
    assert_eq!((same, again.calls().len()), (opened.clone(), 0));
    // Lifting has lost.
    let (source, target) = (world.source().await, world.target().await);
    let lifted = cutover::lift(&source, &target, &world.context).await.unwrap();
    assert_eq!(lifted, Lifted::TargetIsOpen);
    assert!(fenced(&world));
    world.server.psql("src", &opened.unfence_sql).unwrap();
    assert!(!fenced(&world));
}

#[tokio::test]
async fn without_a_fence_nothing_is_set_and_no_session_ends() {
    let world = World::new().await;
    let settings = world.settings();
    let application = world.application("").await.unwrap();
    let request = Request { fence: false, ..request(1) };
    let outcome = world.cut_over(request, Script::default()).await;
    let Outcome::Opened(opened) = outcome else { panic!("{outcome:?}") };
    assert_eq!((world.settings(), opened.unfence_sql.as_str()), (settings, ""));
    application.batch(&sql!("create table t ()")).await.unwrap();
}

#[tokio::test]
async fn a_fence_that_does_not_lead_to_an_open_target_is_lifted() {
    let world = World::new().await;
    let settings = world.settings();
    let script = Script { drains: false, ..Script::default() };
    let hasty = Request { timeout: Duration::from_secs(2), ..request(1) };
    let Outcome::NotOpened { cause } = world.cut_over(hasty, script).await else {
        panic!("opened")
    };
    assert_eq!(cause.reason, "CUTOVER_TIMED_OUT");
    assert!(cause.primary.contains("\"drain\""), "{}", cause.primary);
    assert_eq!((world.settings(), world.state()), (settings.clone(), "1 lifted".to_owned()));

    // A number is used once; the next attempt fails while restoring, which is taken back.
    let Outcome::NotOpened { cause } = world.cut_over(request(1), Script::default()).await else {
        panic!("opened")
    };
    assert_eq!(cause.reason, "CUTOVER_LIFTED");
    let script = Script { restores: false, ..Script::default() };
    let Outcome::NotOpened { cause } = world.cut_over(request(2), script.clone()).await else {
        panic!("opened")
    };
    assert_eq!((cause.reason.as_str(), script.calls().last().unwrap().as_str()), ("NO", "undo"));
    assert_eq!((world.settings(), world.state()), (settings.clone(), "2 lifted".to_owned()));

    // A late write is seen before opening: nothing is lost, replication goes on.
    let late = vec![(TableName::new("public", "t"), 3)];
    let script = Script { late, ..Script::default() };
    let Outcome::NotOpened { cause } = world.cut_over(request(3), script).await else {
        panic!("opened")
    };
    assert_eq!(cause.reason, "LATE_WRITE");
    assert!(cause.detail.contains("\"public\".\"t\" (3 changes)"), "{}", cause.detail);
    assert_eq!((world.settings(), world.state()), (settings, "3 lifted".to_owned()));
    assert!(matches!(world.cut_over(request(4), Script::default()).await, Outcome::Opened(_)));
}

#[tokio::test]
async fn a_fence_that_a_person_lifted_is_not_opened_over() {
    let world = World::new().await;
    let script = Script { drains: false, ..Script::default() };
    let mut step = script.steps.subscribe();
    let first = async {
        tokio::select! {
            outcome = world.cut_over(request(1), script.clone()) => panic!("{outcome:?}"),
            found = step.wait_for(|step| *step == "drain") => { found.unwrap(); }
        }
    };
    first.await;
    assert!(fenced(&world));
    let (source, target) = (world.source().await, world.target().await);
    let timeout = Duration::from_secs(5);
    let by_hand = cutover::lift_by_hand(&source, &target, &world.context, timeout).await.unwrap();
    assert!(by_hand.remaining > timeout, "the attempt's, not another one's");
    world.server.psql("src", &by_hand.sql).unwrap();
    assert!(!fenced(&world));
    let outcome = world.cut_over(request(1), Script::default()).await;
    let Outcome::NotOpened { cause } = outcome else { panic!("{outcome:?}") };
    assert_eq!(cause.reason, "FENCE_LIFTED_BY_HAND");
    assert_eq!(world.state(), "1 lifted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fence_that_nobody_runs_is_lifted_at_its_deadline() {
    let world = World::new().await;
    let settings = world.settings();
    for (number, timeout) in [(1, 1), (2, 60)] {
        let script = Script { drains: false, ..Script::default() };
        let mut step = script.steps.subscribe();
        let request = Request { timeout: Duration::from_secs(timeout), ..request(number) };
        tokio::select! {
            outcome = world.cut_over(request.clone(), script.clone()) => panic!("{outcome:?}"),
            found = step.wait_for(|step| *step == "drain") => { found.unwrap(); }
        }
        assert!(fenced(&world));
        let filter = Filter::default();
        let cutover = Cutover::new(&world.context, &filter, request, Script::default());
        if number == 1 {
            // paused: somebody looks now and then
            while fenced(&world) {
                cutover::lift_overdue(&world.context).await.unwrap();
            }
            assert_eq!(world.state(), "1 lifting");
            let outcome = cutover.run().await.unwrap();
            assert!(matches!(outcome, Outcome::NotOpened { .. }), "{outcome:?}");
        } else {
            // stopped at a fault before its time
            cutover::lift_overdue(&world.context).await.unwrap();
            assert!(fenced(&world));
            let cause = proto::status::Report::definite("STOPPED", "stopped");
            let outcome = cutover.give_up(cause.clone()).await.unwrap();
            let Outcome::NotOpened { cause: told } = outcome else { panic!("opened") };
            assert_eq!(told, cause);
        }
        assert_eq!(
            (world.settings(), world.state()),
            (settings.clone(), format!("{number} lifted"))
        );
    }
}

/// Polls `future` so many times, then drops it: what a kill does to a process.
async fn killed_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

// Two threads: psql blocks this one, and dropped sessions are closed by the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn killed_anywhere_another_coordinator_opens_it_or_lifts_it() {
    let mut world = World::new().await;
    world
        .server
        .psql(
            "src",
            "create sequence s; create role app superuser;
             alter role app in database src set default_transaction_read_only = off",
        )
        .unwrap();
    world.server.psql("tgt", "create sequence s").unwrap();
    let settings = world.settings();
    let filter = Filter::default();
    let mut number = 0;
    let mut kills = [0, 0];
    // Some dozens of places over the whole run, each once to go on and once too late for it.
    let stride = 5;
    for polls in (1..).step_by(stride) {
        let mut finished = false;
        for overdue in [false, true] {
            number += 1;
            let run = Cutover::new(&world.context, &filter, request(number), Script::default());
            let done = killed_after(polls, run.run()).await;
            finished = done.is_some();
            if !finished {
                kills[usize::from(overdue)] += 1;
            }
            let state = world.state();
            world.take_over();
            if overdue {
                let past = "update skein.migration set cutover_deadline = '2020-01-01'";
                world.server.psql("tgt", past).unwrap();
            }
            let outcome = world.cut_over(request(number), Script::default()).await;
            match outcome {
                Outcome::Opened(opened) => {
                    assert!(!overdue || state.ends_with("opened") || !state.ends_with("fenced"));
                    assert!(fenced(&world), "{polls}");
                    world.server.psql("src", &opened.unfence_sql).unwrap();
                }
                Outcome::NotOpened { cause } => {
                    assert!(overdue && state.ends_with("fenced"), "{polls} {state} {cause:?}");
                }
            }
            assert_eq!(world.settings(), settings, "killed after {polls} polls");
            let again = "update skein.migration set cutover_state = 'lifted'";
            world.server.psql("tgt", again).unwrap();
        }
        if finished {
            break;
        }
    }
    println!("killed {kills:?} times");
    assert!(kills[0] > 8, "{kills:?}");
}

#[tokio::test]
async fn of_lifting_and_opening_exactly_one_wins() {
    let world = World::new().await;
    let (source, target) = (world.source().await, world.target().await);
    let other = world.target().await;
    let mut opened = 0;
    for number in 1..=30_u32 {
        let before = fence::read_before(&source, true).await.unwrap();
        let timeout = Duration::from_secs(30);
        attempt::begin(&target, 1, number, timeout, &before).await.unwrap();
        attempt::fix_end_position(&target, 1, number, 5.into()).await.unwrap();
        let early = number % 2 == 0;
        let (open, lift) = tokio::join!(
            async {
                if early {
                    tokio::task::yield_now().await;
                }
                attempt::advance(&other, 1, number, Move::Open).await
            },
            cutover::lift(&source, &target, &world.context),
        );
        let lift = lift.unwrap();
        match open {
            Ok(()) => {
                assert_eq!(
                    (lift, world.state()),
                    (Lifted::TargetIsOpen, format!("{number} opened"))
                );
                opened += 1;
            }
            Err(_) => {
                assert_eq!((lift, world.state()), (Lifted::Done, format!("{number} lifting")));
            }
        }
        world.server.psql("tgt", "update skein.migration set cutover_state = 'lifted'").unwrap();
    }
    println!("opened {opened} of 30");
}

#[tokio::test]
async fn an_end_position_is_fixed_once_and_only_by_the_newest_epoch() {
    let mut world = World::new().await;
    let target = world.target().await;
    let before = fence::Before::default();
    attempt::begin(&target, 1, 1, Duration::from_secs(30), &before).await.unwrap();
    assert!(attempt::begin(&target, 1, 1, Duration::from_secs(30), &before).await.is_err());
    assert!(attempt::begin(&target, 1, 2, Duration::from_secs(30), &before).await.is_err());
    assert!(attempt::advance(&target, 1, 1, Move::Open).await.is_err(), "no end position yet");
    assert_eq!(attempt::fix_end_position(&target, 1, 1, 7.into()).await.unwrap(), 7.into());
    assert_eq!(attempt::fix_end_position(&target, 1, 1, 9.into()).await.unwrap(), 7.into());
    world.take_over();
    for stale in [
        attempt::fix_end_position(&target, 1, 1, 9.into()).await.map(|_| ()),
        attempt::advance(&target, 1, 1, Move::Open).await,
        attempt::advance(&target, 1, 1, Move::Lift).await,
    ] {
        assert!(matches!(stale, Err(cutover::Error::Superseded { epoch: 1 })), "{stale:?}");
    }
    attempt::advance(&target, 2, 1, Move::Open).await.unwrap();
    attempt::advance(&target, 2, 1, Move::Open).await.unwrap();
    assert!(attempt::advance(&target, 2, 1, Move::Lift).await.is_err());
}
