//! An application that counts its runs, and two ways to ask it.

mod memory;
mod wire;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use tokio::time::timeout;
use tower::ServiceExt;
use tower_idempotency::store::{MemoryStore, Store};
use tower_idempotency::{IDEMPOTENT_REPLAYED, IdempotencyLayer};

pub(crate) use self::memory::peak;
pub(crate) use self::wire::{Server, Wire, head};

/// The layer as it comes.
pub(crate) fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new())
}

/// How often a handler ran.
#[derive(Clone, Default)]
pub(crate) struct Runs(Arc<AtomicUsize>);

impl Runs {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// An application behind `layer`, whose handler reads the body and says which run it is.
    pub(crate) fn behind<St: Store>(&self, layer: IdempotencyLayer<St>) -> Router {
        let runs = self.clone();
        let handler = move |_body: Bytes| async move {
            let number = runs.0.fetch_add(1, Ordering::SeqCst) + 1;
            format!("run {number}")
        };
        Router::new().fallback(handler).layer(layer)
    }
}

pub(crate) fn request(key: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post("/").header("idempotency-key", key);
    request.body(body.into()).expect("the request is valid")
}

/// Asks within the process.
pub(crate) async fn ask(app: &Router, request: Request<Body>) -> Answer {
    ask_for(Duration::from_secs(20), app, request).await
}

pub(crate) async fn ask_for(limit: Duration, app: &Router, request: Request<Body>) -> Answer {
    let asking = async {
        let Ok(response) = app.clone().oneshot(request).await;
        Answer::read(response).await
    };
    let in_time = timeout(limit, asking).await;
    in_time.expect("the application did not answer")
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn read(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the body is whole");
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_bytes(),
        }
    }

    pub(crate) fn is_replayed(&self) -> bool {
        self.headers.contains_key(IDEMPOTENT_REPLAYED)
    }

    /// The code of a refusal, and nothing for any other answer.
    pub(crate) fn code(&self) -> Option<String> {
        let content_type = self.headers.get("content-type")?;
        if content_type != "application/problem+json" {
            return None;
        }
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem.get("code")?.as_str()?.to_owned())
    }

    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, self.code().as_deref()),
            (status, Some(code)),
            "{self:?}"
        );
    }

    #[track_caller]
    pub(crate) fn ran(&self, body: &str) {
        let got = (self.status, self.is_replayed(), &self.body[..]);
        assert_eq!(got, (200, false, body.as_bytes()), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn replayed(&self, body: &str) {
        let got = (self.status, self.is_replayed(), &self.body[..]);
        assert_eq!(got, (200, true, body.as_bytes()), "{self:?}");
    }
}

/// Waits until `condition` holds. Its pauses only spare the processor; a condition that never
/// holds fails the test.
pub(crate) async fn eventually<Fut: Future<Output = bool>>(mut condition: impl FnMut() -> Fut) {
    for _ in 0..10_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the condition never held");
}
