//! Refusals, as problem details ([RFC 9457]).
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457

mod reason;
mod responder;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;

pub use self::reason::RefusalReason;
#[cfg(feature = "axum")]
pub(crate) use self::responder::DEFAULT_PROBLEM_TYPE_BASE;
pub(crate) use self::responder::{Kept, Responder, is_grpc};
use crate::executor::Conflict;
use crate::format::answer::Summary;
use crate::format::scratch;
use crate::layer::outcome::IDEMPOTENCY_REFUSED;
use crate::protocol::clock::Timestamp;
use crate::protocol::end::End;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::InvalidKey;
use crate::protocol::record::Owner;

const IN_PROGRESS: &str = "the first request with this idempotency key is still being executed";

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request that the layer answered itself.
#[derive(Debug)]
pub struct Refusal {
    reason: RefusalReason,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
    store_error: Option<StoreError>,
    /// Whose attempt is in progress.
    holder: Option<Owner>,
    // Boxed, because few have it.
    known: Option<Box<Known>>,
}

/// What is known of the first request with the key.
#[derive(Debug, Default)]
struct Known {
    first_seen: Option<Timestamp>,
    first_status: Option<StatusCode>,
    summary: Option<Summary>,
}

impl Refusal {
    pub(crate) fn new(reason: RefusalReason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            retry_after: None,
            store_error: None,
            holder: None,
            known: None,
        }
    }

    /// Adds when the key was first claimed.
    pub(crate) fn with_first_seen(mut self, first_seen: Timestamp) -> Self {
        self.known.get_or_insert_default().first_seen = Some(first_seen);
        self
    }

    /// Adds the status that the first client got.
    pub(crate) fn with_first_status(mut self, first_status: impl Into<Option<StatusCode>>) -> Self {
        self.known.get_or_insert_default().first_status = first_status.into();
        self
    }

    pub(crate) fn missing_key() -> Self {
        Self::new(
            RefusalReason::MissingKey,
            "this operation must be requested with an idempotency key",
        )
    }

    pub(crate) fn response_not_stored(summary: Option<Summary>) -> Self {
        let mut refusal = Self::new(
            RefusalReason::ResponseNotStored,
            "the operation has its outcome, but the response was not stored; only the first request with this idempotency key got it",
        );
        if summary.is_some() {
            refusal.known.get_or_insert_default().summary = summary;
        }
        refusal
    }

    pub(crate) fn caller_differs() -> Self {
        Self::new(
            RefusalReason::CallerDiffers,
            "this idempotency key was first sent by another caller; authenticate as the caller that first sent it, or ask for the state of the operation",
        )
    }

    /// The service within claims the record that its own caller holds.
    pub(crate) fn shared_record() -> Self {
        Self::new(
            RefusalReason::StoreBroken,
            "the request was not executed, because two services on its way claim the same idempotency record",
        )
    }

    /// Whether it is what each duplicate of a run in flight gets.
    fn is_of_duplicate(&self) -> bool {
        self.reason == RefusalReason::InProgress && self.detail == IN_PROGRESS
    }

    /// Whose attempt is in progress, where that is known.
    pub(crate) const fn holder(&self) -> Option<Owner> {
        self.holder
    }

    pub(crate) fn request_timeout() -> Self {
        Self::new(
            RefusalReason::RequestTimeout,
            "the request was not executed, because its body did not come in time",
        )
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

    /// The fault of the store behind a `store-unavailable`, a `store-full`, a `store-broken` or a
    /// `record-newer`. For logs: it may name hosts.
    pub const fn store_error(&self) -> Option<&StoreError> {
        self.store_error.as_ref()
    }

    /// When the key was first claimed, where that is known and may be told.
    pub fn first_seen(&self) -> Option<Timestamp> {
        self.known.as_ref()?.first_seen
    }

    /// The status that the first client got, where that is known and may be told.
    pub fn first_status(&self) -> Option<StatusCode> {
        self.known.as_ref()?.first_status
    }

    /// What the handler gave as a summary of a response that was not stored.
    pub fn summary(&self) -> Option<&str> {
        Some(self.known.as_ref()?.summary.as_ref()?.as_str())
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
            if let Some(first_seen) = self.first_seen() {
                problem.member("first_seen", first_seen.to_rfc3339());
            }
            if let Some(first_status) = self.first_status() {
                problem.member("first_status", first_status.as_u16());
            }
            problem.member("retryable", self.is_retryable());
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
        self.mark(headers);
        match self.retry_after_seconds() {
            None => None,
            // The least there is, and so most often what there is.
            Some(1) => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            Some(seconds) => headers.insert(RETRY_AFTER, seconds.into()),
        };
        response
    }

    /// What every refusal has.
    fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            IDEMPOTENCY_REFUSED,
            HeaderValue::from_static(self.reason.code()),
        );
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
    /// its metadata `idempotency-refused` has the [code](RefusalReason::code), and
    /// `grpc-retry-pushback-ms` ([gRFC A6]) says when to try again.
    ///
    /// A layer answers gRPC requests so by itself; this is for responders of your own.
    ///
    /// [gRFC A6]: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
    pub fn to_grpc(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", self.reason.grpc_status().into());
        self.mark(headers);
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
        let soon = Some(error.retry_after().unwrap_or(Duration::from_secs(1)));
        let (reason, detail, retry_after) = match error.kind() {
            StoreErrorKind::Damaged | StoreErrorKind::TooLarge | StoreErrorKind::Unusable => (
                RefusalReason::StoreBroken,
                "the request was not executed, because the store of idempotency records has a fault that does not pass by itself",
                None,
            ),
            StoreErrorKind::Full => (
                RefusalReason::StoreFull,
                "the request was not executed, because there is no room for the record of a new idempotency key",
                soon,
            ),
            StoreErrorKind::Unavailable => (
                RefusalReason::StoreUnavailable,
                "the request was not executed, because its idempotency record cannot be reached",
                soon,
            ),
            StoreErrorKind::Newer => (
                RefusalReason::RecordNewer,
                "the request was not executed, because its idempotency record is of a later version of the service",
                soon,
            ),
        };
        Self {
            retry_after,
            store_error: Some(error),
            ..Self::new(reason, detail)
        }
    }
}

impl From<Conflict> for Refusal {
    fn from(conflict: Conflict) -> Self {
        let (reason, detail, retry_after) = match conflict {
            Conflict::Store(error) => return error.into(),
            Conflict::InProgress { retry_after, owner } => {
                return Self {
                    retry_after: Some(retry_after),
                    holder: owner,
                    ..Self::new(RefusalReason::InProgress, IN_PROGRESS)
                };
            }
            Conflict::OutcomeUnknown {
                first_seen,
                first_status,
            } => {
                let first_status = first_status.and_then(|code| StatusCode::from_u16(code).ok());
                let detail = "an earlier request with this idempotency key ended without an outcome; whether it was carried out is not known, and it is not repeated";
                return Self::new(RefusalReason::OutcomeUnknown, detail)
                    .with_first_seen(first_seen)
                    .with_first_status(first_status);
            }
            Conflict::OutcomeUnknownYet { first_seen } => {
                let detail = "an earlier request with this idempotency key ended without an outcome; whether it was carried out could not be found out yet";
                return Self {
                    retry_after: Some(Duration::from_secs(1)),
                    ..Self::new(RefusalReason::OutcomeUnknown, detail).with_first_seen(first_seen)
                };
            }
            Conflict::CallerDiffers => return Self::caller_differs(),
            Conflict::SettingsChanged => (
                RefusalReason::SettingsChanged,
                "the request was not executed, because this idempotency key was first used under other settings of the service",
                Some(Duration::from_secs(1)),
            ),
            Conflict::Ended {
                class: End::Unknown,
                first_seen,
            } => {
                let detail = "an earlier request with this idempotency key ended without a response, and whether it was carried out is not known; a request that is sent now may be carried out";
                return Self {
                    retry_after: Some(Duration::from_secs(1)),
                    ..Self::new(RefusalReason::OutcomeUnknown, detail).with_first_seen(first_seen)
                };
            }
            Conflict::Ended { .. } => (
                RefusalReason::InProgress,
                "an earlier request with this idempotency key was in progress, and has ended meanwhile without being carried out; send this request again to have it carried out",
                Some(Duration::from_secs(1)),
            ),
            // Of requests, this is not said.
            Conflict::KeyOfRequest => (
                RefusalReason::InProgress,
                IN_PROGRESS,
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
            Conflict::Reused => (
                RefusalReason::KeyReused,
                "this idempotency key was used for a request with other contents; a retry must repeat the request as it was first sent, and a new operation needs a key of its own",
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_has_all_its_members() {
        let refusal = Refusal::from(Conflict::InProgress {
            retry_after: Duration::from_millis(1_001),
            owner: None,
        });
        let response = refusal.to_problem("https://example.com/problems#");
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()["idempotency-refused"], "in-progress");
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
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
            owner: None,
        });
        let response = refusal.to_grpc();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "10");
        assert_eq!(response.headers()["idempotency-refused"], "in-progress");
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1001");
        let odd = InvalidKey::Refused("100% é\n".into());
        let response = Refusal::from(odd).to_grpc();
        assert_eq!(response.headers()["grpc-status"], "3");
        assert_eq!(response.headers()["grpc-message"], "100%25 %C3%A9%0A");
    }

    #[test]
    fn an_invalid_key_is_not_to_be_sent_again() {
        let refusal = Refusal::from(InvalidKey::Empty);
        let response = refusal.to_problem("");
        let problem: serde_json::Value =
            serde_json::from_slice(response.body()).expect("it is JSON");
        assert_eq!(problem["retryable"], false);
        assert_eq!(response.headers().get(RETRY_AFTER), None);
    }

    #[test]
    fn what_is_known_of_the_first_request_is_told() {
        let refusal = Refusal::new(RefusalReason::OutcomeUnknown, "it is not known")
            .with_first_seen(Timestamp::from_millis(784_111_777_999))
            .with_first_status(StatusCode::BAD_GATEWAY);
        let response = refusal.to_problem("");
        let problem: serde_json::Value =
            serde_json::from_slice(response.body()).expect("it is JSON");
        assert_eq!(problem["first_seen"], "1994-11-06T08:49:37Z");
        assert_eq!(problem["first_status"], 502);
        assert_eq!(problem["retryable"], false);
    }

    #[test]
    fn another_caller_is_told_nothing_and_gets_no_advice_to_charge_again() {
        let refusal = Refusal::caller_differs();
        assert_eq!(refusal.retry_after(), None);
        assert!(!refusal.is_retryable());
        let detail = refusal.detail();
        assert!(!detail.contains("new key"), "{detail}");
        assert!(detail.contains("authenticate"), "{detail}");
        assert_eq!(refusal.to_grpc().headers()["grpc-status"], "3");
    }

    #[test]
    fn a_store_that_knows_says_when_to_try_again() {
        let error = |kind| StoreError::new(kind, "").with_retry_after(Duration::from_secs(90));
        let refusal = Refusal::from(error(StoreErrorKind::Full));
        assert_eq!(refusal.to_problem("").headers()["retry-after"], "90");
        let grpc = refusal.to_grpc();
        assert_eq!(grpc.headers()["grpc-retry-pushback-ms"], "90000");
        let refusal = Refusal::from(error(StoreErrorKind::Unusable));
        assert_eq!(refusal.retry_after(), None);
    }

    #[test]
    fn faults_of_stores_have_codes_by_what_can_be_done_about_them() {
        for (kind, code, is_retryable) in [
            (StoreErrorKind::Damaged, "store-broken", false),
            (StoreErrorKind::Unusable, "store-broken", false),
            (StoreErrorKind::Full, "store-full", true),
            (StoreErrorKind::Newer, "record-newer", true),
            (StoreErrorKind::TooLarge, "store-broken", false),
            (StoreErrorKind::Unavailable, "store-unavailable", true),
        ] {
            let refusal = Refusal::from(StoreError::new(kind, "secret"));
            assert_eq!(refusal.reason().code(), code);
            assert_eq!(refusal.is_retryable(), is_retryable, "{code}");
            assert_eq!(refusal.retry_after().is_some(), is_retryable, "{code}");
            assert!(!refusal.detail().contains("secret"));
        }
    }
}
