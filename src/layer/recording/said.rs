//! What a handler says of one response.

use std::time::Duration;

/// What a handler says of one response, whatever the [`Recording`](crate::Recording) says: put it
/// into the response's extensions.
///
/// With axum:
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Extension, http::StatusCode, response::IntoResponse};
/// use tower_idempotency::RecordingOverride;
///
/// async fn charge() -> impl IntoResponse {
///     // The provider was asked, and has declined for good.
///     (StatusCode::UNPROCESSABLE_ENTITY, Extension(RecordingOverride::Final), "declined")
/// }
/// # let _ = charge;
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordingOverride {
    /// It is the outcome of the operation: record it. One whose body breaks off is recorded as
    /// not stored.
    Final,
    /// As [`Final`](Self::Final), and for this long instead of the
    /// [retention](crate::IdempotencyLayer::retention) that was set.
    FinalFor(Duration),
    /// Nothing was done: the next request runs.
    NothingDone,
    /// Nobody knows whether anything was done: the [orphan policy](crate::Orphan) decides.
    Unknown,
    /// It is a stream: hand it through at once, and record that it was not stored. It counts by
    /// its status like any other; a 500 stays *unknown*.
    Stream,
}
