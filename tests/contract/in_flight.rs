//! Duplicates while the first request still runs: `in-progress`.

use std::time::Duration;

use tower_idempotency::IdempotencyLayer;

use crate::support::{FaultyStore, Runs, eventually, for_each_stack, layer, still_clock};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_duplicate_is_refused_until_the_first_has_answered() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.gated()).await;
        let call = || server.post("/a").key("k").body("x");
        let first = call().spawn();
        runs.gate().arrived().await;
        for _ in 0..3 {
            call().send().await.refused(409, "in-progress");
        }
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
        call().send().await.replayed("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_duplicate_is_refused_where_the_store_has_to_be_waited_for() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(FaultyStore::new());
        let server = case.serve(&layer, runs.gated()).await;
        let call = || server.post("/a").key("k").body("x");
        let first = call().spawn();
        runs.gate().arrived().await;
        let duplicate = call().send().await;
        duplicate.refused(409, "in-progress");
        assert_eq!(duplicate.retry_after(), Some("1"));
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
        call().send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn retry_after_grows_with_the_run_and_ends_with_the_lease() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let layer = layer()
            .clock(clock.clone())
            .lease(Duration::from_secs(30))
            .clock_skew(Duration::ZERO);
        let server = case.serve(&layer, runs.gated()).await;
        let call = || server.post("/a").key("k");
        let first = call().spawn();
        runs.gate().arrived().await;
        for (advance, retry_after) in [
            // At least a second.
            (Duration::ZERO, "1"),
            (Duration::from_millis(900), "1"),
            // As long again as it has taken so far, in whole seconds: after 5 s, and 5.2 s.
            (Duration::from_millis(4_100), "5"),
            (Duration::from_millis(200), "6"),
            // What is left of the lease: after 20 s, and 29.9 s.
            (Duration::from_millis(14_800), "10"),
            (Duration::from_millis(9_900), "1"),
        ] {
            clock.advance(advance);
            let duplicate = call().send().await;
            duplicate.refused(409, "in-progress");
            assert_eq!(duplicate.retry_after(), Some(retry_after));
        }
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_duplicate_that_waits_gets_the_first_answer() {
    for remote in [false, true] {
        for_each_stack(|case| async move {
            let store = FaultyStore::new();
            if remote {
                store.be_remote();
            }
            let runs = Runs::default();
            let layer = IdempotencyLayer::new(store.clone()).wait_for_in_flight(LONG);
            let server = case.serve(&layer, runs.gated()).await;
            let first = server.post("/a").key("k").spawn();
            runs.gate().arrived().await;
            let duplicates = [(); 2].map(|()| server.post("/a").key("k").spawn());
            eventually(async || store.claims() == 3).await;
            assert!(duplicates.iter().all(|duplicate| !duplicate.is_finished()));
            runs.gate().open();
            first.await.expect("no panic").ran("run 1");
            for duplicate in duplicates {
                duplicate.await.expect("no panic").replayed("run 1");
            }
            assert_eq!(runs.count(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn a_wait_that_was_in_vain_ends_with_a_refusal() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().wait_for_in_flight(Duration::from_millis(30));
        let server = case.serve(&layer, runs.gated()).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        let duplicate = server.post("/a").key("k").send().await;
        duplicate.refused(409, "in-progress");
        assert_eq!(duplicate.retry_after(), Some("1"));
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn another_request_is_not_kept_waiting() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case
            .serve(&layer().wait_for_in_flight(LONG), runs.gated())
            .await;
        let first = server.post("/a").key("k").body("x").spawn();
        runs.gate().arrived().await;
        let other = server.post("/a").key("k").body("y").send().await;
        other.refused(422, "key-reused");
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_requests_at_once_run_once() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case
            .serve(&layer().wait_for_in_flight(LONG), runs.gated())
            .await;
        let calls: Vec<_> = (0..100)
            .map(|_| server.post("/a").key("k").body("x").spawn())
            .collect();
        runs.gate().arrived().await;
        // If any other came through it would find the gate open, too.
        runs.gate().open_for_good();
        let mut replays = 0;
        for call in calls {
            let answer = call.await.expect("no panic");
            assert_eq!(answer.body, "run 1");
            replays += usize::from(answer.is_replayed());
        }
        assert_eq!((runs.count(), replays), (1, 99));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_requests_at_once_run_once_without_waiting() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(FaultyStore::new());
        let server = case.serve(&layer, runs.gated()).await;
        let calls: Vec<_> = (0..100)
            .map(|_| server.post("/a").key("k").body("x").spawn())
            .collect();
        // The gate opens only when all others have been refused.
        eventually(async || calls.iter().filter(|call| call.is_finished()).count() == 99).await;
        runs.gate().open_for_good();
        let mut ran = 0;
        for call in calls {
            let answer = call.await.expect("no panic");
            if answer.status == 200 {
                answer.ran("run 1");
                ran += 1;
            } else {
                answer.refused(409, "in-progress");
            }
        }
        assert_eq!((runs.count(), ran), (1, 1));
    })
    .await;
}
