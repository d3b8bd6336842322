//! Where a request's key comes from.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use http::request::Parts;

use super::bytes_of;
use crate::format::digest::{Digest, Domain, hex};
use crate::layer::fields::{self, Blank, Field, FieldError, InvalidPointer, Media};
use crate::layer::problem::{Refusal, RefusalReason};
use crate::protocol::key::{self, Found, IDEMPOTENCY_KEY, InvalidKey, KeySyntax};

/// Where the key of a request comes from.
///
/// | client | key | source |
/// |---|---|---|
/// | Stripe, Adyen and most others | `Idempotency-Key` | the default |
/// | PayPal | `PayPal-Request-Id` | [`header`](Self::header) |
/// | some of httpx, of gateways, of older services | `X-Idempotency-Key` | [`headers`](Self::headers), beside `Idempotency-Key` |
/// | Square | the member `idempotency_key` of the body | [`fields`](Self::fields) with `/idempotency_key` |
/// | senders of webhooks | `Webhook-Id`, or an id in the body | [`header`](Self::header) or [`fields`](Self::fields) |
#[derive(Clone, Debug)]
pub struct KeySource(Source);

#[derive(Clone, Debug)]
enum Source {
    Header(HeaderName, KeySyntax),
    Headers(Arc<[HeaderName]>, KeySyntax),
    Fields(Arc<[Field]>),
    Function(KeyFunction),
    HeadFunction(HeadFunction),
}

impl KeySource {
    /// Takes the key from the header `name`, read as `syntax` says. [`IDEMPOTENCY_KEY`], read
    /// leniently, is the default.
    ///
    /// A header that is empty, malformed, or there twice with keys that differ is refused with
    /// `invalid-key`.
    pub const fn header(name: HeaderName, syntax: KeySyntax) -> Self {
        Self(Source::Header(name, syntax))
    }

    /// Takes the key from whichever of several headers is there. Where more than one is there,
    /// they have to say the same key, or the request is refused with `invalid-key`.
    ///
    /// A list without a name does not compile.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_idempotency::{IDEMPOTENCY_KEY, KeySource, KeySyntax};
    ///
    /// let other = HeaderName::from_static("x-idempotency-key");
    /// let source = KeySource::headers([IDEMPOTENCY_KEY, other], KeySyntax::Lenient);
    /// ```
    pub fn headers<const N: usize>(names: [HeaderName; N], syntax: KeySyntax) -> Self {
        const { assert!(N > 0, "a key is in one header at least") };
        Self(Source::Headers(Arc::new(names), syntax))
    }

    /// Takes the key from fields of the body: [RFC 6901] JSON pointers, each required unless it is
    /// a [`Field::optional`].
    ///
    /// In a form-encoded body, `/amount` is the field `amount`, and `/card/number` is
    /// `card[number]`. `""` is the whole body. The key is the SHA-256 of the fields' canonical
    /// form: neither the order of members nor white space counts, and `1.0` is `1`. Since the
    /// body is what makes the key, the fingerprint still covers all of it, unless it is
    /// narrowed: a body that differs elsewhere is refused as `key-reused`.
    ///
    /// A field that holds nothing is absent: `null`, `""`, blanks, `[]`, `{}` and what is made of
    /// nothing else. A request in which a required field is absent has no key, and so has one
    /// whose fields are all optional and absent. It passes, unless a
    /// [key is required](crate::IdempotencyLayer::require_key): then it is refused with
    /// `missing-key`. A body that says it is JSON and is not is refused with `invalid-key`.
    ///
    /// A body is read as JSON also if its media type is `text/json` or `text/plain`, or if it has
    /// none, and as no key if it then is none. Such a request is one that a browser sends to other
    /// sites without asking them first: a key in the body is no protection against request
    /// forgery, and one in a header is. A body of any other kind, such as a multipart body, has no
    /// key, and is not read.
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
    /// When one of them is no JSON pointer, or there is none.
    ///
    /// [RFC 6901]: https://www.rfc-editor.org/rfc/rfc6901
    pub fn fields<I>(fields: I) -> Result<Self, InvalidPointer>
    where
        I: IntoIterator,
        I::Item: TryInto<Field>,
        InvalidPointer: From<<I::Item as TryInto<Field>>::Error>,
    {
        fields::parse_some(fields).map(|fields| Self(Source::Fields(fields.into())))
    }

    /// Takes the key from a function of the request and its body, which is given in one piece.
    /// `Ok(None)` means that the request has no key.
    ///
    /// The body of each request with a guarded method is read for it, also of one that turns out
    /// to have no key; [`head_function`](Self::head_function) reads none.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySource};
    ///
    /// let source = KeySource::function(|_request, body| match body.first_chunk::<16>() {
    ///     None => Err(InvalidKey::Refused("the message has no id".into())),
    ///     Some(id) => Ok(Some(u128::from_be_bytes(*id).to_string())),
    /// });
    /// ```
    pub fn function(
        key: impl Fn(&Parts, &[u8]) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    ) -> Self {
        Self(Source::Function(KeyFunction(Arc::new(key))))
    }

    /// Takes the key from a function of the request's head. `Ok(None)` means that the request has
    /// no key; then its body is not read.
    ///
    /// What comes from a header is best read by [`KeySyntax::parse`], as the layer itself does it:
    ///
    /// ```
    /// use tower_idempotency::{KeySource, KeySyntax};
    ///
    /// let source = KeySource::head_function(|request| {
    ///     let Some(value) = request.headers.get("webhook-id") else {
    ///         return Ok(None);
    ///     };
    ///     let key = KeySyntax::Lenient.parse(value.as_bytes())?;
    ///     Ok(Some(format!("webhook-{key}")))
    /// });
    /// ```
    pub fn head_function(
        key: impl Fn(&Parts) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    ) -> Self {
        Self(Source::HeadFunction(HeadFunction(Arc::new(key))))
    }

    pub(super) fn needs_body(&self) -> bool {
        matches!(self.0, Source::Fields(_) | Source::Function(_))
    }

    /// Says what the header fields tell of the key.
    #[inline]
    pub(crate) fn look(&self, headers: &HeaderMap) -> Look {
        let found = match &self.0 {
            Source::Header(name, syntax) => key::find(headers, name, *syntax),
            Source::Headers(names, syntax) => key::find_in(headers, names, *syntax),
            Source::Fields(_) if !may_have_fields(headers) => Ok(None),
            Source::Fields(_) | Source::Function(_) => return Look::InBody,
            Source::HeadFunction(_) => return Look::InHead,
        };
        found.into()
    }

    /// Says what the head tells of the key, where the header fields [alone](Self::look) do not.
    pub(crate) fn look_again(&self, parts: &Parts) -> Look {
        match &self.0 {
            Source::HeadFunction(function) => {
                let key = (function.0)(parts).and_then(|key| match key {
                    None => Ok(None),
                    Some(key) => key::check(key.as_bytes()).map(|key| Some(Found::new(key))),
                });
                key.into()
            }
            _ => self.look(&parts.headers),
        }
    }

    /// Gives the key, of which the head has told so much.
    pub(super) fn key<'a>(
        &self,
        look: &'a Look,
        parts: &Parts,
        body: Option<&Bytes>,
    ) -> Result<Sent<'a>, Refusal> {
        match look {
            Look::Found(found) => return Ok(Sent::Key(Cow::Borrowed(found.as_str()))),
            Look::Invalid(invalid) => return Err(invalid.clone().into()),
            Look::Absent => return Ok(Sent::Nothing(None)),
            Look::InBody | Look::InHead => {}
        }
        match &self.0 {
            Source::Fields(fields) => {
                let mut digest = Digest::new(Domain::KeyFields);
                let media = Media::of(content_type(&parts.headers));
                match fields::select(&media, bytes_of(body), fields, Blank::IsAbsent, &mut digest) {
                    Ok(0) => Ok(Sent::Nothing(None)),
                    Ok(_) => Ok(Sent::Key(Cow::Owned(hex(&digest.finish())))),
                    Err(error @ (FieldError::Missing { .. } | FieldError::Unreadable)) => {
                        Ok(Sent::Nothing(Some(error)))
                    }
                    // It never said that it were JSON.
                    Err(FieldError::Malformed { .. }) if media == Media::Unlabelled => {
                        Ok(Sent::Nothing(Some(FieldError::Unreadable)))
                    }
                    Err(error) => Err(Refusal::new(RefusalReason::InvalidKey, error.to_string())),
                }
            }
            Source::Function(function) => {
                let Some(sent) = (function.0)(parts, bytes_of(body))? else {
                    return Ok(Sent::Nothing(None));
                };
                key::check(sent.as_bytes())?;
                Ok(Sent::Key(Cow::Owned(sent)))
            }
            Source::Header(..) | Source::Headers(..) | Source::HeadFunction(_) => {
                Ok(Sent::Nothing(None))
            }
        }
    }
}

/// Whether a body of this media type can have fields.
fn may_have_fields(headers: &HeaderMap) -> bool {
    match Media::of(content_type(headers)) {
        Media::Json | Media::Unlabelled | Media::Form => true,
        Media::Multipart { .. } | Media::Other => false,
    }
}

/// The value of `Content-Type`, empty when there is none.
fn content_type(headers: &HeaderMap) -> &[u8] {
    let value = headers.get(CONTENT_TYPE);
    value.map_or(&[], http::HeaderValue::as_bytes)
}

/// What a request sent as its key.
pub(super) enum Sent<'a> {
    Key(Cow<'a, str>),
    /// No key, and what is missing, if there is more to say of it.
    Nothing(Option<FieldError>),
}

/// What the head of a request tells of its key.
pub(crate) enum Look {
    /// There is none.
    Absent,
    Found(Found),
    Invalid(InvalidKey),
    /// The body will tell.
    InBody,
    /// The application's function will tell.
    InHead,
}

impl From<Result<Option<Found>, InvalidKey>> for Look {
    fn from(found: Result<Option<Found>, InvalidKey>) -> Self {
        match found {
            Ok(Some(found)) => Self::Found(found),
            Ok(None) => Self::Absent,
            Err(invalid) => Self::Invalid(invalid),
        }
    }
}

impl Default for KeySource {
    fn default() -> Self {
        Self::header(IDEMPOTENCY_KEY, KeySyntax::Lenient)
    }
}

#[derive(Clone)]
struct KeyFunction(Arc<GiveKey>);

type GiveKey = dyn Fn(&Parts, &[u8]) -> Result<Option<String>, InvalidKey> + Send + Sync;

impl fmt::Debug for KeyFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFunction").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct HeadFunction(Arc<GiveKeyOfHead>);

type GiveKeyOfHead = dyn Fn(&Parts) -> Result<Option<String>, InvalidKey> + Send + Sync;

impl fmt::Debug for HeadFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadFunction").finish_non_exhaustive()
    }
}
