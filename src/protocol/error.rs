//! What can go wrong with a store.

use std::error::Error;
use std::fmt;
use std::num::NonZero;
use std::time::Duration;

use crate::format::answer::DamagedAnswer;
use crate::format::version;

/// A store could not do what it was asked.
///
/// Expected results, such as a key that is held by another, are no errors but variants of
/// [`Claim`](crate::store::Claim) and [`Fenced`](crate::store::Fenced).
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    maybe_applied: bool,
    /// In seconds: a larger error would make all results larger.
    retry_after: Option<NonZero<u32>>,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What the caller of a store can do about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// A record is there but cannot be read. It does not count as absent; an operator has to look
    /// at it.
    Damaged,
    /// The store holds as much as it may and forgets nothing that is still held. Later there
    /// may be room.
    Full,
    /// A record is there whose format is of a later version of this crate. Another node may be
    /// able to read it.
    Newer,
    /// The answer is larger than the store ever takes. The record may complete as one whose
    /// response is not stored.
    TooLarge,
    /// The store did not answer, or answered that it could not. Later it may.
    Unavailable,
    /// The store is set up so that the call cannot succeed. Someone has to mend the set-up.
    Unusable,
}

impl StoreErrorKind {
    /// Says whether the same call may succeed later, without anybody mending something.
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Full | Self::Unavailable)
    }

    /// Whether no node succeeds until somebody mends something.
    pub(crate) const fn needs_mending(self) -> bool {
        matches!(self, Self::Damaged | Self::Unusable)
    }
}

impl StoreError {
    /// An error of `kind`, with a sentence that says what was wrong. A write that failed with it
    /// was **not** applied, unless [`maybe_applied`](Self::maybe_applied) says otherwise.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            maybe_applied: false,
            retry_after: None,
            message: message.into(),
            source: None,
        }
    }

    /// Says that the write may have been applied all the same: the request was sent and its
    /// answer never came.
    #[must_use]
    pub fn maybe_applied(mut self) -> Self {
        self.maybe_applied = true;
        self
    }

    /// Says after how long the same call may succeed. It is kept in whole seconds, rounded up, and at
    /// least one.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        let partial = u64::from(retry_after.subsec_nanos() > 0);
        let seconds = retry_after.as_secs().saturating_add(partial).max(1);
        self.retry_after = NonZero::new(u32::try_from(seconds).unwrap_or(u32::MAX));
        self
    }

    /// Keeps the error below this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What can be done about it.
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// Returns after how long the same call may succeed, where the store knows. Of a store that is
    /// full, it is the time until its oldest record expires.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.retry_after?;
        Some(Duration::from_secs(seconds.get().into()))
    }

    /// Whether the write that failed may have been applied.
    pub const fn may_have_been_applied(&self) -> bool {
        self.maybe_applied
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

impl From<DamagedAnswer> for StoreError {
    fn from(damage: DamagedAnswer) -> Self {
        let kind = match damage {
            DamagedAnswer::UnknownVersion { version } if version > version::FRAME => {
                StoreErrorKind::Newer
            }
            _ => StoreErrorKind::Damaged,
        };
        Self::new(kind, "the recorded answer cannot be read").with_source(damage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_a_later_version_is_not_damaged() {
        let kind = |damage| StoreError::from(damage).kind();
        for (version, expected) in [
            (version::FRAME + 1, StoreErrorKind::Newer),
            (version::FRAME - 1, StoreErrorKind::Damaged),
        ] {
            assert_eq!(kind(DamagedAnswer::UnknownVersion { version }), expected);
        }
        assert_eq!(kind(DamagedAnswer::Truncated), StoreErrorKind::Damaged);
    }

    #[test]
    fn the_time_to_wait_is_kept_in_seconds_that_are_long_enough() {
        for (said, kept) in [
            (Duration::ZERO, 1),
            (Duration::from_millis(1_001), 2),
            (Duration::from_secs(90), 90),
            (Duration::MAX, u32::MAX),
        ] {
            let error = StoreError::new(StoreErrorKind::Full, "").with_retry_after(said);
            let kept = Duration::from_secs(kept.into());
            assert_eq!(error.retry_after(), Some(kept));
        }
    }
}
