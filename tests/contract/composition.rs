//! The layer among others, inside and outside of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use std::convert::Infallible;

use axum::Router;
use axum::routing::post;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_http::validate_request::{ValidateRequest, ValidateRequestHeaderLayer};
use tower_idempotency::{EXPOSED_HEADERS, Orphan};

use crate::support::{
    Answer, Body, NONE, Running, Runs, channel, for_axum, for_each_stack, layer, refusing, serve,
    text,
};
use crate::support::{Case, Http, Stack, frames, service, whole};

#[tokio::test]
async fn trace_outside_and_inside() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let trace = TraceLayer::new_for_http;
        let server = serve!(case, trace(), layer(), trace(), runs.numbered());
        server.post("/a").key("k").send().await.ran("run 1");
        server.post("/a").key("k").send().await.replayed("run 1");
        server.post("/a").send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_timeout_inside_ends_the_run_and_releases_its_key() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let handler = runs.running(move |_, number| {
            let gate = gate.clone();
            async move {
                if number == 1 {
                    gate.pass().await;
                }
                text(format!("run {number}"))
            }
        });
        let short = Duration::from_millis(30);
        let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, short);
        let layer = layer();
        let server = serve!(case, NONE, layer, timeout, handler);
        assert_eq!(server.post("/a").key("k").send().await.status, 504);
        server.post("/a").key("k").send().await.ran("run 2");
        assert_eq!(layer.handle().stats().detached, 0);
    })
    .await;
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
        assert_eq!(runs.count(), 1);
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
async fn a_panic_that_is_caught_inside_is_a_response_like_others() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let catch = CatchPanicLayer::new();
        let all = layer().recording(tower_idempotency::Recording::stripe_v1());
        let server = serve!(case, NONE, all, catch, panics_once(&runs));
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

#[tokio::test]
async fn one_whose_access_was_withdrawn_gets_no_replay() {
    for_each_stack(|case| async move {
        let access = Access::default();
        let runs = Runs::default();
        let auth = ValidateRequestHeaderLayer::custom(access.clone());
        let server = serve!(case, refusing(auth), layer(), NONE, runs.numbered());
        let call = || server.post("/a").key("k").send();
        call().await.ran("run 1");
        call().await.replayed("run 1");
        access.withdrawn.store(true, Ordering::SeqCst);
        assert_eq!(call().await.status, 401);
        assert_eq!(runs.count(), 1);
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
        let limit = tower::limit::GlobalConcurrencyLimitLayer::new(1);
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
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(1))
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
