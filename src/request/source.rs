//! Where a request's key comes from.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use http::request::Parts;

use super::{bytes_of, content_type};
use crate::digest::{Digest, Domain, hex};
use crate::fields::{self, Field, FieldError, InvalidPointer, Media};
use crate::key::{self, Found, IDEMPOTENCY_KEY, InvalidKey, KeySyntax};
use crate::problem::{Refusal, RefusalReason};

/// Where the key of a request comes from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeySource {
    /// A header. [`IDEMPOTENCY_KEY`], read leniently, is the default.
    Header {
        /// Its name.
        name: HeaderName,
        /// How its value is read.
        syntax: KeySyntax,
    },
    /// Fields of a JSON or form-encoded body; see [`KeySource::fields`].
    Fields(Vec<Field>),
    /// A function; see [`KeySource::function`].
    Function(KeyFunction),
}

impl KeySource {
    /// The header `name`, read as `syntax` says.
    pub const fn header(name: HeaderName, syntax: KeySyntax) -> Self {
        Self::Header { name, syntax }
    }

    /// Fields of the body: [RFC 6901] JSON pointers, each required unless it is a
    /// [`Field::optional`].
    ///
    /// In a form-encoded body, `/amount` is the field `amount`, and `/card/number` is
    /// `card[number]`. `""` is the whole body. The key is the SHA-256 of the fields' canonical
    /// form: neither the order of members nor white space counts, and `1.0` is `1`. Since the
    /// body is what makes the key, the fingerprint still covers all of it, unless it is
    /// narrowed: a body that differs elsewhere is refused as `key-reused`.
    ///
    /// A request in which a required field is absent or `null` is refused with `missing-key`, and
    /// one whose body is malformed, or of another kind, with `invalid-key`. One whose fields are
    /// all optional and absent has no key.
    ///
    /// ```
    /// use tower_idempotency::KeySource;
    ///
    /// # fn main() -> Result<(), tower_idempotency::InvalidPointer> {
    /// let source = KeySource::fields(["/order/id", "/amount"])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When one of them is no JSON pointer.
    ///
    /// [RFC 6901]: https://www.rfc-editor.org/rfc/rfc6901
    pub fn fields<I>(fields: I) -> Result<Self, InvalidPointer>
    where
        I: IntoIterator,
        I::Item: TryInto<Field>,
        InvalidPointer: From<<I::Item as TryInto<Field>>::Error>,
    {
        fields::parse_all(fields).map(Self::Fields)
    }

    /// A function of the request and its body, which is given in one piece. `Ok(None)` means
    /// that the request has no key.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySource};
    ///
    /// let source = KeySource::function(|request, _body| {
    ///     match request.headers.get("webhook-id").map(|id| id.to_str()) {
    ///         None => Ok(None),
    ///         Some(Ok(id)) => Ok(Some(id.to_owned())),
    ///         Some(Err(_)) => Err(InvalidKey::Refused("webhook-id is no text".into())),
    ///     }
    /// });
    /// ```
    pub fn function(
        key: impl Fn(&Parts, &[u8]) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    ) -> Self {
        Self::Function(KeyFunction(Arc::new(key)))
    }

    pub(super) fn needs_body(&self) -> bool {
        !matches!(self, Self::Header { .. })
    }

    /// What can be said of the key before the body is read.
    pub(crate) fn look(&self, headers: &HeaderMap) -> Look {
        match self {
            Self::Header { name, syntax } => match key::find(headers, name, *syntax) {
                Ok(Some(found)) => Look::Found(found),
                Ok(None) => Look::Absent,
                Err(invalid) => Look::Invalid(invalid),
            },
            Self::Fields(_) | Self::Function(_) => Look::Later,
        }
    }

    /// The key, of which a [`look`](Self::look) has told so much.
    pub(super) fn key<'a>(
        &self,
        look: &'a Look,
        parts: &Parts,
        body: Option<&Bytes>,
    ) -> Result<Option<Cow<'a, str>>, Refusal> {
        match self {
            Self::Header { .. } => match look {
                Look::Found(found) => Ok(Some(Cow::Borrowed(found.as_str()))),
                Look::Absent | Look::Later => Ok(None),
                Look::Invalid(invalid) => Err(invalid.clone().into()),
            },
            Self::Fields(fields) => {
                let mut digest = Digest::new(Domain::KeyFields);
                let media = Media::of(content_type(parts));
                match fields::select(&media, bytes_of(body), fields, &mut digest) {
                    Ok(0) => Ok(None),
                    Ok(_) => Ok(Some(Cow::Owned(hex(&digest.finish())))),
                    // A body of another kind has none of the fields, and none is missed.
                    Err(FieldError::Unreadable) if fields.iter().all(Field::is_optional) => {
                        Ok(None)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Self::Function(function) => {
                let Some(sent) = (function.0)(parts, bytes_of(body))? else {
                    return Ok(None);
                };
                key::check(sent.as_bytes())?;
                Ok(Some(Cow::Owned(sent)))
            }
        }
    }
}

/// What the headers of a request tell of its key.
pub(crate) enum Look {
    /// There is none.
    Absent,
    Found(Found),
    Invalid(InvalidKey),
    /// The body, or the application's function, will tell.
    Later,
}

impl Default for KeySource {
    fn default() -> Self {
        Self::header(IDEMPOTENCY_KEY, KeySyntax::Lenient)
    }
}

/// A function that gives the key of a request; see [`KeySource::function`].
#[derive(Clone)]
pub struct KeyFunction(Arc<GiveKey>);

type GiveKey = dyn Fn(&Parts, &[u8]) -> Result<Option<String>, InvalidKey> + Send + Sync;

impl fmt::Debug for KeyFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFunction").finish_non_exhaustive()
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        let reason = match error {
            FieldError::Missing { .. } => RefusalReason::MissingKey,
            _ => RefusalReason::InvalidKey,
        };
        Self::new(reason, error.to_string())
    }
}
