//! What a `Content-Type` says about a body.

use std::borrow::Cow;

use memchr::memmem;

use crate::format::digest::Digest;

/// The kinds of body that are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Media<'a> {
    Json,
    /// A text, or nobody knows what: JSON where it is asked for.
    Unlabelled,
    Form,
    /// `boundary` is `None` when there is none, or more than one, or it cannot be read.
    Multipart {
        boundary: Option<Cow<'a, [u8]>>,
    },
    Other,
}

impl<'a> Media<'a> {
    /// As [`of`](Self::of), where all that matters is whether it is a multipart body.
    pub(crate) fn multipart_or_other(content_type: &'a [u8]) -> Self {
        match content_type.trim_ascii_start().first() {
            Some(b'm' | b'M') => Self::of(content_type),
            _ => Self::Other,
        }
    }

    /// The kind of body that the value of a `Content-Type` header names.
    pub(crate) fn of(content_type: &'a [u8]) -> Self {
        let essence = essence(content_type);
        if is_json(essence) {
            Self::Json
        } else if essence.is_empty() || essence.eq_ignore_ascii_case(b"text/plain") {
            Self::Unlabelled
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

/// `application/json`, its forerunner `text/json`, or any type with the suffix of [RFC 6839, section 3.1].
///
/// [RFC 6839, section 3.1]: https://www.rfc-editor.org/rfc/rfc6839#section-3.1
fn is_json(essence: &[u8]) -> bool {
    const SUFFIX: &[u8] = b"+json";
    let suffix = &essence[essence.len().saturating_sub(SUFFIX.len())..];
    essence.eq_ignore_ascii_case(b"application/json")
        || essence.eq_ignore_ascii_case(b"text/json")
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

/// Feeds what a `Content-Type` says of a body: the [`essence`], in lower case, and parameters in
/// any order, for they say something too, such as the action of SOAP 1.2 or the version of an
/// API. But for the boundary of a multipart body and an encoding in UTF-8, which clients write or
/// leave out as they like.
pub(crate) fn feed_media(content_type: &[u8], digest: &mut Digest) {
    // Most say this, and there is nothing in it to look for.
    if content_type == b"application/json" {
        digest.field(content_type);
        digest.count(0);
        return;
    }
    let (essence, parameters) = cut(content_type, b';');
    digest.field_in_lower_case(essence.trim_ascii());
    if parameters.is_empty() {
        digest.count(0);
    } else {
        feed_parameters(content_type, parameters, digest);
    }
}

fn feed_parameters(content_type: &[u8], parameters: &[u8], digest: &mut Digest) {
    let has_boundary = match Media::of(content_type) {
        Media::Multipart { boundary } => boundary.is_some(),
        _ => false,
    };
    let mut said = Vec::new();
    let mut rest = parameters;
    while !rest.is_empty() {
        let Some(parameter) = Parameter::read(rest) else {
            // Readers may differ on what it says.
            said = vec![(b"".to_vec(), Cow::Borrowed(parameters))];
            break;
        };
        rest = parameter.rest;
        let name = parameter.name.to_ascii_lowercase();
        let value = parameter.value;
        match &name[..] {
            b"" if value.is_empty() => {}
            b"boundary" if has_boundary => {}
            b"charset" if is_utf_8(&value) => {}
            b"charset" => said.push((name, Cow::Owned(value.to_ascii_lowercase()))),
            _ => said.push((name, value)),
        }
    }
    // Of two with one name, whoever reads them may take either, so that their order counts.
    said.sort_by(|(one, _), (other, _)| one.cmp(other));
    digest.count(said.len());
    for (name, value) in said {
        digest.field(&name);
        digest.field(&value);
    }
}

/// Whether a charset is UTF-8, or a part of it.
fn is_utf_8(charset: &[u8]) -> bool {
    [&b"utf-8"[..], b"utf8", b"us-ascii"]
        .iter()
        .any(|name| charset.eq_ignore_ascii_case(name))
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
pub(crate) fn unquote(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
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

/// How deep multipart bodies may nest for their boundaries to be left out.
const MAX_PARTS: usize = 8;

// What goes into a digest before each piece of a multipart body.
const PLAIN: u8 = 0;
const NESTED: u8 = 1;

/// Feeds a multipart body such that other boundaries, which clients draw by lot for each attempt,
/// give the same digest.
///
/// The pieces are what stands between the delimiters `--boundary` at the start of a line. Joined
/// by the delimiter they are the body again, so nothing but the boundary is lost. A piece that is
/// a multipart body itself is taken apart in the same way.
pub(crate) fn multipart_pieces(body: &[u8], boundary: &[u8], digest: &mut Digest) {
    feed_pieces(body, boundary, MAX_PARTS, digest);
}

fn feed_pieces(body: &[u8], boundary: &[u8], levels: usize, digest: &mut Digest) {
    let pieces = pieces(body, boundary);
    digest.count(pieces.len());
    for piece in pieces {
        match Nested::read(piece).filter(|_| levels > 1) {
            None => {
                digest.tag(PLAIN);
                digest.field(piece);
            }
            Some(nested) => {
                digest.tag(NESTED);
                digest.field(nested.before);
                feed_media(nested.content_type, digest);
                digest.field(nested.after);
                feed_pieces(nested.body, &nested.boundary, levels - 1, digest);
            }
        }
    }
}

/// A piece that is a multipart body of its own.
struct Nested<'a> {
    /// Its header up to the value of `Content-Type`, and from there on.
    before: &'a [u8],
    content_type: &'a [u8],
    after: &'a [u8],
    boundary: Cow<'a, [u8]>,
    body: &'a [u8],
}

impl<'a> Nested<'a> {
    /// `None` also when readers may differ on whether it is one.
    fn read(piece: &'a [u8]) -> Option<Self> {
        const NAME: &[u8] = b"content-type:";
        let head = memmem::find(piece, b"\r\n\r\n")?;
        let (head, body) = piece.split_at(head + 2);
        let mut found = None;
        let mut start = 0;
        while start < head.len() {
            let end = start + memmem::find(&head[start..], b"\r\n")?;
            let line = &head[start..end];
            // A line that goes on with the one before it.
            if start > 0 && line.starts_with(b" ") || line.starts_with(b"\t") {
                return None;
            }
            if starts_with(line, NAME) && found.replace((start + NAME.len(), end)).is_some() {
                return None;
            }
            start = end + 2;
        }
        let (start, end) = found?;
        let content_type = &head[start..end];
        match Media::of(content_type) {
            Media::Multipart {
                boundary: Some(boundary),
            } => Some(Self {
                before: &head[..start],
                content_type,
                after: &head[end..],
                boundary,
                body,
            }),
            _ => None,
        }
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
    use crate::format::digest::Domain;

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
        let cases: [(&str, Media<'_>); 16] = [
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
            ("Text/JSON", Media::Json),
            ("text/html; a=application/json", Media::Other),
            ("text/plain; a=application/json", Media::Unlabelled),
            ("text/plain2", Media::Other),
            ("+json", Media::Other),
            ("json", Media::Other),
            ("multipart", Media::Other),
            ("", Media::Unlabelled),
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

    fn media_digest(content_type: &str) -> [u8; 32] {
        let mut digest = Digest::new(Domain::Test);
        feed_media(content_type.as_bytes(), &mut digest);
        digest.finish()
    }

    #[test]
    fn a_media_type_is_fed_in_lower_case_with_its_parameters() {
        let mut expected = Digest::new(Domain::Test);
        expected.field(b"application/soap+xml");
        expected.count(1);
        expected.field(b"action");
        expected.field(b"urn:Pay");
        assert_eq!(
            media_digest("Application/SOAP+xml; charset=\"UTF-8\"; Action=\"urn:Pay\""),
            expected.finish()
        );
        assert_eq!(essence(b" Text/HTML ; charset=UTF-8"), b"Text/HTML");
    }

    #[test]
    fn what_means_nothing_in_a_media_type_does_not_count() {
        for [one, other] in [
            ["text/plain", "Text/Plain ;"],
            ["text/plain", "text/plain; charset=utf-8"],
            ["text/plain", "text/plain;CHARSET=\"US-ASCII\""],
            [
                "text/plain; charset=ISO-8859-1",
                "text/plain; charset=iso-8859-1",
            ],
            ["a/b; x=1; y=2", "a/b;y=\"2\";;X=1"],
            ["multipart/mixed; boundary=a", "multipart/mixed; boundary=b"],
        ] {
            assert_eq!(media_digest(one), media_digest(other), "{one} {other}");
        }
    }

    #[test]
    fn what_means_something_in_a_media_type_counts() {
        for [one, other] in [
            ["text/plain", "text/html"],
            ["text/plain", "text/plain; charset=utf-16"],
            ["application/json; v=1", "application/json; v=2"],
            ["application/json", "application/json; v=2"],
            [
                "application/soap+xml; action=\"A\"",
                "application/soap+xml; action=\"a\"",
            ],
            ["a/b; boundary=a", "a/b; boundary=b"],
            [
                "multipart/mixed; boundary=a; boundary=b",
                "multipart/mixed; boundary=b; boundary=a",
            ],
            ["a/b; x=1; x=2", "a/b; x=2; x=1"],
            ["a/b; x=\"1", "a/b; x=1"],
        ] {
            assert_ne!(media_digest(one), media_digest(other), "{one} {other}");
        }
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
            expected.tag(PLAIN);
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

    /// A multipart body in a multipart body, with these boundaries.
    fn nested(outer: &str, inner: &str, value: &str, header: &str) -> String {
        format!(
            "--{outer}\r\n{header}Content-Type: multipart/mixed; boundary={inner}\r\nX-A: 1\r\n\r\n\
             --{inner}\r\n\r\n{value}\r\n--{inner}--\r\n--{outer}--\r\n"
        )
    }

    #[test]
    fn boundaries_of_parts_may_differ_too() {
        let of = |outer: &str, inner: &str, value: &str| {
            pieces_digest(&nested(outer, inner, value, ""), outer)
        };
        let base = of("x1", "y1", "1");
        assert_eq!(of("x2", "y22", "1"), base);
        assert_eq!(of("x1", "\"y y\"", "1").len(), base.len());
        assert_ne!(of("x1", "y1", "2"), base);
        let other = |body: &str| pieces_digest(body, "x1");
        let body = nested("x1", "y1", "1", "");
        assert_ne!(other(&body.replace("X-A: 1", "X-A: 2")), base);
        assert_ne!(
            other(&body.replace("multipart/mixed", "multipart/related")),
            base
        );
        assert_ne!(
            other(&body.replace("boundary=y1", "boundary=y1; start=a")),
            base
        );
        assert_ne!(other(&body.replace("boundary=y1", "boundary=z1")), base);
    }

    #[test]
    fn a_part_whose_boundary_is_in_doubt_counts_as_it_is() {
        for header in [
            "Content-Type: multipart/mixed; boundary=z\r\n",
            "X-Folded: a\r\n b\r\n",
        ] {
            let of = |inner: &str| pieces_digest(&nested("x", inner, "1", header), "x");
            assert_ne!(of("y1"), of("y2"), "{header}");
        }
    }

    #[test]
    fn parts_may_nest_without_an_end() {
        let mut body = "end".to_owned();
        for at in 1..2_000 {
            body = format!(
                "--b{at}\r\nContent-Type: multipart/mixed; boundary=b{}\r\n\r\n{body}\r\n--b{at}--",
                at - 1
            );
        }
        pieces_digest(&body, "b1999");
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
