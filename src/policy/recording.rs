//! Which responses are recorded.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::response::Parts;
use http::{HeaderMap, StatusCode};

use super::grpc;

/// Which responses are recorded as the answer to a key. Where a response is not, the key is
/// released, and the next request with it runs.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Recording {
    /// All but those which say that the operation was not carried out: 5xx, and 401, 403, 404,
    /// 405, 407, 408, 413, 415, 421, 425 and 429. The default: a refused credential or a limit on
    /// the rate must not poison a key.
    ///
    /// A gRPC response counts as the HTTP status that belongs to its `grpc-status`, by the
    /// mapping of [`google.rpc.Code`], here and for [`Recording::Success`].
    ///
    /// A handler that answers 5xx *after* it has done its work should say so with
    /// [`RecordingOverride::RetainFor`], or be given [`Recording::All`].
    ///
    /// [`google.rpc.Code`]: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
    #[default]
    Deterministic,
    /// All of them, 500s too: what Stripe's API v1 does once a request has begun to execute.
    All,
    /// 2xx only.
    Success,
    /// Those that a function picks; see [`Recording::when`].
    When(When),
}

impl Recording {
    /// Records a response when `record` says so of its status and header fields.
    ///
    /// ```
    /// use tower_idempotency::Recording;
    ///
    /// let recording = Recording::when(|response| !response.headers.contains_key("x-try-again"));
    /// ```
    pub fn when(record: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        Self::When(When(Arc::new(record)))
    }

    /// Whether a response is recorded, as far as it is known: `trailers` come after the body.
    pub(crate) fn records(&self, response: &Parts, trailers: Option<&HeaderMap>) -> bool {
        match self {
            Self::Deterministic => is_deterministic(grpc::status(response, trailers)),
            Self::All => true,
            Self::Success => grpc::status(response, trailers).is_success(),
            Self::When(When(record)) => record(response),
        }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deterministic => "Deterministic",
            Self::All => "All",
            Self::Success => "Success",
            Self::When(_) => "When",
        })
    }
}

/// A function that picks responses; see [`Recording::when`].
#[derive(Clone)]
pub struct When(Arc<dyn Fn(&Parts) -> bool + Send + Sync>);

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("When").finish_non_exhaustive()
    }
}

fn is_deterministic(status: StatusCode) -> bool {
    !status.is_server_error()
        && !matches!(
            status.as_u16(),
            401 | 403 | 404 | 405 | 407 | 408 | 413 | 415 | 421 | 425 | 429
        )
}

/// What a handler says of one response, whatever the [`Recording`] policy: put it into the
/// response's extensions.
///
/// With axum:
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Extension, http::StatusCode, response::IntoResponse};
/// use tower_idempotency::RecordingOverride;
///
/// async fn charge() -> impl IntoResponse {
///     // The provider is busy; nothing was charged. The same key may try again.
///     (StatusCode::CONFLICT, Extension(RecordingOverride::Release), "try again")
/// }
/// # let _ = charge;
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordingOverride {
    /// Do not record it: the operation was not carried out, and the next request runs.
    Release,
    /// Record it, for this long.
    RetainFor(Duration),
    /// It is a stream: hand it through at once, and record that it was not stored.
    Stream,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(recording: &Recording) -> Vec<u16> {
        (200..600)
            .filter(|status| {
                let response = http::Response::builder().status(*status).body(());
                response.is_ok_and(|response| recording.records(&response.into_parts().0, None))
            })
            .collect()
    }

    #[test]
    fn deterministic_leaves_out_what_says_that_nothing_was_done() {
        let kept = recorded(&Recording::Deterministic);
        for status in [
            401, 403, 404, 405, 407, 408, 413, 415, 421, 425, 429, 500, 502, 503, 504, 599,
        ] {
            assert!(!kept.contains(&status), "{status}");
        }
        assert_eq!(kept.len(), 300 - 11);
    }

    #[test]
    fn the_other_policies_do_what_their_names_say() {
        assert_eq!(recorded(&Recording::All).len(), 400);
        assert_eq!(
            recorded(&Recording::Success),
            (200..300).collect::<Vec<_>>()
        );
        let teapot = Recording::when(|response| response.status.as_u16() == 418);
        assert_eq!(recorded(&teapot), [418]);
    }

    #[test]
    fn a_grpc_response_counts_by_its_grpc_status() {
        let records = |code: &'static str, is_in_trailers: bool| {
            let mut fields = HeaderMap::new();
            fields.insert("grpc-status", http::HeaderValue::from_static(code));
            let mut response = http::Response::new(());
            let content_type = http::HeaderValue::from_static("application/grpc+proto");
            response.headers_mut().insert("content-type", content_type);
            if !is_in_trailers {
                response.headers_mut().extend(fields.clone());
            }
            let response = response.into_parts().0;
            Recording::Deterministic.records(&response, is_in_trailers.then_some(&fields))
        };
        for is_in_trailers in [false, true] {
            for code in ["0", "1", "3", "6", "9", "10", "11"] {
                assert!(records(code, is_in_trailers), "{code}");
            }
            for code in [
                "2", "4", "5", "7", "8", "12", "13", "14", "15", "16", "99", "x",
            ] {
                assert!(!records(code, is_in_trailers), "{code}");
            }
        }
    }

    #[test]
    fn a_grpc_status_means_nothing_in_another_response() {
        let mut response = http::Response::new(());
        let status = http::HeaderValue::from_static("14");
        response.headers_mut().insert("grpc-status", status);
        assert!(Recording::Deterministic.records(&response.into_parts().0, None));
    }
}
