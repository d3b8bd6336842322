//! Who sent a request, as far as its head tells.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Uri};

use super::cookies::{self, Cookie, Jar};
use super::headers::{
    AUTHORIZATION_SLOT, COOKIE_SLOT, FORWARDED_CERT_SLOT, Fields, HOST_SLOT, name,
};
use super::signed::{self, Signer};
use crate::format::digest::{Digest, Domain};
use crate::protocol::key::RecordKey;
use crate::protocol::record::CallerDigest;

/// What tells the callers of one key apart; see
/// [`IdempotencyLayer::caller`](crate::IdempotencyLayer::caller).
#[derive(Clone, Debug)]
pub struct CallerSource(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Credentials,
    SignedIdentity,
    Function(CallerFunction),
}

impl CallerSource {
    /// Takes the credentials of a request, whole: every field of
    /// [`CREDENTIAL_HEADERS`](crate::CREDENTIAL_HEADERS) that is there, and none stands for
    /// another. Of `Cookie` the pairs count, in any order, without
    /// [`UNIDENTIFYING_COOKIES`](crate::UNIDENTIFYING_COOKIES); of `X-Forwarded-Client-Cert` the
    /// URI of each certificate, or its subject.
    pub const fn credentials() -> Self {
        Self(Kind::Credentials)
    }

    /// As [`credentials`](Self::credentials), but takes of an `Authorization` that is made anew
    /// for each request only who signed it: the access key id of AWS Signature Version 4 (also of
    /// a presigned query) and 2, user name and realm of Digest, consumer key and token of OAuth 1,
    /// the id of Hawk, the key id of HTTP signatures, the account of Azure's shared keys and the
    /// tokens of Akamai's EdgeGrid. Of `Negotiate` and `NTLM` nothing can be told from the rest.
    ///
    /// This is right only where authentication is *outside* of the layer. An identity is no
    /// secret, and a replay never reaches the handler: a layer that is not behind the check of the
    /// signature gives the response to everyone who knows the identity.
    ///
    /// A presigned query is part of the request as well, and its signature is made anew:
    /// [`fingerprint_query`](crate::IdempotencyLayer::fingerprint_query) leaves it out.
    pub const fn signed_identity() -> Self {
        Self(Kind::SignedIdentity)
    }

    /// Takes what a function says, such as the subject of a token that middleware outside of the
    /// layer has checked. Where it gives `None`, the [`credentials`](Self::credentials) count.
    ///
    /// `name` and `version` stand for the function in the [`RecipeId`](crate::protocol::record::RecipeId):
    /// another version is another recipe.
    ///
    /// ```
    /// use std::borrow::Cow;
    /// use tower_idempotency::CallerSource;
    ///
    /// #[derive(Clone)]
    /// struct Subject(String);
    ///
    /// let caller = CallerSource::function("token-subject", 1, |request| {
    ///     let subject = request.extensions.get::<Subject>()?;
    ///     Some(Cow::Borrowed(subject.0.as_str()))
    /// });
    /// ```
    pub fn function<F>(name: impl Into<Cow<'static, str>>, version: u32, caller: F) -> Self
    where
        F: for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    {
        Self(Kind::Function(CallerFunction {
            name: name.into(),
            version,
            caller: Arc::new(caller),
        }))
    }

    /// What the application's function says.
    fn says<'a>(&self, parts: &'a Parts) -> Option<Cow<'a, str>> {
        match &self.0 {
            Kind::Function(function) => (function.caller)(parts),
            Kind::Credentials | Kind::SignedIdentity => None,
        }
    }

    /// Feeds what tells this setting from others.
    pub(super) fn describe(&self, digest: &mut Digest) {
        match &self.0 {
            Kind::Credentials => digest.tag(0),
            Kind::SignedIdentity => digest.tag(1),
            Kind::Function(function) => {
                digest.tag(2);
                digest.field(function.name.as_bytes());
                digest.raw(&function.version.to_le_bytes());
            }
        }
    }
}

#[derive(Clone)]
struct CallerFunction {
    name: Cow<'static, str>,
    version: u32,
    caller: Arc<GiveCaller>,
}

type GiveCaller = dyn for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync;

impl fmt::Debug for CallerFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerFunction")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// How callers are told apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Calling {
    /// `None`: credentials, unless there is a scope.
    pub(super) source: Option<CallerSource>,
    /// The cookies that count, in order; `None`: all that may identify somebody.
    pub(super) session_cookies: Option<Vec<Cow<'static, str>>>,
    pub(super) any_host: bool,
}

// What is fed before each part of a caller. A credential has its slot, plus `CREDENTIAL`.
const SUBJECT: u8 = 1;
const SIGNED: u8 = 2;
const PRESIGNED: u8 = 3;
const CREDENTIAL: u8 = 4;

/// Whether anything tells the caller of a request from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Yes,
    No,
}

impl Calling {
    /// Feeds what tells these settings from others.
    pub(super) fn describe(&self, digest: &mut Digest) {
        match &self.source {
            None => digest.tag(0),
            Some(source) => {
                digest.tag(1);
                source.describe(digest);
            }
        }
        match &self.session_cookies {
            None => digest.tag(0),
            Some(names) => {
                digest.count(names.len() + 1);
                for name in names {
                    digest.field(name.as_bytes());
                }
            }
        }
        digest.tag(self.any_host.into());
    }

    /// The digest over record key and caller together, so that it is no hash of a password that
    /// is the same in every record.
    #[inline]
    pub(super) fn digest(
        &self,
        key: &RecordKey,
        is_scoped: bool,
        parts: &Parts,
        fields: &Fields<'_>,
    ) -> (CallerDigest, Known) {
        if is_scoped && self.source.is_none() {
            return (CallerDigest::NOBODY, Known::Yes);
        }
        let mut digest = Digest::new(Domain::Caller);
        // Half of it is as good as all, and leaves room for a short caller in one block of
        // SHA-256.
        digest.raw(&key.as_bytes()[..16]);
        if !is_scoped && !self.any_host {
            feed_host(&host(&parts.uri, fields), &mut digest);
        }
        let said = self.source.as_ref().and_then(|source| source.says(parts));
        let known = match said {
            Some(subject) => {
                digest.tag(SUBJECT);
                digest.field(subject.as_bytes());
                Known::Yes
            }
            None => self.feed_credentials(parts, fields, &mut digest),
        };
        let known = if is_scoped { Known::Yes } else { known };
        let mut caller = [0; 16];
        caller.copy_from_slice(&digest.finish()[..16]);
        (CallerDigest::from_bytes(caller), known)
    }

    fn feed_credentials(&self, parts: &Parts, fields: &Fields<'_>, digest: &mut Digest) -> Known {
        let signs = matches!(&self.source, Some(CallerSource(Kind::SignedIdentity)));
        let mut known = Known::No;
        for slot in fields.credentials() {
            match slot {
                COOKIE_SLOT if !self.feed_cookies(fields, digest) => continue,
                COOKIE_SLOT => {}
                FORWARDED_CERT_SLOT => {
                    digest.tag(CREDENTIAL + slot as u8);
                    feed_certificates(fields, digest);
                }
                _ => match (signs && slot == AUTHORIZATION_SLOT)
                    .then(|| signer(fields))
                    .flatten()
                {
                    Some(signer) => {
                        digest.tag(SIGNED);
                        signer.feed(digest);
                    }
                    None => {
                        digest.tag(CREDENTIAL + slot as u8);
                        fields.feed(slot, digest);
                    }
                },
            }
            known = Known::Yes;
        }
        if signs && let Some(presigner) = parts.uri.query().and_then(signed::presigner) {
            digest.tag(PRESIGNED);
            digest.field(presigner.as_bytes());
            known = Known::Yes;
        }
        known
    }

    /// Feeds the cookies that count; `false`, and nothing is fed, when there are none.
    fn feed_cookies(&self, fields: &Fields<'_>, digest: &mut Digest) -> bool {
        let cookies = cookies::read(fields.lines(COOKIE_SLOT)).filter(|cookie| self.counts(cookie));
        let mut jar = Jar::of(cookies);
        let cookies = jar.cookies();
        if cookies.is_empty() {
            return false;
        }
        digest.tag(CREDENTIAL + COOKIE_SLOT as u8);
        cookies::feed(cookies, digest);
        true
    }

    fn counts(&self, cookie: &Cookie<'_>) -> bool {
        match &self.session_cookies {
            None => !cookies::is_unidentifying(cookie.name),
            Some(names) => names.iter().any(|name| name.as_bytes() == cookie.name),
        }
    }

    /// The names of what tells the caller of this request from others, never a value.
    pub(super) fn names(&self, is_scoped: bool, headers: &HeaderMap, uri: &Uri) -> Vec<String> {
        let mut fields = Fields::of(headers);
        fields.find();
        let mut names = Vec::new();
        if !is_scoped && !self.any_host && !host(uri, &fields).is_empty() {
            names.push("host".to_owned());
        }
        if let Some(CallerSource(Kind::Function(function))) = &self.source {
            names.push(format!("function {}", function.name));
        }
        if is_scoped && self.source.is_none() {
            return names;
        }
        for slot in fields.credentials() {
            if slot != COOKIE_SLOT {
                names.push(name(slot).to_owned());
                continue;
            }
            let cookies = cookies::read(fields.lines(slot));
            names.extend(
                cookies
                    .filter(|cookie| self.counts(cookie))
                    .map(|cookie| format!("cookie {}", String::from_utf8_lossy(cookie.name))),
            );
        }
        names
    }

    /// The scheme by which the caller signs each request anew, if that makes another caller of
    /// it each time.
    pub(super) fn signing_scheme(
        &self,
        is_scoped: bool,
        headers: &HeaderMap,
    ) -> Option<&'static str> {
        let whole = match &self.source {
            None => !is_scoped,
            Some(CallerSource(Kind::Credentials)) => true,
            Some(_) => false,
        };
        let authorization = headers.get(http::header::AUTHORIZATION)?;
        whole
            .then(|| signed::scheme(authorization.as_bytes()))
            .flatten()
    }
}

/// Who signed the request, when it is known.
fn signer<'a>(fields: &Fields<'a>) -> Option<Signer<'a>> {
    let is_one_line = !fields.is_repeated(AUTHORIZATION_SLOT);
    is_one_line.then(|| Signer::read(fields.first(AUTHORIZATION_SLOT)))?
}

/// Feeds whom each certificate of `X-Forwarded-Client-Cert` is for. Its hash and its text change
/// when it is renewed.
fn feed_certificates(fields: &Fields<'_>, digest: &mut Digest) {
    for certificate in fields
        .lines(FORWARDED_CERT_SLOT)
        .flat_map(|line| signed::split(line, b','))
    {
        let (mut kind, mut subjects) = (1, subjects_of(certificate, "uri"));
        if subjects.is_empty() {
            (kind, subjects) = (2, subjects_of(certificate, "subject"));
        }
        // One that names nobody counts as a whole.
        if subjects.is_empty() {
            (kind, subjects) = (3, vec![Cow::Borrowed(certificate)]);
        }
        digest.count(subjects.len());
        // The subject of one is not the URI of another.
        digest.tag(kind);
        for subject in subjects {
            digest.field(&subject);
        }
    }
    // There are no more.
    digest.count(0);
}

fn subjects_of<'a>(certificate: &'a [u8], wanted: &str) -> Vec<Cow<'a, [u8]>> {
    signed::split(certificate, b';')
        .filter_map(|pair| {
            let end = memchr::memchr(b'=', pair)?;
            let is_wanted = pair[..end].eq_ignore_ascii_case(wanted.as_bytes());
            is_wanted
                .then(|| signed::unquoted(&pair[end + 1..]))
                .flatten()
        })
        .filter(|subject| !subject.is_empty())
        .collect()
}

/// The host that the request was sent to; empty when it is not known.
#[inline]
fn host<'a>(uri: &'a Uri, fields: &Fields<'a>) -> Cow<'a, [u8]> {
    if let Some(authority) = uri.authority() {
        let authority = authority.as_str();
        let start = authority.rfind('@').map_or(0, |at| at + 1);
        return Cow::Borrowed(&authority.as_bytes()[start..]);
    }
    match fields.is_repeated(HOST_SLOT) {
        false => Cow::Borrowed(fields.first(HOST_SLOT)),
        true => Cow::Owned(fields.lines(HOST_SLOT).collect::<Vec<_>>().join(&b", "[..])),
    }
}

/// Feeds a host in lower case and without a default port. Which scheme the client has used is not
/// known behind a proxy that ends TLS, so that the default ports of both are none.
fn feed_host(host: &[u8], digest: &mut Digest) {
    let host = match host {
        [host @ .., b':', b'4', b'4', b'3'] => host,
        [host @ .., b':', b'8', b'0'] => host,
        [host @ .., b':'] => host,
        host => host,
    };
    digest.field_in_lower_case(host);
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::super::{CREDENTIAL_HEADERS, Recipe};
    use super::*;

    const KEY: RecordKey = RecordKey::from_bytes([7; 32]);

    struct Sent {
        uri: &'static str,
        headers: Vec<(&'static str, String)>,
    }

    fn sent<const N: usize>(headers: [(&'static str, &str); N]) -> Sent {
        Sent {
            uri: "/a",
            headers: headers
                .into_iter()
                .map(|(name, value)| (name, value.to_owned()))
                .collect(),
        }
    }

    fn host(name: &str) -> Sent {
        sent([("host", name)])
    }

    fn at(uri: &'static str) -> Sent {
        Sent { uri, ..sent([]) }
    }

    fn parts(sent: &Sent) -> Parts {
        let mut request = Request::post(sent.uri);
        for (name, value) in &sent.headers {
            request = request.header(*name, value);
        }
        request.body(()).expect("it is valid").into_parts().0
    }

    fn by(recipe: &Recipe, is_scoped: bool, sent: &Sent) -> (CallerDigest, Known) {
        let parts = parts(sent);
        let mut fields = Fields::of(&parts.headers);
        fields.find();
        recipe.calling.digest(&KEY, is_scoped, &parts, &fields)
    }

    /// Whether all of these come from one caller.
    fn are_one(recipe: &Recipe, requests: &[Sent]) -> bool {
        let caller = |sent| by(recipe, false, sent).0;
        requests
            .iter()
            .all(|sent| caller(sent) == caller(&requests[0]))
    }

    fn differ(recipe: &Recipe, one: &Sent, other: &Sent) -> bool {
        by(recipe, false, one).0 != by(recipe, false, other).0
    }

    #[test]
    fn a_caller_is_of_these_bytes() {
        let mut digest = Digest::new(Domain::Caller);
        digest.raw(&[7; 16]);
        digest.raw(b"\x0fapi.example.com");
        digest.raw(b"\x04\x12Bearer sk_test_123");
        // A cookie without a value, and one with: by name.
        digest.raw(b"\x05\x02\x01a\x00\x01b\x012");
        let expected = digest.finish();
        let sent = sent([
            ("cookie", "b=2; _ga=3; a="),
            ("authorization", "Bearer sk_test_123"),
            ("host", "api.example.com"),
        ]);
        let (caller, known) = by(&Recipe::new(), false, &sent);
        assert_eq!(caller.as_bytes()[..], expected[..16]);
        assert_eq!(known, Known::Yes);
    }

    #[test]
    fn each_credential_counts_and_none_stands_for_another() {
        let recipe = Recipe::new();
        let nobody = sent([]);
        assert_eq!(by(&recipe, false, &nobody).1, Known::No);
        for name in CREDENTIAL_HEADERS {
            let one = sent([(name, "a=1")]);
            assert_eq!(by(&recipe, false, &one).1, Known::Yes, "{name}");
            assert!(differ(&recipe, &one, &nobody), "{name}");
            assert!(differ(&recipe, &one, &sent([(name, "a=2")])), "{name}");
            for other in CREDENTIAL_HEADERS.iter().filter(|other| **other != name) {
                assert!(differ(&recipe, &one, &sent([(other, "a=1")])));
                assert!(differ(
                    &recipe,
                    &one,
                    &sent([(name, "a=1"), (other, "a=1")])
                ));
            }
        }
    }

    #[test]
    fn what_is_no_credential_does_not_count() {
        for name in [
            "proxy-authorization",
            "x-forwarded-host",
            "x-amzn-oidc-data",
            "x-goog-iap-jwt-assertion",
            "cf-access-jwt-assertion",
            "user-agent",
            "x-request-id",
        ] {
            let requests = [sent([(name, "1")]), sent([(name, "2")]), sent([])];
            assert!(are_one(&Recipe::new(), &requests), "{name}");
            assert_eq!(by(&Recipe::new(), false, &requests[0]).1, Known::No);
        }
    }

    #[test]
    fn the_same_credentials_are_another_digest_in_another_record() {
        let parts = parts(&sent([("authorization", "Basic YTpi")]));
        let mut fields = Fields::of(&parts.headers);
        fields.find();
        let of = |key: u8| {
            let key = RecordKey::from_bytes([key; 32]);
            Recipe::new().calling.digest(&key, false, &parts, &fields).0
        };
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn cookies_count_by_pairs() {
        let recipe = Recipe::new();
        let same = [
            sent([("cookie", "a=1; b=2")]),
            sent([("cookie", "b=2;a=1; ")]),
            sent([("cookie", "b=2"), ("cookie", "a=1")]),
            sent([("cookie", "_ga=GA1; b=2; AWSALB=x; a=1; XSRF-TOKEN=y")]),
        ];
        assert!(are_one(&recipe, &same));
        for other in [
            "a=1",
            "a=1; b=3",
            "a=2; b=1",
            "a=1; b=2; c=3",
            "a=1; b=2; b=2",
        ] {
            assert!(
                differ(&recipe, &same[0], &sent([("cookie", other)])),
                "{other}"
            );
        }
        let no_cookie = [
            sent([]),
            sent([("cookie", "")]),
            sent([("cookie", "_ga=1; ;")]),
        ];
        assert!(are_one(&recipe, &no_cookie));
        assert_eq!(by(&recipe, false, &no_cookie[2]).1, Known::No);
    }

    #[test]
    fn session_cookies_are_those_that_are_named() {
        let recipe = Recipe::new().session_cookies(["sid", "_ga"]);
        let same = [
            sent([("cookie", "sid=1; _ga=2; laravel_session=x")]),
            sent([("cookie", "laravel_session=y; _ga=2; sid=1")]),
        ];
        assert!(are_one(&recipe, &same));
        assert!(differ(
            &recipe,
            &same[0],
            &sent([("cookie", "sid=2; _ga=2")])
        ));
        assert!(differ(
            &recipe,
            &same[0],
            &sent([("cookie", "sid=1; _ga=3")])
        ));
    }

    #[test]
    fn a_host_is_one_in_any_case_and_without_a_default_port() {
        let recipe = Recipe::new();
        let same = [
            host("api.example.com"),
            host("API.example.com"),
            host("api.example.com:443"),
            host("api.example.com:80"),
            host("api.example.com:"),
            at("https://api.example.com/a"),
            at("http://me:secret@api.EXAMPLE.com:80/a"),
            Sent {
                uri: "https://api.example.com/a",
                ..host("other.example.com")
            },
        ];
        assert!(are_one(&recipe, &same));
        for other in [
            "api.example.com:8443",
            "api.example.org",
            "",
            "example.com",
            "[::1]",
        ] {
            assert!(differ(&recipe, &same[0], &host(other)), "{other}");
        }
        assert!(are_one(
            &recipe,
            &[host("[::1]"), host("[::1]:443"), at("http://[::1]:80/a")]
        ));
        assert!(differ(&recipe, &host("[::1]"), &host("[::80]")));
        let two = sent([("host", "a"), ("host", "b")]);
        assert!(differ(&recipe, &two, &host("a")));
        let any = Recipe::new().any_host();
        assert!(are_one(
            &any,
            &[host("a"), host("b"), two, at("http://c/a"), sent([])]
        ));
    }

    #[test]
    fn with_a_scope_neither_credentials_nor_host_count() {
        let one = sent([("authorization", "Bearer a"), ("host", "a")]);
        let other = sent([("cookie", "sid=1"), ("host", "b:8443")]);
        let of = |recipe: &Recipe, sent| by(recipe, true, sent).0;
        let recipe = Recipe::new();
        assert_eq!(of(&recipe, &one), of(&recipe, &other));
        assert_eq!(by(&recipe, true, &sent([])).1, Known::Yes);
        // Unless they are asked for, which says nothing of the host.
        let recipe = Recipe::new().caller(CallerSource::credentials());
        assert_ne!(of(&recipe, &one), of(&recipe, &other));
        let elsewhere = sent([("authorization", "Bearer a"), ("host", "b")]);
        assert_eq!(of(&recipe, &one), of(&recipe, &elsewhere));
    }

    #[test]
    fn signatures_count_unless_only_who_signed_is_asked_for() {
        let sign = |key: &str, signature: &str| {
            let value = format!(
                "AWS4-HMAC-SHA256 Credential={key}/20261125/eu/x/aws4_request, SignedHeaders=host, Signature={signature}"
            );
            sent([("authorization", &value), ("x-api-key", "k")])
        };
        let recipe = Recipe::new();
        assert!(differ(&recipe, &sign("AKIA1", "a"), &sign("AKIA1", "b")));
        let recipe = recipe.caller(CallerSource::signed_identity());
        assert!(are_one(&recipe, &[sign("AKIA1", "a"), sign("AKIA1", "b")]));
        assert!(differ(&recipe, &sign("AKIA1", "a"), &sign("AKIA2", "a")));
        // All else counts as before.
        let bearer = |token| sent([("authorization", token)]);
        assert!(differ(&recipe, &bearer("Bearer a"), &bearer("Bearer b")));
        assert!(differ(
            &recipe,
            &bearer("Negotiate a"),
            &bearer("Negotiate b")
        ));
        let presigned = at("/a?X-Amz-Credential=AKIA1%2F2026&X-Amz-Signature=a");
        let again = at("/a?X-Amz-Signature=b&X-Amz-Credential=AKIA1%2F2027");
        assert!(!differ(&recipe, &presigned, &again));
        assert!(differ(
            &recipe,
            &presigned,
            &at("/a?X-Amz-Credential=AKIA2%2F2026")
        ));
        assert_eq!(by(&recipe, false, &presigned).1, Known::Yes);
    }

    #[test]
    fn of_a_forwarded_certificate_it_counts_whom_it_is_for() {
        let recipe = Recipe::new();
        let cert = |value: &str| sent([("x-forwarded-client-cert", value)]);
        let same = [
            cert(r#"By=spiffe://x/p1;Hash=aa;Subject="CN=a, O=b";URI=spiffe://x/a"#),
            cert(r#"By=spiffe://x/p2;Hash=bb;Cert="-----";URI=spiffe://x/a;Subject="CN=c""#),
            cert("URI=spiffe://x/a"),
        ];
        assert!(are_one(&recipe, &same));
        assert!(differ(&recipe, &same[0], &cert("Hash=aa;URI=spiffe://x/b")));
        let subject = cert(r#"Hash=aa;Subject="CN=a;b, O=\"c\"""#);
        assert!(!differ(
            &recipe,
            &subject,
            &cert(r#"Subject="CN=a;b, O=\"c\"";Hash=bb"#)
        ));
        assert!(differ(
            &recipe,
            &subject,
            &cert(r#"Hash=aa;Subject="CN=a;c, O=\"c\"""#)
        ));
        // Two hops, in two ways of writing them; and nobody.
        let two = cert("Hash=a;URI=u,Hash=b;URI=v");
        let lines = sent([
            ("x-forwarded-client-cert", "Hash=c;URI=u"),
            ("x-forwarded-client-cert", "URI=v;Hash=d"),
        ]);
        assert!(!differ(&recipe, &two, &lines));
        assert!(differ(&recipe, &two, &cert("URI=u;URI=v")));
        assert!(differ(&recipe, &cert("Hash=a"), &cert("Hash=b")));
        // A subject is no URI, whatever a certificate says.
        assert!(differ(&recipe, &cert("URI=CN=a"), &cert("Subject=CN=a")));
    }

    #[test]
    fn a_function_may_say_who_it_is() {
        let subject = CallerSource::function("x-subject", 1, |request| {
            let subject = request.headers.get("x-subject")?;
            Some(Cow::Borrowed(subject.to_str().ok()?))
        });
        let recipe = Recipe::new().caller(subject);
        let of = |subject, token| sent([("x-subject", subject), ("authorization", token)]);
        assert!(are_one(
            &recipe,
            &[of("a", "Bearer 1"), of("a", "Bearer 2")]
        ));
        assert!(differ(&recipe, &of("a", "Bearer 1"), &of("b", "Bearer 1")));
        // Where it does not, the credentials do.
        let token = |token| sent([("authorization", token)]);
        assert!(differ(&recipe, &token("Bearer 1"), &token("Bearer 2")));
    }

    #[test]
    fn what_was_compared_is_told_by_name_alone() {
        let sent = sent([
            ("authorization", "AWS AKIA:s3cret"),
            ("cookie", "sid=s3cret; _ga=s3cret"),
            ("host", "a"),
        ]);
        let parts = parts(&sent);
        let names = |recipe: &Recipe, is_scoped| {
            recipe.calling.names(is_scoped, &parts.headers, &parts.uri)
        };
        let recipe = Recipe::new();
        assert_eq!(
            names(&recipe, false),
            ["host", "authorization", "cookie sid"]
        );
        assert!(names(&recipe, true).is_empty());
        let scheme =
            |recipe: &Recipe, is_scoped| recipe.calling.signing_scheme(is_scoped, &parts.headers);
        assert_eq!(scheme(&recipe, false), Some("aws"));
        assert_eq!(scheme(&recipe, true), None);
        let signed = recipe.caller(CallerSource::signed_identity());
        assert_eq!(scheme(&signed, false), None);
    }

    proptest! {
        #[test]
        fn any_head_has_a_caller(
            values in proptest::collection::vec(("[ -~]{0,30}", 0..CREDENTIAL_HEADERS.len()), 0..6),
        ) {
            let headers = values.into_iter().map(|(value, at)| (CREDENTIAL_HEADERS[at], value)).collect();
            let sent = Sent { uri: "/a", headers };
            for recipe in [Recipe::new(), Recipe::new().caller(CallerSource::signed_identity())] {
                let caller = by(&recipe, false, &sent);
                prop_assert_eq!(by(&recipe, false, &sent), caller);
            }
        }
    }
}
