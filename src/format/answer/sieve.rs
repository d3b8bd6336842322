//! What of a response is not stored.

use std::fmt;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName};

use super::{Answer, StoredResponse};

/// The response header fields that are not stored by default: they belong to one exchange, one
/// client or one moment, and not to the outcome of an operation.
///
/// Cookies, challenges and proofs of authentication, what CORS grants one origin, the trace of one
/// request, and what is left of a limit. A name that ends with `*` stands for all that begin so.
///
/// `Retry-After` is stored: in a final response, such as a 202, it says how to poll, and is part of
/// the handler's answer.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use http::header::{HeaderName, SET_COOKIE};
/// use tower_idempotency::{IdempotencyLayer, UNSTORED_HEADERS, store::MemoryStore};
///
/// // Cookies are part of this answer; the id of the request is not.
/// let unstored = UNSTORED_HEADERS
///     .into_iter()
///     .filter(|name| name != SET_COOKIE)
///     .chain([HeaderName::from_static("x-request-id")]);
/// let layer = IdempotencyLayer::new(MemoryStore::new()).unstored_headers(unstored);
/// # }
/// ```
pub const UNSTORED_HEADERS: [HeaderName; 14] = [
    HeaderName::from_static("access-control-*"),
    HeaderName::from_static("authentication-info"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("ratelimit*"),
    HeaderName::from_static("server-timing"),
    header::SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("traceresponse"),
    HeaderName::from_static("tracestate"),
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("x-rate-limit-*"),
    HeaderName::from_static("x-ratelimit-*"),
];

/// Fields that are never stored: those of one connection ([RFC 9110, section 7.6.1]), and the
/// date and the age of one message.
///
/// [RFC 9110, section 7.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
const NEVER_STORED: [HeaderName; 8] = [
    header::AGE,
    header::CONNECTION,
    header::DATE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes out of a response what is not stored of it.
#[derive(Clone)]
pub(crate) struct Sieve {
    /// By their lengths.
    names: Arc<[Vec<HeaderName>]>,
    beginnings: Arc<[Box<str>]>,
    /// The [bits](bit) of all of them, by which most names are told from all of these.
    bits: u64,
    max_body: usize,
}

impl Default for Sieve {
    fn default() -> Self {
        let sieve = Self {
            names: Arc::default(),
            beginnings: Arc::default(),
            bits: 0,
            max_body: 1 << 20,
        };
        sieve.without(UNSTORED_HEADERS)
    }
}

impl Sieve {
    /// The same sieve, for other fields.
    pub(crate) fn without(self, unstored: impl IntoIterator<Item = HeaderName>) -> Self {
        let mut names: Vec<Vec<HeaderName>> = Vec::new();
        let (mut beginnings, mut bits) = (Vec::new(), 0);
        for name in NEVER_STORED.into_iter().chain(unstored) {
            match name.as_str().strip_suffix('*') {
                Some(beginning) => {
                    // With so little, it stands for many.
                    bits |= bit(beginning).unwrap_or(u64::MAX);
                    beginnings.push(beginning.into());
                }
                None => {
                    // Without one, it is looked for in any case.
                    bits |= bit(name.as_str()).unwrap_or_default();
                    let length = name.as_str().len();
                    names.resize_with(names.len().max(length + 1), Vec::new);
                    names[length].push(name);
                }
            }
        }
        Self {
            names: names.into(),
            beginnings: beginnings.into(),
            bits,
            ..self
        }
    }

    /// The same sieve, for bodies of another length at most.
    pub(crate) fn holding(self, max_body: usize) -> Self {
        Self { max_body, ..self }
    }

    /// The longest body that is stored.
    pub(crate) const fn max_body(&self) -> usize {
        self.max_body
    }

    /// Says which header fields of a response are stored.
    pub(crate) fn stored<'a>(
        &'a self,
        headers: &HeaderMap,
    ) -> impl Fn(&HeaderName) -> bool + use<'a> {
        let of_connection = named_by_connection(headers);
        move |name| !self.is_unstored(name) && !of_connection.contains(name)
    }

    #[inline]
    fn is_unstored(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        bit(text).is_none_or(|bit| self.bits & bit != 0) && self.has(name)
    }

    fn has(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        let of_its_length = self.names.get(text.len());
        of_its_length.is_some_and(|names| names.contains(name)) || self.begins(text)
    }

    fn begins(&self, name: &str) -> bool {
        let mut beginnings = self.beginnings.iter();
        beginnings.any(|beginning| name.starts_with(&**beginning))
    }

    /// An answer that does not come from the handler, as it is stored.
    pub(crate) fn sift(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Response(response) if !self.holds(&response) => Answer::NotStored {
                status: response.status,
                summary: None,
            },
            Answer::Response(response) => Answer::Response(self.sifted(response)),
            other => other,
        }
    }

    /// Whether a response is one that can be stored.
    fn holds(&self, response: &StoredResponse) -> bool {
        response.body.len() <= self.max_body && !response.status.is_informational()
    }

    fn sifted(&self, response: StoredResponse) -> StoredResponse {
        let StoredResponse {
            status,
            mut headers,
            body,
            trailers,
        } = response;
        let is_stored = self.stored(&headers);
        let sifted = |fields: HeaderMap| -> HeaderMap {
            let mut last = None;
            let named = fields.into_iter().filter_map(|(name, value)| {
                last = name.or(last.take());
                Some((last.clone()?, value))
            });
            let mut kept = HeaderMap::new();
            for (name, value) in named.filter(|(name, _)| is_stored(name)) {
                // There were so many before.
                let _ = kept.try_append(name, value);
            }
            kept
        };
        // A length that is wrong would break the connection of each replay.
        let length = headers.get(header::CONTENT_LENGTH);
        if length.is_some_and(|length| length != body.len().to_string().as_str()) {
            headers.remove(header::CONTENT_LENGTH);
        }
        StoredResponse {
            status,
            headers: sifted(headers),
            body,
            trailers: trailers.map(sifted),
        }
    }
}

/// One bit of 64, by the first four letters of a name; `None` when it has fewer.
fn bit(name: &str) -> Option<u64> {
    // Of the usual names none has the bit of one that is not stored.
    const FACTOR: u32 = 0x249b_c3df;
    let letters = u32::from_le_bytes(*name.as_bytes().first_chunk()?);
    Some(1 << (letters.wrapping_mul(FACTOR) >> 26))
}

/// The fields that `Connection` names.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

impl fmt::Debug for Sieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names.iter().flatten().collect();
        f.debug_struct("Sieve")
            .field("names", &names)
            .field("beginnings", &self.beginnings)
            .field("max_body", &self.max_body)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};

    use super::*;

    fn is_stored(sieve: &Sieve, name: &'static str) -> bool {
        sieve.stored(&HeaderMap::new())(&HeaderName::from_static(name))
    }

    const OF_ONE_MESSAGE: [&str; 8] = [
        "age",
        "connection",
        "date",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ];

    #[test]
    fn fields_of_one_exchange_are_told_from_those_of_an_outcome() {
        let sieve = Sieve::default();
        let of_one_exchange = [
            "access-control-allow-credentials",
            "access-control-allow-origin",
            "access-control-expose-headers",
            "authentication-info",
            "proxy-authenticate",
            "proxy-authentication-info",
            "ratelimit",
            "ratelimit-remaining",
            "server-timing",
            "set-cookie",
            "traceparent",
            "tracestate",
            "www-authenticate",
            "x-rate-limit-remaining",
            "x-ratelimit-remaining-tokens",
        ];
        for name in OF_ONE_MESSAGE.into_iter().chain(of_one_exchange) {
            assert!(!is_stored(&sieve, name), "{name}");
        }
        for name in [
            "a",
            "allow",
            "content-length",
            "content-type",
            "etag",
            "location",
            "retry-after",
            "request-id",
            "stripe-version",
            "vary",
            "via",
            "warning",
            "x-request-id",
            "a-name-that-is-longer-than-all-that-are-not-stored",
        ] {
            assert!(is_stored(&sieve, name), "{name}");
        }
    }

    #[test]
    fn a_list_of_ones_own_stands_instead_of_the_default() {
        let unstored = ["x-request-id", "x-internal-*"].map(HeaderName::from_static);
        let sieve = Sieve::default().without(unstored);
        for name in OF_ONE_MESSAGE
            .into_iter()
            .chain(["x-request-id", "x-internal-a"])
        {
            assert!(!is_stored(&sieve, name), "{name}");
        }
        for name in ["set-cookie", "access-control-allow-origin", "x-internal"] {
            assert!(is_stored(&sieve, name), "{name}");
        }
        let all = Sieve::default().without([HeaderName::from_static("*")]);
        assert!(!is_stored(&all, "etag"));
    }

    #[test]
    fn fields_that_connection_names_are_not_stored() {
        let mut headers = HeaderMap::new();
        let named = HeaderValue::from_static("close, X-Hop");
        headers.insert(header::CONNECTION, named);
        let sieve = Sieve::default();
        let is_stored = sieve.stored(&headers);
        assert!(!is_stored(&HeaderName::from_static("x-hop")));
        assert!(is_stored(&HeaderName::from_static("x-end")));
    }

    fn response(fields: &[(&'static str, &'static str)], body: &'static str) -> StoredResponse {
        let mut response = StoredResponse::new(StatusCode::CREATED, body);
        for (name, value) in fields {
            let (name, value) = (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
            response.headers.append(name, value);
        }
        response
    }

    #[test]
    fn an_answer_from_elsewhere_goes_through_the_same_sieve() {
        let found = response(
            &[
                ("connection", "close, x-hop"),
                ("content-length", "7"),
                ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("link", "</a>"),
                ("link", "</b>"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("transfer-encoding", "chunked"),
                ("x-hop", "1"),
            ],
            "charged",
        );
        let kept = [("content-length", "7"), ("link", "</a>"), ("link", "</b>")];
        assert_eq!(
            Sieve::default().sift(Answer::Response(found)),
            Answer::Response(response(&kept, "charged"))
        );
    }

    #[test]
    fn a_content_length_that_is_wrong_is_not_stored() {
        let found = response(&[("content-length", "5")], "charged");
        assert_eq!(
            Sieve::default().sift(Answer::Response(found)),
            Answer::Response(response(&[], "charged"))
        );
    }

    #[test]
    fn an_answer_that_is_too_large_or_no_message_is_not_stored() {
        let sieve = Sieve::default().holding(6);
        let not_stored = |status| Answer::NotStored {
            status,
            summary: None,
        };
        let found = response(&[], "charged");
        assert_eq!(
            sieve.sift(Answer::Response(found)),
            not_stored(StatusCode::CREATED)
        );
        let switch = StoredResponse::new(StatusCode::SWITCHING_PROTOCOLS, "");
        assert_eq!(
            sieve.sift(Answer::Response(switch)),
            not_stored(StatusCode::SWITCHING_PROTOCOLS)
        );
        let value = Answer::Value("[1,2,3,4]".into());
        assert_eq!(sieve.sift(value.clone()), value);
    }
}
