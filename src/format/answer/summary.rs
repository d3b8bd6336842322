//! What stands for a response that is not stored.

use std::fmt;

use bytes::Bytes;

/// A short text about a response that is not stored, such as the id of what was made: put it into
/// the extensions of a response that is a [stream](crate::RecordingOverride::Stream), or that may turn
/// out to be too large. Retries are refused with `response-not-stored`, and are shown the text.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Extension, response::IntoResponse};
/// use tower_idempotency::{RecordingOverride, Summary, SummaryTooLong};
///
/// async fn export() -> Result<impl IntoResponse, String> {
///     let summary = Summary::new("export_1432").map_err(|error| error.to_string())?;
///     Ok((Extension(RecordingOverride::Stream), Extension(summary), "much text"))
/// }
/// # let _ = export;
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Summary(Bytes);

impl Summary {
    /// How many bytes a summary may have.
    pub const MAX_LENGTH: usize = 1024;

    /// Takes a text.
    ///
    /// # Errors
    ///
    /// When it has more than [`MAX_LENGTH`](Self::MAX_LENGTH) bytes.
    pub fn new(text: impl Into<String>) -> Result<Self, SummaryTooLong> {
        let text = text.into();
        match text.len() {
            ..=Self::MAX_LENGTH => Ok(Self(text.into())),
            length => Err(SummaryTooLong { length }),
        }
    }

    /// Reads one that was recorded.
    pub(crate) fn from_bytes(bytes: Bytes) -> Option<Self> {
        let is_one = bytes.len() <= Self::MAX_LENGTH && std::str::from_utf8(&bytes).is_ok();
        is_one.then_some(Self(bytes))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        // It was a text when it was made.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text is too long for a [`Summary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryTooLong {
    length: usize,
}

impl fmt::Display for SummaryTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length } = self;
        let most = Summary::MAX_LENGTH;
        write!(
            f,
            "a summary has at most {most} bytes, and this one has {length}"
        )
    }
}

impl std::error::Error for SummaryTooLong {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_at_most_a_kibibyte() {
        let longest = "é".repeat(512);
        let summary = Summary::new(longest.clone()).expect("it is short enough");
        assert_eq!(summary.as_str(), longest);
        let error = Summary::new(longest + "x").expect_err("it is too long");
        assert_eq!(
            error.to_string(),
            "a summary has at most 1024 bytes, and this one has 1025"
        );
    }
}
