//! Schemes of `Authorization` that make new credentials for each request.

use std::borrow::Cow;

use crate::format::digest::Digest;
use crate::layer::fields::{percent_decoded, unquote};

/// A scheme that signs each request anew, and how it names who signs.
struct Scheme {
    /// Its name in lower case, or how it begins.
    name: &'static str,
    is_prefix: bool,
    identity: Identity,
}

/// Where the identity of the signer is.
enum Identity {
    /// These parameters, separated by the byte.
    Parameters(u8, &'static [(&'static str, Presence)]),
    /// The first path segment of this parameter: an access key id before its credential scope.
    Scoped(&'static str),
    /// All before the first colon.
    BeforeColon,
    /// It cannot be told from the rest.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
    /// One of those that are marked so is required.
    Either,
}

use Presence::{Either, Optional, Required};

const SCHEMES: [Scheme; 11] = [
    // https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-authentication-methods.html
    Scheme::begins("aws4-", Identity::Scoped("credential")),
    Scheme::begins("goog4-", Identity::Scoped("credential")),
    Scheme::new("aws", Identity::BeforeColon),
    // RFC 7616
    Scheme::new(
        "digest",
        Identity::Parameters(
            b',',
            &[
                ("username", Either),
                ("username*", Either),
                ("realm", Required),
            ],
        ),
    ),
    // RFC 5849; what has no consumer key is a bearer token under another name.
    Scheme::new(
        "oauth",
        Identity::Parameters(
            b',',
            &[("oauth_consumer_key", Required), ("oauth_token", Optional)],
        ),
    ),
    // https://github.com/mozilla/hawk
    Scheme::new("hawk", Identity::Parameters(b',', &[("id", Required)])),
    // draft-cavage-http-signatures
    Scheme::new(
        "signature",
        Identity::Parameters(b',', &[("keyid", Required)]),
    ),
    // https://techdocs.akamai.com/developer/docs/edgegrid
    Scheme::new(
        "eg1-hmac-sha256",
        Identity::Parameters(
            b';',
            &[("client_token", Required), ("access_token", Required)],
        ),
    ),
    // https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
    Scheme::begins("sharedkey", Identity::BeforeColon),
    // RFC 4559
    Scheme::new("negotiate", Identity::Unknown),
    Scheme::new("ntlm", Identity::Unknown),
];

impl Scheme {
    const fn new(name: &'static str, identity: Identity) -> Self {
        Self {
            name,
            is_prefix: false,
            identity,
        }
    }

    const fn begins(name: &'static str, identity: Identity) -> Self {
        Self {
            name,
            is_prefix: true,
            identity,
        }
    }

    /// Finds the scheme of a value, and what follows it.
    fn of(value: &[u8]) -> Option<(&'static Self, &[u8])> {
        let end = memchr::memchr(b' ', value).unwrap_or(value.len());
        let (name, credentials) = value.split_at(end);
        let scheme = SCHEMES.iter().find(|scheme| {
            let wanted = scheme.name.as_bytes();
            let start = name.get(..wanted.len()).unwrap_or_default();
            start.eq_ignore_ascii_case(wanted) && (scheme.is_prefix || name.len() == wanted.len())
        })?;
        let credentials = credentials.trim_ascii();
        let is_bearer =
            scheme.name == "oauth" && parameter(credentials, b',', "oauth_consumer_key").is_none();
        (!is_bearer).then_some((scheme, credentials))
    }
}

/// The scheme of a value of `Authorization`, when it makes new credentials for each request.
pub(super) fn scheme(authorization: &[u8]) -> Option<&'static str> {
    Scheme::of(authorization).map(|(scheme, _)| scheme.name)
}

/// Who signed a request.
pub(super) struct Signer<'a> {
    scheme: &'static str,
    identity: Vec<Part<'a>>,
}

impl<'a> Signer<'a> {
    /// `None` when it cannot be told from the rest who signed.
    pub(super) fn read(authorization: &'a [u8]) -> Option<Self> {
        let (scheme, credentials) = Scheme::of(authorization)?;
        let identity = scheme.identity.read(credentials)?;
        let scheme = scheme.name;
        Some(Self { scheme, identity })
    }

    pub(super) fn feed(&self, digest: &mut Digest) {
        digest.field(self.scheme.as_bytes());
        for part in &self.identity {
            digest.optional(part.as_deref());
        }
    }
}

/// The access key id of a request whose query signs it ([presigned]); `None` when it has none.
///
/// [presigned]: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
pub(super) fn presigner(query: &str) -> Option<Cow<'_, str>> {
    let mut credentials = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let name = percent_decoded(name.as_bytes());
        (name.eq_ignore_ascii_case(b"x-amz-credential")
            || name.eq_ignore_ascii_case(b"x-goog-credential"))
        .then_some(value)
    });
    let credential = credentials.next()?;
    // Of two, a server may take either.
    if credentials.next().is_some() {
        return None;
    }
    let end = ["/", "%2F", "%2f"]
        .iter()
        .filter_map(|slash| credential.find(slash))
        .min()?;
    (end > 0).then_some(Cow::Borrowed(&credential[..end]))
}

type Part<'a> = Option<Cow<'a, [u8]>>;

impl Identity {
    /// `None` when something is missing, or in doubt.
    fn read<'a>(&self, credentials: &'a [u8]) -> Option<Vec<Part<'a>>> {
        match self {
            Self::Parameters(separator, names) => {
                let mut parts = Vec::with_capacity(names.len());
                let mut is_missing = names.iter().any(|(_, presence)| *presence == Either);
                for (name, presence) in *names {
                    let value = match parameter(credentials, *separator, name) {
                        None if *presence == Required => return None,
                        None => None,
                        Some(value) => Some(value?),
                    };
                    is_missing &= value.is_none() || *presence != Either;
                    parts.push(value);
                }
                (!is_missing).then_some(parts)
            }
            Self::Scoped(name) => match parameter(credentials, b',', name)?? {
                Cow::Borrowed(scoped) => before(scoped, b'/'),
                Cow::Owned(_) => None,
            },
            Self::BeforeColon => before(credentials, b':'),
            Self::Unknown => None,
        }
    }
}

fn before(text: &[u8], separator: u8) -> Option<Vec<Part<'_>>> {
    let end = memchr::memchr(separator, text).filter(|end| *end > 0)?;
    Some(vec![Some(Cow::Borrowed(&text[..end]))])
}

/// Finds a parameter. `None`: it is not there; `Some(None)`: it is there twice, or broken.
fn parameter<'a>(text: &'a [u8], separator: u8, wanted: &str) -> Option<Part<'a>> {
    let mut found = None;
    for piece in split(text, separator) {
        let Some(end) = memchr::memchr(b'=', piece) else {
            continue;
        };
        if piece[..end]
            .trim_ascii()
            .eq_ignore_ascii_case(wanted.as_bytes())
        {
            let value = unquoted(piece[end + 1..].trim_ascii());
            found = Some(if found.is_some() { None } else { value });
        }
    }
    found
}

/// The value without its quotes; `None` when they are broken.
pub(super) fn unquoted(value: &[u8]) -> Part<'_> {
    match value.strip_prefix(b"\"") {
        None => Some(Cow::Borrowed(value)),
        Some(quoted) => {
            let (value, rest) = unquote(quoted)?;
            rest.is_empty().then_some(value)
        }
    }
}

/// Splits at each `separator` that is not in quotes.
pub(super) fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |byte| {
        let is_escaped = std::mem::take(&mut escaped);
        match byte {
            b'\\' if quoted => escaped = !is_escaped,
            b'"' if !is_escaped => quoted = !quoted,
            _ => {}
        }
        *byte == separator && !quoted
    })
    .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::digest::Domain;

    fn identity(authorization: &str) -> Option<[u8; 32]> {
        let mut digest = Digest::new(Domain::Test);
        Signer::read(authorization.as_bytes())?.feed(&mut digest);
        Some(digest.finish())
    }

    #[test]
    fn a_signature_does_not_count_and_who_signed_does() {
        let cases: [[&str; 3]; 9] = [
            [
                "AWS4-HMAC-SHA256 Credential=AKIA1/20261125/eu-west-1/execute-api/aws4_request, SignedHeaders=host;x-amz-date, Signature=aa",
                "AWS4-HMAC-SHA256 Credential=AKIA1/20261126/eu-west-1/execute-api/aws4_request,SignedHeaders=host,Signature=bb",
                "AWS4-HMAC-SHA256 Credential=AKIA2/20261125/eu-west-1/execute-api/aws4_request, SignedHeaders=host;x-amz-date, Signature=aa",
            ],
            ["AWS AKIA1:sig1", "AWS AKIA1:sig2", "AWS AKIA2:sig1"],
            [
                r#"Digest username="a", realm="x, y", nonce="n1", uri="/", response="r1", nc=00000001"#,
                r#"Digest realm="x, y", username="a", nonce="n2", uri="/", response="r2", nc=00000002"#,
                r#"Digest username="b", realm="x, y", nonce="n1", uri="/", response="r1", nc=00000001"#,
            ],
            [
                r#"Digest username*=UTF-8''a, realm="x", nonce="n1""#,
                r#"digest username*=UTF-8''a, realm="x", nonce="n2""#,
                r#"Digest username="UTF-8''a", realm="x", nonce="n1""#,
            ],
            [
                r#"OAuth realm="r", oauth_consumer_key="c", oauth_token="t", oauth_nonce="1", oauth_signature="a""#,
                r#"OAuth oauth_token="t",oauth_consumer_key="c",oauth_nonce="2",oauth_signature="b""#,
                r#"OAuth oauth_token="u",oauth_consumer_key="c",oauth_nonce="2",oauth_signature="b""#,
            ],
            [
                r#"Hawk id="a\"b", ts="1", nonce="x", mac="m""#,
                r#"Hawk ts="2", id="a\"b", nonce="y", mac="n""#,
                r#"Hawk ts="1", id="a", nonce="x", mac="m""#,
            ],
            [
                r#"Signature keyId="k",algorithm="hs2019",signature="a""#,
                r#"Signature keyId="k",algorithm="hs2019",signature="b""#,
                r#"Signature keyId="l",algorithm="hs2019",signature="a""#,
            ],
            [
                "EG1-HMAC-SHA256 client_token=c;access_token=a;timestamp=1;nonce=n;signature=s",
                "EG1-HMAC-SHA256 client_token=c;access_token=a;timestamp=2;nonce=m;signature=t",
                "EG1-HMAC-SHA256 client_token=c;access_token=b;timestamp=1;nonce=n;signature=s",
            ],
            [
                "SharedKey account:s1",
                "SharedKey account:s2",
                "SharedKeyLite account:s1",
            ],
        ];
        for [one, again, other] in cases {
            let first = identity(one);
            assert!(first.is_some() && scheme(one.as_bytes()).is_some(), "{one}");
            assert_eq!(identity(again), first, "{again}");
            if !other.starts_with("SharedKeyLite") {
                assert_ne!(identity(other), first, "{other}");
            }
        }
    }

    #[test]
    fn what_is_in_doubt_has_no_identity() {
        for authorization in [
            "AWS4-HMAC-SHA256 Signature=aa",
            "AWS4-HMAC-SHA256 Credential=a/b, Credential=c/d",
            "AWS4-HMAC-SHA256 Credential=/20261125",
            "AWS :sig",
            "AWS",
            r#"Digest realm="x""#,
            r#"Digest username="a", username="b", realm="x""#,
            r#"Digest username="a, realm="x""#,
            r#"Hawk ts="1""#,
            "Negotiate YII",
        ] {
            assert_eq!(identity(authorization), None, "{authorization}");
            assert!(
                scheme(authorization.as_bytes()).is_some(),
                "{authorization}"
            );
        }
    }

    #[test]
    fn credentials_that_stay_are_not_signed() {
        for authorization in [
            "Bearer x",
            "Basic x",
            "OAuth 00Dx",
            "DPoP x",
            "Digests x",
            "",
            "x",
        ] {
            assert_eq!(scheme(authorization.as_bytes()), None, "{authorization}");
            assert_eq!(identity(authorization), None, "{authorization}");
        }
    }

    #[test]
    fn a_presigned_query_names_its_access_key() {
        let of = |query| presigner(query).map(Cow::into_owned);
        let query =
            "a=1&X-Amz-Credential=AKIA1%2F20261125%2Feu%2Fs3%2Faws4_request&X-Amz-Signature=s";
        assert_eq!(of(query).as_deref(), Some("AKIA1"));
        assert_eq!(
            of("X-Goog-Credential=me@x/2026/auto").as_deref(),
            Some("me@x")
        );
        assert_eq!(
            of("X%2DAmz%2dCredential=AKIA1%2F2026").as_deref(),
            Some("AKIA1")
        );
        for query in [
            "",
            "a=1",
            "X-Amz-Credential=",
            "X-Amz-Credential=%2F",
            "X-Amz-Credential=a/b&X-Amz-Credential=c/d",
        ] {
            assert_eq!(of(query), None, "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_identity_or_none(
            scheme in "(AWS4-x|Digest|OAuth|Hawk|AWS|x)",
            rest in "[a-z=\", \\\\;:/]{0,40}",
        ) {
            let value = format!("{scheme} {rest}");
            let _ = identity(&value);
            let _ = super::scheme(value.as_bytes());
        }

        #[test]
        fn pieces_joined_are_the_text(text in "[a\",\\\\]{0,20}") {
            let pieces: Vec<_> = split(text.as_bytes(), b',').collect();
            prop_assert_eq!(pieces.join(&b","[..]), text.as_bytes());
        }
    }
}
