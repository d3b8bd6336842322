//! What a refusal of a layer of this crate further in says of its operation.

use http::header::HeaderMap;

use crate::layer::outcome::IDEMPOTENCY_REFUSED;
use crate::protocol::end::End;

/// Returns the class of a response that is such a refusal, where its code says more than its
/// status.
pub(super) fn end(headers: &HeaderMap) -> Option<End> {
    match headers.get(IDEMPOTENCY_REFUSED)?.as_bytes() {
        // They promise that nothing ran.
        b"buffers-full"
        | b"caller-differs"
        | b"in-progress"
        | b"invalid-key"
        | b"key-reused"
        | b"missing-key"
        | b"record-newer"
        | b"request-timeout"
        | b"request-too-large"
        | b"settings-changed"
        | b"shutting-down"
        | b"store-broken"
        | b"store-full"
        | b"store-unavailable"
        | b"too-many-runs"
        | b"unreadable-request" => Some(End::NothingDone),
        // They say that it ran.
        b"lease-lost" | b"not-recorded" => Some(End::Unknown),
        _ => None,
    }
}
