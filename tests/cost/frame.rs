//! The bytes of a recorded answer.

use bytes::Bytes;
use http::HeaderMap;
use tower_idempotency::{Answer, StoredResponse};

use crate::support::{ANSWER, BoxBody, answer};

#[test]
fn a_frame_is_shorter_than_the_text_that_is_in_it() {
    let (parts, _) = answer::<BoxBody>().into_parts();
    let raw = text(&parts.headers) + ANSWER.len();
    let response = http::Response::from_parts(parts, Bytes::from_static(ANSWER));
    let frame = Answer::Response(StoredResponse::from(response)).encode();
    println!("frame: {} bytes for {raw} of headers and body", frame.len());
    // A name that is known takes one byte, and the length of a short value another.
    assert!(frame.len() + 40 <= raw, "{} bytes for {raw}", frame.len());
}

/// The bytes of names and values, and nothing between them.
pub(crate) fn text(headers: &HeaderMap) -> usize {
    let length = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.as_bytes().len()
    };
    headers.iter().map(length).sum()
}
