//! The path of a request as its client sent it, in one spelling.

use std::borrow::Cow;

use http::request::Parts;
use memchr::memchr_iter;

use crate::format::digest::{any_of, hex};

/// Returns the path of a request before any router took a prefix off it, with its
/// percent-encoding normalised.
///
/// This is what the layer takes as the [target](crate::IdempotencyLayer::target) of a request
/// unless it is told otherwise. Routers of axum (feature `axum`) keep the original path when they
/// are nested; other routers that change the path are not known to it.
///
/// Of [RFC 3986, sections 6.2.2.1 and 6.2.2.2], percent-encoding alone is normalised: hexadecimal
/// digits become upper case and unreserved characters are decoded, unless a segment would become
/// `.` or `..`. Everything else stays as a router sees it: reserved characters, case, `//`, dot
/// segments and a slash at the end.
///
/// [RFC 3986, sections 6.2.2.1 and 6.2.2.2]: https://www.rfc-editor.org/rfc/rfc3986#section-6.2.2.1
pub fn original_path(parts: &Parts) -> Cow<'_, str> {
    #[cfg(feature = "axum")]
    if let Some(original) = parts.extensions.get::<axum::extract::OriginalUri>() {
        return normalised(original.0.path());
    }
    normalised(parts.uri.path())
}

/// Returns the query in one spelling; `None` also for a bare `?`.
pub(super) fn query(parts: &Parts) -> Option<Cow<'_, str>> {
    // A router that takes a prefix off the path leaves the query as it is.
    let query = parts.uri.query().filter(|query| !query.is_empty())?;
    Some(normalised(query))
}

/// Normalises percent-encoding. Text in which a `%` is not followed by two digits stays as it is:
/// what a decoded character would make of such a `%` is nobody's meaning.
#[inline]
pub(super) fn normalised(text: &str) -> Cow<'_, str> {
    match any_of(text.as_bytes(), has_percent) {
        true => with_escapes(text),
        // Nearly all paths have none.
        false => Cow::Borrowed(text),
    }
}

/// Whether one of eight bytes is a `%`.
fn has_percent(word: u64) -> bool {
    const PERCENT: u64 = u64::from_le_bytes([b'%'; 8]);
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = LOW << 7;
    // Where it is, there is a zero now, which a subtraction makes borrow.
    let zero = word ^ PERCENT;
    zero.wrapping_sub(LOW) & !zero & HIGH != 0
}

fn with_escapes(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut changes = false;
    for at in memchr_iter(b'%', bytes) {
        match Escape::read(&bytes[at..]) {
            None => return Cow::Borrowed(text),
            Some(escape) => changes |= escape.changes(),
        }
    }
    if !changes {
        return Cow::Borrowed(text);
    }
    let segments: Vec<_> = text.split('/').map(segment).collect();
    match segments.join("/") {
        joined if joined == text => Cow::Borrowed(text),
        joined => Cow::Owned(joined),
    }
}

/// Normalises what stands between two slashes.
fn segment(text: &str) -> String {
    let decoded = rewritten(text, Escape::normalised);
    match decoded.as_str() {
        // A server that removes dot segments sees none here, and must see none afterwards.
        "." | ".." => rewritten(text, Escape::in_upper_case),
        _ => decoded,
    }
}

fn rewritten(text: &str, rewrite: impl Fn(Escape, &mut String)) -> String {
    let mut rewritten = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        rewritten.push_str(&rest[..at]);
        let Some(escape) = Escape::read(&rest.as_bytes()[at..]) else {
            break;
        };
        rewrite(escape, &mut rewritten);
        rest = &rest[at + 3..];
    }
    rewritten.push_str(rest);
    rewritten
}

/// A percent-encoded byte.
#[derive(Clone, Copy)]
struct Escape {
    byte: u8,
    has_lower_case: bool,
}

impl Escape {
    /// Reads the escape that `bytes` begin with.
    fn read(bytes: &[u8]) -> Option<Self> {
        let digits = bytes.get(1..3)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        Some(Self {
            byte: u8::try_from(digit(0)? * 16 + digit(1)?).ok()?,
            has_lower_case: digits.iter().any(u8::is_ascii_lowercase),
        })
    }

    /// The character that needs no escape.
    fn unreserved(self) -> Option<char> {
        let byte = self.byte;
        let unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        unreserved.then_some(char::from(byte))
    }

    fn changes(self) -> bool {
        self.has_lower_case || self.unreserved().is_some()
    }

    fn normalised(self, text: &mut String) {
        match self.unreserved() {
            Some(character) => text.push(character),
            None => self.in_upper_case(text),
        }
    }

    fn in_upper_case(self, text: &mut String) {
        text.push('%');
        text.extend(
            hex(&[self.byte])
                .chars()
                .map(|digit| digit.to_ascii_uppercase()),
        );
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unreserved_characters_are_decoded_and_digits_are_upper_case() {
        let cases = [
            ("/%61", "/a"),
            ("/%7Euser/%2d%2E%5f", "/~user/-._"),
            ("/%c3%a9", "/%C3%A9"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%20b%3Ac", "/a%20b%3Ac"),
            ("/%2561", "/%2561"),
        ];
        for (path, expected) in cases {
            assert_eq!(normalised(path), expected, "{path}");
        }
    }

    #[test]
    fn nothing_else_changes() {
        for path in [
            "/",
            "*",
            "/a//b/",
            "/files/a/./b",
            "/files/../b",
            "/A/b;c=d/e:f@g",
            "/a%20b",
            "/%zz/%61",
            "/%",
            "/a%4",
            "/%%34%31",
        ] {
            assert!(
                matches!(normalised(path), Cow::Borrowed(same) if same == path),
                "{path}"
            );
        }
    }

    #[test]
    fn no_segment_becomes_a_dot_segment() {
        let cases = [
            ("/u/%2e%2e/pay", "/u/%2E%2E/pay"),
            ("/u/.%2e/pay", "/u/.%2E/pay"),
            ("/u/%2E", "/u/%2E"),
            ("/u/%2e%2e%2e", "/u/..."),
            ("/u/%2ea", "/u/.a"),
        ];
        for (path, expected) in cases {
            assert_eq!(normalised(path), expected, "{path}");
        }
    }

    #[test]
    fn a_bare_question_mark_is_no_query() {
        let query = |uri: &str| {
            let request = Request::post(uri).body(()).expect("it is valid");
            let (parts, ()) = request.into_parts();
            query(&parts).map(Cow::into_owned)
        };
        assert_eq!(query("/a?"), None);
        assert_eq!(query("/a"), None);
        assert_eq!(query("/a?%62=1").as_deref(), Some("b=1"));
    }

    #[cfg(feature = "axum")]
    #[test]
    fn the_path_is_the_one_before_a_router_took_its_prefix() {
        let original = axum::extract::OriginalUri(http::Uri::from_static("/accounts/%31/pay"));
        let request = Request::post("/pay").extension(original).body(());
        let (parts, ()) = request.expect("it is valid").into_parts();
        assert_eq!(original_path(&parts), "/accounts/1/pay");
    }

    /// Paths that are mostly made of dots, slashes and escapes.
    fn path() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "%[0-9a-fA-F]{2}",
            2 => Just("%2e".to_owned()),
            2 => "[./a-c]",
            1 => "[%0-9a-f]",
            1 => any::<char>().prop_map(String::from),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    fn dot_segments(path: &str) -> Vec<(usize, &str)> {
        let segments = path.split('/').enumerate();
        segments
            .filter(|(_, segment)| matches!(*segment, "." | ".."))
            .collect()
    }

    proptest! {
        #[test]
        fn to_normalise_twice_is_to_normalise_once(path in path()) {
            let once = normalised(&path);
            prop_assert_eq!(&normalised(&once), &once);
        }

        #[test]
        fn segments_stay_and_none_becomes_a_dot_segment(path in path()) {
            let once = normalised(&path);
            prop_assert_eq!(once.split('/').count(), path.split('/').count());
            prop_assert_eq!(dot_segments(&once), dot_segments(&path));
        }

        #[test]
        fn what_a_path_says_stays(path in path()) {
            let decoded = |path: &str| -> Vec<u8> {
                form_urlencoded::parse(path.replace('+', "%2B").replace('&', "%26").replace('=', "%3D").as_bytes())
                    .flat_map(|(name, _)| name.into_owned().into_bytes())
                    .collect()
            };
            prop_assert_eq!(decoded(&normalised(&path)), decoded(&path));
        }

        #[test]
        fn spelling_does_not_matter(text in "[a-z0-9._~-]{1,8}", upper in any::<bool>()) {
            let spelled: String = text
                .bytes()
                .map(|byte| match upper {
                    true => format!("%{byte:02X}"),
                    false => format!("%{byte:02x}"),
                })
                .collect();
            prop_assume!(text != "." && text != "..");
            let spelled = format!("/{spelled}");
            prop_assert_eq!(normalised(&spelled), format!("/{text}"));
        }
    }
}
