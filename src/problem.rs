//! Refusals, as problem details ([RFC 9457]).
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::error::StoreError;
use crate::executor::Conflict;
use crate::key::InvalidKey;
use crate::policy::Summary;
use crate::scratch;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the types of problems are described, unless a base is set: a section of this crate's
/// documentation each.
pub(crate) const DEFAULT_PROBLEM_TYPE_BASE: &str =
    "https://docs.rs/tower-idempotency/latest/tower_idempotency/enum.RefusalReason.html#";

/// Why a request was refused. Its [`code`](Self::code) is stable, and what clients should
/// program against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// <a id="buffers-full"></a>503 `buffers-full`: as many bytes of request bodies are buffered as may be. Try again
    /// with the same key.
    BuffersFull,
    /// <a id="in-progress"></a>409 `in-progress`: the first request with the key still runs. Try again with the same
    /// key.
    InProgress,
    /// <a id="invalid-key"></a>400 `invalid-key`: the key is malformed.
    InvalidKey,
    /// <a id="key-reused"></a>422 `key-reused`: the key belongs to another request. A new request needs a new key.
    KeyReused,
    /// <a id="lease-lost"></a>409 `lease-lost`: the operation was carried out, but its lease was lost meanwhile, so that
    /// another run has the say about the outcome. Try again with the same key.
    LeaseLost,
    /// <a id="missing-key"></a>400 `missing-key`: a key is required.
    MissingKey,
    /// <a id="not-recorded"></a>503 `not-recorded`: the operation was carried out, but its answer is not recorded yet,
    /// and not given before that. Try again with the same key.
    NotRecorded,
    /// <a id="outcome-unknown"></a>409 `outcome-unknown`: a run under the key ended without an outcome, and is not repeated.
    OutcomeUnknown,
    /// <a id="request-too-large"></a>413 `request-too-large`: the request body is longer than the layer may buffer.
    RequestTooLarge,
    /// <a id="response-not-stored"></a>409 `response-not-stored`: the operation ran, but its response was too large, or a
    /// stream, and only the first client got it.
    ResponseNotStored,
    /// <a id="shutting-down"></a>503 `shutting-down`: the service stops. Try again with the same key.
    ShuttingDown,
    /// <a id="store-unavailable"></a>503 `store-unavailable`: the store of records cannot be asked. Try again with the same
    /// key.
    StoreUnavailable,
    /// <a id="too-many-runs"></a>503 `too-many-runs`: the service has as many runs in flight as it may. Try again with
    /// the same key.
    TooManyRuns,
    /// <a id="unreadable-request"></a>400 `unreadable-request`: the request body broke off.
    UnreadableRequest,
}

impl RefusalReason {
    /// The machine-readable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::BuffersFull => "buffers-full",
            Self::InProgress => "in-progress",
            Self::InvalidKey => "invalid-key",
            Self::KeyReused => "key-reused",
            Self::LeaseLost => "lease-lost",
            Self::MissingKey => "missing-key",
            Self::NotRecorded => "not-recorded",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::RequestTooLarge => "request-too-large",
            Self::ResponseNotStored => "response-not-stored",
            Self::ShuttingDown => "shutting-down",
            Self::StoreUnavailable => "store-unavailable",
            Self::TooManyRuns => "too-many-runs",
            Self::UnreadableRequest => "unreadable-request",
        }
    }

    /// The status of the default response.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidKey | Self::MissingKey | Self::UnreadableRequest => {
                StatusCode::BAD_REQUEST
            }
            Self::InProgress | Self::LeaseLost | Self::OutcomeUnknown | Self::ResponseNotStored => {
                StatusCode::CONFLICT
            }
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::BuffersFull
            | Self::NotRecorded
            | Self::ShuttingDown
            | Self::StoreUnavailable
            | Self::TooManyRuns => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// A short, fixed summary. Where the draft has one, it is the draft's ([section 2.7]).
    ///
    /// [section 2.7]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07#section-2.7
    pub const fn title(self) -> &'static str {
        match self {
            Self::BuffersFull => "Too many requests are being received",
            Self::InProgress => "A request is outstanding for this Idempotency-Key",
            Self::InvalidKey => "Idempotency-Key is malformed",
            Self::KeyReused => "Idempotency-Key is already used",
            Self::LeaseLost => "The outcome of this operation is being decided",
            Self::MissingKey => "Idempotency-Key is missing",
            Self::NotRecorded => "The outcome of this operation is not recorded yet",
            Self::OutcomeUnknown => "The outcome of this operation is not known",
            Self::RequestTooLarge => "The request body is too large",
            Self::ResponseNotStored => "The response to this operation was not stored",
            Self::ShuttingDown => "The service is shutting down",
            Self::StoreUnavailable => "Idempotency records are unavailable",
            Self::TooManyRuns => "Too many operations are in progress",
            Self::UnreadableRequest => "The request body could not be read",
        }
    }

    /// Whether the same request, with the same key, may be sent again; see also
    /// [`Refusal::is_retryable`].
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::BuffersFull
                | Self::InProgress
                | Self::LeaseLost
                | Self::NotRecorded
                | Self::ShuttingDown
                | Self::StoreUnavailable
                | Self::TooManyRuns
                | Self::UnreadableRequest
        )
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A request that the layer answered itself.
#[derive(Debug)]
pub struct Refusal {
    reason: RefusalReason,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
    store_error: Option<StoreError>,
    // Boxed, for few have any.
    summary: Option<Box<Summary>>,
}

impl Refusal {
    pub(crate) fn new(reason: RefusalReason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            retry_after: None,
            store_error: None,
            summary: None,
        }
    }

    pub(crate) fn missing_key() -> Self {
        Self::new(
            RefusalReason::MissingKey,
            "this operation must be requested with an idempotency key",
        )
    }

    pub(crate) fn response_not_stored(summary: Option<Summary>) -> Self {
        Self {
            summary: summary.map(Box::new),
            ..Self::new(
                RefusalReason::ResponseNotStored,
                "the operation has its outcome, but the response was not stored; only the first request with this idempotency key got it",
            )
        }
    }

    pub(crate) fn buffers_full() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(
                RefusalReason::BuffersFull,
                "the request was not executed, because too many others are being received or are waiting",
            )
        }
    }

    /// Why.
    pub const fn reason(&self) -> RefusalReason {
        self.reason
    }

    /// What is wrong, in a sentence for the developer of the client. It names nothing that
    /// another client sent.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// When to try again.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// [`retry_after`](Self::retry_after) as the `Retry-After` field has it: in whole seconds,
    /// rounded up.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let retry_after = self.retry_after?;
        let partial = u64::from(retry_after.subsec_nanos() > 0);
        Some(retry_after.as_secs().saturating_add(partial))
    }

    /// Whether the same request, with the same key, may be sent again. As its
    /// [reason](RefusalReason::is_retryable) says; and an unknown outcome may be found yet, where
    /// the policy is to [ask](crate::Orphan::Reconcile) for it.
    pub const fn is_retryable(&self) -> bool {
        self.reason.is_retryable() || self.retry_after.is_some()
    }

    /// The fault of the store behind a `store-unavailable`. For logs: it may name hosts.
    pub const fn store_error(&self) -> Option<&StoreError> {
        self.store_error.as_ref()
    }

    /// What the handler said, in short, of a response that is not stored.
    pub fn summary(&self) -> Option<&str> {
        self.summary.as_deref().map(Summary::as_str)
    }

    /// The default response: problem details, with `Retry-After` where it is known when to try
    /// again. `type_base` and the code make the problem's `type`.
    pub fn to_problem(&self, type_base: &str) -> Response<Bytes> {
        self.with_problem(self.problem(type_base))
    }

    fn problem(&self, type_base: &str) -> Bytes {
        let (status, code) = (self.reason.status(), self.reason.code());
        scratch::with(|body| {
            let mut problem = JsonObject(body);
            problem.member("code", code);
            problem.member("detail", &self.detail);
            if matches!(status.as_u16(), 409 | 422 | 503) {
                problem.member("retryable", self.is_retryable());
            }
            problem.member("status", status.as_u16());
            if let Some(summary) = self.summary() {
                problem.member("summary", summary);
            }
            problem.member("title", self.reason.title());
            problem.member("type", format_args!("{type_base}{code}"));
            problem.end();
            Bytes::copy_from_slice(body)
        })
    }

    fn with_problem(&self, problem: Bytes) -> Response<Bytes> {
        let mut response = Response::new(problem);
        *response.status_mut() = self.reason.status();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match self.retry_after_seconds() {
            None => None,
            // The least there is, and so most often what there is.
            Some(1) => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            Some(seconds) => headers.insert(RETRY_AFTER, seconds.into()),
        };
        response
    }
}

/// A JSON object that is being written.
struct JsonObject<'a>(&'a mut Vec<u8>);

impl JsonObject<'_> {
    fn member(&mut self, name: &str, value: impl Serialize) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        // A text, a number or a truth value can be written, and a vector takes it.
        let _ = serde_json::to_writer(&mut *self.0, name);
        self.0.push(b':');
        let _ = serde_json::to_writer(&mut *self.0, &value);
    }

    fn end(self) {
        self.0.push(b'}');
    }
}

/// For gRPC services.
impl Refusal {
    /// The refusal as a gRPC response without a message: its `grpc-status` says what happened,
    /// its metadata `idempotency-refusal` has the [code](RefusalReason::code), and
    /// `grpc-retry-pushback-ms` ([gRFC A6]) says when to try again.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{IdempotencyLayer, Refusal, store::MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).on_refusal(Refusal::to_grpc);
    /// # }
    /// ```
    ///
    /// [gRFC A6]: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
    pub fn to_grpc(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", self.reason.grpc_status().into());
        headers.insert(
            "idempotency-refusal",
            HeaderValue::from_static(self.reason.code()),
        );
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&self.detail)) {
            headers.insert("grpc-message", message);
        }
        if let Some(retry_after) = self.retry_after {
            let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            headers.insert("grpc-retry-pushback-ms", millis.into());
        }
        response
    }
}

impl RefusalReason {
    const fn grpc_status(self) -> u16 {
        const INVALID_ARGUMENT: u16 = 3;
        const ALREADY_EXISTS: u16 = 6;
        const RESOURCE_EXHAUSTED: u16 = 8;
        const FAILED_PRECONDITION: u16 = 9;
        const ABORTED: u16 = 10;
        const UNAVAILABLE: u16 = 14;
        match self {
            Self::InvalidKey | Self::KeyReused | Self::MissingKey => INVALID_ARGUMENT,
            Self::ResponseNotStored => ALREADY_EXISTS,
            Self::RequestTooLarge => RESOURCE_EXHAUSTED,
            Self::OutcomeUnknown => FAILED_PRECONDITION,
            Self::InProgress | Self::LeaseLost | Self::UnreadableRequest => ABORTED,
            Self::BuffersFull
            | Self::NotRecorded
            | Self::ShuttingDown
            | Self::StoreUnavailable
            | Self::TooManyRuns => UNAVAILABLE,
        }
    }
}

/// A text as `grpc-message` has it.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl From<InvalidKey> for Refusal {
    fn from(invalid: InvalidKey) -> Self {
        Self::new(RefusalReason::InvalidKey, invalid.to_string())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            store_error: Some(error),
            ..Self::new(
                RefusalReason::StoreUnavailable,
                "the request was not executed, because its idempotency record cannot be reached",
            )
        }
    }
}

impl From<Conflict> for Refusal {
    fn from(conflict: Conflict) -> Self {
        let (reason, detail, retry_after) = match conflict {
            Conflict::Store(error) => return error.into(),
            Conflict::InProgress { retry_after } => (
                RefusalReason::InProgress,
                "the first request with this idempotency key is still being executed",
                Some(retry_after),
            ),
            Conflict::OutcomeUnknown { .. } => (
                RefusalReason::OutcomeUnknown,
                "an earlier request with this idempotency key ended without an outcome; whether it was carried out is not known, and it is not repeated",
                None,
            ),
            Conflict::OutcomeUnknownYet { .. } => (
                RefusalReason::OutcomeUnknown,
                "an earlier request with this idempotency key ended without an outcome; whether it was carried out could not be found out yet",
                Some(Duration::from_secs(1)),
            ),
            // Of requests, this is not said.
            Conflict::NothingDone | Conflict::KeyOfRequest => (
                RefusalReason::InProgress,
                "the request with this idempotency key that this one waited for was not carried out, and there is no response of it to share",
                Some(Duration::from_secs(1)),
            ),
            Conflict::LeaseLost => (
                RefusalReason::LeaseLost,
                "the operation was carried out, but it lost its lease meanwhile; its outcome is the one that is recorded under this idempotency key",
                Some(Duration::from_secs(1)),
            ),
            Conflict::NotRecorded => (
                RefusalReason::NotRecorded,
                "the operation was carried out, but its answer is not recorded yet; ask again for it",
                Some(Duration::from_secs(1)),
            ),
            Conflict::Reused | Conflict::CallerDiffers | Conflict::SettingsChanged => (
                RefusalReason::KeyReused,
                "this idempotency key was used for a request with other contents; a new request needs a new key",
                None,
            ),
            Conflict::TooManyRuns => (
                RefusalReason::TooManyRuns,
                "the request was not executed, because too many others are in progress",
                Some(Duration::from_secs(1)),
            ),
            Conflict::ShuttingDown | Conflict::Left => (
                RefusalReason::ShuttingDown,
                "the request was not executed, because the service is shutting down",
                Some(Duration::from_secs(1)),
            ),
        };
        Self {
            retry_after,
            ..Self::new(reason, detail)
        }
    }
}

/// Makes the response to a refusal.
#[derive(Clone)]
pub(crate) enum Responder {
    Problem {
        type_base: Cow<'static, str>,
        /// That of a duplicate in flight, which is refused as often as its client asks, and always
        /// with the same.
        in_progress: OnceLock<Bytes>,
    },
    Application(Arc<Respond>),
}

type Respond = dyn Fn(&Refusal) -> Response<Bytes> + Send + Sync;

impl Responder {
    pub(crate) const fn problem(type_base: Cow<'static, str>) -> Self {
        Self::Problem {
            type_base,
            in_progress: OnceLock::new(),
        }
    }

    pub(crate) fn respond(&self, refusal: &Refusal) -> Response<Bytes> {
        match self {
            Self::Problem {
                type_base,
                in_progress,
            } if refusal.reason == RefusalReason::InProgress => {
                let problem = in_progress.get_or_init(|| refusal.problem(type_base));
                refusal.with_problem(problem.clone())
            }
            Self::Problem { type_base, .. } => refusal.to_problem(type_base),
            Self::Application(respond) => respond(refusal),
        }
    }
}

impl Default for Responder {
    fn default() -> Self {
        Self::problem(Cow::Borrowed(DEFAULT_PROBLEM_TYPE_BASE))
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem { type_base, .. } => f.debug_tuple("Problem").field(type_base).finish(),
            Self::Application(_) => f.write_str("Application"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_has_all_its_members() {
        let refusal = Refusal::from(Conflict::InProgress {
            retry_after: Duration::from_millis(1_001),
        });
        let response = refusal.to_problem("https://example.com/problems#");
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let problem: serde_json::Value =
            serde_json::from_slice(response.body()).expect("it is JSON");
        assert_eq!(
            problem,
            json!({
                "type": "https://example.com/problems#in-progress",
                "title": "A request is outstanding for this Idempotency-Key",
                "status": 409,
                "detail": "the first request with this idempotency key is still being executed",
                "code": "in-progress",
                "retryable": true,
            })
        );
    }

    #[test]
    fn a_grpc_refusal_has_its_status_and_says_when_to_retry() {
        let refusal = Refusal::from(Conflict::InProgress {
            retry_after: Duration::from_millis(1_001),
        });
        let response = refusal.to_grpc();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "10");
        assert_eq!(response.headers()["idempotency-refusal"], "in-progress");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1001");
        let odd = InvalidKey::Refused("100% é\n".into());
        let response = Refusal::from(odd).to_grpc();
        assert_eq!(response.headers()["grpc-status"], "3");
        assert_eq!(response.headers()["grpc-message"], "100%25 %C3%A9%0A");
    }

    #[test]
    fn a_400_says_nothing_of_retries() {
        let refusal = Refusal::from(InvalidKey::Empty);
        let response = refusal.to_problem("");
        let problem: serde_json::Value =
            serde_json::from_slice(response.body()).expect("it is JSON");
        assert_eq!(problem.get("retryable"), None);
        assert_eq!(response.headers().get(RETRY_AFTER), None);
    }
}
