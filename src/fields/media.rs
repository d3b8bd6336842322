//! What a `Content-Type` says about a body.

use std::borrow::Cow;

use memchr::memmem;

use crate::digest::Digest;

/// The kinds of body that are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Media<'a> {
    Json,
    Form,
    /// `boundary` is `None` when there is none, or more than one, or it cannot be read.
    Multipart {
        boundary: Option<Cow<'a, [u8]>>,
    },
    Other,
}

impl<'a> Media<'a> {
    /// The kind of body that the value of a `Content-Type` header names.
    pub(crate) fn of(content_type: &'a [u8]) -> Self {
        let essence = essence(content_type);
        if is_json(essence) {
            Self::Json
        } else if essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
            Self::Form
        } else if starts_with(essence, b"multipart/") {
            Self::Multipart {
                boundary: boundary(content_type),
            }
        } else {
            Self::Other
        }
    }
}

/// `application/json`, or any type with the suffix of [RFC 6839, section 3.1].
///
/// [RFC 6839, section 3.1]: https://www.rfc-editor.org/rfc/rfc6839#section-3.1
fn is_json(essence: &[u8]) -> bool {
    const SUFFIX: &[u8] = b"+json";
    let suffix = &essence[essence.len().saturating_sub(SUFFIX.len())..];
    essence.eq_ignore_ascii_case(b"application/json")
        || (suffix.eq_ignore_ascii_case(SUFFIX) && essence.contains(&b'/'))
}

fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The media type without its parameters, as it was written.
pub(crate) fn essence(content_type: &[u8]) -> &[u8] {
    cut(content_type, b';').0.trim_ascii()
}

/// Feeds the [`essence`] in lower case, as one field.
pub(crate) fn feed_essence(content_type: &[u8], digest: &mut Digest) {
    let essence = essence(content_type);
    let has_upper = |any, byte: &u8| any | byte.is_ascii_uppercase();
    // Clients seldom write any.
    if essence.iter().fold(false, has_upper) {
        digest.field(&essence.to_ascii_lowercase());
    } else {
        digest.field(essence);
    }
}

fn boundary(content_type: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut found = None;
    let mut rest = cut(content_type, b';').1;
    while !rest.is_empty() {
        let parameter = Parameter::read(rest)?;
        rest = parameter.rest;
        // Of two boundaries, whoever reads the body may take either.
        if parameter.name.eq_ignore_ascii_case(b"boundary")
            && found.replace(parameter.value).is_some()
        {
            return None;
        }
    }
    found.filter(|boundary| !boundary.is_empty())
}

/// A parameter, and what follows it.
struct Parameter<'a> {
    name: &'a [u8],
    value: Cow<'a, [u8]>,
    rest: &'a [u8],
}

impl<'a> Parameter<'a> {
    /// `None` when a quoted value is broken.
    fn read(text: &'a [u8]) -> Option<Self> {
        let end = memchr::memchr2(b'=', b';', text).unwrap_or(text.len());
        let name = text[..end].trim_ascii();
        let (value, rest) = match text[end..].strip_prefix(b"=") {
            Some(value) => parameter_value(value.trim_ascii_start())?,
            None => (Cow::default(), cut(&text[end..], b';').1),
        };
        Some(Self { name, value, rest })
    }
}

fn parameter_value(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let (value, rest) = cut(text, b';');
        return Some((value.trim_ascii().into(), rest));
    };
    let (value, after) = unquote(quoted)?;
    let (junk, rest) = cut(after, b';');
    junk.trim_ascii().is_empty().then_some((value, rest))
}

/// What a quoted string holds, and what follows it; `None` when its end is missing.
fn unquote(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let end = memchr::memchr2(b'"', b'\\', text)?;
    if text[end] == b'"' {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = text[..end].to_vec();
    let mut bytes = text[end..].iter();
    loop {
        match bytes.next()? {
            b'"' => return Some((Cow::Owned(value), bytes.as_slice())),
            b'\\' => value.push(*bytes.next()?),
            byte => value.push(*byte),
        }
    }
}

/// What stands before the first `separator` and after it.
fn cut(text: &[u8], separator: u8) -> (&[u8], &[u8]) {
    match memchr::memchr(separator, text) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[]),
    }
}

/// Feeds a multipart body such that another boundary, which clients draw by lot for each
/// attempt, gives the same digest.
///
/// The pieces are what stands between the delimiters `--boundary` at the start of a line. Joined
/// by the delimiter they are the body again, so nothing but the boundary is lost.
pub(crate) fn multipart_pieces(body: &[u8], boundary: &[u8], digest: &mut Digest) {
    let pieces = pieces(body, boundary);
    digest.count(pieces.len());
    for piece in pieces {
        digest.field(piece);
    }
}

fn pieces<'a>(body: &'a [u8], boundary: &[u8]) -> Vec<&'a [u8]> {
    const LINE_END: &[u8] = b"\r\n";
    let delimiter = [LINE_END, b"--", boundary].concat();
    let delimiter_at_start = &delimiter[LINE_END.len()..];

    let mut pieces = Vec::new();
    let mut start = 0;
    if body.starts_with(delimiter_at_start) {
        pieces.push(&body[..0]);
        start = delimiter_at_start.len();
    }
    let finder = memmem::Finder::new(&delimiter);
    while let Some(at) = finder.find(&body[start..]) {
        let line = start + at + LINE_END.len();
        pieces.push(&body[start..line]);
        start = line + delimiter_at_start.len();
    }
    pieces.push(&body[start..]);
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Domain;

    fn multipart(boundary: Option<&str>) -> Media<'static> {
        Media::Multipart {
            boundary: boundary.map(|boundary| Cow::Owned(boundary.as_bytes().to_vec())),
        }
    }

    fn pieces_digest(body: &str, boundary: &str) -> [u8; 32] {
        let mut digest = Digest::new(Domain::Test);
        multipart_pieces(body.as_bytes(), boundary.as_bytes(), &mut digest);
        digest.finish()
    }

    #[test]
    fn json_and_forms_are_known_in_any_case_and_with_parameters() {
        let cases: [(&str, Media<'_>); 13] = [
            ("application/json", Media::Json),
            (" Application/JSON ; charset=utf-8", Media::Json),
            ("application/vnd.api+JSON;v=1", Media::Json),
            ("application/problem+json", Media::Json),
            ("application/x-www-form-urlencoded", Media::Form),
            (
                "APPLICATION/X-WWW-FORM-URLENCODED;charset=UTF-8",
                Media::Form,
            ),
            ("application/jsonlines", Media::Other),
            ("application/json-seq", Media::Other),
            ("text/plain; a=application/json", Media::Other),
            ("+json", Media::Other),
            ("json", Media::Other),
            ("multipart", Media::Other),
            ("", Media::Other),
        ];
        for (content_type, media) in cases {
            assert_eq!(Media::of(content_type.as_bytes()), media, "{content_type}");
        }
    }

    #[test]
    fn the_boundary_is_read_bare_and_quoted() {
        let cases = [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Mixed;charset=x;BOUNDARY=abc ; a=b", Some("abc")),
            ("multipart/mixed; boundary=\"a;b c\"", Some("a;b c")),
            (
                r#"multipart/mixed; boundary="a\"b\\c"; x"#,
                Some(r#"a"b\c"#),
            ),
            (
                r#"multipart/mixed; x="boundary=no"; boundary=yes"#,
                Some("yes"),
            ),
            (
                r#"multipart/mixed; x="\";boundary=no"; boundary = yes"#,
                Some("yes"),
            ),
            ("multipart/mixed; x; ; boundary=a=b", Some("a=b")),
            ("multipart/mixed; boundary= \"a b\" ;x", Some("a b")),
        ];
        for (content_type, boundary) in cases {
            let media = Media::of(content_type.as_bytes());
            assert_eq!(media, multipart(boundary), "{content_type}");
        }
    }

    #[test]
    fn a_boundary_that_is_in_doubt_is_none() {
        for content_type in [
            "multipart/form-data",
            "multipart/form-data;",
            "multipart/form-data; boundary",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"\"",
            "multipart/form-data; boundary=\"abc",
            "multipart/form-data; boundary=\"abc\\",
            "multipart/form-data; boundary=\"abc\"d",
            "multipart/form-data; boundary=a; boundary=b",
            "multipart/form-data; boundary=a; Boundary=a",
        ] {
            let media = Media::of(content_type.as_bytes());
            assert_eq!(media, multipart(None), "{content_type}");
        }
    }

    #[test]
    fn the_essence_is_fed_in_lower_case_as_one_field() {
        let long = "A".repeat(200);
        for content_type in [" Text/HTML ; charset=UTF-8", "text/html", "", long.as_str()] {
            let mut fed = Digest::new(Domain::Test);
            feed_essence(content_type.as_bytes(), &mut fed);
            let mut expected = Digest::new(Domain::Test);
            expected.field(&essence(content_type.as_bytes()).to_ascii_lowercase());
            assert_eq!(fed.finish(), expected.finish(), "{content_type}");
        }
        assert_eq!(essence(b" Text/HTML ; charset=UTF-8"), b"Text/HTML");
    }

    #[test]
    fn a_body_is_cut_where_a_line_starts_with_the_delimiter() {
        let cut = |body: &'static str| pieces(body.as_bytes(), b"b");
        assert_eq!(
            cut("--b\r\nx\r\n--b--\r\n"),
            [&b""[..], b"\r\nx\r\n", b"--\r\n"]
        );
        assert_eq!(cut("\r\n--b\r\n--b"), [&b"\r\n"[..], b"\r\n", b""]);
        assert_eq!(cut("x--b\n--b\r--b\r\n-b"), [&b"x--b\n--b\r--b\r\n-b"[..]]);
        assert_eq!(cut("preamble\r\n--bc"), [&b"preamble\r\n"[..], b"c"]);
        assert_eq!(cut(""), [&b""[..]]);
    }

    #[test]
    fn pieces_go_in_with_their_number_and_lengths() {
        let mut expected = Digest::new(Domain::Test);
        expected.count(3);
        for piece in ["", "\r\nx\r\n", "--"] {
            expected.field(piece.as_bytes());
        }
        assert_eq!(pieces_digest("--b\r\nx\r\n--b--", "b"), expected.finish());
    }

    #[test]
    fn only_the_boundary_may_differ() {
        let body = |boundary: &str, value: &str| {
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{value}\r\n\
                 --{boundary}--\r\n"
            )
        };
        let first = pieces_digest(&body("x1", "1"), "x1");
        assert_eq!(pieces_digest(&body("longer-2", "1"), "longer-2"), first);
        assert_ne!(pieces_digest(&body("x1", "2"), "x1"), first);
        assert_ne!(pieces_digest(&body("x1", "1"), "x2"), first);
        let before = format!("\r\n{}", body("x1", "1"));
        assert_ne!(pieces_digest(&before, "x1"), first);
    }

    /// Bodies of a few bytes that often make a delimiter.
    fn small_body() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![Just("\r\n"), Just("--"), Just("b"), Just("--b"), Just("x")],
            0..12,
        )
        .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_body(body in small_body()) {
            let joined = pieces(body.as_bytes(), b"b").join(&b"--b"[..]);
            prop_assert_eq!(joined, body.as_bytes());
        }

        #[test]
        fn another_boundary_gives_the_same_digest(contents in proptest::collection::vec("[a-z\r\n-]{0,9}", 1..5)) {
            let first = contents.join("\r\n--B1");
            let second = contents.join("\r\n--B22");
            prop_assert_eq!(pieces_digest(&first, "B1"), pieces_digest(&second, "B22"));
        }

        #[test]
        fn any_bytes_are_some_media(bytes in proptest::collection::vec(any::<u8>(), 0..60), body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Media::of(&bytes);
            let _ = Media::of(&[b"multipart/x;boundary=", &bytes[..]].concat());
            multipart_pieces(&body, &bytes, &mut Digest::new(Domain::Test));
        }
    }
}
