//! What the media type of a response says of its form.

use http::header::{CONTENT_TYPE, HeaderMap};

use crate::layer::fields::essence;

/// The form of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A response that ends, as far as its head tells.
    Whole,
    /// A gRPC response: its status is in its trailers, and it is a stream from its second message
    /// on.
    Grpc,
    /// A gRPC-Web response: its status is in its body, or in its head when it has no message.
    GrpcWeb,
    /// A response that has no end by its nature, or that is no message at all.
    Stream,
}

impl Form {
    /// Returns the form of a response with these header fields.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(content_type) = headers.get(CONTENT_TYPE) else {
            return Self::Whole;
        };
        let essence = essence(content_type.as_bytes());
        if let Some(grpc) = Self::of_grpc(essence) {
            grpc
        } else if is_stream(essence) {
            Self::Stream
        } else {
            Self::Whole
        }
    }

    /// `application/grpc` and `application/grpc-web`, also with `+proto` and the like.
    fn of_grpc(essence: &[u8]) -> Option<Self> {
        const GRPC: &[u8] = b"application/grpc";
        let (start, rest) = essence.split_at_checked(GRPC.len())?;
        // Its last byte tells it from `application/json`.
        let is_grpc = matches!(start, [.., b'c' | b'C']) && start.eq_ignore_ascii_case(GRPC);
        match rest {
            [] | [b'+', ..] if is_grpc => Some(Self::Grpc),
            [b'-', ..] if is_grpc => Some(Self::GrpcWeb),
            _ => None,
        }
    }
}

/// Media types of streams: events, JSON text sequences ([RFC 7464]) and lines of JSON, and pages
/// that replace each other.
///
/// [RFC 7464]: https://www.rfc-editor.org/rfc/rfc7464
const STREAMS: [&[u8]; 12] = [
    b"application/json-seq",
    b"application/jsonl",
    b"application/jsonlines",
    b"application/ndjson",
    b"application/stream+json",
    b"application/x-json-stream",
    b"application/x-jsonl",
    b"application/x-jsonlines",
    b"application/x-ldjson",
    b"application/x-ndjson",
    b"multipart/x-mixed-replace",
    b"text/event-stream",
];

fn is_stream(essence: &[u8]) -> bool {
    const SEQUENCE: &[u8] = b"+json-seq";
    // `application/json` is shorter than all of them.
    let is_named = essence.len() > 16
        && STREAMS
            .iter()
            .any(|stream| stream.eq_ignore_ascii_case(essence));
    match essence {
        _ if is_named => true,
        [.., b'q' | b'Q'] => essence
            .last_chunk::<{ SEQUENCE.len() }>()
            .is_some_and(|end| end.eq_ignore_ascii_case(SEQUENCE)),
        _ => false,
    }
}

/// Whether a second length-prefixed message has begun in the bytes of a gRPC response.
pub(crate) fn has_second_message<'a>(chunks: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
    const PREFIX: usize = 5;
    let mut prefix = chunks.clone().flatten().copied().take(PREFIX);
    // One byte of flags, and the length.
    let flags = prefix.next();
    let message = prefix.fold(0_usize, |length, byte| length << 8 | usize::from(byte));
    let length: usize = chunks.map(<[u8]>::len).sum();
    flags.is_some() && length >= PREFIX && length - PREFIX > message
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn form(content_type: &'static str) -> Form {
        let content_type = HeaderValue::from_static(content_type);
        Form::of(&[(CONTENT_TYPE, content_type)].into_iter().collect())
    }

    #[test]
    fn streams_are_known_by_their_media_types() {
        for content_type in [
            "text/event-stream",
            "Text/Event-Stream; charset=utf-8",
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
            "application/x-jsonlines",
            "application/json-seq",
            "application/geo+json-seq",
            "application/vnd.Acme+JSON-Seq; a=b",
            "x/y+json-seq",
            "application/stream+json",
            "multipart/x-mixed-replace; boundary=b",
        ] {
            assert_eq!(form(content_type), Form::Stream, "{content_type}");
        }
        for content_type in [
            "application/json",
            "application/ld+json",
            "application/vnd.api+json",
            "application/connect+json",
            "multipart/mixed; boundary=b",
            "text/event-streams",
            "",
        ] {
            assert_eq!(form(content_type), Form::Whole, "{content_type}");
        }
        assert_eq!(Form::of(&HeaderMap::new()), Form::Whole);
    }

    #[test]
    fn grpc_is_known_by_its_media_type_and_no_other() {
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC+json",
            "application/grpc; charset=utf-8",
        ] {
            assert_eq!(form(content_type), Form::Grpc, "{content_type}");
        }
        for content_type in ["application/grpc-web", "application/grpc-web-text+proto"] {
            assert_eq!(form(content_type), Form::GrpcWeb, "{content_type}");
        }
        for content_type in ["application/grpcs", "application/json", "text/grpc"] {
            assert_eq!(form(content_type), Form::Whole, "{content_type}");
        }
    }

    #[test]
    fn a_second_message_is_seen_however_the_bytes_are_cut() {
        let one = b"\0\0\0\0\x03abc";
        let two = b"\0\0\0\0\x03abc\0";
        for cut in 0..=one.len() {
            let (start, end) = one.split_at(cut);
            assert!(!has_second_message([start, end].into_iter()), "{cut}");
            assert!(!has_second_message([start].into_iter()), "{cut}");
            let (start, end) = two.split_at(cut);
            assert!(has_second_message([start, end].into_iter()), "{cut}");
        }
        let empty = b"\0\0\0\0\0";
        assert!(!has_second_message([&empty[..]].into_iter()));
        assert!(has_second_message([&empty[..], empty].into_iter()));
    }
}
