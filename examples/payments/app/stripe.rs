//! What went wrong, in Stripe's words.

use std::any::Any;
use std::collections::BTreeMap;

use axum::Extension;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use tower_idempotency::{Refusal, RefusalReason};

#[derive(Serialize)]
pub(crate) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decline_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    charge: Option<String>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            decline_code: None,
            charge: None,
            message: message.into(),
            param: None,
        }
    }

    pub(crate) fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "api_error", message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(crate) fn param(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::invalid(message)
        }
    }

    pub(crate) fn missing(param: &'static str, message: String) -> Self {
        Self {
            code: Some("resource_missing"),
            ..Self::param(param, message)
        }
    }

    pub(crate) fn no_such_charge(param: &'static str, id: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            ..Self::missing(param, format!("No such charge: '{id}'"))
        }
    }

    pub(crate) fn declined(charge: String) -> Self {
        let status = StatusCode::PAYMENT_REQUIRED;
        Self {
            code: Some("card_declined"),
            decline_code: Some("generic_decline"),
            charge: Some(charge),
            ..Self::new(status, "card_error", "Your card was declined.")
        }
    }

    /// Another attempt has taken the key over, and made sure that this one does not charge. The
    /// layer has a better answer for the client if there is one.
    pub(crate) fn too_late() -> Self {
        Self::internal("This attempt took too long, and charged nothing.")
    }

    fn to_answer(&self) -> http::Response<Bytes> {
        answer(self.status, &BTreeMap::from([("error", self)]))
    }
}

/// What fails in the ledger is rolled back, so this is a 500 that says that nothing was done.
impl From<rusqlite::Error> for ApiError {
    fn from(error: rusqlite::Error) -> Self {
        tracing::error!(%error, "the ledger failed");
        Self::internal("The ledger is out of reach.")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.to_answer().map(Body::from)
    }
}

/// The layer's refusals, as Stripe says them. Its libraries obey `Stripe-Should-Retry`, and would
/// otherwise retry each 409.
pub(crate) fn refused(refusal: &Refusal, _: &http::request::Parts) -> http::Response<Bytes> {
    const STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");
    let reason = refusal.reason();
    let (status, kind) = match reason {
        RefusalReason::KeyReused => (StatusCode::BAD_REQUEST, "idempotency_error"),
        _ if reason.status().is_server_error() => (reason.status(), "api_error"),
        _ => (reason.status(), "invalid_request_error"),
    };
    let code = match reason {
        RefusalReason::InProgress | RefusalReason::LeaseLost => Some("idempotency_key_in_use"),
        RefusalReason::OutcomeUnknown => Some("outcome_unknown"),
        RefusalReason::ResponseNotStored => Some("response_not_stored"),
        _ => None,
    };
    let error = ApiError {
        code,
        ..ApiError::new(status, kind, refusal.detail())
    };
    let mut response = error.to_answer();
    let headers = response.headers_mut();
    let should_retry = HeaderValue::from_static(match refusal.is_retryable() {
        true => "true",
        false => "false",
    });
    headers.insert(STRIPE_SHOULD_RETRY, should_retry);
    if let Some(seconds) = refusal.retry_after_seconds() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// Marks the answer to a request whose handler panicked, for the log.
#[derive(Clone)]
pub(crate) struct Panicked;

pub(crate) fn panicked(_: Box<dyn Any + Send>) -> Response {
    let error = ApiError::internal("Something went wrong on our side.");
    (Extension(Panicked), error).into_response()
}

pub(crate) fn answer(status: StatusCode, body: &impl Serialize) -> http::Response<Bytes> {
    // Strings, numbers and maps with strings for keys: all of it can be written as JSON.
    let body = serde_json::to_vec(body).expect("it is JSON");
    let mut response = http::Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
