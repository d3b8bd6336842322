//! The bytes of a recorded answer, version 1.
//!
//! ```text
//! frame    = version kind content
//! version  = 1
//! kind     = 0 response | 1 response with trailers | 2 response not stored | 3 value
//! content  = status fields [fields] body      (kind 0; kind 1 has the trailers, too)
//!          | status summary                   (kind 2)
//!          | body                             (kind 3)
//! status   = two bytes, little endian
//! fields   = count *(name length value)
//! name     = a tag of names.rs, by its list for this version | 0 length bytes
//! body, summary = length bytes
//! count, length = LEB128
//! ```
//!
//! The length of the body comes before it, so that a frame which lost its end is not taken for a
//! shorter answer.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::status::StatusCode;

use super::{Answer, DamagedAnswer, StoredResponse, names, packed};
use crate::format::answer::Summary;
use crate::format::{leb128, scratch, version};

const RESPONSE: u8 = 0;
const RESPONSE_WITH_TRAILERS: u8 = 1;
const NOT_STORED: u8 = 2;
const VALUE: u8 = 3;

pub(super) fn encode(answer: &Answer) -> Bytes {
    match answer {
        Answer::Response(response) => encode_response(
            response.status,
            &response.headers,
            &|_| true,
            response.trailers.as_ref(),
            [&response.body[..]].into_iter(),
        ),
        Answer::NotStored { status, summary } => scratch::with(|head| {
            let [low, high] = status.as_u16().to_le_bytes();
            head.extend_from_slice(&[version::FRAME, NOT_STORED, low, high]);
            let summary = summary.as_ref().map_or("", Summary::as_str);
            put_sized(head, summary.as_bytes());
            Bytes::copy_from_slice(head)
        }),
        Answer::Value(value) => scratch::with(|head| {
            head.extend_from_slice(&[version::FRAME, VALUE]);
            join(head, [&value[..]].into_iter())
        }),
    }
}

/// The frame of a response, from its parts where they are: those headers and trailers of which the
/// function says that they are kept.
pub(crate) fn encode_response<'a>(
    status: StatusCode,
    headers: &HeaderMap,
    is_kept: &impl Fn(&HeaderName) -> bool,
    trailers: Option<&HeaderMap>,
    body: impl Iterator<Item = &'a [u8]> + Clone,
) -> Bytes {
    let kind = match trailers {
        None => RESPONSE,
        Some(_) => RESPONSE_WITH_TRAILERS,
    };
    let [low, high] = status.as_u16().to_le_bytes();
    scratch::with(|head| {
        head.extend_from_slice(&[version::FRAME, kind, low, high]);
        put_fields(head, headers, is_kept);
        if let Some(trailers) = trailers {
            put_fields(head, trailers, is_kept);
        }
        join(head, body)
    })
}

/// The frame that starts with `head` and ends with a body, in one allocation.
fn join<'a>(head: &mut Vec<u8>, body: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    let length = body.clone().map(<[u8]>::len).sum();
    put_length(head, length);
    if head.len() + length <= packed::LONGEST {
        body.for_each(|part| head.extend_from_slice(part));
        return packed::packed(head);
    }
    let mut frame = Vec::with_capacity(head.len() + length);
    frame.extend_from_slice(head);
    body.for_each(|part| frame.extend_from_slice(part));
    frame.into()
}

fn put_fields(head: &mut Vec<u8>, fields: &HeaderMap, is_kept: &impl Fn(&HeaderName) -> bool) {
    let start = head.len();
    // One byte for their number, which is known after them.
    head.push(0);
    let mut count = 0;
    for (name, value) in fields.iter().filter(|(name, _)| is_kept(name)) {
        count += 1;
        match names::tag(name) {
            Some(tag) => head.push(tag),
            None => {
                head.push(0);
                put_sized(head, name.as_str().as_bytes());
            }
        }
        put_sized(head, value.as_bytes());
    }
    head[start] = count as u8;
    // It seldom takes more than the one byte.
    if count >= 0x80 {
        let mut bytes = Vec::new();
        put_length(&mut bytes, count);
        head.splice(start..=start, bytes);
    }
}

fn put_sized(head: &mut Vec<u8>, bytes: &[u8]) {
    put_length(head, bytes.len());
    head.extend_from_slice(bytes);
}

fn put_length(head: &mut Vec<u8>, length: usize) {
    leb128::write(length, |byte| head.push(byte));
}

pub(super) fn decode(payload: &Bytes) -> Result<Answer, DamagedAnswer> {
    let mut reader = Reader { payload, at: 0 };
    let version = reader.byte()?;
    if !names::are_known(version) {
        return Err(DamagedAnswer::UnknownVersion { version });
    }
    let answer = match reader.byte()? {
        kind @ (RESPONSE | RESPONSE_WITH_TRAILERS) => {
            let status = reader.status()?;
            let headers = reader.fields(version)?;
            let trailers = match kind {
                RESPONSE => None,
                _ => Some(reader.fields(version)?),
            };
            Answer::Response(StoredResponse {
                status,
                headers,
                trailers,
                body: reader.sized()?,
            })
        }
        NOT_STORED => Answer::NotStored {
            status: reader.status()?,
            summary: match reader.sized()? {
                none if none.is_empty() => None,
                text => Some(
                    Summary::from_bytes(text).ok_or(DamagedAnswer::Invalid { part: "summary" })?,
                ),
            },
        },
        VALUE => Answer::Value(reader.sized()?),
        kind => return Err(DamagedAnswer::UnknownKind { kind }),
    };
    match payload.len() - reader.at {
        0 => Ok(answer),
        bytes => Err(DamagedAnswer::Trailing { bytes }),
    }
}

struct Reader<'a> {
    payload: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    fn byte(&mut self) -> Result<u8, DamagedAnswer> {
        let byte = *self.payload.get(self.at).ok_or(DamagedAnswer::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn length(&mut self) -> Result<usize, DamagedAnswer> {
        // Most take one byte.
        match self.payload.get(self.at) {
            Some(length @ ..0x80) => {
                self.at += 1;
                Ok(usize::from(*length))
            }
            _ => self.long_length(),
        }
    }

    fn long_length(&mut self) -> Result<usize, DamagedAnswer> {
        let mut length = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            length |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(length)
                    .map_err(|_| DamagedAnswer::Invalid { part: "length" });
            }
        }
        Err(DamagedAnswer::Invalid { part: "length" })
    }

    /// The range of the next `length` bytes.
    #[inline]
    fn take(&mut self, length: usize) -> Result<std::ops::Range<usize>, DamagedAnswer> {
        let end = self
            .at
            .checked_add(length)
            .filter(|end| *end <= self.payload.len())
            .ok_or(DamagedAnswer::Truncated)?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(start..end)
    }

    #[inline]
    fn sized(&mut self) -> Result<Bytes, DamagedAnswer> {
        let length = self.length()?;
        Ok(self.payload.slice(self.take(length)?))
    }

    fn status(&mut self) -> Result<StatusCode, DamagedAnswer> {
        let code = u16::from_le_bytes([self.byte()?, self.byte()?]);
        StatusCode::from_u16(code).map_err(|_| DamagedAnswer::Invalid { part: "status" })
    }

    fn fields(&mut self, version: u8) -> Result<HeaderMap, DamagedAnswer> {
        let count = self.length()?;
        // A field takes two bytes at least; a count that is a lie must not cost memory.
        if count > (self.payload.len() - self.at) / 2 {
            return Err(DamagedAnswer::Truncated);
        }
        const MADE_FOR: usize = 16 << 10;
        const TOO_MANY: DamagedAnswer = DamagedAnswer::Invalid {
            part: "number of header fields",
        };
        // There may be more values than a map can be made for, but not more names. And a replay is
        // marked as one.
        let mut fields = HeaderMap::with_capacity(count.min(MADE_FOR) + 1);
        for _ in 0..count {
            let name = self.name(version)?;
            let value = HeaderValue::from_maybe_shared(self.sized()?).map_err(|_| {
                DamagedAnswer::Invalid {
                    part: "header value",
                }
            })?;
            fields.try_append(name, value).map_err(|_| TOO_MANY)?;
        }
        Ok(fields)
    }

    #[inline]
    fn name(&mut self, version: u8) -> Result<HeaderName, DamagedAnswer> {
        const INVALID: DamagedAnswer = DamagedAnswer::Invalid {
            part: "header name",
        };
        match self.byte()? {
            0 => {
                let length = self.length()?;
                let range = self.take(length)?;
                HeaderName::from_bytes(&self.payload[range]).map_err(|_| INVALID)
            }
            tag => names::name(version, tag).ok_or(INVALID),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    fn full() -> Answer {
        let mut headers = HeaderMap::new();
        headers.append(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.append("x-custom", HeaderValue::from_static("1"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("b=2"));
        headers.append(
            "x-latin",
            HeaderValue::from_bytes(b"caf\xe9").expect("obs-text is allowed"),
        );
        let mut trailers = HeaderMap::new();
        trailers.append("grpc-status", HeaderValue::from_static("0"));
        Answer::Response(StoredResponse {
            status: StatusCode::CREATED,
            headers,
            body: Bytes::from_static(b"{\"id\":\"ch_1\"}"),
            trailers: Some(trailers),
        })
    }

    fn tombstone(summary: &'static str) -> Answer {
        Answer::NotStored {
            status: StatusCode::OK,
            summary: Summary::new(summary).ok().filter(|_| !summary.is_empty()),
        }
    }

    #[test]
    fn a_tombstone_comes_back_with_its_summary() {
        for answer in [tombstone(""), tombstone("export_1432")] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        let longest = Answer::NotStored {
            status: StatusCode::OK,
            summary: Summary::new("x".repeat(Summary::MAX_LENGTH)).ok(),
        };
        assert_eq!(Answer::decode(&longest.encode()), Ok(longest));
    }

    #[test]
    fn version_1_is_these_bytes() {
        let mut response = StoredResponse::new(StatusCode::OK, "hi");
        response
            .headers
            .append(header::CONTENT_TYPE, HeaderValue::from_static("a/b"));
        response
            .headers
            .append("x-y", HeaderValue::from_static("z"));
        let frame = Answer::Response(response).encode();
        assert_eq!(
            frame,
            &b"\x01\x00\xc8\x00\x02\x14\x03a/b\x00\x03x-y\x01z\x02hi"[..]
        );
        assert_eq!(tombstone("").encode(), &b"\x01\x02\xc8\x00\x00"[..]);
        assert_eq!(tombstone("hi").encode(), &b"\x01\x02\xc8\x00\x02hi"[..]);
        let value = Answer::Value(Bytes::from_static(b"17"));
        assert_eq!(value.encode(), &b"\x01\x03\x0217"[..]);
    }

    #[test]
    fn the_version_before_is_read_by_its_own_names() {
        let mut response = StoredResponse::new(StatusCode::CREATED, "hi");
        response
            .headers
            .append(header::LOCATION, HeaderValue::from_static("/1"));
        response
            .headers
            .append("x-y", HeaderValue::from_static("z"));
        let before = Bytes::from_static(b"\x00\x00\xc9\x00\x02\x01\x02/1\x00\x03x-y\x01z\x02hi");
        let read = Answer::decode(&before);
        assert_eq!(read, Ok(Answer::Response(response)));
        let written = read.map(|answer| answer.encode());
        assert_eq!(
            written,
            Ok(Bytes::from_static(
                b"\x01\x00\xc9\x00\x02\x21\x02/1\x00\x03x-y\x01z\x02hi"
            ))
        );
        // A tag that is none in that version.
        assert_eq!(
            Answer::decode(&Bytes::from_static(b"\x00\x00\xc9\x00\x01\x21\x00\x00")),
            Err(DamagedAnswer::Invalid {
                part: "header name"
            })
        );
    }

    #[test]
    fn all_of_a_response_comes_back() {
        let answer = full();
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }

    #[test]
    fn a_long_frame_takes_no_more_than_its_size() {
        let long = StoredResponse::new(StatusCode::OK, vec![b'a'; 1000]);
        let payload = Answer::Response(long).encode();
        let whole = payload.try_into_mut().expect("the only handle");
        assert_eq!(whole.capacity(), whole.len());
    }

    #[test]
    fn more_fields_than_one_byte_can_count_come_back() {
        for count in [0x7f, 0x80, 0x81, 0x4000] {
            let mut response = StoredResponse::new(StatusCode::OK, "hi");
            for number in 0..count {
                response
                    .headers
                    .append(header::SET_COOKIE, HeaderValue::from(number));
            }
            let answer = Answer::Response(response);
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer), "{count}");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        for answer in [
            full(),
            Answer::Value(Bytes::from_static(b"1")),
            tombstone(""),
            tombstone("export_1432"),
        ] {
            let frame = answer.encode();
            for end in 0..frame.len() {
                assert_eq!(
                    Answer::decode(&frame.slice(..end)),
                    Err(DamagedAnswer::Truncated),
                    "cut at {end}"
                );
            }
        }
    }

    #[test]
    fn damage_is_named() {
        let damaged = |bytes: &'static [u8]| Answer::decode(&Bytes::from_static(bytes));
        assert_eq!(
            damaged(b"\x02\x00"),
            Err(DamagedAnswer::UnknownVersion { version: 2 })
        );
        assert_eq!(
            damaged(b"\x01\x09"),
            Err(DamagedAnswer::UnknownKind { kind: 9 })
        );
        assert_eq!(
            damaged(b"\x01\x00\x07\x00\x00\x00"),
            Err(DamagedAnswer::Invalid { part: "status" })
        );
        assert_eq!(
            damaged(b"\x01\x00\xc8\x00\x01\x14\x01\n\x00"),
            Err(DamagedAnswer::Invalid {
                part: "header value"
            })
        );
        assert_eq!(
            damaged(b"\x01\x00\xc8\x00\x01\xff\x00\x00"),
            Err(DamagedAnswer::Invalid {
                part: "header name"
            })
        );
        assert_eq!(
            damaged(b"\x01\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Err(DamagedAnswer::Invalid { part: "length" })
        );
        assert_eq!(
            damaged(b"\x01\x02\xc8\x00\x00!"),
            Err(DamagedAnswer::Trailing { bytes: 1 })
        );
        assert_eq!(
            damaged(b"\x01\x02\xc8\x00\x01\xff"),
            Err(DamagedAnswer::Invalid { part: "summary" })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Answer::decode(&bytes.into());
        }

        #[test]
        fn any_byte_changed_gives_an_answer_or_an_error(at in 0_usize..100, to in any::<u8>()) {
            let mut frame = full().encode().to_vec();
            let at = at % frame.len();
            frame[at] = to;
            let _ = Answer::decode(&frame.into());
        }

        #[test]
        fn any_response_comes_back(
            status in 100_u16..1000,
            fields in proptest::collection::vec(("[a-z][a-z-]{0,12}", proptest::collection::vec(0x20_u8..0x7f, 0..20)), 0..12),
            body in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut response = StoredResponse::new(StatusCode::from_u16(status)?, body);
            for (name, value) in fields {
                response.headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_bytes(&value)?);
            }
            let answer = Answer::Response(response);
            prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }
}
