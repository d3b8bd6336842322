//! What a gRPC response says of its operation.
//!
//! A gRPC response is a 200 whatever came of the call; the outcome is in `grpc-status`, which
//! stands in the trailers, or in the headers of a response that has no message
//! ([gRPC over HTTP2]).
//!
//! [gRPC over HTTP2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use http::response::Parts;
use http::{HeaderValue, StatusCode};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The status of a response; that of a gRPC response is the HTTP status which `google.rpc.Code`
/// gives for its code ([code.proto]).
///
/// [code.proto]: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
pub(super) fn status(response: &Parts, trailers: Option<&HeaderMap>) -> StatusCode {
    if !is_grpc(response) {
        return response.status;
    }
    let in_trailers = || trailers.and_then(|trailers| trailers.get(GRPC_STATUS));
    let code = response.headers.get(GRPC_STATUS).or_else(in_trailers);
    let status = match code.map(HeaderValue::as_bytes) {
        None | Some(b"0") => return response.status,
        Some(b"1") => 499,
        Some(b"3" | b"9" | b"11") => 400,
        Some(b"4") => 504,
        Some(b"5") => 404,
        Some(b"6" | b"10") => 409,
        Some(b"7") => 403,
        Some(b"8") => 429,
        Some(b"12") => 501,
        Some(b"14") => 503,
        Some(b"16") => 401,
        // UNKNOWN, INTERNAL, DATA_LOSS, and what is no code.
        Some(_) => 500,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn is_grpc(response: &Parts) -> bool {
    response
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
