//! What the end of a run says: final, nothing done, or unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{End, IdempotencyLayer, Orphan, Reconciled, Recording, RecordingOverride};

use crate::support::{
    Answer, Body, Case, Runs, channel, empty, for_axum, for_each_stack, frames, layer, still_clock,
    text,
};

type Layer = IdempotencyLayer<MemoryStore>;

/// What became of keys: their statuses, by what a retry gets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Became {
    replayed: Vec<u16>,
    run_again: Vec<u16>,
    held: Vec<u16>,
}

/// Sends a request with each status that its handler shall answer with, and a retry of it.
async fn became(case: Case, layer: &Layer, statuses: &[u16]) -> Became {
    let runs = Runs::default();
    let handler = runs.answering(|request, number| {
        let status: u16 = request.uri().path()[1..].parse().expect("a status");
        let mut response: Response<Body> = text(format!("run {number}"));
        if matches!(status, 204 | 205 | 304) {
            response = Response::new(empty());
        }
        *response.status_mut() = status.try_into().expect("a status");
        response
    });
    let server = case.serve(layer, handler).await;
    let mut became = Became::default();
    for &status in statuses {
        let before = runs.count();
        let call = || server.post(&format!("/{status}")).key("k").send();
        let first = call().await;
        assert_eq!(first.status, status, "{first:?}");
        assert!(!first.is_replayed());
        let retry = call().await;
        if retry.is_replayed() {
            assert_eq!((retry.status.as_u16(), &retry.body), (status, &first.body));
            became.replayed.push(status);
        } else if runs.count() - before == 2 {
            assert_eq!(retry.status, status);
            became.run_again.push(status);
        } else {
            let problem = retry.refused(409, "outcome-unknown");
            assert_eq!(problem["retryable"], false);
            became.held.push(status);
        }
    }
    became
}

const FINAL: [u16; 13] = [
    200, 201, 202, 203, 204, 206, 207, 299, 300, 301, 302, 303, 402,
];
const NOTHING_DONE: [u16; 21] = [
    307, 308, 400, 401, 403, 404, 405, 406, 409, 410, 412, 413, 415, 418, 421, 422, 425, 429, 451,
    501, 505,
];
const UNKNOWN: [u16; 15] = [
    304, 305, 306, 310, 408, 424, 499, 500, 502, 503, 504, 507, 511, 599, 999,
];

#[tokio::test]
async fn a_final_response_is_replayed_under_every_policy() {
    for_each_stack(|case| async move {
        for layer in [layer(), layer().orphan(Orphan::Hold)] {
            let became = became(case, &layer, &FINAL).await;
            assert_eq!(became.replayed, FINAL);
        }
    })
    .await;
}

#[tokio::test]
async fn what_did_nothing_runs_again_under_every_policy() {
    for_each_stack(|case| async move {
        let asked = Arc::new(AtomicUsize::new(0));
        let reconcile = {
            let asked = Arc::clone(&asked);
            Orphan::reconcile(move |_| {
                asked.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Reconciled::Unknown)
            })
        };
        for orphan in [Orphan::Retake, Orphan::Hold, reconcile] {
            let became = became(case, &layer().orphan(orphan), &NOTHING_DONE).await;
            assert_eq!(became.run_again, NOTHING_DONE);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 0, "there is nothing to ask");
    })
    .await;
}

#[tokio::test]
async fn what_is_unknown_is_retaken_or_held_by_the_orphan_policy() {
    for_each_stack(|case| async move {
        let retaken = became(case, &layer(), &UNKNOWN).await;
        assert_eq!(retaken.run_again, UNKNOWN);
        let held = became(case, &layer().orphan(Orphan::Hold), &UNKNOWN).await;
        assert_eq!(held.held, UNKNOWN);
    })
    .await;
}

#[tokio::test]
async fn what_is_unknown_is_asked_for_at_once_and_only_once() {
    for_each_stack(|case| async move {
        let asked = Arc::new(AtomicUsize::new(0));
        let orphan = {
            let asked = Arc::clone(&asked);
            Orphan::reconcile(move |_| {
                asked.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Reconciled::Completed(Response::new(Bytes::from("charged"))))
            })
        };
        let runs = Runs::default();
        let handler = runs.answering(|_, _| status(500, "on fire"));
        let server = case.serve(&layer().orphan(orphan), handler).await;
        let first = server.post("/a").key("k").send().await;
        assert_eq!(
            (first.status.as_u16(), &first.body[..]),
            (500, &b"on fire"[..]),
            "the client of the run gets the handler's own response"
        );
        for _ in 0..2 {
            server.post("/a").key("k").send().await.replayed("charged");
        }
        assert_eq!((runs.count(), asked.load(Ordering::SeqCst)), (1, 1));
    })
    .await;
}

fn status(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = text(body);
    *response.status_mut() = status.try_into().expect("a status");
    response
}

#[tokio::test]
async fn a_corrected_body_runs_after_an_extractor_has_refused_the_first() {
    #[derive(serde::Deserialize)]
    struct Charge {
        amount: u32,
    }
    for_axum(|case| async move {
        let charge = async |axum::Json(charge): axum::Json<Charge>| format!("{}", charge.amount);
        let router = axum::Router::new().route("/a", axum::routing::post(charge));
        let held = layer().orphan(Orphan::Hold);
        let server = case.serve_router(router.layer(held)).await;
        let call = |body| server.post("/a").key("k").json(body).send();
        assert_eq!(call(r#"{"amount":"x"}"#).await.status, 422);
        call(r#"{"amount":12}"#).await.ran("12");
        call(r#"{"amount":12}"#).await.replayed("12");
        call(r#"{"amount":"x"}"#).await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn a_delivery_with_a_forged_signature_does_not_shadow_the_real_one() {
    for_each_stack(|case| async move {
        let handler = Runs::default().answering(|request, number| {
            match request.headers().get("x-signature") {
                Some(signature) if signature == "good" => text(format!("run {number}")),
                _ => status(400, "a bad signature"),
            }
        });
        let server = case.serve(&layer().orphan(Orphan::Hold), handler).await;
        let call = |signature| {
            let call = server.post("/hook").key("evt_1").body("{}");
            call.header("x-signature", signature).send()
        };
        assert_eq!(call("forged").await.status, 400);
        call("good").await.ran("run 2");
        call("good").await.replayed("run 2");
    })
    .await;
}

#[tokio::test]
async fn retry_after_changes_no_class() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.answering(|request, _| {
            let mut response = status(request.uri().path()[1..].parse().expect("a status"), "");
            let soon = HeaderValue::from_static("3");
            response.headers_mut().insert("retry-after", soon);
            response
        });
        let server = case.serve(&layer().orphan(Orphan::Hold), handler).await;
        for path in ["/202", "/409", "/503"] {
            server.post(path).key("k").send().await;
        }
        let accepted = server.post("/202").key("k").send().await;
        assert!(accepted.is_replayed());
        assert_eq!(
            accepted.retry_after(),
            Some("3"),
            "how to poll is part of it"
        );
        assert_eq!(server.post("/409").key("k").send().await.status, 409);
        let unavailable = server.post("/503").key("k").send().await;
        unavailable.refused(409, "outcome-unknown");
        assert_eq!(runs.count(), 4);
    })
    .await;
}

// Named sets and what is changed of them.

#[tokio::test]
async fn stripe_v1_replays_everything() {
    for_each_stack(|case| async move {
        let layer = layer().recording(Recording::stripe_v1());
        for statuses in [&FINAL[..], &NOTHING_DONE, &UNKNOWN] {
            assert_eq!(became(case, &layer, statuses).await.replayed, statuses);
        }
    })
    .await;
}

#[tokio::test]
async fn success_replays_2xx_alone() {
    for_each_stack(|case| async move {
        let layer = layer().recording(Recording::success()).orphan(Orphan::Hold);
        let became = became(case, &layer, &[200, 207, 303, 307, 402, 422, 500]).await;
        assert_eq!(
            became,
            Became {
                replayed: vec![200, 207],
                run_again: vec![307, 402, 422],
                held: vec![303, 500],
            }
        );
    })
    .await;
}

#[tokio::test]
async fn lists_of_statuses_change_a_set() {
    for_each_stack(|case| async move {
        let recording = Recording::default()
            .also_final([422, 500])
            .also_nothing_done([503])
            .also_unknown([202]);
        let layer = layer().recording(recording).orphan(Orphan::Hold);
        let became = became(case, &layer, &[200, 202, 400, 422, 500, 502, 503]).await;
        assert_eq!(
            became,
            Became {
                replayed: vec![200, 422, 500],
                run_again: vec![400, 503],
                held: vec![202, 502],
            }
        );
    })
    .await;
}

#[tokio::test]
async fn a_function_of_the_head_is_asked_once_before_the_lists() {
    for_each_stack(|case| async move {
        let asked = Arc::new(AtomicUsize::new(0));
        let recording = Recording::default().also_final([500]).by_head({
            let asked = Arc::clone(&asked);
            move |head| {
                asked.fetch_add(1, Ordering::SeqCst);
                (head.status == 500).then_some(End::NothingDone)
            }
        });
        let layer = layer().recording(recording).orphan(Orphan::Hold);
        let became = became(case, &layer, &[200, 500, 502]).await;
        assert_eq!(
            became,
            Became {
                replayed: vec![200],
                run_again: vec![500],
                held: vec![502],
            }
        );
        assert_eq!(asked.load(Ordering::SeqCst), 4, "once for each run");
    })
    .await;
}

/// A request and its retry to a handler that answers with `response`, under a policy by which an
/// unknown outcome is held.
async fn twice(
    case: Case,
    recording: Recording,
    response: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static,
) -> (Answer, Answer, Runs) {
    let runs = Runs::default();
    let layer = layer().recording(recording).orphan(Orphan::Hold);
    let server = case
        .serve(&layer, runs.answering(move |_, _| response()))
        .await;
    let call = || server.post("/a").key("k").header("te", "trailers").send();
    let (first, retry) = (call().await, call().await);
    (first, retry, runs)
}

#[tokio::test]
async fn a_function_that_panics_says_unknown_and_the_client_gets_its_response() {
    for_each_stack(|case| async move {
        for by_body in [false, true] {
            let asked = Arc::new(AtomicUsize::new(0));
            let panics = {
                let asked = Arc::clone(&asked);
                move || {
                    asked.fetch_add(1, Ordering::SeqCst);
                    panic!("as planned")
                }
            };
            let recording = match by_body {
                false => Recording::stripe_v1().by_head(move |_| panics()),
                true => Recording::stripe_v1().by_body(move |_| panics()),
            };
            let (first, retry, runs) = twice(case, recording, || text("charged")).await;
            first.ran("charged");
            retry.refused(409, "outcome-unknown");
            assert_eq!((runs.count(), asked.load(Ordering::SeqCst)), (1, 1));
        }
    })
    .await;
}

// What a body says.

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = text(body);
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[tokio::test]
async fn a_failure_within_a_200_can_be_seen_in_its_body() {
    // GraphQL, JSON-RPC, and the last envelope of a stream in Connect's protocol.
    let failures: [(&str, &[u8]); 3] = [
        ("application/json", br#"{"errors":[{"message":"no"}]}"#),
        (
            "application/json",
            br#"{"jsonrpc":"2.0","error":{"code":1}}"#,
        ),
        (
            "application/connect+json",
            b"\0\0\0\0\x02{}\x02\0\0\0\x16{\"error\":{\"code\":\"x\"}}",
        ),
    ];
    let by_body = || {
        Recording::default().by_body(|response| {
            let content_type = response.head().headers.get(CONTENT_TYPE)?;
            let mut body = response.body();
            if content_type == "application/connect+json" {
                while let [0, a, b, c, d, rest @ ..] = body {
                    let length = u32::from_be_bytes([*a, *b, *c, *d]);
                    body = &rest[usize::try_from(length).ok()?..];
                }
                body = body.get(5..)?;
            }
            let body: serde_json::Value = serde_json::from_slice(body).ok()?;
            let failed = body.get("errors").or(body.get("error")).is_some();
            failed.then_some(End::NothingDone)
        })
    };
    for (content_type, body) in failures {
        for_each_stack(|case| async move {
            let failure = move || typed(content_type, body);
            let (first, retry, runs) = twice(case, by_body(), failure).await;
            assert_eq!((&first.body[..], &retry.body[..]), (body, body));
            assert!(!retry.is_replayed());
            assert_eq!(runs.count(), 2);
        })
        .await;
    }
    for_each_stack(|case| async move {
        let success = || typed("application/json", r#"{"data":{}}"#);
        let (_, retry, runs) = twice(case, by_body(), success).await;
        retry.replayed(r#"{"data":{}}"#);
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_function_of_the_body_sees_chunks_as_one_and_trailers_and_decides_first() {
    for_each_stack(|case| async move {
        let response = || {
            let field = (
                HeaderName::from_static("x-outcome"),
                HeaderValue::from_static("done"),
            );
            let mut response =
                Response::new(frames(["abc", "def"], Some([field].into_iter().collect())));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            let names = HeaderValue::from_static("x-outcome");
            response.headers_mut().insert("trailer", names);
            response
        };
        let recording = Recording::default()
            .by_head(|_| panic!("it is not asked"))
            .by_body(|response| {
                assert_eq!(response.body(), b"abcdef");
                assert_eq!(response.head().status, 418);
                let trailers = response.trailers()?;
                (trailers["x-outcome"] == "done").then_some(End::Final)
            });
        let (first, retry, runs) = twice(case, recording, response).await;
        assert!(!first.is_replayed());
        assert!(retry.is_replayed());
        assert_eq!(
            (retry.status.as_u16(), &retry.body[..]),
            (418, &b"abcdef"[..])
        );
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_function_of_the_body_is_not_shown_a_response_that_is_too_large() {
    for_each_stack(|case| async move {
        let recording = Recording::default()
            .by_body(|_| panic!("it is not asked"))
            .by_head(|head| (head.status == 422).then_some(End::Final));
        let layer = layer().recording(recording).max_response_body(3);
        let runs = Runs::default();
        let handler = runs.answering(|_, _| status(422, "declined"));
        let server = case.serve(&layer, handler).await;
        assert_eq!(server.post("/a").key("k").send().await.body, "declined");
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "response-not-stored");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

// gRPC.

/// A response of one message, with its status in its trailers, or without a message, with its
/// status in its head.
fn grpc(code: Option<&'static str>, is_in_head: bool) -> Response<Body> {
    let mut fields = HeaderMap::new();
    if let Some(code) = code {
        fields.insert("grpc-status", HeaderValue::from_static(code));
    }
    let mut response = match is_in_head {
        true => {
            let mut response = Response::new(empty());
            *response.headers_mut() = fields;
            response
        }
        false => Response::new(frames(["\0\0\0\0\x02hi"], Some(fields))),
    };
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    let names = HeaderValue::from_static("grpc-status");
    response.headers_mut().insert("trailer", names);
    response
}

#[tokio::test]
async fn a_grpc_response_counts_by_its_grpc_status() {
    const NO_STATUS: &str = "";
    let classes: [(End, &[&str]); 3] = [
        (End::Final, &["0", "6"]),
        (End::NothingDone, &["3", "5", "7", "9", "10", "12", "16"]),
        (
            End::Unknown,
            &[
                "1", "2", "4", "8", "11", "13", "14", "15", "17", "x", NO_STATUS,
            ],
        ),
    ];
    for (end, codes) in classes {
        for_each_stack(|case| async move {
            let both = |code| [(code, false), (code, true)];
            for (code, is_in_head) in codes.iter().copied().flat_map(both) {
                let said = Some(code).filter(|code| *code != NO_STATUS);
                let response = move || grpc(said, is_in_head);
                let (first, retry, runs) = twice(case, Recording::default(), response).await;
                assert_eq!(first.status, 200, "{code:?}");
                match end {
                    End::Final => assert!(retry.is_replayed(), "{code:?}"),
                    End::NothingDone => assert_eq!(runs.count(), 2, "{code:?}"),
                    End::Unknown => {
                        retry.refused(409, "outcome-unknown");
                    }
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn lists_of_grpc_codes_change_a_set() {
    for_each_stack(|case| async move {
        let recording = || {
            Recording::default()
                .also_final_grpc([9])
                .also_nothing_done_grpc([14])
                .also_unknown_grpc([6])
                .also_unknown([200])
        };
        let (_, declined, _) = twice(case, recording(), || grpc(Some("9"), false)).await;
        assert!(declined.is_replayed());
        let (_, _, runs) = twice(case, recording(), || grpc(Some("14"), true)).await;
        assert_eq!(runs.count(), 2);
        let (_, exists, _) = twice(case, recording(), || grpc(Some("6"), false)).await;
        exists.refused(409, "outcome-unknown");
        let (_, ok, _) = twice(case, recording(), || grpc(Some("0"), false)).await;
        assert!(ok.is_replayed(), "a list of statuses is none of codes");
    })
    .await;
}

// Refusals of a layer within.

fn refusal(code: &'static str, status: u16) -> Response<Body> {
    let mut response = self::status(status, "{}");
    let code = HeaderValue::from_static(code);
    response.headers_mut().insert("idempotency-refused", code);
    response
}

#[tokio::test]
async fn a_refusal_within_that_promises_that_nothing_ran_is_never_recorded() {
    for_each_stack(|case| async move {
        for (code, status) in [
            ("in-progress", 409),
            ("store-unavailable", 503),
            ("store-full", 503),
            ("store-broken", 500),
            ("too-many-runs", 503),
            ("shutting-down", 503),
            ("buffers-full", 503),
            ("request-timeout", 408),
        ] {
            for recording in [Recording::default(), Recording::stripe_v1()] {
                let (first, retry, runs) =
                    twice(case, recording, move || refusal(code, status)).await;
                assert_eq!((first.status, retry.status), (first.status, first.status));
                assert_eq!(runs.count(), 2, "{code}");
            }
        }
        let grpc_refusal = || {
            let mut response = grpc(Some("8"), true);
            let code = HeaderValue::from_static("too-many-runs");
            response.headers_mut().insert("idempotency-refused", code);
            response
        };
        let (_, _, runs) = twice(case, Recording::default(), grpc_refusal).await;
        assert_eq!(runs.count(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_refusal_within_that_says_that_it_ran_is_unknown() {
    for_each_stack(|case| async move {
        for (code, status) in [("lease-lost", 409), ("not-recorded", 503)] {
            let refused = move || refusal(code, status);
            let (_, retry, _) = twice(case, Recording::default(), refused).await;
            retry.refused(409, "outcome-unknown");
        }
    })
    .await;
}

// What a handler says of one response.

fn said(status: u16, said: RecordingOverride) -> impl Fn() -> Response<Body> + Clone + Send + Sync {
    move || {
        let mut response = self::status(status, "said");
        response.extensions_mut().insert(said);
        response
    }
}

#[tokio::test]
async fn a_handler_may_call_one_response_final() {
    for_each_stack(|case| async move {
        for status in [200, 404, 408, 422, 500] {
            for recording in [
                Recording::default(),
                Recording::default().also_unknown([404]),
            ] {
                let response = said(status, RecordingOverride::Final);
                let (_, retry, runs) = twice(case, recording, response).await;
                assert!(retry.is_replayed());
                assert_eq!((retry.status.as_u16(), runs.count()), (status, 1));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_handler_may_say_that_nothing_was_done_or_that_nobody_knows() {
    for_each_stack(|case| async move {
        for status in [200, 402, 500] {
            for recording in [Recording::default(), Recording::stripe_v1()] {
                let response = said(status, RecordingOverride::NothingDone);
                let (_, retry, runs) = twice(case, recording.clone(), response).await;
                assert!(!retry.is_replayed());
                assert_eq!(runs.count(), 2);
                let response = said(status, RecordingOverride::Unknown);
                let (first, retry, _) = twice(case, recording, response).await;
                assert_eq!(first.status, status);
                retry.refused(409, "outcome-unknown");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_handler_is_heard_before_functions() {
    for_each_stack(|case| async move {
        let recording = Recording::default()
            .by_head(|_| panic!("it is not asked"))
            .by_body(|_| panic!("it is not asked"));
        let response = said(422, RecordingOverride::Final);
        let (_, retry, _) = twice(case, recording, response).await;
        assert!(retry.is_replayed());
    })
    .await;
}

#[tokio::test]
async fn a_final_response_that_breaks_off_is_recorded_as_not_stored() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.answering(|_, _| {
            let (sender, body) = channel();
            sender.chunk("half of ");
            sender.fail("the disk is gone");
            let mut response = Response::new(body);
            response.extensions_mut().insert(RecordingOverride::Final);
            response
        });
        let server = case.serve(&layer(), handler).await;
        assert!(server.post("/a").key("k").try_send().await.is_err());
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "response-not-stored");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_response_is_kept_for_the_retention_or_for_as_long_as_its_handler_says() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let handler = runs.answering(|request, number| {
            let mut response = text(format!("run {number}"));
            if request.uri().path() == "/short" {
                let said = RecordingOverride::FinalFor(Duration::from_secs(60));
                response.extensions_mut().insert(said);
            }
            response
        });
        let layer = layer()
            .clock(clock.clone())
            .retention(Duration::from_secs(600));
        let server = case.serve(&layer, handler).await;
        let short = || server.post("/short").key("k").send();
        let long = || server.post("/long").key("k").send();
        short().await.ran("run 1");
        long().await.ran("run 2");
        clock.advance(Duration::from_secs(59));
        short().await.replayed("run 1");
        clock.advance(Duration::from_secs(1));
        short().await.ran("run 3");
        clock.advance(Duration::from_secs(539));
        long().await.replayed("run 2");
        clock.advance(Duration::from_secs(1));
        long().await.ran("run 4");
        long().await.replayed("run 4");
    })
    .await;
}

#[tokio::test]
async fn by_default_a_response_is_kept_for_a_day() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let server = case
            .serve(&layer().clock(clock.clone()), runs.numbered())
            .await;
        server.post("/a").key("k").send().await.ran("run 1");
        clock.advance(Duration::from_secs(24 * 60 * 60 - 1));
        server.post("/a").key("k").send().await.replayed("run 1");
        clock.advance(Duration::from_secs(1));
        server.post("/a").key("k").send().await.ran("run 2");
    })
    .await;
}

// What of a response is stored.

#[tokio::test]
async fn what_belongs_to_one_exchange_is_not_replayed() {
    const OF_ONE_EXCHANGE: [&str; 8] = [
        "access-control-allow-credentials",
        "access-control-allow-origin",
        "age",
        "ratelimit-remaining",
        "set-cookie",
        "traceparent",
        "www-authenticate",
        "x-ratelimit-remaining-tokens",
    ];
    for_each_stack(|case| async move {
        let response = || {
            let mut response = text("charged");
            for name in OF_ONE_EXCHANGE
                .into_iter()
                .chain(["x-request-id", "location"])
            {
                let value = HeaderValue::from_static("1");
                response.headers_mut().insert(name, value);
            }
            response
        };
        let (first, retry, _) = twice(case, Recording::default(), response).await;
        retry.replayed("charged");
        for name in OF_ONE_EXCHANGE {
            assert_eq!(first.values(name), [b"1"], "{name}");
            assert_eq!(retry.values(name), [b""; 0], "{name}");
        }
        for name in ["x-request-id", "location"] {
            assert_eq!(retry.values(name), [b"1"], "{name}");
        }
    })
    .await;
}
