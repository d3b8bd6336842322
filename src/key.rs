//! The idempotency key: what a client may send, whose key it is, and the digest that names its record.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::HeaderMap;
use http::header::HeaderName;

use crate::digest::{Digest, Domain, hex};
use crate::scratch;

/// The request header that carries the key:
/// `Idempotency-Key`, [draft-ietf-httpapi-idempotency-key-header-07, section 2].
///
/// [draft-ietf-httpapi-idempotency-key-header-07, section 2]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07#section-2
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest key that is accepted, in bytes, quotes and escapes not counted: Stripe's limit.
pub const MAX_KEY_LENGTH: usize = 255;

/// How the value of a key header is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeySyntax {
    /// A bare key as Stripe's clients send it, or the draft's quoted string; both forms of one
    /// key are the same key. The default.
    #[default]
    Lenient,
    /// Only the draft's form: a quoted string of [RFC 9651, section 3.3.3], without parameters.
    ///
    /// [RFC 9651, section 3.3.3]: https://www.rfc-editor.org/rfc/rfc9651#section-3.3.3
    Strict,
}

/// Why something cannot be an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKey {
    /// It is longer than [`MAX_KEY_LENGTH`].
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It has no character.
    Empty,
    /// It has a byte that is not a visible ASCII character (0x21 to 0x7E).
    NotVisibleAscii {
        /// The position of the first such byte, counted from 0.
        at: usize,
    },
    /// A quote is not where the syntax allows one, or the closing one is missing.
    Quoting,
    /// The syntax is [`KeySyntax::Strict`], and the key is not a quoted string.
    NotQuoted,
    /// The header stands in the request more than once.
    Repeated,
    /// The application's own rule refused it, or a key field of the body cannot be read.
    Refused(
        /// What is wrong, for the client to read.
        Cow<'static, str>,
    ),
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { length } => write!(
                f,
                "the idempotency key is {length} bytes long; at most {MAX_KEY_LENGTH} are allowed"
            ),
            Self::Empty => f.write_str("the idempotency key is empty"),
            Self::NotVisibleAscii { at } => write!(
                f,
                "the idempotency key has a byte at position {at} that is not a visible ASCII character"
            ),
            Self::Quoting => f.write_str("the idempotency key has broken quoting"),
            Self::NotQuoted => {
                f.write_str("the idempotency key must be a quoted string, such as \"4f1c9e\"")
            }
            Self::Repeated => f.write_str("the idempotency key header was sent more than once"),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for InvalidKey {}

/// A key that was found in a header, and checked.
#[derive(Debug)]
pub(crate) enum Found {
    /// Copied, for to look for it once more would cost more.
    Short {
        bytes: Text,
        length: u8,
    },
    Long(Box<str>),
}

/// Room for a UUID and a prefix, where text is checked eight bytes at a time.
#[derive(Debug)]
#[repr(align(8))]
pub(crate) struct Text([u8; 64]);

impl Found {
    fn new(key: &str) -> Self {
        let mut bytes = Text([0; 64]);
        match bytes.0.get_mut(..key.len()) {
            Some(place) => {
                place.copy_from_slice(key.as_bytes());
                let length = key.len() as u8;
                Self::Short { bytes, length }
            }
            None => Self::Long(key.into()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Short { bytes, length } => {
                std::str::from_utf8(&bytes.0[..usize::from(*length)]).unwrap_or_default()
            }
            Self::Long(key) => key,
        }
    }
}

/// Looks for the key in the header `name`; `None` when it is not there.
pub(crate) fn find(
    headers: &HeaderMap,
    name: &HeaderName,
    syntax: KeySyntax,
) -> Result<Option<Found>, InvalidKey> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    // In most requests no name stands twice, and the map knows that at once.
    let has_repeated = headers.len() > headers.keys_len();
    if has_repeated && headers.get_all(name).iter().nth(1).is_some() {
        return Err(InvalidKey::Repeated);
    }
    parse(value.as_bytes(), syntax).map(|key| Some(Found::new(&key)))
}

/// Reads one header value. Only a quoted key with escapes is copied.
fn parse(value: &[u8], syntax: KeySyntax) -> Result<Cow<'_, str>, InvalidKey> {
    let value = value.trim_ascii();
    match value.first() {
        None => Err(InvalidKey::Empty),
        Some(b'"') => quoted(value),
        Some(_) if syntax == KeySyntax::Strict => Err(InvalidKey::NotQuoted),
        Some(_) if value.last() == Some(&b'"') => Err(InvalidKey::Quoting),
        Some(_) => check(value).map(Cow::Borrowed),
    }
}

fn quoted(value: &[u8]) -> Result<Cow<'_, str>, InvalidKey> {
    let inner = &value[1..];
    // A quote or a backslash inside is the rare case; without one the key is borrowed.
    match memchr::memchr2(b'"', b'\\', inner) {
        None => Err(InvalidKey::Quoting),
        Some(end) if inner[end] == b'"' => {
            if end + 1 != inner.len() {
                return Err(InvalidKey::Quoting);
            }
            check(&inner[..end]).map(Cow::Borrowed)
        }
        Some(_) => unescape(inner),
    }
}

fn unescape(inner: &[u8]) -> Result<Cow<'static, str>, InvalidKey> {
    let mut key = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'"' if bytes.len() == 0 => {
                return check(&key).map(|key| Cow::Owned(key.to_owned()));
            }
            b'"' => return Err(InvalidKey::Quoting),
            b'\\' => match bytes.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(escaped),
                _ => return Err(InvalidKey::Quoting),
            },
            _ => key.push(byte),
        }
    }
    Err(InvalidKey::Quoting)
}

/// What holds for a key from any source.
pub(crate) fn check(key: &[u8]) -> Result<&str, InvalidKey> {
    if key.is_empty() {
        return Err(InvalidKey::Empty);
    }
    // Nearly all are good, so the bytes are looked at in one go, and a position is for the others.
    let is_visible = |byte: &u8| byte.is_ascii_graphic();
    if !key.iter().fold(true, |all, byte| all & is_visible(byte)) {
        let at = key.iter().take_while(|byte| is_visible(byte)).count();
        return Err(InvalidKey::NotVisibleAscii { at });
    }
    if key.len() > MAX_KEY_LENGTH {
        return Err(InvalidKey::TooLong { length: key.len() });
    }
    std::str::from_utf8(key).map_err(|error| InvalidKey::NotVisibleAscii {
        at: error.valid_up_to(),
    })
}

/// The name of a record: SHA-256 over namespace, scope, operation and the client's key, each
/// with its length before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordKey([u8; 32]);

impl RecordKey {
    /// A record key that was read back from a store.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The beginning of the digest: for a table, as good as all of it.
    pub(crate) fn prefix(&self) -> Prefix {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        Prefix(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl Hash for RecordKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.prefix().hash(state);
    }
}

/// The beginning of a record key, which another key may have as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix(u64);

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordKey({self})")
    }
}

/// The parts that make an idempotency key one of its own, borrowed.
///
/// Two requests have the same key only if all of these are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyParts<'a> {
    /// The environment, service or run that the key belongs to; empty when none was set.
    pub namespace: &'a str,
    /// The tenant that the key belongs to, if the application names tenants.
    pub scope: Option<&'a str>,
    /// What is done: the request's method. Empty for work that is no HTTP request.
    pub method: &'a str,
    /// What it is done to: the request's path, or the name of the work.
    pub target: &'a str,
    /// What the client sent.
    pub key: &'a str,
}

impl KeyParts<'_> {
    /// The name of the record.
    pub fn record_key(&self) -> RecordKey {
        let mut digest = Digest::new(Domain::RecordKey);
        digest.field(self.method.as_bytes());
        digest.field(self.target.as_bytes());
        digest.field(self.key.as_bytes());
        // Last, for then their absence takes no byte, and most keys go into one block of SHA-256.
        if self.scope.is_some() || !self.namespace.is_empty() {
            digest.field(self.namespace.as_bytes());
            digest.optional(self.scope.map(str::as_bytes));
        }
        RecordKey(digest.finish())
    }
}

/// An idempotency key with everything that makes it one of its own: namespace, scope, operation
/// and what the client sent.
///
/// Handlers find it in the request's extensions as part of [`Attempt`](crate::Attempt), or take
/// it as an extractor (feature `axum`). Work that is no HTTP request makes one with
/// [`new`](Self::new).
///
/// ```
/// use tower_idempotency::IdempotencyKey;
///
/// # fn main() -> Result<(), tower_idempotency::InvalidKey> {
/// let key = IdempotencyKey::new("settle-invoice", "invoice-1432")?;
/// assert_eq!(key.as_str(), "invoice-1432");
///
/// // The same purpose always gives the same key, so a second attempt sends the same one.
/// assert_eq!(key.derive("psp"), key.derive("psp"));
/// assert_ne!(key.derive("psp"), key.derive("ledger"));
/// # Ok(())
/// # }
/// ```
///
/// Its `Debug` form shows the record key only: a client's key can give access to an answer, so
/// it stays out of logs unless someone prints it on purpose.
#[derive(Clone)]
pub struct IdempotencyKey {
    record_key: RecordKey,
    // namespace, scope, method, target and key, one after the other.
    text: Arc<str>,
    ends: [usize; 4],
    scoped: bool,
}

impl IdempotencyKey {
    /// The key `key` for the work named `operation`, in no namespace and no scope.
    ///
    /// # Errors
    ///
    /// When `key` is empty, longer than [`MAX_KEY_LENGTH`] or has a byte that is not a visible
    /// ASCII character.
    pub fn new(operation: &str, key: &str) -> Result<Self, InvalidKey> {
        Self::from_parts(&KeyParts {
            target: operation,
            key,
            ..KeyParts::default()
        })
    }

    /// A key with all its parts.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn from_parts(parts: &KeyParts<'_>) -> Result<Self, InvalidKey> {
        check(parts.key.as_bytes())?;
        Ok(Self::assemble(parts, parts.record_key()))
    }

    /// `parts.key` was checked, and `record_key` is the digest of `parts`.
    pub(crate) fn assemble(parts: &KeyParts<'_>, record_key: RecordKey) -> Self {
        let all = [
            parts.namespace,
            parts.scope.unwrap_or_default(),
            parts.method,
            parts.target,
            parts.key,
        ];
        let mut ends = [0; 4];
        let text = scratch::with(|text| {
            for (index, part) in all.into_iter().enumerate() {
                text.extend_from_slice(part.as_bytes());
                if let Some(end) = ends.get_mut(index) {
                    *end = text.len();
                }
            }
            std::str::from_utf8(text).map(Arc::from)
        });
        Self {
            record_key,
            text: text.expect("strings one after the other are a string"),
            ends,
            scoped: parts.scope.is_some(),
        }
    }

    /// What the client sent, without quotes and escapes. For a key made of body fields, the
    /// SHA-256 of their canonical form, in hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.text[self.ends[3]..]
    }

    /// All parts of the key.
    pub fn parts(&self) -> KeyParts<'_> {
        let [namespace, scope, method, target] = self.ends;
        KeyParts {
            namespace: &self.text[..namespace],
            scope: self.scoped.then_some(&self.text[namespace..scope]),
            method: &self.text[scope..method],
            target: &self.text[method..target],
            key: &self.text[target..],
        }
    }

    /// The name of the key's record.
    pub const fn record_key(&self) -> &RecordKey {
        &self.record_key
    }

    /// A key for a call that the handler itself makes, such as to its payment provider: the
    /// same for every attempt at this key, and another for each `purpose`, operation, scope and
    /// namespace. 32 hexadecimal digits, which every provider we know takes.
    pub fn derive(&self, purpose: &str) -> String {
        let mut digest = Digest::new(Domain::DerivedKey);
        digest.field(self.record_key.as_bytes());
        digest.field(purpose.as_bytes());
        hex(&digest.finish()[..16])
    }
}

impl PartialEq for IdempotencyKey {
    fn eq(&self, other: &Self) -> bool {
        self.record_key == other.record_key
    }
}

impl Eq for IdempotencyKey {}

impl Hash for IdempotencyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.record_key.hash(state);
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKey")
            .field("record_key", &self.record_key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn lenient(value: &str) -> Result<String, InvalidKey> {
        read(value, KeySyntax::Lenient)
    }

    fn strict(value: &str) -> Result<String, InvalidKey> {
        read(value, KeySyntax::Strict)
    }

    fn read(value: &str, syntax: KeySyntax) -> Result<String, InvalidKey> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(value).expect("it is text");
        headers.append(IDEMPOTENCY_KEY, value);
        let found = find(&headers, &IDEMPOTENCY_KEY, syntax)?.expect("it is there");
        Ok(found.as_str().to_owned())
    }

    #[test]
    fn bare_and_quoted_forms_are_one_key() {
        assert_eq!(lenient("8e03978e-40d5").as_deref(), Ok("8e03978e-40d5"));
        assert_eq!(lenient("\"8e03978e-40d5\"").as_deref(), Ok("8e03978e-40d5"));
        assert_eq!(
            lenient("  \"8e03978e-40d5\" ").as_deref(),
            Ok("8e03978e-40d5")
        );
        assert_eq!(lenient(r#""a\"b\\c""#).as_deref(), Ok(r#"a"b\c"#));
        assert_eq!(lenient(r"a\b,c=d").as_deref(), Ok(r"a\b,c=d"));
    }

    #[test]
    fn strict_takes_the_quoted_form_alone() {
        assert_eq!(strict("\"abc\"").as_deref(), Ok("abc"));
        assert_eq!(strict("abc"), Err(InvalidKey::NotQuoted));
        assert_eq!(strict("\"abc\";v=1"), Err(InvalidKey::Quoting));
    }

    #[test]
    fn malformed_keys_are_named() {
        assert_eq!(lenient(""), Err(InvalidKey::Empty));
        assert_eq!(lenient("   "), Err(InvalidKey::Empty));
        assert_eq!(lenient("\"\""), Err(InvalidKey::Empty));
        assert_eq!(lenient("\""), Err(InvalidKey::Quoting));
        assert_eq!(lenient("\"abc"), Err(InvalidKey::Quoting));
        assert_eq!(lenient("abc\""), Err(InvalidKey::Quoting));
        assert_eq!(lenient("\"a\"b\""), Err(InvalidKey::Quoting));
        assert_eq!(lenient("\"a\", \"b\""), Err(InvalidKey::Quoting));
        assert_eq!(lenient(r#""a\b""#), Err(InvalidKey::Quoting));
        assert_eq!(lenient(r#""a\""#), Err(InvalidKey::Quoting));
        assert_eq!(lenient(r#""a\"#), Err(InvalidKey::Quoting));
        assert_eq!(lenient("a b"), Err(InvalidKey::NotVisibleAscii { at: 1 }));
        assert_eq!(
            lenient("\"a b\""),
            Err(InvalidKey::NotVisibleAscii { at: 1 })
        );
        assert_eq!(lenient("clé"), Err(InvalidKey::NotVisibleAscii { at: 2 }));
        assert_eq!(
            lenient(&"k".repeat(256)),
            Err(InvalidKey::TooLong { length: 256 })
        );
        assert_eq!(lenient(&"k".repeat(255)).map(|key| key.len()), Ok(255));
        let longest_quoted = format!("\"{}\"", "k".repeat(255));
        assert_eq!(lenient(&longest_quoted).map(|key| key.len()), Ok(255));
    }

    #[test]
    fn two_header_lines_are_refused_even_if_they_agree() {
        let mut headers = HeaderMap::new();
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static("abc"));
        let find = |headers: &HeaderMap| find(headers, &IDEMPOTENCY_KEY, KeySyntax::Lenient);
        assert!(matches!(find(&headers), Ok(Some(_))));
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static("abc"));
        assert_eq!(find(&headers).map(|_| ()), Err(InvalidKey::Repeated));
    }

    #[test]
    fn every_part_makes_another_key() {
        let base = KeyParts {
            namespace: "live",
            scope: Some("acct_1"),
            method: "POST",
            target: "/v1/charges",
            key: "abc",
        };
        let others = [
            KeyParts {
                namespace: "test",
                ..base
            },
            KeyParts {
                scope: Some("acct_2"),
                ..base
            },
            KeyParts {
                scope: None,
                ..base
            },
            KeyParts {
                scope: Some(""),
                ..base
            },
            KeyParts {
                method: "PATCH",
                ..base
            },
            KeyParts {
                target: "/v1/refunds",
                ..base
            },
            KeyParts { key: "abd", ..base },
        ];
        let mut keys: Vec<_> = others.iter().map(KeyParts::record_key).collect();
        keys.push(base.record_key());
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), others.len() + 1);
    }

    #[test]
    fn an_owned_key_gives_its_parts_back() {
        for scope in [None, Some(""), Some("acct_1")] {
            let parts = KeyParts {
                namespace: "live",
                scope,
                method: "POST",
                target: "/v1/charges",
                key: "abc",
            };
            let key = IdempotencyKey::from_parts(&parts).expect("a valid key");
            assert_eq!(key.parts(), parts);
            assert_eq!(key.as_str(), "abc");
            assert_eq!(*key.record_key(), parts.record_key());
        }
    }

    #[test]
    fn debug_does_not_show_the_clients_key() {
        let key = IdempotencyKey::new("op", "s3cret").expect("a valid key");
        assert!(!format!("{key:?}").contains("s3cret"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_valid_key_or_an_error(
            value in proptest::collection::vec(any::<u8>(), 0..300),
            strict in any::<bool>(),
        ) {
            let syntax = if strict { KeySyntax::Strict } else { KeySyntax::Lenient };
            match parse(&value, syntax) {
                Ok(key) => prop_assert_eq!(check(key.as_bytes()), Ok(&*key)),
                Err(invalid) => prop_assert!(!invalid.to_string().is_empty()),
            }
        }

        #[test]
        fn any_quoted_key_is_read_as_it_was_meant(key in "[!-~]{1,255}", pad in " {0,2}") {
            let quoted = key.replace('\\', "\\\\").replace('"', "\\\"");
            let value = format!("{pad}\"{quoted}\"{pad}");
            for syntax in [KeySyntax::Lenient, KeySyntax::Strict] {
                let read = read(&value, syntax);
                prop_assert_eq!(read.as_deref(), Ok(&*key));
            }
        }

        #[test]
        fn any_bare_key_without_quotes_is_read_as_it_is(key in "[!#-~]{1,255}") {
            let read = lenient(&key);
            prop_assert_eq!(read.as_deref(), Ok(&*key));
        }
    }
}
