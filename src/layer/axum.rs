//! What axum handlers take.

use std::fmt;

use axum::body::Body;
use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::executor::Attempt;
use crate::layer::is_layered;
use crate::layer::problem::{DEFAULT_PROBLEM_TYPE_BASE, Refusal};
use crate::protocol::key::{IDEMPOTENCY_KEY, IdempotencyKey};
use crate::protocol::record::FencingToken;

/// A handler asked for its attempt, and the request was not guarded. A handler that can do without
/// takes an `Option`.
///
/// A request that passes through a layer is left as it is, so what is told here is a conclusion:
/// if the process has a layer, and the request no `Idempotency-Key`, the client has left it out.
/// A method that is not guarded, and a layer on another route, look the same; and where the key
/// comes from elsewhere than that header, one that is there although it is not read looks as if
/// there were no layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotGuarded {
    /// The request carries no key: 400 `missing-key`.
    MissingKey,
    /// The request carries a key, and no [`IdempotencyLayer`](crate::IdempotencyLayer) has claimed
    /// it; or there is no layer at all: 500, logged as an error.
    NoLayer,
}

impl NotGuarded {
    fn new(is_layered: bool, headers: &HeaderMap) -> Self {
        match is_layered && !headers.contains_key(IDEMPOTENCY_KEY) {
            true => Self::MissingKey,
            false => Self::NoLayer,
        }
    }
}

impl fmt::Display for NotGuarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingKey => "this operation must be requested with an idempotency key",
            Self::NoLayer => {
                "this handler takes an idempotency key, and no layer guards the request"
            }
        })
    }
}

impl std::error::Error for NotGuarded {}

impl IntoResponse for NotGuarded {
    fn into_response(self) -> Response {
        match self {
            Self::MissingKey => {
                let refused = Refusal::missing_key().to_problem(DEFAULT_PROBLEM_TYPE_BASE);
                refused.map(Body::from)
            }
            Self::NoLayer => {
                tracing::error!("{self}");
                (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
            }
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Attempt {
    type Rejection = NotGuarded;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NotGuarded> {
        required(parts, Self::clone)
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
        required(parts, |attempt| attempt.key().clone())
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
        required(parts, Attempt::token)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for FencingToken {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(attempt(parts, |attempt| attempt.token()))
    }
}

fn required<T>(parts: &Parts, take: impl FnOnce(&Attempt) -> T) -> Result<T, NotGuarded> {
    attempt(parts, take).ok_or_else(|| NotGuarded::new(is_layered(), &parts.headers))
}

fn attempt<T>(parts: &Parts, take: impl FnOnce(&Attempt) -> T) -> Option<T> {
    parts.extensions.get::<Attempt>().map(take)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_nobody_claimed_is_told_from_one_that_is_missing() {
        let without = HeaderMap::new();
        let mut with = HeaderMap::new();
        with.insert(IDEMPOTENCY_KEY, axum::http::HeaderValue::from_static("k"));
        assert_eq!(NotGuarded::new(true, &without), NotGuarded::MissingKey);
        assert_eq!(NotGuarded::new(true, &with), NotGuarded::NoLayer);
        assert_eq!(NotGuarded::new(false, &without), NotGuarded::NoLayer);
        assert_eq!(NotGuarded::new(false, &with), NotGuarded::NoLayer);
    }
}
