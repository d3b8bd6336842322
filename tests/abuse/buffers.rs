//! What was buffered of a request counts until its handler has taken it, and is given back however
//! the request ends.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::BodyExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Field, Handle, IdempotencyLayer, KeySource};

use crate::support::{Answer, Runs, ask, layer, request};

/// Gives these chunks, and then never ends.
struct Endless(VecDeque<&'static str>);

impl Endless {
    fn body<const N: usize>(chunks: [&'static str; N]) -> Body {
        Body::new(Self(chunks.into()))
    }
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(match self.0.pop_front() {
            None => return Poll::Pending,
            Some("broken") => Some(Err("broken")),
            Some(chunk) => Some(Ok(Frame::data(chunk.into()))),
        })
    }
}

/// A request that was polled once, and waits.
struct Waiting(Pin<Box<dyn Future<Output = Answer>>>);

impl Waiting {
    fn on(app: &Router, request: Request<Body>) -> Self {
        let app = app.clone();
        let mut asking: Pin<Box<dyn Future<Output = Answer>>> =
            Box::pin(async move { ask(&app, request).await });
        let mut context = Context::from_waker(Waker::noop());
        assert!(asking.as_mut().poll(&mut context).is_pending());
        Self(asking)
    }
}

fn with_handle(layer: IdempotencyLayer<MemoryStore>) -> (Router, Handle) {
    let handle = layer.handle();
    (Runs::default().behind(layer), handle)
}

#[tokio::test]
async fn a_request_that_is_answered() {
    let (app, handle) = with_handle(layer());
    ask(&app, request("k", "body")).await.ran("run 1");
    assert_eq!(handle.buffered(), 0);
    ask(&app, request("k", "body")).await.replayed("run 1");
    assert_eq!(handle.buffered(), 0);
    let reused = ask(&app, request("k", "another")).await;
    reused.refused(422, "key-reused");
    assert_eq!(handle.buffered(), 0);
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_is_read() {
    let (app, handle) = with_handle(layer());
    let first = Waiting::on(&app, request("k", Endless::body(["one", "two"])));
    assert_eq!(handle.buffered(), 6);
    let second = Waiting::on(&app, request("k", Endless::body(["three"])));
    assert_eq!(handle.buffered(), 11);
    drop(first);
    assert_eq!(handle.buffered(), 5);
    drop(second);
    assert_eq!(handle.buffered(), 0);
}

#[tokio::test]
async fn a_request_that_is_refused_while_it_is_read() {
    let (app, handle) = with_handle(layer().max_request_body(5));
    let long = Endless::body(["one", "two"]);
    let refused = ask(&app, request("k", long)).await;
    refused.refused(413, "request-too-large");
    assert_eq!(handle.buffered(), 0);
    let broken = Endless::body(["one", "broken"]);
    let refused = ask(&app, request("k", broken)).await;
    refused.refused(400, "unreadable-request");
    assert_eq!(handle.buffered(), 0);
    ask(&app, request("k", "body")).await.ran("run 1");
}

#[tokio::test]
async fn a_request_that_finds_no_room() {
    let (app, handle) = with_handle(layer().max_buffered(10));
    let waiting = Waiting::on(&app, request("k", Endless::body(["1234567"])));
    let full = |answer: Answer| {
        answer.refused(503, "buffers-full");
        assert_eq!(answer.headers["retry-after"], "1");
        let problem = String::from_utf8_lossy(&answer.body);
        assert!(problem.contains(r#""retryable":true"#), "{problem}");
        assert_eq!(handle.buffered(), 7);
    };
    full(ask(&app, request("other", "1234")).await);
    full(ask(&app, request("other", Endless::body(["12", "34"]))).await);
    ask(&app, request("other", "123")).await.ran("run 1");
    // Without a body, it needs none; and without a key, nothing is buffered.
    ask(&app, request("third", "")).await.ran("run 2");
    let passing = Request::post("/").body("0123456789a".into());
    let passing = passing.expect("the request is valid");
    ask(&app, passing).await.ran("run 3");
    drop(waiting);
    ask(&app, request("fourth", "0123456789"))
        .await
        .ran("run 4");
    assert_eq!(handle.buffered(), 0);
    // At no time would there be room for this.
    let refused = ask(&app, request("fifth", "0123456789a")).await;
    refused.refused(413, "request-too-large");
}

#[tokio::test]
async fn clones_of_a_layer_share_their_room() {
    let layer = layer().max_buffered(10);
    let clone = layer.clone().namespace("clone");
    let (app, handle) = with_handle(layer);
    let (other, other_handle) = with_handle(clone);
    let waiting = Waiting::on(&app, request("k", Endless::body(["1234567"])));
    let full = ask(&other, request("k", "1234")).await;
    full.refused(503, "buffers-full");
    assert_eq!((handle.buffered(), other_handle.buffered()), (7, 7));
    drop(waiting);
    ask(&other, request("k", "1234")).await.ran("run 1");
}

#[tokio::test]
async fn a_request_without_a_key_in_its_body_passes_with_its_room() {
    let field = Field::new("/key").expect("a pointer");
    let source = KeySource::fields([field.optional()]).expect("a source");
    let (app, handle) = with_handle(layer().key_source(source));
    ask(&app, request("ignored", "no JSON")).await.ran("run 1");
    assert_eq!(handle.buffered(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_that_waits() {
    let layer = layer().wait_for_in_flight(Duration::from_secs(5));
    let handle = layer.handle();
    let holds = async |request: Request<Body>| {
        std::future::pending::<()>().await;
        drop(request);
    };
    let app = Router::new().fallback(holds).layer(layer);
    let running = Waiting::on(&app, request("k", "body"));
    assert_eq!(handle.buffered(), 4);
    let waiting = Waiting::on(&app, request("k", "body"));
    let gives_up = Waiting::on(&app, request("k", "body"));
    assert_eq!(handle.buffered(), 12);
    drop(waiting);
    assert_eq!(handle.buffered(), 8);
    gives_up.0.await.refused(409, "in-progress");
    assert_eq!(handle.buffered(), 4);
    // The run goes on without its client, and keeps what it has not taken.
    drop(running);
    assert_eq!((handle.in_flight(), handle.buffered()), (1, 4));
}

#[tokio::test]
async fn a_handler_that_has_taken_the_body() {
    let layer = layer();
    let handle = layer.handle();
    let reads = async |request: Request<Body>| {
        let mut body = request.into_body();
        let taken = body.frame().await;
        std::future::pending::<()>().await;
        drop((taken, body));
    };
    let app = Router::new().fallback(reads).layer(layer);
    let running = Waiting::on(&app, request("k", "body"));
    assert_eq!((handle.in_flight(), handle.buffered()), (1, 0));
    drop(running);
}

#[tokio::test]
async fn a_handler_that_panics() {
    let layer = layer();
    let handle = layer.handle();
    let panics = async |request: Request<Body>| -> &'static str {
        let _held = request;
        // Without a message on the console.
        std::panic::resume_unwind(Box::new("on purpose"))
    };
    let app = Router::new().fallback(panics).layer(layer);
    let app = app.layer(CatchPanicLayer::new());
    let answer = ask(&app, request("k", "body")).await;
    assert_eq!((answer.status, handle.buffered()), (500, 0));
    assert_eq!(handle.in_flight(), 0);
}
