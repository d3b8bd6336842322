//! What axum handlers take.

use std::fmt;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

use crate::executor::Attempt;
use crate::key::IdempotencyKey;
use crate::record::FencingToken;

/// A handler asked for its attempt, and the request was not guarded: it carried no key, or no
/// [`IdempotencyLayer`](crate::IdempotencyLayer) is around the handler. A handler that can do
/// without takes an `Option`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotGuarded;

impl fmt::Display for NotGuarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this handler needs an idempotency key, and the request has none that a layer has claimed")
    }
}

impl std::error::Error for NotGuarded {}

impl IntoResponse for NotGuarded {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Attempt {
    type Rejection = NotGuarded;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NotGuarded> {
        attempt(parts, Self::clone).ok_or(NotGuarded)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Attempt {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(attempt(parts, Self::clone))
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = NotGuarded;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NotGuarded> {
        attempt(parts, |attempt| attempt.key().clone()).ok_or(NotGuarded)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(attempt(parts, |attempt| attempt.key().clone()))
    }
}

impl<S: Sync> FromRequestParts<S> for FencingToken {
    type Rejection = NotGuarded;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NotGuarded> {
        attempt(parts, Attempt::token).ok_or(NotGuarded)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for FencingToken {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(attempt(parts, |attempt| attempt.token()))
    }
}

fn attempt<T>(parts: &Parts, take: impl FnOnce(&Attempt) -> T) -> Option<T> {
    parts.extensions.get::<Attempt>().map(take)
}
