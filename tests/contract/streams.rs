//! Responses that are too large to be stored, or streams.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::time::{sleep, timeout};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_idempotency::{Orphan, RecordingOverride, Summary};

use crate::support::{
    Body, BodySender, Runs, announced, channel, empty, for_each_stack, frames, layer, next_chunk,
    text,
};

/// Gives each run of a handler the body that the test sends to.
fn one_body() -> (
    BodySender,
    impl Fn() -> Body + Clone + Send + Sync + 'static,
) {
    let (sender, body) = channel();
    let body = Arc::new(Mutex::new(Some(body)));
    let take = move || {
        let body = body.lock().expect("not poisoned").take();
        body.expect("it runs once")
    };
    (sender, take)
}

#[tokio::test]
async fn a_response_over_the_limit_is_streamed_and_never_run_again() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let (sender, body) = one_body();
        let handler = runs.answering(move |_, _| Response::new(body()));
        let server = case.serve(&layer().max_response_body(10), handler).await;
        sender.chunk("012345");
        sender.chunk("6789ab");
        let mut first = server.post("/a").key("k").open().await;
        assert_eq!(first.status(), 200);
        assert_eq!(
            next_chunk(&mut first).await.as_deref(),
            Some(&b"012345"[..])
        );
        assert_eq!(
            next_chunk(&mut first).await.as_deref(),
            Some(&b"6789ab"[..])
        );
        // The key has its tombstone while the response still goes on.
        let duplicate = server.post("/a").key("k").send().await;
        duplicate.refused(409, "response-not-stored");
        sender.chunk("cdef");
        assert_eq!(next_chunk(&mut first).await.as_deref(), Some(&b"cdef"[..]));
        drop(sender);
        assert_eq!(next_chunk(&mut first).await, None);
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "response-not-stored");
        let other = server.post("/a").key("k").body("other").send().await;
        other.refused(422, "key-reused");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_response_over_the_limit_keeps_its_trailers() {
    for_each_stack(|case| async move {
        let handler = Runs::default().answering(|_, _| {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("sum"));
            let mut response = Response::new(frames(["0123456", "789abcd"], Some(trailers)));
            let names = HeaderValue::from_static("x-checksum");
            response.headers_mut().insert("trailer", names);
            response
        });
        let server = case.serve(&layer().max_response_body(10), handler).await;
        let call = server.post("/a").key("k").header("te", "trailers");
        let answer = call.send().await;
        answer.ran("0123456789abcd");
        assert_eq!(answer.trailers.expect("trailers")["x-checksum"], "sum");
    })
    .await;
}

#[tokio::test]
async fn a_response_that_announces_too_much_is_not_read_before_it_is_given() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let (sender, body) = one_body();
        let handler = runs.answering(move |_, _| Response::new(announced(11, body())));
        let server = case.serve(&layer().max_response_body(10), handler).await;
        let mut first = server.post("/a").key("k").open().await;
        assert_eq!(first.headers()[CONTENT_LENGTH], "11");
        sender.chunk("0123456789a");
        let chunk = next_chunk(&mut first).await;
        assert_eq!(chunk.as_deref(), Some(&b"0123456789a"[..]));
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "response-not-stored");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_response_just_within_the_limit_is_stored() {
    for_each_stack(|case| async move {
        let whole = |_: Request<Body>, _| text("0123456789");
        let chunked = |_: Request<Body>, _| Response::new(frames(["01234", "56789"], None));
        for handler in [whole, chunked] {
            let runs = Runs::default();
            let layer = layer().max_response_body(10);
            let server = case.serve(&layer, runs.answering(handler)).await;
            server.post("/a").key("k").send().await.ran("0123456789");
            server
                .post("/a")
                .key("k")
                .send()
                .await
                .replayed("0123456789");
        }
    })
    .await;
}

#[tokio::test]
async fn a_mebibyte_is_stored_and_no_more() {
    for_each_stack(|case| async move {
        for (length, is_stored) in [(1 << 20, true), ((1 << 20) + 1, false)] {
            let handler = Runs::default().answering(move |_, _| text(vec![b'x'; length]));
            let server = case.serve(&layer(), handler).await;
            assert_eq!(server.post("/a").key("k").send().await.body.len(), length);
            let retry = server.post("/a").key("k").send().await;
            if is_stored {
                assert!(retry.is_replayed());
                assert_eq!(retry.body.len(), length);
            } else {
                retry.refused(409, "response-not-stored");
            }
        }
    })
    .await;
}

/// Media types of streams.
const STREAMS: [&str; 12] = [
    "Text/Event-Stream; charset=utf-8",
    "application/geo+json-seq",
    "application/json-seq",
    "application/jsonl",
    "application/ndjson",
    "application/stream+json",
    "application/x-jsonlines",
    "application/x-ndjson",
    "multipart/x-mixed-replace; boundary=b",
    "text/event-stream",
    // By what its handler says.
    "text/plain",
    "application/grpc",
];

/// A response that is a stream by its media type, or that is marked as one.
fn stream(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    if matches!(content_type, "text/plain" | "application/grpc") {
        response.extensions_mut().insert(RecordingOverride::Stream);
    }
    response
}

#[tokio::test]
async fn a_stream_is_handed_through_at_once_and_never_run_again() {
    for content_type in STREAMS {
        for_each_stack(|case| async move {
            let runs = Runs::default();
            let (sender, body) = one_body();
            let handler = runs.answering(move |_, _| stream(content_type, body()));
            let server = case.serve(&layer(), handler).await;
            // Its head comes before its first event.
            let mut first = server.post("/a").key("k").open().await;
            let retry = server.post("/a").key("k").send().await;
            retry.refused(409, "response-not-stored");
            for event in ["one", "two"] {
                sender.chunk(event);
                assert_eq!(
                    next_chunk(&mut first).await.as_deref(),
                    Some(event.as_bytes())
                );
            }
            drop(sender);
            assert_eq!(next_chunk(&mut first).await, None);
            let retry = server.post("/a").key("k").send().await;
            retry.refused(409, "response-not-stored");
            assert_eq!(runs.count(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_past_the_limit_is_not_run_again() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let (sender, body) = one_body();
        let handler = runs.answering(move |_, _| Response::new(body()));
        let server = case.serve(&layer().max_response_body(4), handler).await;
        sender.chunk("01234");
        let mut first = server.post("/a").key("k").open().await;
        assert_eq!(next_chunk(&mut first).await.as_deref(), Some(&b"01234"[..]));
        sender.fail("the disk is gone");
        assert_eq!(next_chunk(&mut first).await, None);
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "response-not-stored");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_stream_counts_by_its_status_like_any_other_response() {
    for_each_stack(|case| async move {
        for content_type in ["text/event-stream", "text/plain"] {
            for status in [422, 500] {
                let runs = Runs::default();
                let handler = runs.answering(move |_, _| {
                    let mut response = stream(content_type, frames(["data: no"], None));
                    *response.status_mut() = status.try_into().expect("a status");
                    response
                });
                let server = case.serve(&layer().orphan(Orphan::Hold), handler).await;
                assert_eq!(server.post("/a").key("k").send().await.status, status);
                let retry = server.post("/a").key("k").send().await;
                match status {
                    422 => assert_eq!((retry.status.as_u16(), runs.count()), (422, 2)),
                    _ => {
                        retry.refused(409, "outcome-unknown");
                    }
                }
            }
        }
    })
    .await;
}

const MESSAGE: &str = "\0\0\0\0\x02hi";

fn grpc_status(code: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    trailers
}

fn grpc(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let value = HeaderValue::from_static("application/grpc+proto");
    response.headers_mut().insert(CONTENT_TYPE, value);
    let names = HeaderValue::from_static("grpc-status");
    response.headers_mut().insert("trailer", names);
    response
}

#[tokio::test]
async fn a_grpc_response_is_a_stream_from_its_second_message_on() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let (sender, body) = one_body();
        let handler = runs.answering(move |_, _| grpc(body()));
        let server = case.serve(&layer(), handler).await;
        sender.chunk(MESSAGE);
        sender.chunk("\0\0\0");
        let mut first = server.post("/a").key("k").open().await;
        let chunk = next_chunk(&mut first).await;
        assert!(chunk.is_some_and(|chunk| chunk.starts_with(MESSAGE.as_bytes())));
        let retry = server.post("/a").key("k").send().await;
        retry.refused(409, "response-not-stored");
        sender.chunk("\0\x02hi");
        sender.trailers(grpc_status("0"));
        drop(sender);
        assert!(next_chunk(&mut first).await.is_some());
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_grpc_response_of_several_messages_that_has_ended_counts_by_its_status() {
    for_each_stack(|case| async move {
        for (code, expected) in [
            ("0", "response-not-stored"),
            ("3", "run again"),
            ("13", "outcome-unknown"),
        ] {
            let runs = Runs::default();
            let handler = runs
                .answering(move |_, _| grpc(frames([MESSAGE, MESSAGE], Some(grpc_status(code)))));
            let server = case.serve(&layer().orphan(Orphan::Hold), handler).await;
            let call = || server.post("/a").key("k").header("te", "trailers").send();
            let first = call().await;
            assert_eq!(first.body, [MESSAGE, MESSAGE].concat());
            assert_eq!(first.trailers.expect("trailers")["grpc-status"], code);
            let retry = call().await;
            match expected {
                "run again" => assert_eq!(runs.count(), 2),
                code => {
                    retry.refused(409, code);
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_grpc_response_of_one_message_is_stored_with_its_trailers() {
    for_each_stack(|case| async move {
        let handler = Runs::default()
            .answering(|_, _| grpc(frames(["\0\0\0\0", "\x02h", "i"], Some(grpc_status("0")))));
        let server = case.serve(&layer(), handler).await;
        let call = || server.post("/a").key("k").header("te", "trailers").send();
        call().await.ran(MESSAGE);
        let retry = call().await;
        retry.replayed(MESSAGE);
        assert_eq!(retry.trailers.expect("trailers")["grpc-status"], "0");
    })
    .await;
}

#[tokio::test]
async fn retries_are_shown_the_summary_of_a_response_that_is_not_stored() {
    for_each_stack(|case| async move {
        let handler = Runs::default().answering(|request, _| {
            let mut response = match request.uri().path() {
                "/stream" => stream("text/event-stream", frames(["data: 1"], None)),
                _ => text("too large a body"),
            };
            let summary = Summary::new("export “1432”").expect("it is short");
            response.extensions_mut().insert(summary);
            response
        });
        let server = case.serve(&layer().max_response_body(10), handler).await;
        for path in ["/stream", "/large"] {
            assert_eq!(server.post(path).key("k").send().await.status, 200);
            let retry = server.post(path).key("k").send().await;
            let problem = retry.refused(409, "response-not-stored");
            assert_eq!(problem["summary"], "export “1432”");
        }
    })
    .await;
}

#[tokio::test]
async fn a_response_without_a_summary_has_none() {
    for_each_stack(|case| async move {
        let handler = Runs::default().answering(|_, _| text("too large a body"));
        let server = case.serve(&layer().max_response_body(10), handler).await;
        server.post("/a").key("k").send().await;
        let retry = server.post("/a").key("k").send().await;
        let problem = retry.refused(409, "response-not-stored");
        assert_eq!(problem.get("summary"), None);
    })
    .await;
}

fn request() -> Request<Body> {
    let request = Request::post("/a").header("idempotency-key", "k");
    request.body(empty()).expect("it is valid")
}

#[tokio::test(start_paused = true)]
async fn a_response_that_nobody_waits_for_is_read_for_a_minute() {
    for (ends_after, is_stored) in [(59, true), (61, false)] {
        let (sender, body) = one_body();
        let layer = layer();
        let handle = layer.handle();
        let mut service = ServiceBuilder::new()
            .layer(layer)
            .service_fn(move |_: Request<Body>| {
                std::future::ready(Ok::<_, Infallible>(Response::new(body())))
            });
        sender.chunk("half ");
        let call = service.ready().await.expect("it is ready").call(request());
        // Somebody waits, for as long as it takes.
        assert!(timeout(Duration::from_secs(100), call).await.is_err());
        sleep(Duration::from_secs(ends_after)).await;
        sender.chunk("and half");
        drop(sender);
        handle.idle().await;
        let call = service.ready().await.expect("it is ready").call(request());
        let retry = call.await.expect("it never fails");
        let expected = match is_stored {
            true => StatusCode::OK,
            false => StatusCode::CONFLICT,
        };
        assert_eq!(retry.status(), expected, "after {ends_after} s");
    }
}
