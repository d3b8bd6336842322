//! Those who wait for a run get its end, whatever it says.

use std::time::Duration;

use http::{Response, StatusCode};
use tower_idempotency::testing::Living;
use tower_idempotency::{IdempotencyLayer, Orphan};

use crate::support::{Answer, Body, Call, FaultyStore, Runs, eventually, for_each_stack, text};

const LONG: Duration = Duration::from_secs(20);
const MANY: usize = 20;

/// A handler whose run `number` passes the gate and then answers so.
fn answering(
    runs: &Runs,
    status: impl Fn(usize) -> u16 + Clone + Send + Sync + 'static,
) -> impl Fn(http::Request<Body>) -> crate::support::Running + Clone + Send + Sync + 'static {
    let gate = runs.gate().clone();
    runs.running(move |_, number| {
        let (gate, status) = (gate.clone(), status.clone());
        async move {
            gate.pass().await;
            answer(status(number), number)
        }
    })
}

fn answer(status: u16, number: usize) -> Response<Body> {
    let mut response = text(format!("run {number}"));
    *response.status_mut() = StatusCode::from_u16(status).expect("a valid status");
    response
}

fn many(call: impl Fn() -> Call) -> Vec<tokio::task::JoinHandle<Answer>> {
    (0..MANY).map(|_| call().spawn()).collect()
}

#[tokio::test]
async fn many_duplicates_share_the_end_of_one_run() {
    for (status, orphan) in [
        (201, Orphan::Retake),
        (422, Orphan::Retake),
        (429, Orphan::Hold),
        (500, Orphan::Retake),
        (500, Orphan::Hold),
    ] {
        for_each_stack(|case| {
            let orphan = orphan.clone();
            async move {
                let (store, runs) = (FaultyStore::new(), Runs::default());
                let layer = IdempotencyLayer::new(store.clone())
                    .wait_for_in_flight(LONG)
                    .orphan(orphan);
                let server = case.serve(&layer, answering(&runs, move |_| status)).await;
                let call = || server.post("/a").key("k");
                let first = call().spawn();
                runs.gate().arrived().await;
                let duplicates = many(call);
                eventually(async || store.waiting() == MANY).await;
                runs.gate().open_for_good();
                let first = first.await.expect("no panic");
                assert_eq!(
                    (first.status.as_u16(), first.is_replayed()),
                    (status, false)
                );
                for duplicate in duplicates {
                    let duplicate = duplicate.await.expect("no panic");
                    assert_eq!(duplicate.status.as_u16(), status, "{duplicate:?}");
                    assert_eq!(duplicate.body, "run 1");
                    assert!(duplicate.is_replayed());
                }
                assert_eq!(runs.count(), 1);
            }
        })
        .await;
    }
}

#[tokio::test]
async fn of_many_on_another_node_one_claims_when_the_run_has_ended() {
    for_each_stack(|case| async move {
        let (store, runs) = (FaultyStore::new(), Runs::default());
        store.be_remote();
        let node = || {
            IdempotencyLayer::new(store.clone())
                .any_host()
                .wait_for_in_flight(LONG)
                .living(Living::of_another_process())
        };
        let says = |number| if number == 1 { 429 } else { 422 };
        let here = case.serve(&node(), answering(&runs, says)).await;
        let there = case.serve(&node(), answering(&runs, says)).await;
        let first = here.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        let duplicates = many(|| there.post("/a").key("k"));
        eventually(async || store.claims() == 1 + MANY).await;
        runs.gate().open();
        let first = first.await.expect("no panic");
        assert_eq!(first.status.as_u16(), 429);
        runs.gate().arrived().await;
        runs.gate().open_for_good();
        let mut ran = 0;
        for duplicate in duplicates {
            let duplicate = duplicate.await.expect("no panic");
            assert_eq!(duplicate.status.as_u16(), 422, "{duplicate:?}");
            assert_eq!(duplicate.body, "run 2");
            ran += usize::from(!duplicate.is_replayed());
        }
        assert_eq!((ran, runs.count()), (1, 2));
        assert_eq!(store.claims(), 1 + MANY + 1, "one claims again");
    })
    .await;
}

#[tokio::test]
async fn another_looks_out_when_the_one_who_did_has_gone() {
    for_each_stack(|case| async move {
        let (store, runs) = (FaultyStore::new(), Runs::default());
        store.be_remote();
        let node = || {
            IdempotencyLayer::new(store.clone())
                .any_host()
                .wait_for_in_flight(LONG)
                .living(Living::of_another_process())
        };
        let here = case.serve(&node(), answering(&runs, |_| 429)).await;
        let there = case.serve(&node(), answering(&runs, |_| 429)).await;
        let first = here.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        let lookout = there.post("/a").key("k").spawn();
        eventually(async || store.claims() == 2).await;
        let other = there.post("/a").key("k").spawn();
        eventually(async || store.claims() == 3).await;
        lookout.abort();
        runs.gate().open_for_good();
        let first = first.await.expect("no panic");
        assert_eq!(first.status.as_u16(), 429);
        let other = other.await.expect("no panic");
        assert_eq!((other.status.as_u16(), other.body), (429, "run 2".into()));
    })
    .await;
}

#[tokio::test]
async fn those_who_waited_for_a_run_that_panicked_are_told_so() {
    for (orphan, is_retryable) in [(Orphan::Retake, true), (Orphan::Hold, false)] {
        for_each_stack(|case| {
            let orphan = orphan.clone();
            async move {
                let (store, runs) = (FaultyStore::new(), Runs::default());
                let gate = runs.gate().clone();
                let handler = runs.running(move |_, _| {
                    let gate = gate.clone();
                    async move {
                        gate.pass().await;
                        std::panic::resume_unwind(Box::new("as planned"))
                    }
                });
                let layer = IdempotencyLayer::new(store.clone())
                    .wait_for_in_flight(LONG)
                    .orphan(orphan);
                let server = case.serve(&layer, handler).await;
                let first = server.post("/a").key("k").spawn();
                runs.gate().arrived().await;
                let duplicates = many(|| server.post("/a").key("k"));
                eventually(async || store.waiting() == MANY).await;
                runs.gate().open_for_good();
                assert!(first.await.is_err(), "its connection breaks");
                for duplicate in duplicates {
                    let duplicate = duplicate.await.expect("no panic");
                    match is_retryable {
                        true => duplicate.refused_for_now(409, "outcome-unknown"),
                        false => duplicate.refused(409, "outcome-unknown"),
                    };
                }
                assert_eq!(runs.count(), 1);
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_response_that_is_too_large_to_share_is_not_waited_for_in_vain() {
    for_each_stack(|case| async move {
        let (store, runs) = (FaultyStore::new(), Runs::default());
        let layer = IdempotencyLayer::new(store.clone())
            .wait_for_in_flight(LONG)
            .max_response_body(3);
        let server = case.serve(&layer, answering(&runs, |_| 429)).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        let duplicates = many(|| server.post("/a").key("k"));
        eventually(async || store.waiting() == MANY).await;
        runs.gate().open_for_good();
        let first = first.await.expect("no panic");
        assert_eq!((first.status.as_u16(), first.body), (429, "run 1".into()));
        for duplicate in duplicates {
            let duplicate = duplicate.await.expect("no panic");
            let problem = duplicate.refused(409, "in-progress");
            let detail = problem["detail"].as_str().expect("a text");
            assert!(detail.contains("send this request again"), "{detail}");
            assert_eq!(duplicate.retry_after(), Some("1"));
        }
        assert_eq!(runs.count(), 1);
        // It is no longer so for the duplicates of the next run.
        let layer = layer.wait_for_in_flight(Duration::ZERO);
        let runs = Runs::default();
        let server = case.serve(&layer, runs.gated()).await;
        let first = server.post("/a").key("l").spawn();
        runs.gate().arrived().await;
        let problem = server.post("/a").key("l").send().await;
        let problem = problem.refused(409, "in-progress");
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains("still being executed"), "{detail}");
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
    })
    .await;
}
