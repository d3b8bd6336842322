//! The floor's form of a recorded response: status, header fields, body, in one allocation; header
//! values and the body are given back as views of it.

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, response};

/// Names that take one byte, their place here counted from 1.
static NAMES: [HeaderName; 8] = [
    header::CACHE_CONTROL,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LOCATION,
    HeaderName::from_static("request-id"),
    HeaderName::from_static("stripe-version"),
    header::VARY,
];

pub(super) fn encode(parts: &response::Parts, body: &[u8]) -> Bytes {
    let fields: usize = parts
        .headers
        .iter()
        .map(|(name, value)| 8 + name.as_str().len() + value.len())
        .sum();
    let mut frame = Vec::with_capacity(4 + fields + body.len());
    frame.extend_from_slice(&parts.status.as_u16().to_le_bytes());
    frame.extend_from_slice(&(parts.headers.len() as u16).to_le_bytes());
    for (name, value) in &parts.headers {
        match NAMES.iter().position(|known| known == name) {
            Some(place) => frame.push(place as u8 + 1),
            None => {
                frame.push(0);
                put_sized(&mut frame, name.as_str().as_bytes());
            }
        }
        put_sized(&mut frame, value.as_bytes());
    }
    frame.extend_from_slice(body);
    frame.into()
}

fn put_sized(frame: &mut Vec<u8>, bytes: &[u8]) {
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(bytes);
}

/// `None` when `frame` is damaged.
pub(super) fn decode(frame: &Bytes) -> Option<Response<Body>> {
    let mut at = 0;
    let status = StatusCode::from_u16(take_u16(frame, &mut at)?).ok()?;
    let count = usize::from(take_u16(frame, &mut at)?);
    let mut headers = HeaderMap::with_capacity(count);
    for _ in 0..count {
        let name = match usize::from(*take(frame, &mut at, 1)?.first()?) {
            0 => HeaderName::from_bytes(&take_sized(frame, &mut at)?).ok()?,
            tag => NAMES.get(tag - 1)?.clone(),
        };
        let value = HeaderValue::from_maybe_shared(take_sized(frame, &mut at)?).ok()?;
        headers.append(name, value);
    }
    let mut response = Response::new(Body::from(frame.slice(at..)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Some(response)
}

fn take<'a>(frame: &'a Bytes, at: &mut usize, length: usize) -> Option<&'a [u8]> {
    let bytes = frame.get(*at..at.checked_add(length)?)?;
    *at += length;
    Some(bytes)
}

fn take_u16(frame: &Bytes, at: &mut usize) -> Option<u16> {
    let bytes = take(frame, at, 2)?.try_into().ok()?;
    Some(u16::from_le_bytes(bytes))
}

fn take_sized(frame: &Bytes, at: &mut usize) -> Option<Bytes> {
    let length = take(frame, at, 4)?.try_into().ok()?;
    let length = u32::from_le_bytes(length) as usize;
    let start = *at;
    take(frame, at, length)?;
    Some(frame.slice(start..*at))
}
