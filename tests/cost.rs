//! What the layer costs, counted: allocations by path, and bytes held for each answer.

use std::convert::Infallible;

use allocation_counter::measure;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Answer, Executor, Fingerprint, IdempotencyKey, IdempotencyLayer};

type Body = UnsyncBoxBody<Bytes, Infallible>;

const ANSWER: &[u8] = &[b'a'; 200];

fn body(bytes: impl Into<Bytes>) -> Body {
    Body::new(Full::new(bytes.into()))
}

async fn charge(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    drop(request);
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .header("request-id", "req_0123456789abcdef")
        .header(header::LOCATION, "/v1/charges/ch_0123456789abcdef")
        .header("stripe-version", "2026-01-01")
        .body(body(ANSWER));
    Ok(response.expect("the response is valid"))
}

fn request(method: Method, key: Option<&str>) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri("/v1/charges")
        .header(header::HOST, "api.example.com")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, "Bearer sk_test_123");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.body(body(vec![b'b'; 1024]));
    request.expect("the request is valid")
}

/// Allocations from the call of a service to its response, whose body is not read.
fn allocations<S>(service: &S, request: Request<Body>) -> u64
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(async {
        let mut service = service.clone();
        service.ready().await.expect("it is ready");
        let mut response = None;
        // The handler never waits, so one poll is enough.
        let call = measure(|| {
            let mut future = std::pin::pin!(service.call(request));
            let waker = std::task::Waker::noop();
            let mut context = std::task::Context::from_waker(waker);
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(&mut context) {
                response = Some(ready);
            }
        });
        let Some(Ok(response)) = response else {
            panic!("the service waited")
        };
        let body = response
            .into_body()
            .collect()
            .await
            .expect("the body is whole");
        assert_eq!(body.to_bytes(), ANSWER);
        call.count_total
    })
}

fn guarded<S>(inner: S) -> tower_idempotency::Idempotency<S, MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new()).layer(inner)
}

#[test]
fn a_request_that_is_not_guarded_costs_no_allocation() {
    let bare = service_fn(charge);
    let layered = guarded(bare);
    for (method, key) in [
        (Method::POST, None),
        (Method::GET, None),
        (Method::GET, Some("key-1")),
    ] {
        let without = allocations(&bare, request(method.clone(), key));
        let with = allocations(&layered, request(method, key));
        assert_eq!(with, without);
    }
}

#[test]
fn a_first_run_and_a_replay_cost_these_allocations() {
    let bare = service_fn(charge);
    let layered = guarded(bare);
    // Tables that grow with their first entries, and the thread's random bytes, are no cost of
    // one request.
    for warm_up in 0..200 {
        allocations(
            &layered,
            request(Method::POST, Some(&format!("warm-up-{warm_up}"))),
        );
    }
    let handler = allocations(&bare, request(Method::POST, None));
    let mut first = Vec::new();
    let mut replay = Vec::new();
    for number in 0..50 {
        let key = format!("key-{number}");
        first.push(allocations(&layered, request(Method::POST, Some(&key))) - handler);
        replay.push(allocations(&layered, request(Method::POST, Some(&key))));
    }
    // A table that grows now and then is not the cost of the run that it grows in.
    first.sort_unstable();
    let first = first[first.len() / 2];
    println!("allocations: first run {first}, replay {replay:?}");
    assert!(first <= 28, "{first}");
    assert!(replay.iter().all(|replay| *replay == 6), "{replay:?}");
}

#[test]
fn a_recorded_answer_takes_no_more_memory_than_it_is_weighed_at() {
    const ANSWERS: u64 = 20_000;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let executor = Executor::new(MemoryStore::new());
    let mut frame = 0;
    let held = measure(|| {
        runtime.block_on(async {
            for number in 0..ANSWERS {
                let key = IdempotencyKey::new("charge", &format!("key-{number}"));
                let key = key.expect("the key is valid");
                let value = "a".repeat(300);
                frame = Answer::value(&value).expect("text is JSON").encode().len();
                let inputs = Fingerprint::of(["1200"]);
                let ran = executor
                    .run(&key, inputs, || async { Ok::<_, Infallible>(value) })
                    .await;
                assert!(ran.is_ok());
            }
        });
    });
    let each = u64::try_from(held.bytes_current).expect("memory is held") / ANSWERS;
    let weighed = frame as u64 + MemoryStore::OVERHEAD;
    println!("bytes for each answer: {each} held, {weighed} weighed, {frame} of them payload");
    assert!(each <= weighed, "{each} bytes are weighed at {weighed}");
    assert!(each >= weighed / 2, "{each} bytes are weighed at {weighed}");
}
