//! The idempotency key: what a client may send, whose key it is, and the digest that names its record.

mod syntax;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use http::HeaderMap;
use http::header::HeaderName;

pub(crate) use self::syntax::check;
pub use self::syntax::{InvalidKey, KeySyntax, MAX_KEY_LENGTH};
use crate::format::digest::{Digest, Domain, hex};
use crate::format::scratch;

/// The request header that carries the key:
/// `Idempotency-Key`, [draft-ietf-httpapi-idempotency-key-header-07, section 2].
///
/// [draft-ietf-httpapi-idempotency-key-header-07, section 2]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07#section-2
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A key that was found in the head of a request, and checked.
#[derive(Debug)]
pub(crate) enum Found {
    /// A copy, which costs less than to look for it once more.
    Short(Text),
    Long(Box<[u8]>),
}

/// Room for a UUID and a prefix, where text is checked eight bytes at a time.
#[derive(Debug)]
#[repr(align(8))]
pub(crate) struct Text {
    bytes: [u8; 63],
    length: u8,
}

impl Found {
    /// `key` was checked.
    pub(crate) fn new(key: &[u8]) -> Self {
        let mut bytes = [0; 63];
        match bytes.get_mut(..key.len()) {
            Some(place) => {
                place.copy_from_slice(key);
                let length = key.len() as u8;
                Self::Short(Text { bytes, length })
            }
            None => Self::Long(key.into()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        let key = match self {
            Self::Short(Text { bytes, length }) => &bytes[..usize::from(*length)],
            Self::Long(key) => key,
        };
        std::str::from_utf8(key).unwrap_or_default()
    }
}

/// Looks for the key in the header `name`; `None` when it is not there. More than one line is
/// taken for one if they say the same.
#[inline]
pub(crate) fn find(
    headers: &HeaderMap,
    name: &HeaderName,
    syntax: KeySyntax,
) -> Result<Option<Found>, InvalidKey> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let key = syntax.read(value.as_bytes())?;
    // In most requests no name stands twice, and the map knows that at once.
    if headers.len() > headers.keys_len() {
        for other in headers.get_all(name).iter().skip(1) {
            if syntax.read(other.as_bytes())? != key {
                return Err(InvalidKey::Differing);
            }
        }
    }
    Ok(Some(Found::new(&key)))
}

/// Looks for the key in several headers, which have to say the same where they are there.
pub(crate) fn find_in(
    headers: &HeaderMap,
    names: &[HeaderName],
    syntax: KeySyntax,
) -> Result<Option<Found>, InvalidKey> {
    let mut found: Option<Found> = None;
    for name in names {
        let Some(other) = find(headers, name, syntax)? else {
            continue;
        };
        match &found {
            None => found = Some(other),
            Some(found) if found.as_str() == other.as_str() => {}
            Some(_) => return Err(InvalidKey::Differing),
        }
    }
    Ok(found)
}

/// Names a record: SHA-256 over the [`KeyParts`] of its key.
///
/// What is hashed is method, target and key, each after its length; then, if there is a namespace
/// or a scope, the namespace after its length, and a zero byte where there is no scope, or else
/// the scope after its length plus one; and the byte `0x11`, version 1 of a record key.
/// Lengths are in LEB128, and texts in UTF-8.
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
/// assert_eq!(key.derive("psp").as_str(), key.derive("psp").as_str());
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
    // Half as wide as lengths are, so that a key is moved in fewer steps.
    ends: [u32; 4],
    scoped: bool,
}

impl IdempotencyKey {
    /// The key `key` for the work named `operation`, in no namespace and no scope.
    ///
    /// # Errors
    ///
    /// When `key` is empty or blank, longer than [`MAX_KEY_LENGTH`] or has a byte that is not a
    /// printable ASCII character.
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
        let text = scratch::with_text(|text| {
            for (index, part) in all.into_iter().enumerate() {
                text.push_str(part);
                if let Some(end) = ends.get_mut(index) {
                    *end = u32::try_from(text.len()).unwrap_or(u32::MAX);
                }
            }
            Arc::from(text.as_str())
        });
        Self {
            record_key,
            text,
            ends,
            scoped: parts.scope.is_some(),
        }
    }

    /// What the client sent, without quotes and escapes. For a key made of body fields, the
    /// SHA-256 of their canonical form, in hexadecimal.
    pub fn as_str(&self) -> &str {
        self.text.get(self.ends[3] as usize..).unwrap_or_default()
    }

    /// All parts of the key.
    pub fn parts(&self) -> KeyParts<'_> {
        let [namespace, scope, method, target] = self.ends.map(|end| end as usize);
        let part = |range: Range<usize>| self.text.get(range).unwrap_or_default();
        KeyParts {
            namespace: part(0..namespace),
            scope: self.scoped.then(|| part(namespace..scope)),
            method: part(scope..method),
            target: part(method..target),
            key: self.as_str(),
        }
    }

    /// The name of the key's record.
    pub const fn record_key(&self) -> &RecordKey {
        &self.record_key
    }

    /// Returns a key for one step of the work under this key: the same for every attempt at this
    /// key, and another for each `purpose`, operation, scope and namespace.
    ///
    /// Its operation is `purpose`, in the same namespace and scope, and
    /// [`as_str`](Self::as_str) is 32 hexadecimal digits, which every provider we know takes as
    /// the idempotency key of a call. A handler runs a step of its own under it with
    /// [`Executor::run`](crate::Executor::run).
    #[must_use]
    pub fn derive(&self, purpose: &str) -> Self {
        let mut digest = Digest::new(Domain::DerivedKey);
        digest.field(self.record_key.as_bytes());
        digest.field(purpose.as_bytes());
        let key = hex(&digest.finish()[..16]);
        let parts = self.parts();
        let parts = KeyParts {
            namespace: parts.namespace,
            scope: parts.scope,
            method: "",
            target: purpose,
            key: &key,
        };
        Self::assemble(&parts, parts.record_key())
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

    use super::*;

    const OTHER: HeaderName = HeaderName::from_static("x-idempotency-key");

    fn found(lines: &[(HeaderName, &'static str)]) -> Result<Option<String>, InvalidKey> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        let found = find_in(&headers, &[IDEMPOTENCY_KEY, OTHER], KeySyntax::Lenient)?;
        Ok(found.map(|found| found.as_str().to_owned()))
    }

    #[test]
    fn keys_that_say_the_same_are_one() {
        let one = Ok(Some("abc".to_owned()));
        assert_eq!(found(&[]), Ok(None));
        assert_eq!(found(&[(OTHER, "abc")]), one);
        assert_eq!(
            found(&[(IDEMPOTENCY_KEY, "abc"), (IDEMPOTENCY_KEY, "\"abc\"")]),
            one
        );
        assert_eq!(found(&[(IDEMPOTENCY_KEY, "abc"), (OTHER, "\"abc\"")]), one);
    }

    #[test]
    fn keys_that_differ_or_are_malformed_are_refused() {
        for lines in [
            [(IDEMPOTENCY_KEY, "abc"), (IDEMPOTENCY_KEY, "abd")],
            [(IDEMPOTENCY_KEY, "abc"), (OTHER, "abd")],
        ] {
            assert_eq!(found(&lines), Err(InvalidKey::Differing));
        }
        assert_eq!(
            found(&[(IDEMPOTENCY_KEY, "abc"), (OTHER, "")]),
            Err(InvalidKey::Empty)
        );
        assert_eq!(
            found(&[(OTHER, "abc"), (OTHER, "\"abc")]),
            Err(InvalidKey::Quoting)
        );
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

    #[test]
    fn a_record_key_is_the_digest_of_these_bytes() {
        use sha2::{Digest as _, Sha256};

        let of = |bytes: &[u8]| RecordKey(Sha256::digest(bytes).into());
        let parts = KeyParts {
            method: "POST",
            target: "/a",
            key: "k",
            ..KeyParts::default()
        };
        assert_eq!(parts.record_key(), of(b"\x04POST\x02/a\x01k\x11"));
        let parts = KeyParts {
            namespace: "live",
            ..parts
        };
        assert_eq!(
            parts.record_key(),
            of(b"\x04POST\x02/a\x01k\x04live\x00\x11")
        );
        let parts = KeyParts {
            namespace: "",
            scope: Some("t"),
            ..parts
        };
        assert_eq!(parts.record_key(), of(b"\x04POST\x02/a\x01k\x00\x02t\x11"));
    }

    #[test]
    fn a_derived_key_is_a_key_of_its_own() {
        let parts = KeyParts {
            namespace: "live",
            scope: Some("acct_1"),
            method: "POST",
            target: "/v1/charges",
            key: "abc",
        };
        let key = IdempotencyKey::from_parts(&parts).expect("a valid key");
        let derived = key.derive("psp");
        assert_eq!(
            derived.parts(),
            KeyParts {
                method: "",
                target: "psp",
                key: derived.as_str(),
                ..parts
            }
        );
        assert_eq!(*derived.record_key(), derived.parts().record_key());
        assert_eq!(derived.as_str().len(), 32);
        assert_eq!(derived, key.derive("psp"));
        let again = derived.derive("psp");
        let others = [&key, &key.derive("ledger"), &again];
        assert!(others.iter().all(|other| **other != derived));
        assert!(!format!("{derived:?}").contains(derived.as_str()));
    }
}
