//! A run outlives its request.

use std::time::Duration;

use http::StatusCode;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_idempotency::store::Store;
use tower_idempotency::{Handle, IdempotencyLayer};

use crate::support::{
    Case, FaultyStore, NONE, Runs, eventually, for_each_stack, layer, serve, text,
};

async fn until_detached(handle: &Handle) {
    eventually(async || handle.stats().detached == 1).await;
}

#[tokio::test]
async fn a_run_whose_client_has_gone_is_finished_and_recorded() {
    async fn test<St: Store>(case: Case, layer: IdempotencyLayer<St>) {
        let runs = Runs::default();
        let handle = layer.handle();
        let server = case.serve(&layer, runs.gated()).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        assert_eq!(handle.stats().detached, 0);
        first.abort();
        until_detached(&handle).await;
        assert_eq!(handle.in_flight(), 1);
        let duplicate = server.post("/a").key("k").send().await;
        duplicate.refused(409, "in-progress");
        runs.gate().open();
        handle.idle().await;
        server.post("/a").key("k").send().await.replayed("run 1");
        assert_eq!((runs.count(), handle.stats().detached), (1, 1));
    }
    for_each_stack(|case| async move {
        test(case, layer()).await;
        test(case, IdempotencyLayer::new(FaultyStore::new())).await;
    })
    .await;
}

#[tokio::test]
async fn one_who_waits_gets_the_answer_of_a_run_whose_client_has_gone() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().wait_for_in_flight(Duration::from_secs(60));
        let server = case.serve(&layer, runs.gated()).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        let second = server.post("/a").key("k").spawn();
        first.abort();
        until_detached(&layer.handle()).await;
        runs.gate().open();
        second.await.expect("no panic").replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_only_waited_leaves_nothing_behind() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let runs = Runs::default();
        let layer =
            IdempotencyLayer::new(store.clone()).wait_for_in_flight(Duration::from_secs(60));
        let server = case.serve(&layer, runs.gated()).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        let second = server.post("/a").key("k").spawn();
        eventually(async || store.waiting() == 1).await;
        second.abort();
        eventually(async || store.waiting() == 0).await;
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
        layer.handle().idle().await;
        server.post("/a").key("k").send().await.replayed("run 1");
        assert_eq!((runs.count(), layer.handle().stats().detached), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_has_gone_before_its_claim_was_granted_does_not_run() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let gate = store.hold_claims_up();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone());
        let server = case.serve(&layer, runs.numbered()).await;
        let first = server.post("/a").key("k").body("x").spawn();
        gate.arrived().await;
        first.abort();
        until_detached(&layer.handle()).await;
        gate.open_for_good();
        layer.handle().idle().await;
        assert_eq!(runs.count(), 0);
        // The key was given back.
        server
            .post("/a")
            .key("k")
            .body("y")
            .send()
            .await
            .ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_detached_run_that_did_nothing_releases_its_key() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let handler = runs.running(move |_, number| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                let mut response = text(format!("run {number}"));
                if number == 1 {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                response
            }
        });
        let layer = layer();
        let server = case.serve(&layer, handler).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        first.abort();
        until_detached(&layer.handle()).await;
        runs.gate().open_for_good();
        layer.handle().idle().await;
        server.post("/a").key("k").send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_detached_run_may_panic() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let handler = runs.running(move |_, number| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                assert_ne!(number, 1, "the first run panics");
                text(format!("run {number}"))
            }
        });
        let layer = layer();
        let server = case.serve(&layer, handler).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        first.abort();
        until_detached(&layer.handle()).await;
        runs.gate().open_for_good();
        layer.handle().idle().await;
        server.post("/a").key("k").send().await.ran("run 2");
        assert_eq!(layer.handle().stats().detached, 1);
    })
    .await;
}

#[tokio::test]
async fn a_timeout_outside_of_the_layer_does_not_stop_the_run() {
    for_each_stack(|case| async move {
        const SHORT: Duration = Duration::from_millis(30);
        let runs = Runs::default();
        let layer = layer();
        let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, SHORT);
        let server = serve!(case, timeout, layer, NONE, runs.gated());
        assert_eq!(server.post("/a").key("k").send().await.status, 504);
        until_detached(&layer.handle()).await;
        runs.gate().open();
        layer.handle().idle().await;
        server.post("/a").key("k").send().await.replayed("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_detached_run_stays_in_its_span() {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(std::io::sink)
        .finish();
    // For all tests: whether a span is wanted is asked once for the whole process, and another
    // test's thread might be the one to ask.
    tracing::subscriber::set_global_default(subscriber).expect("the only one");
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let handler = runs.running(move |_, _| {
            let gate = gate.clone();
            async move {
                let before = tracing::Span::current().id();
                gate.pass().await;
                let after = tracing::Span::current();
                let name = after.metadata().map_or("none", |metadata| metadata.name());
                text(format!("{name}, the same: {}", before == after.id()))
            }
        });
        let layer = layer();
        let server = serve!(case, TraceLayer::new_for_http(), layer, NONE, handler);
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        first.abort();
        until_detached(&layer.handle()).await;
        runs.gate().open();
        layer.handle().idle().await;
        let retry = server.post("/a").key("k").send().await;
        retry.replayed("request, the same: true");
    })
    .await;
}
