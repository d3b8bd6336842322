//! The layer among others, inside and outside of them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_http::auth::{AsyncAuthorizeRequest, AsyncRequireAuthorizationLayer};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::{OnRequest, TraceLayer};
use tower_http::validate_request::{ValidateRequest, ValidateRequestHeaderLayer};
use tower_idempotency::{EXPOSED_HEADERS, IDEMPOTENCY_KEY, Orphan};

use crate::support::{
    Answer, Body, Case, Http, NONE, Running, Runs, Stack, answer, channel, direct, for_axum,
    for_each_stack, frames, layer, refusing, serve, service, spawn, text, whole,
};

#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl<B> OnRequest<B> for Count {
    fn on_request(&mut self, _: &Request<B>, _: &tracing::Span) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_trace_outside_sees_every_request_and_one_inside_sees_runs_alone() {
    for_each_stack(|case| async move {
        let (outside, inside) = (Count::default(), Count::default());
        let trace = |count: &Count| TraceLayer::new_for_http().on_request(count.clone());
        let runs = Runs::default();
        let (outer, inner) = (trace(&outside), trace(&inside));
        let server = serve!(case, outer, layer(), inner, runs.numbered());
        server.post("/a").key("k").send().await.ran("run 1");
        server.post("/a").key("k").send().await.replayed("run 1");
        server.post("/a").send().await.ran("run 2");
        let call = server.post("/a").key("two words").send().await;
        call.refused(400, "invalid-key");
        let seen = [outside, inside].map(|count| count.0.load(Ordering::SeqCst));
        assert_eq!(seen, [4, 2]);
    })
    .await;
}

fn waits_once(runs: &Runs) -> impl Fn(Request<Body>) -> Running + Clone + Send + Sync + 'static {
    let gate = runs.gate().clone();
    runs.running(move |_, number| {
        let gate = gate.clone();
        async move {
            if number == 1 {
                gate.pass().await;
            }
            text(format!("run {number}"))
        }
    })
}

const SHORT: Duration = Duration::from_millis(30);

#[tokio::test]
async fn a_timeout_inside_leaves_an_unknown_outcome() {
    for status in [StatusCode::REQUEST_TIMEOUT, StatusCode::GATEWAY_TIMEOUT] {
        for_each_stack(|case| async move {
            let timeout = || TimeoutLayer::with_status_code(status, SHORT);
            let runs = Runs::default();
            let layer = layer().orphan(Orphan::Hold);
            let server = serve!(case, NONE, layer, timeout(), waits_once(&runs));
            let call = || server.post("/a").key("k").send();
            assert_eq!(call().await.status, status);
            call().await.refused(409, "outcome-unknown");
            assert_eq!((runs.count(), layer.handle().stats().detached), (1, 0));

            // The default policy runs it again.
            let runs = Runs::default();
            let layer = crate::support::layer();
            let server = serve!(case, NONE, layer, timeout(), waits_once(&runs));
            let call = || server.post("/a").key("k").send();
            assert_eq!(call().await.status, status);
            call().await.ran("run 2");
        })
        .await;
    }
}

#[tokio::test]
async fn a_timeout_of_tower_inside_leaves_an_unknown_outcome() {
    let runs = Runs::default();
    let stack = ServiceBuilder::new()
        .layer(layer().orphan(Orphan::Hold))
        .layer(tower::timeout::TimeoutLayer::new(SHORT))
        .service(service(waits_once(&runs)));
    let stack = direct(stack);
    let request = || {
        let request = Request::post("/a").header("idempotency-key", "k");
        request.body(whole("it")).expect("it is valid")
    };
    let elapsed = crate::support::call(&stack, request()).await;
    let elapsed = elapsed.expect_err("it takes too long");
    assert!(elapsed.is::<tower::timeout::error::Elapsed>(), "{elapsed}");
    assert_eq!(answer(&stack, request()).await, "outcome-unknown");
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn a_timeout_outside_lets_the_run_go_on_and_a_retry_get_its_answer() {
    for status in [StatusCode::REQUEST_TIMEOUT, StatusCode::GATEWAY_TIMEOUT] {
        for_each_stack(|case| async move {
            let runs = Runs::default();
            let timeout = TimeoutLayer::with_status_code(status, SHORT);
            let layer = layer().orphan(Orphan::Hold);
            let server = serve!(case, timeout, layer, NONE, runs.gated());
            assert_eq!(server.post("/a").key("k").send().await.status, status);
            runs.gate().open();
            layer.handle().idle().await;
            server.post("/a").key("k").send().await.replayed("run 1");
        })
        .await;
    }
}

#[tokio::test]
async fn a_limit_on_bodies_outside_is_kept() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let limit = RequestBodyLimitLayer::new(10);
        let server = serve!(case, limit, layer(), NONE, runs.numbered());
        // Announced: the limit answers itself.
        let announced = server.post("/a").key("k").body("0123456789a").send().await;
        assert_eq!(announced.status, 413);
        // Found out on the way: the layer is told by an error.
        let (sender, body) = channel();
        sender.chunk("012345");
        sender.chunk("6789ab");
        drop(sender);
        let streamed = server.post("/a").key("k").stream(body).send().await;
        streamed.refused(413, "request-too-large");
        let small = server.post("/a").key("k").body("0123456789").send().await;
        small.ran("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_limit_on_bodies_inside_is_kept_after_the_body_was_buffered() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.running(|request, number| async move {
            match request.into_body().collect().await {
                Ok(_) => text(format!("run {number}")),
                Err(_) => {
                    let mut response = text("too large");
                    *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                    response
                }
            }
        });
        let limit = RequestBodyLimitLayer::new(10);
        let server = serve!(case, NONE, layer(), limit, handler);
        let call = |body: &'static str| server.post("/a").key("k").body(body).send();
        assert_eq!(call("0123456789a").await.status, 413);
        // Nothing was done, so that the key is free for a body that is short enough.
        assert_eq!(call("0123456789").await.status, 200);
    })
    .await;
}

const LONG: &str = "compressible, compressible, compressible, compressible, compressible";
const GZIP: &[u8] = b"\x1F\x8B";

fn is_compressed(answer: &Answer) -> bool {
    let says_so = answer.values("content-encoding") == [b"gzip"];
    assert_eq!(answer.body.starts_with(GZIP), says_so);
    assert_eq!(answer.body == LONG, !says_so);
    says_so
}

#[tokio::test]
async fn compression_outside_is_for_each_client_anew() {
    for_each_stack(|case| async move {
        let handler = Runs::default().answering(|_, _| text(LONG));
        let server = serve!(case, CompressionLayer::new(), layer(), NONE, handler);
        let call = || server.post("/a").key("k");
        let first = call().header("accept-encoding", "gzip").send().await;
        assert!(is_compressed(&first) && !first.is_replayed());
        let plain = call().send().await;
        assert!(!is_compressed(&plain) && plain.is_replayed());
        let compressed = call().header("accept-encoding", "gzip").send().await;
        assert!(is_compressed(&compressed) && compressed.is_replayed());
        assert_eq!(compressed.body, first.body);
    })
    .await;
}

#[tokio::test]
async fn compression_inside_is_recorded() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.answering(|_, _| text(LONG));
        let server = serve!(case, NONE, layer(), CompressionLayer::new(), handler);
        let call = || {
            server
                .post("/a")
                .key("k")
                .header("accept-encoding", "gzip")
                .send()
        };
        let first = call().await;
        assert!(is_compressed(&first) && !first.is_replayed());
        let retry = call().await;
        assert!(is_compressed(&retry) && retry.is_replayed());
        assert_eq!(retry.body, first.body);
        assert_eq!(retry.values("vary"), first.values("vary"));
        // And so it is for a client that cannot read it.
        let plain = server.post("/a").key("k").send().await;
        assert!(is_compressed(&plain) && plain.is_replayed());
        assert_eq!(runs.count(), 1);
    })
    .await;
}

/// A body in the form of gzip, made at this time.
fn gzip(body: &[u8], time: u8) -> Vec<u8> {
    let mut crc = !0_u32;
    for byte in body {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let length = u16::try_from(body.len()).expect("it is short");
    let mut gzip = vec![0x1F, 0x8B, 8, 0, time, 0, 0, 0, 0, 255];
    // One block that is not compressed.
    gzip.push(1);
    gzip.extend(length.to_le_bytes());
    gzip.extend((!length).to_le_bytes());
    gzip.extend(body);
    gzip.extend((!crc).to_le_bytes());
    gzip.extend(u32::from(length).to_le_bytes());
    gzip
}

#[tokio::test]
async fn decompression_belongs_outside_where_a_body_is_compressed_anew_for_a_retry() {
    use axum::body::Body;
    use tower::util::MapRequestLayer;
    use tower_http::decompression::{DecompressionBody, RequestDecompressionLayer};

    // The layer reads axum's own bodies.
    fn boxed(request: Request<DecompressionBody<Body>>) -> Request<Body> {
        request.map(Body::new)
    }
    for_axum(|case| async move {
        let router = || Router::new().route("/a", post(async |body: String| format!("got {body}")));
        let decompression = || {
            ServiceBuilder::new()
                .layer(RequestDecompressionLayer::new())
                .layer(MapRequestLayer::new(boxed))
        };
        let outside = router().layer(layer()).layer(decompression());
        let inside = router().layer(decompression()).layer(layer());
        for (router, is_same) in [(outside, true), (inside, false)] {
            let server = case.serve_router(router).await;
            let call = |time| {
                let call = server.post("/a").key("k").body(gzip(b"it", time));
                call.header("content-encoding", "gzip").send()
            };
            call(1).await.ran("got it");
            call(1).await.replayed("got it");
            let retry = call(2).await;
            match is_same {
                true => retry.replayed("got it"),
                false => {
                    retry.refused(422, "key-reused");
                    &retry
                }
            };
        }
    })
    .await;
}

fn panics_once(runs: &Runs) -> impl Fn(Request<Body>) -> Running + Clone + Send + Sync + 'static {
    runs.running(|_, number| async move {
        assert_ne!(number, 1, "the first run panics");
        text(format!("run {number}"))
    })
}

#[tokio::test]
async fn a_panic_that_is_caught_outside_has_no_known_outcome() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let catch = CatchPanicLayer::new();
        let held = layer().orphan(Orphan::Hold);
        let server = serve!(case, catch, held, NONE, panics_once(&runs));
        assert_eq!(server.post("/a").key("k").send().await.status, 500);
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "outcome-unknown");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_panic_that_is_caught_outside_is_retaken() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let catch = CatchPanicLayer::new();
        let server = serve!(case, catch, layer(), NONE, panics_once(&runs));
        assert_eq!(server.post("/a").key("k").send().await.status, 500);
        server.post("/a").key("k").send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_panic_that_is_caught_inside_is_a_500_as_any_other() {
    for_each_stack(|case| async move {
        let catch = CatchPanicLayer::new;
        let runs = Runs::default();
        let held = layer().orphan(Orphan::Hold);
        let server = serve!(case, NONE, held, catch(), panics_once(&runs));
        assert_eq!(server.post("/a").key("k").send().await.status, 500);
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "outcome-unknown");

        // A policy that records 500s takes it for the answer.
        let runs = Runs::default();
        let all = layer().recording(tower_idempotency::Recording::stripe_v1());
        let server = serve!(case, NONE, all, catch(), panics_once(&runs));
        for is_replayed in [false, true] {
            let answer = server.post("/a").key("k").send().await;
            assert_eq!(answer.status, 500);
            assert_eq!(answer.is_replayed(), is_replayed);
        }
        assert_eq!(runs.count(), 1);
    })
    .await;
}

/// Lets nobody in once access was withdrawn.
#[derive(Clone, Default)]
struct Access {
    withdrawn: Arc<AtomicBool>,
}

impl<B> ValidateRequest<B> for Access {
    type ResponseBody = Body;

    fn validate(&mut self, _: &mut Request<B>) -> Result<(), Response<Body>> {
        if !self.withdrawn.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut response = text("no access");
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        Err(response)
    }
}

impl<B: Send + 'static> AsyncAuthorizeRequest<B> for Access {
    type RequestBody = B;
    type ResponseBody = Body;
    type Future = Pin<Box<dyn Future<Output = Result<Request<B>, Response<Body>>> + Send>>;

    fn authorize(&mut self, mut request: Request<B>) -> Self::Future {
        let mut access = self.clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            access.validate(&mut request).map(|()| request)
        })
    }
}

#[tokio::test]
async fn one_whose_access_was_withdrawn_gets_no_replay_from_behind_authentication() {
    for_each_stack(|case| async move {
        let access = Access::default();
        let auth = || ValidateRequestHeaderLayer::custom(access.clone());
        let runs = Runs::default();
        let outside = serve!(case, refusing(auth()), layer(), NONE, runs.numbered());
        let inside = serve!(case, NONE, layer(), refusing(auth()), runs.numbered());
        for (server, run) in [(&outside, "run 1"), (&inside, "run 2")] {
            server.post("/a").key("k").send().await.ran(run);
            server.post("/a").key("k").send().await.replayed(run);
        }
        access.withdrawn.store(true, Ordering::SeqCst);
        assert_eq!(outside.post("/a").key("k").send().await.status, 401);
        // Otherwise: nobody asks.
        inside.post("/a").key("k").send().await.replayed("run 2");
        assert_eq!(runs.count(), 2);
    })
    .await;
}

#[tokio::test]
async fn authentication_that_waits_is_asked_before_each_replay() {
    for_each_stack(|case| async move {
        let access = Access::default();
        let auth = AsyncRequireAuthorizationLayer::new(access.clone());
        let runs = Runs::default();
        let server = serve!(case, refusing(auth), layer(), NONE, runs.numbered());
        server.post("/a").key("k").send().await.ran("run 1");
        server.post("/a").key("k").send().await.replayed("run 1");
        access.withdrawn.store(true, Ordering::SeqCst);
        assert_eq!(server.post("/a").key("k").send().await.status, 401);
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_redirect_to_a_login_page_belongs_outside() {
    #[derive(Clone, Default)]
    struct Login(Arc<AtomicBool>);

    impl<B> ValidateRequest<B> for Login {
        type ResponseBody = Body;

        fn validate(&mut self, _: &mut Request<B>) -> Result<(), Response<Body>> {
            if self.0.load(Ordering::SeqCst) {
                return Ok(());
            }
            let mut response = text("log in");
            *response.status_mut() = StatusCode::FOUND;
            Err(response)
        }
    }
    for_each_stack(|case| async move {
        let login = Login::default();
        let auth = || ValidateRequestHeaderLayer::custom(login.clone());
        let runs = Runs::default();
        let outside = serve!(case, refusing(auth()), layer(), NONE, runs.numbered());
        let inside = serve!(case, NONE, layer(), refusing(auth()), runs.numbered());
        for server in [&outside, &inside] {
            assert_eq!(server.post("/a").key("k").send().await.status, 302);
        }
        login.0.store(true, Ordering::SeqCst);
        outside.post("/a").key("k").send().await.ran("run 1");
        // Otherwise: the redirect is the answer.
        let replayed = inside.post("/a").key("k").send().await;
        assert!(replayed.status == 302 && replayed.is_replayed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_the_rate_outside_counts_replays_too() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .buffer(8)
            .rate_limit(1, Duration::from_secs(1))
            .layer(layer())
            .service(service(runs.numbered())),
    );
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        let request = Request::post("/a").header("idempotency-key", "k");
        let request = request.body(whole("it")).expect("it is valid");
        let answer = answer(&stack, request).await;
        assert!(answer.ends_with("run 1"), "{answer}");
    }
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_limit_on_concurrency_outside_holds_replays_up_and_misses_detached_runs() {
    for_each_stack(|case| async move {
        if (case.stack, case.http) != (Stack::Hyper, Http::One) {
            // axum asks for readiness within its routes, and HTTP/2 before it reads on.
            return;
        }
        let runs = Runs::default();
        let limit = GlobalConcurrencyLimitLayer::new(1);
        let layer = layer();
        let server = serve!(case, limit, layer, NONE, runs.gated());
        runs.gate().open();
        server.post("/a").key("old").send().await.ran("run 1");
        runs.gate().arrived().await;
        let running = server.post("/a").key("running").spawn();
        runs.gate().arrived().await;
        let replay = server.post("/a").key("old").spawn();
        tokio::time::sleep(SHORT).await;
        assert!(!replay.is_finished(), "it waits for the run");
        // It is not the run that is counted, but its request.
        running.abort();
        replay.await.expect("no panic").replayed("run 1");
        assert_eq!(layer.handle().in_flight(), 1);
        runs.gate().open_for_good();
        layer.handle().idle().await;
    })
    .await;
}

#[tokio::test]
async fn load_is_not_shed_outside_because_the_layer_is_always_ready() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .load_shed()
            .layer(layer())
            .layer(GlobalConcurrencyLimitLayer::new(1))
            .service(service(runs.gated())),
    );
    let request = |key: &str| {
        let request = Request::post("/a").header("idempotency-key", key);
        request.body(whole("it")).expect("it is valid")
    };
    let first = spawn(&stack, request("1"));
    runs.gate().arrived().await;
    let second = spawn(&stack, request("2"));
    tokio::time::sleep(SHORT).await;
    assert!(!second.is_finished(), "it waits under its lease");
    runs.gate().open_for_good();
    assert_eq!(first.await.expect("no panic"), "run 1");
    assert_eq!(second.await.expect("no panic"), "run 2");
}

#[tokio::test]
async fn a_buffer_outside_serves_runs_and_replays() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .buffer(1)
            .layer(layer())
            .service(service(runs.numbered())),
    );
    for expected in ["run 1", "replayed: run 1"] {
        let request = Request::post("/a").header("idempotency-key", "k");
        let request = request.body(whole("it")).expect("it is valid");
        assert_eq!(answer(&stack, request).await, expected);
    }
}

#[tokio::test]
async fn cors_inside_leaves_replays_and_refusals_without_its_headers() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let cors = || CorsLayer::new().allow_origin(Any);
        let outside = serve!(case, cors(), layer(), NONE, runs.numbered());
        let inside = serve!(case, NONE, layer(), cors(), runs.numbered());
        for (server, is_outside) in [(&outside, true), (&inside, false)] {
            let call = |key: &str| {
                let call = server.post("/a").key(key);
                call.header("origin", "https://shop.example").send()
            };
            let allowed = |answer: Answer| !answer.values("access-control-allow-origin").is_empty();
            assert!(allowed(call("k").await));
            assert_eq!(allowed(call("k").await), is_outside);
            assert_eq!(allowed(call("two words").await), is_outside);
        }
    })
    .await;
}

#[tokio::test]
async fn a_browser_may_send_the_key_where_cors_allows_it() {
    for_each_stack(|case| async move {
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .allow_headers([IDEMPOTENCY_KEY, http::header::CONTENT_TYPE]);
        let server = serve!(case, cors, layer(), NONE, Runs::default().numbered());
        let preflight = server
            .call(http::Method::OPTIONS, "/a")
            .header("origin", "https://shop.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "idempotency-key");
        let answer = preflight.send().await;
        let allowed = answer.headers["access-control-allow-headers"].to_str();
        assert!(allowed.expect("names").contains("idempotency-key"));
    })
    .await;
}

#[tokio::test]
async fn browsers_may_read_what_the_layer_says() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .expose_headers(EXPOSED_HEADERS);
        let layer = layer().report_times(true);
        let server = serve!(case, cors, layer, NONE, runs.numbered());
        for _ in 0..2 {
            let call = server
                .post("/a")
                .key("k")
                .header("origin", "https://shop.example");
            let answer = call.send().await;
            let exposed = answer.headers["access-control-expose-headers"].to_str();
            let exposed: Vec<_> = exposed.expect("names").split(',').collect();
            // Whatever the layer adds is among them.
            for name in answer.headers.keys().map(http::HeaderName::as_str) {
                if name.starts_with("idempoten") {
                    assert!(exposed.contains(&name), "{name}");
                }
            }
            for name in [
                "idempotency-expires",
                "idempotency-first-seen",
                "idempotency-key",
                "idempotency-refused",
                "idempotency-unprotected",
                "idempotent-replayed",
                "retry-after",
            ] {
                assert!(exposed.contains(&name), "{name}");
            }
        }
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_service_that_has_to_be_ready_is_called_when_it_is() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let limit = GlobalConcurrencyLimitLayer::new(1);
        let server = serve!(case, NONE, layer(), limit, runs.gated());
        let calls: Vec<_> = (0..10)
            .map(|number| server.post("/a").key(&format!("k-{number}")).spawn())
            .collect();
        for number in 1..=calls.len() {
            runs.gate().arrived().await;
            assert_eq!(runs.count(), number, "two run at once");
            runs.gate().open();
        }
        for call in calls {
            assert!(!call.await.expect("no panic").is_replayed());
        }
        for number in 0..10 {
            let retry = server.post("/a").key(&format!("k-{number}")).send().await;
            assert!(retry.is_replayed());
        }
    })
    .await;
}

/// Servers clone their service for each request. Other callers go on with the one that they have.
#[tokio::test]
async fn one_service_and_its_clones_take_one_request_after_the_other() {
    let runs = Runs::default();
    let mut service = ServiceBuilder::new()
        .layer(layer())
        // It panics when it is called and was not polled ready.
        .layer(GlobalConcurrencyLimitLayer::new(1))
        .service(service(runs.numbered()));
    for key in ["1", "2", "1"] {
        for service in [&mut service.clone(), &mut service] {
            let request = Request::post("/a").header("idempotency-key", key);
            let request = request.body(whole("it")).expect("it is valid");
            let ready = ServiceExt::<Request<Body>>::ready(service).await;
            let ready = ready.expect("it never fails");
            let response = ready.call(request).await.expect("it never fails");
            assert_eq!(response.status(), StatusCode::OK);
        }
    }
    assert_eq!(runs.count(), 2);
}

#[tokio::test]
async fn a_service_builder_of_the_layer_and_axum_middleware_serves_a_router() {
    async fn stamp(
        request: axum::extract::Request,
        next: axum::middleware::Next,
    ) -> axum::response::Response {
        let mut response = next.run(request).await;
        let stamp = HeaderValue::from_static("inside");
        response.headers_mut().append("x-stamp", stamp);
        response
    }
    for_axum(|case| async move {
        let stack = ServiceBuilder::new()
            .layer(axum::middleware::from_fn(stamp))
            .layer(layer())
            .layer(axum::middleware::from_fn(stamp));
        let router = Router::new()
            .route("/a", post(async |body: String| format!("got {body}")))
            .layer(stack);
        let server = case.serve_router(router).await;
        let call = || server.post("/a").key("k").body("it").send();
        for answer in [call().await, call().await] {
            assert_eq!(answer.body, "got it");
            // Once from the record or the run, and once from outside.
            assert_eq!(answer.values("x-stamp"), [b"inside", b"inside"]);
        }
        call().await.replayed("got it");
    })
    .await;
}

#[tokio::test]
async fn the_layer_may_be_on_one_route_alone() {
    for_axum(|case| async move {
        let count = Arc::new(Mutex::new(0));
        let counted = {
            let count = Arc::clone(&count);
            move || {
                let count = Arc::clone(&count);
                async move {
                    let mut count = count.lock().expect("not poisoned");
                    *count += 1;
                    format!("run {count}")
                }
            }
        };
        let router = Router::new()
            .route("/guarded", post(counted.clone()).layer(layer()))
            .route("/free", post(counted));
        let server = case.serve_router(router).await;
        server.post("/guarded").key("k").send().await.ran("run 1");
        server
            .post("/guarded")
            .key("k")
            .send()
            .await
            .replayed("run 1");
        server.post("/free").key("k").send().await.ran("run 2");
        server.post("/free").key("k").send().await.ran("run 3");
    })
    .await;
}

#[tokio::test]
async fn axum_extractors_read_the_body_that_was_read_for_the_fingerprint() {
    #[derive(serde::Deserialize)]
    struct Charge {
        amount: u64,
    }
    async fn json(axum::Json(charge): axum::Json<Charge>) -> String {
        format!("charged {}", charge.amount)
    }
    async fn form(axum::Form(charge): axum::Form<Charge>) -> String {
        format!("charged {}", charge.amount)
    }
    for_axum(|case| async move {
        let router = Router::new()
            .route("/json", post(json))
            .route("/form", post(form))
            .layer(layer());
        let server = case.serve_router(router).await;
        for _ in 0..2 {
            let json = server.post("/json").key("k").json(r#"{"amount":12}"#);
            assert_eq!(json.send().await.body, "charged 12");
            let form = server.post("/form").key("k").form("amount=12");
            assert_eq!(form.send().await.body, "charged 12");
        }
        // What an extractor refuses was not done, and a corrected request is another one.
        let corrected = |body| server.post("/json").key("bad").json(body).send();
        assert_eq!(corrected("{}").await.status, 422);
        corrected(r#"{"amount":12}"#).await.ran("charged 12");
    })
    .await;
}

#[tokio::test]
async fn tonic_bodies_stay_what_they_are() {
    use tonic::body::Body;

    async fn call(_: Request<Body>) -> Result<Response<Body>, Infallible> {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Ok(Response::new(Body::new(frames(["unary"], Some(trailers)))))
    }
    let service = ServiceBuilder::new()
        .map_request(|request: Request<Incoming>| request.map(Body::new))
        .layer(layer())
        .service_fn(call);
    let case = Case {
        stack: Stack::Hyper,
        http: Http::Two,
    };
    let server = case.serve_service(service).await;
    for is_replayed in [false, true] {
        let answer = server.post("/shop.Till/Charge").key("k").send().await;
        assert_eq!(
            (&answer.body[..], answer.is_replayed()),
            (&b"unary"[..], is_replayed)
        );
        assert_eq!(answer.trailers.expect("trailers")["grpc-status"], "0");
    }
}
