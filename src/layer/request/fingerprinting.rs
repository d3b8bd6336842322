//! What of a request goes into its fingerprint.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderName;
use http::request::Parts;

use super::bytes_of;
use super::headers::{CONTENT_ENCODING_SLOT, CONTENT_TYPE_SLOT, Fields, feed_named};
use super::path::query;
use crate::format::digest::{Digest, Domain};
use crate::layer::body::Chunks;
use crate::layer::fields::{self, Blank, Field, InvalidPointer, Media, percent_decoded};
use crate::protocol::fingerprint::Fingerprint;

/// What of the body must be equal in a request and its retry.
///
/// A body that is compressed is compared as it was sent, and compressors write time stamps: where
/// clients compress, decompression belongs outside of the layer. A protobuf message with a map has
/// its entries in any order: [`function`](Self::function) is for what only the application can
/// read.
#[derive(Clone, Debug, Default)]
pub struct FingerprintSource(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    Body,
    Fields(Vec<Field>),
    Without(Vec<Field>),
    Function(FingerprintFunction),
}

impl FingerprintSource {
    /// Takes all of the body, byte for byte; of a multipart body, and of those that are its parts,
    /// all but the boundaries. The default.
    pub const fn body() -> Self {
        Self(Source::Body)
    }

    /// Takes all of the body in canonical form: in a JSON body neither the order of members nor
    /// white space counts, and `1.0` is `1`; in a form neither the order of fields with different
    /// names nor their percent-encoding. A body of another kind, or one that cannot be read, is
    /// taken byte for byte.
    pub const fn canonical() -> Self {
        Self(Source::Without(Vec::new()))
    }

    /// Takes these fields only, in canonical form; see [`KeySource::fields`]. Here, `""`, `null`
    /// and what is absent are different values.
    ///
    /// A body that they cannot be read from, because a required one is not there or because it
    /// is neither JSON nor form-encoded, is taken byte for byte.
    ///
    /// [`KeySource::fields`]: crate::KeySource::fields
    ///
    /// # Errors
    ///
    /// When one of them is no JSON pointer, or there is none.
    pub fn fields<I>(fields: I) -> Result<Self, InvalidPointer>
    where
        I: IntoIterator,
        I::Item: TryInto<Field>,
        InvalidPointer: From<<I::Item as TryInto<Field>>::Error>,
    {
        fields::parse_some(fields).map(|fields| Self(Source::Fields(fields)))
    }

    /// Takes all of the body but these fields, such as a time that each try makes anew, in
    /// [canonical](Self::canonical) form.
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
        fields::parse_all(fields).map(|fields| Self(Source::Without(fields)))
    }

    /// Takes what a function makes of the request and its body, which is given in one piece. Where
    /// it gives `None`, the body is taken byte for byte.
    ///
    /// `name` and `version` stand for the function in the [`RecipeId`](crate::protocol::record::RecipeId):
    /// another version is another recipe.
    ///
    /// ```
    /// use tower_idempotency::FingerprintSource;
    ///
    /// // A protobuf message, read and written again with its maps in order.
    /// # fn in_order(body: &[u8]) -> Option<Vec<u8>> { Some(body.to_vec()) }
    /// let source = FingerprintSource::function("charge-in-order", 1, |_request, body| {
    ///     in_order(body).map(Into::into)
    /// });
    /// ```
    pub fn function<F>(name: impl Into<Cow<'static, str>>, version: u32, fingerprint: F) -> Self
    where
        F: for<'a> Fn(&'a Parts, &'a [u8]) -> Option<Cow<'a, [u8]>> + Send + Sync + 'static,
    {
        Self(Source::Function(FingerprintFunction {
            name: name.into(),
            version,
            fingerprint: Arc::new(fingerprint),
        }))
    }

    fn describe(&self, digest: &mut Digest) {
        let (tag, fields) = match &self.0 {
            Source::Body => (0, &[][..]),
            Source::Fields(fields) => (1, &fields[..]),
            Source::Without(fields) => (2, &fields[..]),
            Source::Function(function) => {
                digest.tag(3);
                digest.field(function.name.as_bytes());
                digest.raw(&function.version.to_le_bytes());
                return;
            }
        };
        digest.tag(tag);
        digest.count(fields.len());
        for field in fields {
            digest.field(field.to_string().as_bytes());
            digest.tag(field.is_optional().into());
        }
    }
}

#[derive(Clone)]
struct FingerprintFunction {
    name: Cow<'static, str>,
    version: u32,
    fingerprint: Arc<GiveBytes>,
}

type GiveBytes = dyn for<'a> Fn(&'a Parts, &'a [u8]) -> Option<Cow<'a, [u8]>> + Send + Sync;

impl fmt::Debug for FingerprintFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FingerprintFunction")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// What of the query must be equal in a request and its retry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuerySource {
    /// All of it; only its percent-encoding may differ. The default.
    #[default]
    All,
    /// Nothing.
    None,
    /// All parameters but these, such as a signature that each try makes anew; see
    /// [`QuerySource::without`].
    Without(Vec<String>),
}

impl QuerySource {
    /// Takes all parameters but those of these names.
    ///
    /// ```
    /// use tower_idempotency::QuerySource;
    ///
    /// let query = QuerySource::without(["timestamp", "signature"]);
    /// ```
    pub fn without<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let mut names: Vec<_> = names.into_iter().map(Into::into).collect();
        names.sort_unstable();
        names.dedup();
        Self::Without(names)
    }

    fn describe(&self, digest: &mut Digest) {
        match self {
            Self::All => digest.tag(0),
            Self::None => digest.tag(1),
            Self::Without(names) => {
                digest.tag(2);
                digest.count(names.len());
                for name in names {
                    digest.field(name.as_bytes());
                }
            }
        }
    }

    fn feed(&self, parts: &Parts, digest: &mut Digest) {
        match self {
            Self::All => digest.optional(query(parts).as_deref().map(str::as_bytes)),
            Self::None => {}
            Self::Without(names) => {
                let query = query(parts).unwrap_or_default();
                let is_left_out = |pair: &str| {
                    let name = pair.split('=').next().unwrap_or_default();
                    let name = percent_decoded(name.as_bytes());
                    names.iter().any(|left_out| left_out.as_bytes() == &*name)
                };
                let pairs = query.split('&').filter(|pair| !pair.is_empty());
                for pair in pairs.filter(|pair| !is_left_out(pair)) {
                    digest.optional(Some(pair.as_bytes()));
                }
                // There are no more.
                digest.optional(None);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Fingerprinting {
    pub(super) source: FingerprintSource,
    /// Request headers that must be equal, too, by name.
    pub(super) headers: Vec<HeaderName>,
    pub(super) query: QuerySource,
}

impl Fingerprinting {
    pub(super) fn needs_whole_body(&self) -> bool {
        !matches!(self.source.0, Source::Body)
    }

    /// Feeds what tells these settings from others.
    pub(super) fn describe(&self, digest: &mut Digest) {
        self.source.describe(digest);
        digest.count(self.headers.len());
        for name in &self.headers {
            digest.field(name.as_str().as_bytes());
        }
        self.query.describe(digest);
    }

    pub(super) fn fingerprint(
        &self,
        parts: &Parts,
        path: &str,
        fields: &Fields<'_>,
        body: &Chunks,
        whole: Option<&Bytes>,
    ) -> Fingerprint {
        let content_type = match fields.is_repeated(CONTENT_TYPE_SLOT) {
            false => Cow::Borrowed(fields.first(CONTENT_TYPE_SLOT)),
            // Readers may differ on which one counts.
            true => Cow::Owned(
                fields
                    .lines(CONTENT_TYPE_SLOT)
                    .collect::<Vec<_>>()
                    .join(&b", "[..]),
            ),
        };
        let media = match content_type {
            Cow::Owned(_) => Media::Other,
            Cow::Borrowed(content_type) if self.needs_whole_body() => Media::of(content_type),
            Cow::Borrowed(content_type) => Media::multipart_or_other(content_type),
        };
        let mut digest = Digest::new(Domain::Request);
        // First, so that it begins where a block of SHA-256 does: if it did not, it would take up
        // to half as long again.
        let form = self.add_body(&mut digest, parts, &media, body, whole);
        // The method is in the record's name, and so is the path, unless there is another target.
        digest.field(path.as_bytes());
        self.query.feed(parts, &mut digest);
        for slot in fields.operations() {
            digest.tag(slot as u8 + 1);
            fields.feed(slot, &mut digest);
        }
        // There are no more.
        digest.tag(0);
        for name in &self.headers {
            feed_named(&parts.headers, name, &mut digest);
        }
        if body.length() > 0 {
            fields::feed_media(&content_type, &mut digest);
            if fields.get(CONTENT_ENCODING_SLOT).is_some() {
                fields.feed(CONTENT_ENCODING_SLOT, &mut digest);
            }
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
        parts: &Parts,
        media: &Media<'_>,
        body: &Chunks,
        whole: Option<&Bytes>,
    ) -> Form {
        let whole = bytes_of(whole);
        // A digest is left as it was by fields that cannot be read.
        match &self.source.0 {
            Source::Fields(fields)
                if fields::select(media, whole, fields, Blank::IsAValue, digest).is_ok() =>
            {
                return Form::Fields;
            }
            Source::Without(fields) if fields::without(media, whole, fields, digest).is_ok() => {
                return Form::Without;
            }
            Source::Function(function) => {
                if let Some(bytes) = (function.fingerprint)(parts, whole) {
                    digest.field(&bytes);
                    return Form::Function;
                }
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
        for chunk in body.iter() {
            digest.raw(chunk);
        }
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
    /// What the application's function makes of it.
    Function = 4,
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(uri: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Fingerprint {
        by(&Fingerprinting::default(), uri, headers, body)
    }

    fn by(
        fingerprinting: &Fingerprinting,
        uri: &str,
        headers: &[(&str, &str)],
        body: &'static [u8],
    ) -> Fingerprint {
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("it is valid").into_parts();
        let body = Chunks::from(Bytes::from_static(body));
        let whole = fingerprinting.needs_whole_body().then(|| body.contiguous());
        let mut fields = Fields::of(&parts.headers);
        fields.find();
        let path = super::super::original_path(&parts);
        fingerprinting.fingerprint(&parts, &path, &fields, &body, whole.as_ref())
    }

    fn digest_of(bytes: &[u8]) -> Fingerprint {
        let mut digest = Digest::new(Domain::Request);
        digest.raw(bytes);
        Fingerprint::from_digest(&mut digest)
    }

    const TEXT: (&str, &str) = ("content-type", "text/plain");

    #[test]
    fn a_fingerprint_is_of_these_bytes() {
        let headers = [
            TEXT,
            ("x-amz-target", "Start"),
            ("authorization", "Bearer x"),
        ];
        let expected = [
            &b"1200\x0b/v1/charges\x04a=1\x16\x05Start\x00\x0atext/plain\x00"[..],
            b"\x04\x00\x00\x00\x00\x00\x00\x00\x00",
        ];
        assert_eq!(
            of("/v1/charges?a=1", &headers, b"1200"),
            digest_of(&expected.concat())
        );
    }

    #[test]
    fn what_comes_after_a_body_is_not_taken_for_its_end() {
        let one = of("/a", &[("content-type", "b/c")], b"12");
        assert_ne!(one, of("/a", &[("content-type", "b/c")], b"12\x02/a"));
        // One after the other, both give the same bytes up to the length of the body.
        assert_ne!(of("/aaa", &[], b"12"), of("/a", &[], b"12\x04/aa"));
    }

    #[test]
    fn the_type_of_a_body_that_is_not_there_does_not_count() {
        assert_eq!(of("/a", &[TEXT], b""), of("/a", &[], b""));
        assert_ne!(of("/a", &[TEXT], b"x"), of("/a", &[], b"x"));
    }

    #[test]
    fn headers_that_name_an_operation_count() {
        let base = of("/a", &[], b"x");
        for name in super::super::OPERATION_HEADERS {
            let one = of("/a", &[(name, "1")], b"x");
            assert_ne!(one, base, "{name}");
            assert_ne!(one, of("/a", &[(name, "2")], b"x"), "{name}");
            assert_eq!(
                of("/a", &[(name, "1"), (name, "2")], b"x"),
                of("/a", &[(name, "1, 2")], b"x"),
                "{name}"
            );
        }
        assert_ne!(of("/a", &[("content-encoding", "gzip")], b"x"), base);
        assert_eq!(
            of("/a", &[("accept", "*/*"), ("authorization", "b")], b"x"),
            base
        );
    }

    #[test]
    fn two_media_types_are_neither_of_them() {
        let [json, text] = [("content-type", "application/json"), TEXT];
        let canonical = Recipe::new().fingerprint(FingerprintSource::canonical());
        let of = |headers: &[_], body| by(&canonical.fingerprinting, "/a", headers, body);
        assert_eq!(of(&[json], b"[1]"), of(&[json], b"[ 1 ]"));
        assert_ne!(of(&[json, text], b"[1]"), of(&[json, text], b"[ 1 ]"));
        assert_ne!(of(&[json, text], b"[1]"), of(&[text, json], b"[1]"));
    }

    use super::super::Recipe;

    #[test]
    fn the_query_counts_as_it_is_set() {
        let all = Fingerprinting::default();
        let none = Fingerprinting {
            query: QuerySource::None,
            ..Fingerprinting::default()
        };
        let without = Fingerprinting {
            query: QuerySource::without(["t", "s g"]),
            ..Fingerprinting::default()
        };
        let same = |by_setting: &Fingerprinting, one: &str, other: &str| {
            by(by_setting, one, &[], b"x") == by(by_setting, other, &[], b"x")
        };
        assert!(same(&all, "/a?b=%7E", "/a?b=~"));
        assert!(same(&all, "/a?", "/a"));
        assert!(!same(&all, "/a?b=1", "/a?b=2"));
        assert!(!same(&all, "/a?b=1&c=2", "/a?c=2&b=1"));
        assert!(same(&none, "/a?b=1", "/a"));
        assert!(same(&without, "/a?t=1&b=1&s+g=3", "/a?b=1&t=2&s%20g=4"));
        assert!(same(&without, "/a?t=1", "/a"));
        assert!(!same(&without, "/a?b=1&t=1", "/a?b=2&t=1"));
        assert!(!same(&without, "/a?b=1&c=2", "/a?b=1%26c=2"));
        assert!(!same(&without, "/a?tt=1", "/a"));
    }

    #[test]
    fn a_function_says_what_counts_or_leaves_it_to_the_bytes() {
        let function = FingerprintSource::function("first-line", 1, |_, body| {
            let end = body.iter().position(|byte| *byte == b'\n')?;
            Some(Cow::Borrowed(&body[..end]))
        });
        let recipe = Recipe::new().fingerprint(function);
        let of = |body| by(&recipe.fingerprinting, "/a", &[TEXT], body);
        assert_eq!(of(b"a\nb"), of(b"a\nc"));
        assert_ne!(of(b"a\nb"), of(b"b\nb"));
        assert_ne!(of(b"a"), of(b"a\n"));
        assert_ne!(of(b"a"), of(b"b"));
    }
}
