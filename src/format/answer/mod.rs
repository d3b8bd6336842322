//! Answers as they are recorded.

mod frame;
mod names;
mod packed;
mod sieve;
mod summary;

use std::fmt;

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderMap;
use serde::Serialize;

pub(crate) use self::frame::encode_response;
pub(crate) use self::sieve::Sieve;
pub use self::sieve::UNSTORED_HEADERS;
pub use self::summary::{Summary, SummaryTooLong};

/// What a completed record holds: the decoded form of
/// [`Completed::payload`](crate::protocol::record::Completed::payload).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Answer {
    /// The operation has its outcome, and its response was too large or a stream: it is not
    /// stored, and the operation is not run again.
    NotStored {
        /// The status of the response that the first client got.
        status: StatusCode,
        /// What the handler said of it, in short.
        summary: Option<Summary>,
    },
    /// A response to replay.
    Response(StoredResponse),
    /// The result of work that is no HTTP request, as JSON.
    Value(Bytes),
}

/// A response as it is kept and replayed: status, header fields in order and as bytes, body and
/// trailers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredResponse {
    /// The status.
    pub status: StatusCode,
    /// The header fields, several values of one name included.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The trailers, if there were any.
    pub trailers: Option<HeaderMap>,
}

impl StoredResponse {
    /// A response without header fields and trailers.
    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: body.into(),
            trailers: None,
        }
    }
}

impl From<http::Response<Bytes>> for StoredResponse {
    fn from(response: http::Response<Bytes>) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
            trailers: None,
        }
    }
}

impl Answer {
    /// The answer to work that is no HTTP request.
    ///
    /// # Errors
    ///
    /// When `value` has no JSON form.
    pub fn value<T: Serialize>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(value).map(|json| Self::Value(json.into()))
    }

    /// The answer's recorded form, in one allocation.
    pub fn encode(&self) -> Bytes {
        frame::encode(self)
    }

    /// Reads a recorded form back. Header values and body are views of `payload`, not copies.
    ///
    /// # Errors
    ///
    /// When `payload` is of an unknown version or damaged. It never panics, whatever the bytes.
    pub fn decode(payload: &Bytes) -> Result<Self, DamagedAnswer> {
        frame::decode(payload)
    }
}

/// The recorded form of an answer cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamagedAnswer {
    /// It ends too early.
    Truncated,
    /// It goes on after its end.
    Trailing {
        /// How many bytes are too many.
        bytes: usize,
    },
    /// It was written by a version of this crate that is not known here.
    UnknownVersion {
        /// The version.
        version: u8,
    },
    /// It is of an unknown kind.
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// A part of it has a value that it cannot have.
    Invalid {
        /// Which part.
        part: &'static str,
    },
}

impl fmt::Display for DamagedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the recorded answer ends too early"),
            Self::Trailing { bytes } => {
                write!(f, "the recorded answer has {bytes} bytes after its end")
            }
            Self::UnknownVersion { version } => write!(
                f,
                "the recorded answer is of version {version}, which is not known here"
            ),
            Self::UnknownKind { kind } => write!(
                f,
                "the recorded answer is of kind {kind}, which is not known here"
            ),
            Self::Invalid { part } => {
                write!(f, "the recorded answer has an invalid {part}")
            }
        }
    }
}

impl std::error::Error for DamagedAnswer {}
