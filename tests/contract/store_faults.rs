//! A store that is out of reach, full or damaged.

use std::convert::Infallible;
use std::time::Duration;

use http::StatusCode;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Executor, Fingerprint, IdempotencyKey, IdempotencyLayer};

use crate::support::{
    Answer, Fault, FaultyStore, Log, NONE, Runs, eventually, for_axum, for_each_stack, serve, text,
};

fn out_of_reach(answer: &Answer) {
    answer.refused(503, "store-unavailable");
    assert_eq!(answer.retry_after(), Some("1"));
}

#[tokio::test]
async fn without_a_store_nothing_runs() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let server = case.serve(&layer, runs.numbered()).await;
        server.post("/a").key("old").send().await.ran("run 1");
        store.fail_claims(Fault::Unreachable);
        out_of_reach(&server.post("/a").key("k").send().await);
        out_of_reach(&server.post("/a").key("old").send().await);
        assert_eq!(runs.count(), 1);
        store.fail_claims(Fault::None);
        server.post("/a").key("k").send().await.ran("run 2");
        server.post("/a").key("old").send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn without_a_store_what_is_not_guarded_runs() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let server = case.serve(&layer, runs.numbered()).await;
        store.fail_claims(Fault::Unreachable);
        server.post("/a").send().await.ran("run 1");
        assert_eq!(store.claims(), 0);
    })
    .await;
}

#[tokio::test]
async fn with_fail_open_a_request_runs_without_a_store_and_is_marked() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone()).fail_open(true);
        let server = case.serve(&layer, runs.numbered()).await;
        let call = || server.post("/a").key("k").send();
        store.fail_claims(Fault::Unreachable);
        for body in ["run 1", "run 2"] {
            let answer = call().await;
            answer.ran(body);
            assert_eq!(answer.values("idempotency-unprotected"), [b"true"]);
        }
        // Nothing was recorded of it.
        store.fail_claims(Fault::None);
        let answer = call().await;
        answer.ran("run 3");
        assert_eq!(answer.values("idempotency-unprotected"), [b""; 0]);
        call().await.replayed("run 3");
    })
    .await;
}

#[tokio::test]
async fn with_fail_open_a_run_has_its_key_and_counts_as_others_do() {
    use axum::routing::post;
    use tower_idempotency::record::FencingToken;
    use tower_idempotency::{Attempt, IdempotencyKey};

    for_axum(|case| async move {
        let store = FaultyStore::new();
        store.fail_claims(Fault::Unreachable);
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store)
            .fail_open(true)
            .max_runs(2)
            .namespace("live");
        let handler = {
            let gate = runs.gate().clone();
            move |key: IdempotencyKey, token: FencingToken, attempt: Attempt| async move {
                gate.pass().await;
                assert_eq!((attempt.key(), attempt.token()), (&key, token));
                let parts = key.parts();
                assert!(token.as_u64() > 0);
                format!("{} {} {}", parts.namespace, parts.key, attempt.number())
            }
        };
        let router = axum::Router::new().route("/a", post(handler));
        let server = case.serve_router(router.layer(layer.clone())).await;
        let handle = layer.handle();

        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        let gone = server.post("/a").key("gone").spawn();
        runs.gate().arrived().await;
        assert_eq!(handle.in_flight(), 2);
        let third = server.post("/a").key("third").send().await;
        third.refused(503, "too-many-runs");
        // Its client goes, and it does not.
        gone.abort();
        eventually(async || handle.stats().detached == 1).await;
        assert_eq!(handle.in_flight(), 2);
        // It is waited for.
        let shutdown = tokio::spawn({
            let handle = handle.clone();
            async move { handle.shutdown().await }
        });
        tokio::task::yield_now().await;
        assert!(!shutdown.is_finished());
        runs.gate().open_for_good();
        let first = first.await.expect("no panic");
        first.ran("live k 1");
        assert_eq!(first.values("idempotency-unprotected"), [b"true"]);
        shutdown.await.expect("no panic");
        assert_eq!(handle.in_flight(), 0);
        let late = server.post("/a").key("late").send().await;
        late.refused(503, "shutting-down");
    })
    .await;
}

#[tokio::test]
async fn with_fail_open_a_run_that_panics_is_counted_no_more() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        store.fail_claims(Fault::Unreachable);
        let layer = IdempotencyLayer::new(store).fail_open(true).max_runs(1);
        let handler = Runs::default().running(|_, number| async move {
            assert_ne!(number, 1, "the first run panics");
            text(format!("run {number}"))
        });
        let catch = tower_http::catch_panic::CatchPanicLayer::new();
        let server = serve!(case, catch, layer, NONE, handler);
        assert_eq!(server.post("/a").key("k").send().await.status, 500);
        assert_eq!(layer.handle().in_flight(), 0);
        server.post("/a").key("k").send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_out_of_reach() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let gate = store.hold_claims_up();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone()).store_timeout(Duration::from_millis(20));
        let server = case.serve(&layer, runs.numbered()).await;
        out_of_reach(&server.post("/a").key("k").send().await);
        assert_eq!(runs.count(), 0);
        gate.open_for_good();
        server.post("/a").key("k").send().await.ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_known_again() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let server = case.serve(&layer, runs.numbered()).await;
        store.fail_claims(Fault::NextAnswerLost);
        server.post("/a").key("k").send().await.ran("run 1");
        server.post("/a").key("k").send().await.replayed("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_claim_that_stays_without_an_answer_is_given_back() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let server = case.serve(&layer, runs.numbered()).await;
        store.fail_claims(Fault::AnswerLost);
        out_of_reach(&server.post("/a").key("k").send().await);
        assert_eq!(runs.count(), 0);
        // Nobody runs under that claim, so the key comes free long before its lease is over.
        store.fail_claims(Fault::None);
        eventually(async || {
            let answer = server.post("/a").key("k").send().await;
            if answer.status == 409 {
                answer.refused(409, "in-progress");
                return false;
            }
            answer.ran("run 1");
            true
        })
        .await;
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_recorded_is_given_and_recorded_later() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let server = case.serve(&layer, runs.numbered()).await;
        let call = |body| server.post("/a").key("k").body(body).send();
        store.fail_ends(Fault::Unreachable);
        call("x").await.ran("run 1");
        // Until then the key is held, and duplicates are told the truth.
        call("x").await.refused(409, "in-progress");
        call("y").await.refused(422, "key-reused");
        assert_eq!(layer.handle().in_flight(), 1);
        store.fail_ends(Fault::None);
        layer.handle().idle().await;
        call("x").await.replayed("run 1");
        assert_eq!(runs.count(), 1);
        assert_eq!(layer.handle().stats().completions_retried, 1);
    })
    .await;
}

#[tokio::test]
async fn a_duplicate_waits_for_an_answer_that_is_recorded_late() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer =
            IdempotencyLayer::new(store.clone()).wait_for_in_flight(Duration::from_secs(60));
        let server = case.serve(&layer, runs.numbered()).await;
        store.fail_ends(Fault::Unreachable);
        server.post("/a").key("k").send().await.ran("run 1");
        let duplicate = server.post("/a").key("k").spawn();
        eventually(async || store.claims() == 2).await;
        store.fail_ends(Fault::None);
        duplicate.await.expect("no panic").replayed("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_record_whose_acknowledgement_was_lost_counts() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let server = case.serve(&layer, runs.numbered()).await;
        store.fail_ends(Fault::NextAnswerLost);
        server.post("/a").key("k").send().await.ran("run 1");
        server.post("/a").key("k").send().await.replayed("run 1");
        layer.handle().idle().await;
        server.post("/a").key("k").send().await.replayed("run 1");
        assert_eq!(layer.handle().stats().leases_lost, 0);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_cannot_be_released_is_released_later() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let handler = runs.answering(|_, number| {
            let mut response = text(format!("run {number}"));
            if number == 1 {
                *response.status_mut() = StatusCode::BAD_GATEWAY;
            }
            response
        });
        let server = case.serve(&layer, handler).await;
        store.fail_ends(Fault::Unreachable);
        assert_eq!(server.post("/a").key("k").send().await.status, 502);
        let duplicate = server.post("/a").key("k").send().await;
        duplicate.refused(409, "in-progress");
        store.fail_ends(Fault::None);
        layer.handle().idle().await;
        server.post("/a").key("k").send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_not_recorded_can_be_withheld() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone()).answer_unrecorded(false);
        let server = case.serve(&layer, runs.numbered()).await;
        let call = || server.post("/a").key("k").send();
        store.fail_ends(Fault::Unreachable);
        let first = call().await;
        first.refused(503, "not-recorded");
        assert_eq!(first.retry_after(), Some("1"));
        call().await.refused(409, "in-progress");
        store.fail_ends(Fault::None);
        layer.handle().idle().await;
        call().await.replayed("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_full_store_refuses_new_keys_and_keeps_the_old() {
    for fail_open in [false, true] {
        for_each_stack(|case| async move {
            let runs = Runs::default();
            let store = MemoryStore::with_capacity(4_000);
            let layer = IdempotencyLayer::new(store).fail_open(fail_open);
            let server = case.serve(&layer, runs.numbered()).await;
            let mut kept = 0;
            // The store sums up what it holds now and then, not with each record.
            let refused = loop {
                let key = format!("k-{}", kept + 1);
                let answer = server.post("/a").key(&key).send().await;
                if answer.status != 200 {
                    break answer;
                }
                kept += 1;
                answer.ran(&format!("run {kept}"));
                assert!(kept < 10_000, "it is never full");
            };
            refused.refused(503, "store-full");
            // When the first answer expires, which is kept for a day.
            let seconds = refused.retry_after().and_then(|text| text.parse().ok());
            let day: u32 = 24 * 60 * 60;
            assert!(seconds.is_some_and(|seconds| (day - 600..=day).contains(&seconds)));
            assert!(kept > 0);
            assert_eq!(runs.count(), kept);
            for number in 1..=kept {
                let answer = server.post("/a").key(&format!("k-{number}")).send().await;
                answer.replayed(&format!("run {number}"));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_of_a_later_version_is_left_to_nodes_that_know_it() {
    for fail_open in [false, true] {
        for_each_stack(|case| async move {
            let store = FaultyStore::new();
            let runs = Runs::default();
            let layer = IdempotencyLayer::new(store.clone()).fail_open(fail_open);
            let server = case.serve(&layer, runs.numbered()).await;
            server.post("/a").key("k").send().await.ran("run 1");
            let retry = || server.post("/a").key("k").send();
            store.answer_with(Some(b"\xFFof a later version"));
            retry().await.refused(503, "record-newer");
            store.answer_with(None);
            retry().await.replayed("run 1");
            assert_eq!(runs.count(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn a_damaged_record_is_no_reason_to_run_again() {
    for fail_open in [false, true] {
        for_each_stack(|case| async move {
            let store = FaultyStore::new();
            let runs = Runs::default();
            let layer = IdempotencyLayer::new(store.clone()).fail_open(fail_open);
            let server = case.serve(&layer, runs.numbered()).await;
            server.post("/a").key("k").send().await.ran("run 1");
            let retry = || server.post("/a").key("k").send();
            // Whether the store sees it, or only one who reads the answer.
            store.fail_claims(Fault::Unreadable);
            retry().await.refused(500, "store-broken");
            store.fail_claims(Fault::None);
            store.answer_with(Some(b"\x01\xFFnot an answer"));
            retry().await.refused(500, "store-broken");
            store.answer_with(None);
            retry().await.replayed("run 1");
            assert_eq!(runs.count(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn a_fault_that_someone_has_to_mend_is_logged_as_an_error_and_a_passing_one_is_not() {
    for (fault, level, other) in [
        (Fault::Unreadable, "ERROR", "WARN"),
        (Fault::Unreachable, "WARN", "ERROR"),
    ] {
        let store = FaultyStore::new();
        let executor = Executor::new(store.clone());
        store.fail_claims(fault);
        let log = Log::of_this_thread();
        let key = IdempotencyKey::new("/jobs", "k").expect("the key is valid");
        let work = || async { Ok::<_, Infallible>(42) };
        let refused = executor.run(&key, Fingerprint::of(["job"]), work).await;
        refused.expect_err("the store failed");
        assert_eq!(log.count(level, "the store did not take a claim"), 1);
        assert_eq!(log.count(other, ""), 0);
    }
}
