//! The two ways in, by the layer and by the executor, with answers in the same words.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;

use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::{Service, service_fn};
use tower_idempotency::store::Store;
use tower_idempotency::{Fingerprint, IdempotencyKey, IdempotencyLayer, Outcome, Ran, RunError};
use tower_layer::Layer;

use crate::pace::Alive;

/// How a request comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Layer,
    Executor,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Answered {
        status: u16,
        body: String,
        has_trailers: bool,
        /// What the layer says of it.
        outcome: String,
    },
    Panicked,
}

impl Reply {
    pub(crate) fn is(&self, status: u16, outcome: &str) -> bool {
        matches!(self, Self::Answered { status: is, outcome: says, .. } if *is == status && says == outcome)
    }

    pub(crate) fn body(&self) -> &str {
        match self {
            Self::Answered { body, .. } => body,
            Self::Panicked => "",
        }
    }
}

pub(crate) type Replying = Pin<Box<dyn Future<Output = Reply> + Send>>;

pub(crate) fn call<St, F, Fut>(
    layer: &IdempotencyLayer<St>,
    key: &str,
    alive: &Alive,
    handler: F,
) -> Replying
where
    St: Store,
    F: FnMut(Request<Body>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let request = Request::post("/charges")
        .header("idempotency-key", key)
        .body(alive.body(&["amount", "=1200"]))
        .expect("a valid request");
    let responding = layer.layer(service_fn(handler)).call(request);
    Box::pin(async move {
        let Ok(response) = responding.await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body");
        let outcome = parts.extensions.get::<Outcome>();
        Reply::Answered {
            status: parts.status.as_u16(),
            has_trailers: body.trailers().is_some(),
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            outcome: outcome.map_or_else(String::new, Outcome::to_string),
        }
    })
}

/// The same by the executor, in the words of HTTP.
pub(crate) fn run<St, F, Fut>(layer: &IdempotencyLayer<St>, key: &str, work: F) -> Replying
where
    St: Store,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<String, Infallible>> + Send + 'static,
{
    let executor = layer.executor().clone();
    let key = IdempotencyKey::new("charge", key).expect("a valid key");
    Box::pin(async move {
        let inputs = Fingerprint::of(["amount=1200"]);
        let (status, outcome, body) = match executor.run(&key, inputs, work).await {
            Ok(Ran::Executed(body)) => (201, "executed: stored", body),
            Ok(Ran::Replayed(body)) => (201, "replayed", body),
            Err(RunError::OutcomeUnknown { .. }) => {
                (409, "refused: outcome-unknown", String::new())
            }
            Err(other) => (500, "failed", other.to_string()),
        };
        Reply::Answered {
            status,
            body,
            has_trailers: true,
            outcome: outcome.to_owned(),
        }
    })
}
