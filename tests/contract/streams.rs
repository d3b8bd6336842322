//! Row 12: responses that are too large to be stored, or streams.

use std::sync::{Arc, Mutex};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use tower_idempotency::RecordingOverride;

use crate::support::{
    Body, BodySender, Runs, announced, channel, for_each_stack, frames, layer, next_chunk, text,
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

/// Marks a response as a stream.
type Mark = fn(&mut Response<Body>);

const MARKS: [Mark; 3] = [
    |response| {
        let value = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, value);
    },
    |response| {
        let value = HeaderValue::from_static("Text/Event-Stream; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, value);
    },
    |response| {
        response.extensions_mut().insert(RecordingOverride::Stream);
    },
];

#[tokio::test]
async fn a_stream_is_handed_through_at_once_and_never_run_again() {
    for mark in MARKS {
        for_each_stack(|case| async move {
            let runs = Runs::default();
            let (sender, body) = one_body();
            let handler = runs.answering(move |_, _| {
                let mut response = Response::new(body());
                mark(&mut response);
                response
            });
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
