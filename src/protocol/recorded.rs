//! What becomes of a key when an attempt has ended.

use std::fmt;

/// What became of the key after its work ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recorded {
    /// The lease was lost while the work ran, and nobody has recorded an answer in its place yet.
    /// An answer that would have been recorded is refused with 409 `lease-lost`, because the key may
    /// get another one.
    LeaseLost,
    /// The key is completed, without the response: retries are refused with 409
    /// `response-not-stored`.
    NotStored,
    /// The store did not take the answer yet; it is tried again in the background, under the
    /// lease. The client gets it all the same, or is refused with 503 `not-recorded`; see
    /// [`answer_unrecorded`](crate::IdempotencyLayer::answer_unrecorded).
    Pending,
    /// The key is released, because nothing was done, or because the orphan policy lets an unknown
    /// outcome run again: the next request runs.
    Released,
    /// The answer is recorded: retries get it.
    Stored,
    /// The outcome is not known, and the key is held: retries are refused with 409
    /// `outcome-unknown`.
    Unknown,
}

impl Recorded {
    /// A short name for logs and metrics, such as `stored`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeaseLost => "lease-lost",
            Self::NotStored => "not-stored",
            Self::Pending => "pending",
            Self::Released => "released",
            Self::Stored => "stored",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
