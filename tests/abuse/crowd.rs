//! One key that 10,000 clients ask for at once.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Answer, eventually, layer, peak, request};

const WAITERS: usize = 10_000;
const BODY: usize = 1 << 10;
/// What a waiter takes beside its body: its task, its request and its place in the queue.
/// Measured: 5,952 in a debug build.
const EACH: usize = 8 << 10;

#[test]
fn ten_thousand_waiters_get_the_answer_of_one_run() {
    let held = peak(
        "crowd::ten_thousand_waiters_get_the_answer_of_one_run",
        wait_together,
    );
    if let Some(held) = held {
        let each = held / WAITERS - BODY;
        println!("bytes for each waiter beside its body: {each}");
        assert!(each <= EACH, "{each} bytes for each waiter");
    }
}

async fn wait_together() {
    let layer = layer().wait_for_in_flight(Duration::from_secs(60));
    let handle = layer.handle();
    let runs = Arc::new(AtomicUsize::new(0));
    let may_end = Arc::new(Notify::new());
    let (counted, gate) = (Arc::clone(&runs), Arc::clone(&may_end));
    let service = layer.layer(service_fn(move |request: Request<Body>| {
        counted.fetch_add(1, Ordering::SeqCst);
        let gate = Arc::clone(&gate);
        async move {
            drop(request);
            gate.notified().await;
            Ok::<_, Infallible>(Response::new(Body::from("charged")))
        }
    }));
    let ask = || service.clone().oneshot(request("hot", vec![b'x'; BODY]));

    let first = tokio::spawn(ask());
    eventually(async || handle.in_flight() == 1).await;
    let mut waiters = JoinSet::new();
    for _ in 0..WAITERS {
        waiters.spawn(ask());
    }
    eventually(async || handle.buffered() == WAITERS * BODY).await;
    may_end.notify_one();
    let Ok(answer) = first.await.expect("no panic");
    Answer::read(answer).await.ran("charged");
    while let Some(answer) = waiters.join_next().await {
        let Ok(answer) = answer.expect("no panic");
        Answer::read(answer).await.replayed("charged");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!((handle.in_flight(), handle.buffered()), (0, 0));
}
