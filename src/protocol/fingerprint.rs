//! What makes two requests the same request.

use std::fmt;

use crate::format::digest::{Digest, Domain, hex};

/// SHA-256 over everything that must be equal in a request and its retry. A key that comes with
/// another fingerprint was reused for another request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of work that is no HTTP request: of its inputs, in order. Each goes in
    /// with its length, so that `["ab", "c"]` and `["a", "bc"]` differ.
    ///
    /// ```
    /// use tower_idempotency::Fingerprint;
    ///
    /// let of = |amount: &str| Fingerprint::of(["invoice-1432", amount]);
    /// assert_eq!(of("1200"), of("1200"));
    /// assert_ne!(of("1200"), of("1300"));
    /// ```
    pub fn of<I>(inputs: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let mut digest = Digest::new(Domain::Inputs);
        for input in inputs {
            digest.field(input.as_ref());
        }
        Self(digest.finish())
    }

    /// A fingerprint that was read back from a store.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_digest(digest: &mut Digest) -> Self {
        Self(digest.finish())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", hex(&self.0))
    }
}
