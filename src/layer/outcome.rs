//! What an answer says of how it came about.

use std::fmt;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};

use crate::layer::problem::RefusalReason;
use crate::protocol::Recorded;
use crate::protocol::clock::Timestamp;
use crate::protocol::key::IDEMPOTENCY_KEY;

/// `Idempotent-Replayed: true` stands on every replayed answer, as Stripe does it.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// `Idempotency-First-Seen`: when the key was first claimed, as an HTTP date
/// ([RFC 9110, section 5.6.7]). On answers of a layer that
/// [reports times](crate::IdempotencyLayer::report_times).
///
/// [RFC 9110, section 5.6.7]: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7
pub const IDEMPOTENCY_FIRST_SEEN: HeaderName = HeaderName::from_static("idempotency-first-seen");

/// `Idempotency-Expires`: when the answer to the key may be forgotten, as an HTTP date. On
/// answers of a layer that [reports times](crate::IdempotencyLayer::report_times).
pub const IDEMPOTENCY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");

/// `Idempotency-Unprotected: true` stands on an answer to a request that ran although the store
/// could not be reached; see [`fail_open`](crate::IdempotencyLayer::fail_open).
pub const IDEMPOTENCY_UNPROTECTED: HeaderName = HeaderName::from_static("idempotency-unprotected");

/// `Idempotency-Refused: <code>` stands on every refusal, also on those that the application
/// words itself, with the [code](RefusalReason::code) of its reason. A gateway, and another of
/// these layers, tell by it that this layer has answered and not the handler.
pub const IDEMPOTENCY_REFUSED: HeaderName = HeaderName::from_static("idempotency-refused");

/// Names the attempt that is in progress, by a digest, on refusals from a store that other
/// processes share: a gateway whose own attempt it is tells by it that the service within claims
/// the same record.
pub(crate) const IDEMPOTENCY_HOLDER: HeaderName = HeaderName::from_static("idempotency-holder");

/// The response headers that a browser may read only if `Access-Control-Expose-Headers` names
/// them: for tower-http, `CorsLayer::new().expose_headers(EXPOSED_HEADERS)`.
pub const EXPOSED_HEADERS: [HeaderName; 7] = [
    IDEMPOTENCY_EXPIRES,
    IDEMPOTENCY_FIRST_SEEN,
    IDEMPOTENCY_KEY,
    IDEMPOTENCY_REFUSED,
    IDEMPOTENCY_UNPROTECTED,
    IDEMPOTENT_REPLAYED,
    RETRY_AFTER,
];

/// What the layer did with a request: in the extensions of the responses of a layer that
/// [reports it](crate::IdempotencyLayer::report_outcome), for logs and metrics of the layers
/// outside. A response without it passed through, or was made of a panic or an error by a layer
/// outside of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The handler ran, and this became of its answer.
    Executed(Recorded),
    /// The handler did not run: the layer refused the request.
    Refused(RefusalReason),
    /// The handler did not run: this is the recorded answer.
    Replayed,
    /// The handler ran unprotected, for the store could not be reached.
    Unprotected,
}

impl Outcome {
    /// A short name for logs and metrics: `executed`, `refused`, `replayed` or `unprotected`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Executed(_) => "executed",
            Self::Refused(_) => "refused",
            Self::Replayed => "replayed",
            Self::Unprotected => "unprotected",
        }
    }
}

/// The short name, and after a colon what became of the answer, or the reason: `executed:
/// stored`, `refused: in-progress`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.as_str();
        match self {
            Self::Executed(recorded) => write!(f, "{name}: {recorded}"),
            Self::Refused(reason) => write!(f, "{name}: {reason}"),
            Self::Replayed | Self::Unprotected => f.write_str(name),
        }
    }
}

/// Says when the key was first seen and when it expires.
pub(crate) fn report_times(headers: &mut HeaderMap, created_at: Timestamp, expires_at: Timestamp) {
    mark(headers, IDEMPOTENCY_FIRST_SEEN, http_date(created_at));
    mark(headers, IDEMPOTENCY_EXPIRES, http_date(expires_at));
}

/// Adds a field of this layer's own. A response that has as many fields as there can be goes
/// without it.
pub(crate) fn mark(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let _ = headers.try_insert(name, value);
}

fn http_date(timestamp: Timestamp) -> HeaderValue {
    // The last second that an HTTP date can name: 9999-12-31T23:59:59Z.
    const LAST: Timestamp = Timestamp::from_millis(253_402_300_799_000);
    let date = httpdate::fmt_http_date(timestamp.min(LAST).into());
    HeaderValue::try_from(date).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_http_dates_even_at_the_end_of_time() {
        let mut headers = HeaderMap::new();
        report_times(
            &mut headers,
            Timestamp::from_millis(784_111_777_999),
            Timestamp::from_micros(u64::MAX),
        );
        assert_eq!(
            headers[IDEMPOTENCY_FIRST_SEEN],
            "Sun, 06 Nov 1994 08:49:37 GMT"
        );
        assert_eq!(
            headers[IDEMPOTENCY_EXPIRES],
            "Fri, 31 Dec 9999 23:59:59 GMT"
        );
    }
}
