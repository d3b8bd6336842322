//! What of a request goes into its fingerprint.

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;

use super::{bytes_of, content_type};
use crate::body::Chunks;
use crate::digest::{Digest, Domain};
use crate::fields::{self, Field, InvalidPointer, Media};
use crate::fingerprint::Fingerprint;

/// What of the body must be equal in a request and its retry.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum FingerprintSource {
    /// All of it, byte for byte; of a multipart body all but the boundary. The default.
    #[default]
    Body,
    /// These fields only, in their canonical form; see [`KeySource::fields`].
    ///
    /// [`KeySource::fields`]: crate::KeySource::fields
    Fields(Vec<Field>),
    /// All of it but these fields, such as a timestamp that each try makes anew; in canonical
    /// form.
    Without(Vec<Field>),
}

impl FingerprintSource {
    /// [`FingerprintSource::Fields`], from JSON pointers.
    ///
    /// A body that they cannot be read from, because a required one is not there or because it
    /// is neither JSON nor form-encoded, is taken byte for byte.
    ///
    /// # Errors
    ///
    /// When one of them is no JSON pointer.
    pub fn fields<I>(fields: I) -> Result<Self, InvalidPointer>
    where
        I: IntoIterator,
        I::Item: TryInto<Field>,
        InvalidPointer: From<<I::Item as TryInto<Field>>::Error>,
    {
        fields::parse_all(fields).map(Self::Fields)
    }

    /// [`FingerprintSource::Without`], from JSON pointers.
    ///
    /// A body that is neither JSON nor form-encoded is taken byte for byte.
    ///
    /// # Errors
    ///
    /// When one of them is no JSON pointer.
    pub fn without<I>(fields: I) -> Result<Self, InvalidPointer>
    where
        I: IntoIterator,
        I::Item: TryInto<Field>,
        InvalidPointer: From<<I::Item as TryInto<Field>>::Error>,
    {
        fields::parse_all(fields).map(Self::Without)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Fingerprinting {
    pub(crate) source: FingerprintSource,
    /// Request headers that must be equal, too.
    pub(crate) headers: Vec<HeaderName>,
}

impl Fingerprinting {
    pub(super) fn needs_whole_body(&self) -> bool {
        !matches!(self.source, FingerprintSource::Body)
    }

    pub(super) fn fingerprint(
        &self,
        parts: &Parts,
        scope: Option<&str>,
        target: &str,
        body: &Chunks,
        whole: Option<&Bytes>,
    ) -> Fingerprint {
        let mut digest = Digest::new(Domain::Request);
        digest.optional(scope.map(str::as_bytes));
        if scope.is_none() {
            // Another caller with the same key must not get this one's answer.
            add_header(&mut digest, parts, &AUTHORIZATION);
        }
        for name in &self.headers {
            add_header(&mut digest, parts, name);
        }
        digest.field(parts.method.as_str().as_bytes());
        digest.field(target.as_bytes());
        digest.optional(parts.uri.query().map(str::as_bytes));
        let content_type = content_type(parts);
        fields::feed_essence(content_type, &mut digest);
        self.add_body(&mut digest, content_type, body, whole);
        Fingerprint::from_digest(&mut digest)
    }

    fn add_body(
        &self,
        digest: &mut Digest,
        content_type: &[u8],
        body: &Chunks,
        whole: Option<&Bytes>,
    ) {
        let media = Media::of(content_type);
        let whole = bytes_of(whole);
        // A digest is left as it was by fields that cannot be read.
        let is_narrowed = match &self.source {
            FingerprintSource::Body => false,
            FingerprintSource::Fields(fields) => {
                digest.tag(1);
                fields::select(&media, whole, fields, digest).is_ok()
            }
            FingerprintSource::Without(fields) => {
                digest.tag(2);
                fields::without(&media, whole, fields, digest).is_ok()
            }
        };
        if !is_narrowed {
            digest.tag(0);
            add_all(digest, &media, content_type, body);
        }
    }
}

fn add_all(digest: &mut Digest, media: &Media<'_>, content_type: &[u8], body: &Chunks) {
    match media {
        Media::Multipart {
            boundary: Some(boundary),
        } => return fields::multipart_pieces(&body.contiguous(), boundary, digest),
        // Readers may differ on what such a body says.
        Media::Multipart { boundary: None } => digest.field(content_type),
        Media::Json | Media::Form | Media::Other => {}
    }
    digest.count(body.length());
    digest.fill_block();
    for chunk in body.iter() {
        digest.raw(chunk);
    }
}

fn add_header(digest: &mut Digest, parts: &Parts, name: &HeaderName) {
    for value in parts.headers.get_all(name) {
        digest.optional(Some(value.as_bytes()));
    }
    // There are no more.
    digest.optional(None);
}
