//! What handlers see of the layer, and what the layers outside of it see.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use http::{HeaderValue, Request, Response, StatusCode};
use tower::util::MapResponseLayer;
use tower_idempotency::record::FencingToken;
use tower_idempotency::store::Store;
use tower_idempotency::{
    Attempt, IdempotencyKey, IdempotencyLayer, Outcome, RecordingOverride, original_path,
};

use crate::support::{
    Answer, Body, Case, Fault, FaultyStore, Log, NONE, Runs, Server, for_axum, for_each_stack,
    layer, serve, still_clock, text,
};

#[tokio::test]
async fn a_handler_finds_its_attempt_in_the_extensions() {
    for_each_stack(|case| async move {
        let seen: Arc<Mutex<Option<Attempt>>> = Arc::default();
        let handler = {
            let seen = Arc::clone(&seen);
            Runs::default().answering(move |request, _| {
                *seen.lock().expect("not poisoned") = request.extensions().get().cloned();
                text("seen")
            })
        };
        let clock = still_clock();
        let layer = layer()
            .clock(clock.clone())
            .namespace("live")
            .scope(|_| Some("t1".into()));
        let server = case.serve(&layer, handler).await;
        let see = || seen.lock().expect("not poisoned").take();

        server
            .post("/a/b?c")
            .key("\"k-1\"")
            .send()
            .await
            .ran("seen");
        let attempt = see().expect("it is guarded");
        assert_eq!(attempt.number(), 1);
        let parts = attempt.key().parts();
        assert_eq!(parts.key, "k-1");
        assert_eq!(parts.namespace, "live");
        assert_eq!(parts.scope, Some("t1"));
        assert_eq!(parts.method, "POST");
        assert_eq!(parts.target, "/a/b");
        let now = tower_idempotency::Clock::now(&clock);
        assert_eq!(attempt.token().as_u64(), now.as_micros());

        server.post("/a/b?c").send().await.ran("seen");
        assert!(see().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_derived_key_is_the_same_for_each_attempt_and_another_for_each_purpose() {
    for_each_stack(|case| async move {
        let handler = Runs::default().answering(|request, number| {
            let attempt: &Attempt = request.extensions().get().expect("it is guarded");
            let derived = ["psp", "ledger"].map(|purpose| attempt.key().derive(purpose));
            let [psp, ledger] = derived.each_ref().map(IdempotencyKey::as_str);
            let mut response = text(format!("{psp} {ledger}"));
            if number == 1 {
                *response.status_mut() = StatusCode::BAD_GATEWAY;
            }
            response
        });
        let server = case.serve(&layer(), handler).await;
        let first = server.post("/a").key("k").send().await;
        let second = server.post("/a").key("k").send().await;
        assert_eq!((first.status.as_u16(), second.status.as_u16()), (502, 200));
        assert_eq!(first.body, second.body);
        let other = server.post("/b").key("k").send().await;
        let keys = [first, other].map(|answer| String::from_utf8(answer.body.to_vec()));
        let mut keys: Vec<_> = keys
            .iter()
            .flat_map(|keys| keys.as_ref().expect("hexadecimal").split(' '))
            .collect();
        assert!(keys.iter().all(|key| key.len() == 32), "{keys:?}");
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 4);
    })
    .await;
}

#[tokio::test]
async fn axum_handlers_take_key_token_and_attempt_as_arguments() {
    async fn strict(key: IdempotencyKey, token: FencingToken, attempt: Attempt) -> String {
        assert_eq!((attempt.key(), attempt.token()), (&key, token));
        format!("{} {}", key.as_str(), attempt.number())
    }
    async fn lenient(
        key: Option<IdempotencyKey>,
        token: Option<FencingToken>,
        attempt: Option<Attempt>,
    ) -> String {
        let guarded = [key.is_some(), token.is_some(), attempt.is_some()];
        format!("{guarded:?}")
    }
    for_axum(|case| async move {
        let router = Router::new()
            .route("/strict", post(strict))
            .route("/lenient", post(lenient))
            .layer(layer());
        let server = case.serve_router(router).await;
        server.post("/strict").key("k").send().await.ran("k 1");
        let unguarded = server.post("/strict").send().await;
        unguarded.refused(400, "missing-key");
        let lenient = || server.post("/lenient");
        lenient().key("k").send().await.ran("[true, true, true]");
        lenient().send().await.ran("[false, false, false]");
    })
    .await;
}

#[tokio::test]
async fn a_handler_that_takes_a_key_without_a_layer_is_told_of() {
    async fn handler(key: IdempotencyKey) -> String {
        key.as_str().to_owned()
    }
    for_axum(|case| async move {
        let router = Router::new()
            .route("/guarded", post(handler).layer(layer()))
            .route("/free", post(handler));
        let server = case.serve_router(router).await;
        let log = Log::of_this_thread();
        server.post("/guarded").key("k").send().await.ran("k");
        assert_eq!(log.count("ERROR", "no layer"), 0);
        let free = server.post("/free").key("k").send().await;
        assert_eq!(free.status, 500);
        assert_eq!(log.count("ERROR", "no layer"), 1);
    })
    .await;
}

/// Serves `handler` with a layer outside that tells the client of the outcome.
async fn serve_observed<St, F, Fut>(case: Case, layer: &IdempotencyLayer<St>, handler: F) -> Server
where
    St: Store,
    F: Fn(Request<Body>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    fn tell<B>(mut response: Response<B>) -> Response<B> {
        if let Some(outcome) = response.extensions().get::<Outcome>() {
            let outcome = HeaderValue::try_from(format!("{outcome:?}")).expect("text");
            response.headers_mut().insert("x-outcome", outcome);
        }
        response
    }
    serve!(case, MapResponseLayer::new(tell), layer, NONE, handler)
}

#[track_caller]
fn outcome(answer: &Answer) -> Option<&str> {
    let outcome = answer.headers.get("x-outcome")?;
    Some(outcome.to_str().expect("text"))
}

#[tokio::test]
async fn layers_outside_see_what_became_of_a_request() {
    for_each_stack(|case| async move {
        let store = FaultyStore::new();
        let layer = IdempotencyLayer::new(store.clone())
            .fail_open(true)
            .report_outcome(true);
        let handler = Runs::default().answering(|request, _| {
            let mut response = text("done");
            match request.uri().path() {
                "/stream" => {
                    response.extensions_mut().insert(RecordingOverride::Stream);
                }
                "/nothing" => *response.status_mut() = StatusCode::BAD_GATEWAY,
                _ => {}
            }
            response
        });
        let server = serve_observed(case, &layer, handler).await;
        let passed = server.post("/a").send().await;
        assert_eq!(outcome(&passed), None);
        for (path, key, body, expected) in [
            ("/a", "k", "x", "Executed(Stored)"),
            ("/a", "k", "x", "Replayed"),
            ("/a", "k", "y", "Refused(KeyReused)"),
            ("/a", "two words", "x", "Refused(InvalidKey)"),
            ("/stream", "k", "x", "Executed(NotStored)"),
            ("/stream", "k", "x", "Refused(ResponseNotStored)"),
            ("/nothing", "k", "x", "Executed(Released)"),
        ] {
            let answer = server.post(path).key(key).body(body).send().await;
            assert_eq!(outcome(&answer), Some(expected));
        }
        store.fail_ends(Fault::Unreachable);
        let pending = server.post("/a").key("pending").send().await;
        assert_eq!(outcome(&pending), Some("Executed(Pending)"));
        store.fail_claims(Fault::Unreachable);
        let unprotected = server.post("/a").key("unprotected").send().await;
        assert_eq!(outcome(&unprotected), Some("Unprotected"));
    })
    .await;
}

#[tokio::test]
async fn an_outcome_is_told_only_where_that_is_set() {
    for_each_stack(|case| async move {
        let handler = Runs::default().answering(|_, _| text("done"));
        let server = serve_observed(case, &layer(), handler).await;
        for body in ["x", "x", "y"] {
            let answer = server.post("/a").key("k").body(body).send().await;
            assert_eq!(outcome(&answer), None);
        }
    })
    .await;
}

const FIRST_SEEN: &str = "idempotency-first-seen";
const EXPIRES: &str = "idempotency-expires";

#[tokio::test]
async fn answers_tell_times_where_that_is_set() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let layer = layer().clock(clock.clone()).report_times(true);
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let clock_of_handler = clock.clone();
        let handler = runs.running(move |_, _| {
            let (gate, clock) = (gate.clone(), clock_of_handler.clone());
            async move {
                gate.pass().await;
                clock.advance(Duration::from_secs(20));
                text("done")
            }
        });
        runs.gate().open();
        let server = case.serve(&layer, handler).await;
        let check = |answer: &Answer| {
            assert_eq!(
                answer.values(FIRST_SEEN),
                [b"Sun, 06 Nov 1994 08:49:37 GMT"]
            );
            // The retention begins when the answer is there.
            assert_eq!(answer.values(EXPIRES), [b"Mon, 07 Nov 1994 08:49:57 GMT"]);
        };
        let first = server.post("/a").key("k").send().await;
        first.ran("done");
        check(&first);
        clock.advance(Duration::from_secs(3600));
        let retry = server.post("/a").key("k").send().await;
        retry.replayed("done");
        check(&retry);
    })
    .await;
}

#[tokio::test]
async fn answers_tell_no_times_by_default() {
    for_each_stack(|case| async move {
        let server = case.serve(&layer(), Runs::default().numbered()).await;
        for _ in 0..2 {
            let answer = server.post("/a").key("k").send().await;
            assert_eq!(answer.body, "run 1");
            assert_eq!(answer.values(FIRST_SEEN), [b""; 0]);
            assert_eq!(answer.values(EXPIRES), [b""; 0]);
        }
    })
    .await;
}

#[tokio::test]
async fn nested_routers_are_kept_apart_by_their_original_paths() {
    for_axum(|case| async move {
        let charges = |layer: &IdempotencyLayer<_>, of: &'static str| {
            let handler = move |key: IdempotencyKey| async move {
                Ok::<_, Infallible>(format!("{of}: {}", key.parts().target))
            };
            Router::new()
                .route("/charges", post(handler))
                .layer(layer.clone())
        };
        let layer = layer().target(original_path);
        let router = Router::new()
            .nest("/v1", charges(&layer, "one"))
            .nest("/v2", charges(&layer, "two"));
        let server = case.serve_router(router).await;
        let call = |path| server.post(path).key("k").send();
        call("/v1/charges").await.ran("one: /v1/charges");
        call("/v2/charges").await.ran("two: /v2/charges");
        call("/v1/charges").await.replayed("one: /v1/charges");
        call("/v2/charges").await.replayed("two: /v2/charges");
    })
    .await;
}

#[tokio::test]
async fn work_of_a_handler_needs_a_key_of_its_own() {
    for wait in [Duration::ZERO, Duration::from_secs(20)] {
        for_each_stack(|case| async move {
            let layer = layer().wait_for_in_flight(wait);
            let executor = layer.executor().clone();
            let handler = Runs::default().running(move |request, number| {
                let executor = executor.clone();
                let attempt = request.extensions().get::<Attempt>().cloned();
                async move {
                    let key = attempt.expect("it is guarded").key().clone();
                    let inputs = tower_idempotency::Fingerprint::of(["it"]);
                    let work = || async { Ok::<_, ()>(7) };
                    let refused = executor.run(&key, inputs, work).await;
                    let is_told = matches!(refused, Err(tower_idempotency::RunError::KeyOfRequest));
                    let step = executor.run(&key.derive("step"), inputs, work).await;
                    text(format!("run {number}: {is_told} {}", step.is_ok()))
                }
            });
            let server = case.serve(&layer, handler).await;
            let call = || server.post("/a").key("k").send();
            call().await.ran("run 1: true true");
            call().await.replayed("run 1: true true");
        })
        .await;
    }
}
