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
        body: &Chunks,
        whole: Option<&Bytes>,
    ) -> Fingerprint {
        let content_type = content_type(parts);
        let media = Media::of(content_type);
        let mut digest = Digest::new(Domain::Request);
        // First, so that it begins where a block of SHA-256 does: if it did not, it would take up
        // to half as long again.
        let form = self.add_body(&mut digest, &media, body, whole);
        digest.optional(scope.map(str::as_bytes));
        if scope.is_none() {
            // Another caller with the same key must not get this one's answer.
            add_header(&mut digest, parts, &AUTHORIZATION);
        }
        for name in &self.headers {
            add_header(&mut digest, parts, name);
        }
        // Method and target are in the record's name: with others, it is another record.
        digest.optional(parts.uri.query().map(str::as_bytes));
        fields::feed_essence(content_type, &mut digest);
        if matches!(media, Media::Multipart { boundary: None }) {
            // Readers may differ on what such a body says.
            digest.field(content_type);
        }
        if let Form::Whole = form {
            // Of known width and near the end, so that it says where the body ends.
            digest.raw(&(body.length() as u64).to_le_bytes());
        }
        digest.tag(form as u8);
        Fingerprint::from_digest(&mut digest)
    }

    fn add_body(
        &self,
        digest: &mut Digest,
        media: &Media<'_>,
        body: &Chunks,
        whole: Option<&Bytes>,
    ) -> Form {
        let whole = bytes_of(whole);
        // A digest is left as it was by fields that cannot be read.
        match &self.source {
            FingerprintSource::Fields(fields)
                if fields::select(media, whole, fields, digest).is_ok() =>
            {
                return Form::Fields;
            }
            FingerprintSource::Without(fields)
                if fields::without(media, whole, fields, digest).is_ok() =>
            {
                return Form::Without;
            }
            _ => {}
        }
        if let Media::Multipart {
            boundary: Some(boundary),
        } = media
        {
            fields::multipart_pieces(&body.contiguous(), boundary, digest);
            return Form::Pieces;
        }
        body.iter().for_each(|chunk| digest.raw(chunk));
        Form::Whole
    }
}

/// In which form a body goes into a fingerprint.
#[derive(Clone, Copy)]
enum Form {
    Whole = 0,
    Fields = 1,
    Without = 2,
    /// Of a multipart body what is between its boundaries.
    Pieces = 3,
}

fn add_header(digest: &mut Digest, parts: &Parts, name: &HeaderName) {
    for value in parts.headers.get_all(name) {
        digest.optional(Some(value.as_bytes()));
    }
    // There are no more.
    digest.optional(None);
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(query: &str, scope: Option<&str>, body: &'static [u8]) -> Fingerprint {
        let request = Request::post(format!("/v1/charges{query}"))
            .header("content-type", "text/plain")
            .header(AUTHORIZATION, "Bearer x")
            .body(())
            .expect("it is valid");
        let (parts, ()) = request.into_parts();
        let body = Chunks::from(Bytes::from_static(body));
        Fingerprinting::default().fingerprint(&parts, scope, &body, None)
    }

    #[test]
    fn a_fingerprint_is_of_these_bytes() {
        let mut digest = Digest::new(Domain::Request);
        digest.raw(b"1200\x00\x09Bearer x\x00\x04a=1\x0atext/plain");
        digest.raw(b"\x04\x00\x00\x00\x00\x00\x00\x00\x00");
        let expected = Fingerprint::from_digest(&mut digest);
        assert_eq!(of("?a=1", None, b"1200"), expected);
    }

    #[test]
    fn what_comes_after_a_body_is_not_taken_for_its_end() {
        // One after the other, both give the same bytes.
        let one = of("", Some("A\x03me"), b"12");
        let other = of("", Some("me"), b"12\x05A");
        assert_ne!(one, other);
    }
}
