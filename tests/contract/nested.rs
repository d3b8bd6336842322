//! A second layer on the way of a request.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use http::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_idempotency::store::{MemoryStore, SharedStore, Store};
use tower_idempotency::testing::{Call, FaultStore, Living};
use tower_idempotency::{Attempt, IdempotencyKey, IdempotencyLayer};

use crate::support::{
    Body, Case, FaultyStore, Http, Log, Runs, Server, boxed, for_axum, for_each_stack, layer,
    read_body, service, text, whole,
};

#[tokio::test]
async fn the_layer_on_a_router_and_on_its_route_is_one() {
    for_axum(|case| async move {
        let global = layer();
        let runs = Runs::default();
        let handler = {
            let runs = runs.clone();
            move |key: IdempotencyKey, request: axum::extract::Request| {
                let run = (runs.numbered())(request.map(boxed));
                async move {
                    let answer = read_body(run.await).await;
                    format!("{}: {answer}", key.as_str())
                }
            }
        };
        let route = post(handler).layer(global.clone().require_key(true));
        let router = Router::new().route("/a", route).layer(global.clone());
        let server = case.serve_router(router).await;
        for _ in 0..2 {
            let answer = server.post("/a").key("k").body("it").send().await;
            assert_eq!(answer.body, "k: run 1");
        }
        server.post("/a").send().await.refused(400, "missing-key");
        assert_eq!((runs.count(), global.handle().in_flight()), (1, 0));
    })
    .await;
}

fn request(key: &str) -> Request<Body> {
    let request = Request::post("/a").header("idempotency-key", key);
    request.body(whole("it")).expect("it is valid")
}

/// Two layers, one in the other, asked twice.
async fn ask_twice<Outer: Store, Inner: Store>(
    outer: IdempotencyLayer<Outer>,
    inner: IdempotencyLayer<Inner>,
) -> (Vec<String>, usize) {
    let runs = Runs::default();
    let stack = ServiceBuilder::new()
        .layer(outer)
        .layer(inner)
        .service(service(runs.numbered()));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let response = stack.clone().oneshot(request("k")).await;
        answers.push(read_body(response.expect("it never fails")).await);
    }
    (answers, runs.count())
}

#[tokio::test]
async fn a_layer_of_its_own_on_the_same_store_lets_its_caller_s_attempt_pass() {
    const LONG: Duration = Duration::from_secs(20);
    let once = (vec!["run 1".to_owned(); 2], 1);
    for wait in [Duration::ZERO, LONG] {
        let store = MemoryStore::new();
        let layer = || IdempotencyLayer::new(store.clone()).wait_for_in_flight(wait);
        assert_eq!(ask_twice(layer(), layer()).await, once);
        // One that has to be waited for.
        let store = FaultyStore::new();
        let layer = || IdempotencyLayer::new(store.clone()).wait_for_in_flight(wait);
        assert_eq!(ask_twice(layer(), layer()).await, once);
        // One that has no slot left for another run.
        let layer = IdempotencyLayer::new(MemoryStore::new()).max_runs(1);
        assert_eq!(
            ask_twice(layer.clone(), layer.require_key(true)).await,
            once
        );
    }
}

#[tokio::test]
async fn the_inner_of_two_layers_on_one_store_asks_it_for_nothing() {
    let layer = IdempotencyLayer::new(FaultStore::new(MemoryStore::new()));
    let (answers, count) = ask_twice(layer.clone(), layer.clone()).await;
    assert_eq!((answers, count), (vec!["run 1".to_owned(); 2], 1));
    // One claim for each of the two requests.
    assert_eq!(layer.executor().store().count(Call::Claim), 2);
}

#[tokio::test]
async fn a_layer_for_another_record_claims_it_for_itself() {
    let store = MemoryStore::new();
    let outer = IdempotencyLayer::new(store.clone());
    let inner = IdempotencyLayer::new(store.clone()).namespace("inner");
    let once = (vec!["run 1".to_owned(); 2], 1);
    assert_eq!(ask_twice(outer.clone(), inner.clone()).await, once);
    // The record of the inner one is there.
    let runs = Runs::default();
    let alone = inner.layer(service(runs.numbered()));
    let replayed = alone.oneshot(request("k")).await.expect("it never fails");
    assert!(replayed.headers().contains_key("idempotent-replayed"));
    // And so is another store.
    let other = IdempotencyLayer::new(MemoryStore::new());
    let (answers, count) = ask_twice(IdempotencyLayer::new(MemoryStore::new()), other).await;
    assert_eq!((answers, count), once);
}

#[tokio::test]
async fn a_layer_of_another_record_between_two_of_one_changes_nothing() {
    const LONG: Duration = Duration::from_secs(20);
    for is_same_handle in [true, false] {
        for wait in [Duration::ZERO, LONG] {
            let store = MemoryStore::new();
            let layer = || IdempotencyLayer::new(store.clone()).wait_for_in_flight(wait);
            let outermost = layer();
            let innermost = match is_same_handle {
                true => outermost.clone(),
                false => layer(),
            };
            let runs = Runs::default();
            let stack = ServiceBuilder::new()
                .layer(outermost)
                .layer(layer().namespace("between"))
                .layer(layer().namespace("further in"))
                .layer(innermost)
                .service(service(runs.numbered()));
            for _ in 0..2 {
                let response = stack.clone().oneshot(request("k")).await;
                let answer = read_body(response.expect("it never fails")).await;
                assert_eq!(answer, "run 1");
            }
            assert_eq!(runs.count(), 1);
        }
    }
}

#[tokio::test]
async fn an_attempt_that_has_ended_lets_nobody_pass() {
    for is_same_handle in [true, false] {
        let store = MemoryStore::new();
        let outer = IdempotencyLayer::new(store.clone());
        let inner = match is_same_handle {
            true => outer.clone(),
            false => IdempotencyLayer::new(store.clone()),
        };
        let seen: Arc<Mutex<Option<Attempt>>> = Arc::default();
        let handler = {
            let seen = Arc::clone(&seen);
            Runs::default().answering(move |request, _| {
                *seen.lock().expect("not poisoned") = request.extensions().get().cloned();
                text("first")
            })
        };
        let first = outer.layer(service(handler)).oneshot(request("k")).await;
        first.expect("it never fails");
        let attempt = seen.lock().expect("not poisoned").take();
        let mut late = request("k");
        late.extensions_mut()
            .insert(attempt.expect("it was guarded"));
        let runs = Runs::default();
        let answer = inner.layer(service(runs.numbered())).oneshot(late).await;
        assert_eq!(read_body(answer.expect("it never fails")).await, "first");
        assert_eq!(runs.count(), 0);
    }
}

/// A server that hands each request on to another, as a gateway does.
async fn gateway<St: Store>(case: Case, layer: &IdempotencyLayer<St>, service: &Server) -> Server {
    let origin = service.origin();
    let client: Client<HttpConnector, Body> =
        Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    case.serve(layer, move |mut request: Request<Body>| {
        let path = request.uri().path().to_owned();
        let uri = format!("{}{}", origin.to_string().trim_end_matches('/'), path);
        *request.uri_mut() = uri.parse().expect("a valid URI");
        *request.version_mut() = http::Version::HTTP_11;
        let answer = client.request(request);
        async move {
            let answer: Response<hyper::body::Incoming> = answer.await.expect("an answer");
            answer.map(boxed)
        }
    })
    .await
}

#[tokio::test]
async fn a_gateway_and_its_service_that_claim_one_record_are_told_and_do_not_loop() {
    for_each_stack(|case| async move {
        if case.http == Http::Two {
            // The gateway speaks HTTP/1.1 to its service.
            return;
        }
        for namespace in ["", "service"] {
            let store = FaultyStore::new();
            store.be_remote();
            let runs = Runs::default();
            let of_service = IdempotencyLayer::new(store.clone())
                .namespace(namespace)
                .living(Living::of_another_process());
            let service = case.serve(&of_service, runs.numbered()).await;
            let of_gateway = IdempotencyLayer::new(store.clone());
            let gateway = gateway(case, &of_gateway, &service).await;
            let log = Log::of_this_thread();
            for _ in 0..2 {
                let answer = gateway.post("/a").key("k").body("it").send().await;
                match namespace {
                    "" => {
                        answer.refused(500, "store-broken");
                        assert_eq!(answer.retry_after(), None);
                    }
                    _ => assert_eq!(answer.body, "run 1"),
                }
            }
            let told = log.count("ERROR", "`namespace`");
            assert_eq!(told, if namespace.is_empty() { 2 } else { 0 });
        }
    })
    .await;
}

#[tokio::test]
async fn a_gateway_hands_on_that_another_s_attempt_is_in_progress() {
    for_each_stack(|case| async move {
        if case.http == Http::Two {
            return;
        }
        let store = FaultyStore::new();
        store.be_remote();
        let runs = Runs::default();
        // The gateway knows the service by another name than the client does.
        let of_service = IdempotencyLayer::new(store.clone())
            .any_host()
            .living(Living::of_another_process());
        let service = case.serve(&of_service, runs.gated()).await;
        let of_gateway = IdempotencyLayer::new(store).namespace("gateway");
        let gateway = gateway(case, &of_gateway, &service).await;
        let call = |server: &Server| server.post("/a").key("k").body("it");
        let direct = call(&service).spawn();
        runs.gate().arrived().await;
        let duplicate = call(&gateway).send().await;
        duplicate.refused(409, "in-progress");
        runs.gate().open_for_good();
        direct.await.expect("no panic").ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_shared_store_without_a_namespace_is_told_of_once() {
    let log = Log::of_this_thread();
    let store = FaultyStore::new();
    let layer = || IdempotencyLayer::new(SharedStore::new(store.clone()));
    let runs = Runs::default();
    let told = || log.count("WARN", "has no `namespace`");
    // Not shared.
    drop(layer().layer(service(runs.numbered())));
    assert_eq!(told(), 0);
    store.be_remote();
    drop(layer().namespace("live").layer(service(runs.numbered())));
    assert_eq!(told(), 0);
    for _ in 0..3 {
        drop(layer().layer(service(runs.numbered())));
        assert_eq!(told(), 1);
    }
}
