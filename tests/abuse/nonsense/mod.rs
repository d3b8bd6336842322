//! A store that answers nonsense: it is not believed what it cannot know, and never waited for
//! longer than the settings say.

mod said;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use http::StatusCode;
use tokio::time::{Instant, sleep};
use tower_idempotency::testing::TokioClock;
use tower_idempotency::{IdempotencyLayer, Orphan, Reconciled};

use self::store::{Draw, Nonsense, OF_ANOTHER, RECORDED};
use crate::support::{Answer, ask_for, request};

const SEED: &str = "TOWER_IDEMPOTENCY_SEED";
const REQUESTS: usize = 10_000;
const LONGEST_RUN: u64 = 20;
const WAIT: Duration = Duration::from_secs(3);
/// The wait; two claims before it and two after it, the look that a reconciliation is undone with,
/// and the completion, of 5 s each; and the run itself.
const LONGEST_ANSWER: Duration = Duration::from_secs(3 + 6 * 5 + LONGEST_RUN);

/// Runs for some time, and then ends one way or another.
async fn handler(mut draw: Draw) -> (StatusCode, &'static str) {
    sleep(Duration::from_secs(draw.below(LONGEST_RUN))).await;
    match draw.below(4) {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "not now"),
        _ => (StatusCode::OK, "ran"),
    }
}

fn check(answer: &Answer, runs: usize) {
    let body = String::from_utf8_lossy(&answer.body);
    assert!(!body.contains(OF_ANOTHER), "{answer:?}");
    let code = answer.code();
    match (answer.status, code.as_deref()) {
        (200, None) if answer.is_replayed() => assert_eq!(body, RECORDED),
        (200, None) => assert_eq!((&*body, runs), ("ran", 1)),
        (503, None) => assert_eq!((&*body, runs), ("not now", 1)),
        // A run that lost its lease gives the answer in its place, if that can be read.
        (409, Some("response-not-stored"))
        | (500, Some("store-broken"))
        | (503, Some("record-newer" | "store-full" | "store-unavailable")) => {
            assert!(runs <= 1, "{answer:?}");
        }
        (409, Some("lease-lost")) => assert_eq!(runs, 1, "{answer:?}"),
        (409, Some("in-progress" | "outcome-unknown" | "settings-changed"))
        | (422, Some("caller-differs" | "key-reused")) => {
            assert_eq!(runs, 0, "{answer:?}");
        }
        _ => panic!("an answer that is not documented: {answer:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_a_documented_one_and_comes_in_time() {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => 1,
    };
    println!("{SEED}={seed}");
    let mut draw = Draw::new(seed);
    let runs = Arc::new(AtomicUsize::new(0));
    for number in 0..REQUESTS {
        let layer = IdempotencyLayer::new(Nonsense::new(draw.number()))
            .clock(TokioClock::new())
            .wait_for_in_flight(WAIT * draw.below(2) as u32)
            .orphan(match draw.below(3) {
                0 => Orphan::Retake,
                1 => Orphan::Hold,
                _ => Orphan::reconcile(async |_| Reconciled::NotExecuted),
            });
        let (counted, seed) = (Arc::clone(&runs), draw.number());
        let runs_handler = async move || {
            counted.fetch_add(1, Ordering::SeqCst);
            handler(Draw::new(seed)).await
        };
        let app = Router::new().fallback(runs_handler).layer(layer);
        let (before, asked_at) = (runs.load(Ordering::SeqCst), Instant::now());
        let request = request(&format!("k{number}"), "body");
        let answer = ask_for(LONGEST_ANSWER * 2, &app, request).await;
        let took = asked_at.elapsed();
        assert!(took <= LONGEST_ANSWER, "{took:?}: {answer:?}");
        check(&answer, runs.load(Ordering::SeqCst) - before);
    }
    assert!(runs.load(Ordering::SeqCst) > REQUESTS / 20);
}
