//! The header fields that count, found in one pass.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::format::digest::Digest;

/// The header fields that are taken for credentials where there is no
/// [scope](crate::IdempotencyLayer::scope).
///
/// The first ones are what clients send; the others are what proxies and gateways say about the
/// client whom they have authenticated. None of them changes from one request of a client to the
/// next, as signed assertions such as `X-Amzn-Oidc-Data` do. `Proxy-Authorization` is for a proxy
/// on the way, and so is not here.
pub const CREDENTIAL_HEADERS: [&str; 20] = [
    "authorization",
    "cookie",
    "x-api-key",
    "api-key",
    // OpenStack, https://docs.openstack.org/api-ref/identity/v3/
    "x-auth-token",
    "x-access-token",
    // Google, https://docs.cloud.google.com/docs/authentication/api-keys-use
    "x-goog-api-key",
    // Azure API Management, https://learn.microsoft.com/azure/api-management/api-management-subscriptions
    "ocp-apim-subscription-key",
    // GitLab, https://docs.gitlab.com/api/rest/authentication/
    "private-token",
    // AWS, https://docs.aws.amazon.com/elasticloadbalancing/latest/application/listener-authenticate-users.html
    "x-amzn-oidc-identity",
    // Google, https://cloud.google.com/iap/docs/identity-howto
    "x-goog-authenticated-user-id",
    // Cloudflare, https://developers.cloudflare.com/cloudflare-one/identity/authorization-cookie/
    "cf-access-authenticated-user-email",
    // Azure, https://learn.microsoft.com/azure/app-service/configure-authentication-user-identities
    "x-ms-client-principal-id",
    // oauth2-proxy, https://oauth2-proxy.github.io/oauth2-proxy/configuration/overview
    "x-forwarded-user",
    "x-auth-request-user",
    // Authelia and others, https://www.authelia.com/integration/trusted-header-sso/introduction/
    "remote-user",
    "x-remote-user",
    // What nginx's $ssl_client_s_dn is often passed on as.
    "x-ssl-client-s-dn",
    // RFC 9440
    "client-cert",
    // Envoy, https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert
    "x-forwarded-client-cert",
];

/// The header fields that say what a request asks for, beside its method and target: with another
/// value of one of them it is another request.
pub const OPERATION_HEADERS: [&str; 8] = [
    // SOAP 1.1, section 6.1.1
    "soapaction",
    // The JSON protocols of AWS
    "x-amz-target",
    // A method that stands for POST
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    // Server actions of Next.js
    "next-action",
    // Which part of a resource the body is: RFC 9110, section 14.5, and tus
    "content-range",
    "upload-offset",
];

const CREDENTIALS: usize = CREDENTIAL_HEADERS.len();
const OPERATIONS: usize = OPERATION_HEADERS.len();

/// Where a field is found: [`CREDENTIAL_HEADERS`] first, then [`OPERATION_HEADERS`], then others.
pub(super) type Slot = usize;

pub(super) const AUTHORIZATION_SLOT: Slot = 0;
pub(super) const COOKIE_SLOT: Slot = 1;
pub(super) const FORWARDED_CERT_SLOT: Slot = CREDENTIALS - 1;
pub(super) const HOST_SLOT: Slot = CREDENTIALS + OPERATIONS;
pub(super) const CONTENT_TYPE_SLOT: Slot = HOST_SLOT + 1;
pub(super) const CONTENT_ENCODING_SLOT: Slot = HOST_SLOT + 2;
const SLOTS: usize = HOST_SLOT + 3;

const CREDENTIAL_BITS: u64 = (1 << CREDENTIALS) - 1;
const OPERATION_BITS: u64 = ((1 << OPERATIONS) - 1) << CREDENTIALS;

/// The fields of a request that count.
pub(super) struct Fields<'a> {
    headers: &'a HeaderMap,
    /// The first line of each.
    values: [Option<&'a HeaderValue>; SLOTS],
    /// A bit for each that is there.
    present: u64,
    /// A bit for each that has more than one line.
    repeated: u64,
}

impl<'a> Fields<'a> {
    /// Returns those of `headers`; none is [found](Self::find) yet.
    #[inline]
    pub(super) const fn of(headers: &'a HeaderMap) -> Self {
        Self {
            headers,
            values: [None; SLOTS],
            present: 0,
            repeated: 0,
        }
    }

    /// Finds them, where they are kept: it is too much to be moved.
    pub(super) fn find(&mut self) {
        for (name, value) in self.headers {
            if let Some(slot) = slot(name.as_str()) {
                let bit = 1 << slot;
                self.repeated |= self.present & bit;
                self.present |= bit;
                self.values[slot].get_or_insert(value);
            }
        }
    }

    /// The first line of a field, empty when it is not there.
    pub(super) fn first(&self, slot: Slot) -> &'a [u8] {
        self.values[slot].map_or(&[], HeaderValue::as_bytes)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&'a HeaderValue> {
        self.values[slot]
    }

    pub(super) fn is_repeated(&self, slot: Slot) -> bool {
        self.repeated & (1 << slot) != 0
    }

    /// All lines of a field.
    pub(super) fn lines(&self, slot: Slot) -> impl Iterator<Item = &'a [u8]> {
        let first = self.values[slot];
        let more = self.is_repeated(slot).then(|| name(slot));
        let more = more.map(|name| self.headers.get_all(name).iter().skip(1));
        let lines = first.into_iter().chain(more.into_iter().flatten());
        lines.map(HeaderValue::as_bytes)
    }

    /// Feeds a field as one line.
    pub(super) fn feed(&self, slot: Slot, digest: &mut Digest) {
        match self.is_repeated(slot) {
            false => digest.field(self.first(slot)),
            true => feed_joined(self.lines(slot), digest),
        }
    }

    /// The credentials that are there, in a fixed order.
    pub(super) fn credentials(&self) -> impl Iterator<Item = Slot> + use<> {
        slots(self.present & CREDENTIAL_BITS)
    }

    /// The fields that are there and name an operation, in a fixed order.
    pub(super) fn operations(&self) -> impl Iterator<Item = Slot> + use<> {
        slots(self.present & OPERATION_BITS)
    }
}

/// Feeds the lines of the field `name` as one, as [RFC 9110, section 5.3] joins them; a field that
/// is absent differs from an empty one.
///
/// [RFC 9110, section 5.3]: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
pub(super) fn feed_named(headers: &HeaderMap, name: &HeaderName, digest: &mut Digest) {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let Some(first) = lines.next() else {
        return digest.tag(0);
    };
    digest.tag(1);
    match lines.next() {
        None => digest.field(first),
        Some(second) => feed_joined([first, second].into_iter().chain(lines), digest),
    }
}

fn feed_joined<'a>(lines: impl Iterator<Item = &'a [u8]>, digest: &mut Digest) {
    let lines: Vec<_> = lines.collect();
    digest.field(&lines.join(&b", "[..]));
}

/// The name of a field.
pub(super) fn name(slot: Slot) -> &'static str {
    const OTHERS: [&str; 3] = ["host", "content-type", "content-encoding"];
    let mut names = CREDENTIAL_HEADERS.iter().chain(&OPERATION_HEADERS);
    let name = match slot.checked_sub(HOST_SLOT) {
        None => names.nth(slot),
        Some(other) => OTHERS.get(other),
    };
    name.copied().unwrap_or_default()
}

fn slots(mut bits: u64) -> impl Iterator<Item = Slot> + use<> {
    std::iter::from_fn(move || {
        let slot = bits
            .checked_ilog2()
            .map(|_| bits.trailing_zeros() as Slot)?;
        bits &= bits - 1;
        Some(slot)
    })
}

/// Finds the slot of a field: by the length of its name first, which tells most others apart and
/// makes the comparison cheap.
fn slot(name: &str) -> Option<Slot> {
    let slot = match name.len() {
        4 => match name {
            "host" => HOST_SLOT,
            _ => return None,
        },
        6 => match name {
            "cookie" => COOKIE_SLOT,
            _ => return None,
        },
        7 => match name {
            "api-key" => 3,
            _ => return None,
        },
        9 => match name {
            "x-api-key" => 2,
            _ => return None,
        },
        10 => match name {
            "soapaction" => CREDENTIALS,
            _ => return None,
        },
        11 => match name {
            "remote-user" => 15,
            "client-cert" => 18,
            "next-action" => CREDENTIALS + 5,
            _ => return None,
        },
        12 => match name {
            "x-auth-token" => 4,
            "x-amz-target" => CREDENTIALS + 1,
            "content-type" => CONTENT_TYPE_SLOT,
            _ => return None,
        },
        13 => match name {
            "authorization" => AUTHORIZATION_SLOT,
            "private-token" => 8,
            "x-remote-user" => 16,
            "x-http-method" => CREDENTIALS + 3,
            "content-range" => CREDENTIALS + 6,
            "upload-offset" => CREDENTIALS + 7,
            _ => return None,
        },
        14 => match name {
            "x-access-token" => 5,
            "x-goog-api-key" => 6,
            _ => return None,
        },
        16 => match name {
            "x-forwarded-user" => 13,
            "content-encoding" => CONTENT_ENCODING_SLOT,
            _ => return None,
        },
        17 => match name {
            "x-ssl-client-s-dn" => 17,
            "x-method-override" => CREDENTIALS + 4,
            _ => return None,
        },
        19 => match name {
            "x-auth-request-user" => 14,
            _ => return None,
        },
        20 => match name {
            "x-amzn-oidc-identity" => 9,
            _ => return None,
        },
        22 => match name {
            "x-http-method-override" => CREDENTIALS + 2,
            _ => return None,
        },
        23 => match name {
            "x-forwarded-client-cert" => FORWARDED_CERT_SLOT,
            _ => return None,
        },
        24 => match name {
            "x-ms-client-principal-id" => 12,
            _ => return None,
        },
        25 => match name {
            "ocp-apim-subscription-key" => 7,
            _ => return None,
        },
        28 => match name {
            "x-goog-authenticated-user-id" => 10,
            _ => return None,
        },
        34 => match name {
            "cf-access-authenticated-user-email" => 11,
            _ => return None,
        },
        _ => return None,
    };
    Some(slot)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::digest::Domain;

    #[test]
    fn each_name_has_a_slot_and_each_slot_a_name() {
        for at in 0..SLOTS {
            let name = name(at);
            assert_eq!(slot(name), Some(at), "{name}");
        }
        for other in [
            "",
            "accept",
            "proxy-authorization",
            "x-forwarded-host",
            "x-amzn-oidc-data",
        ] {
            assert_eq!(slot(other), None);
        }
        assert_eq!(name(SLOTS), "");
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let value = HeaderValue::from_str(value).expect("it is text");
            headers.append(*name, value);
        }
        headers
    }

    #[test]
    fn fields_are_found_in_a_fixed_order() {
        let lines = [
            ("x-api-key", "k"),
            ("accept", "*/*"),
            ("authorization", "a"),
            ("soapaction", "s"),
            ("upload-offset", "0"),
            ("host", "h"),
        ];
        let mut turned = lines;
        turned.reverse();
        for lines in [lines, turned] {
            let headers = headers(&lines);
            let mut fields = Fields::of(&headers);
            fields.find();
            let names = |slots: &mut dyn Iterator<Item = Slot>| slots.map(name).collect::<Vec<_>>();
            assert_eq!(
                names(&mut fields.credentials()),
                ["authorization", "x-api-key"]
            );
            assert_eq!(
                names(&mut fields.operations()),
                ["soapaction", "upload-offset"]
            );
            assert_eq!(fields.first(HOST_SLOT), b"h");
            assert_eq!(fields.first(CONTENT_TYPE_SLOT), b"");
        }
    }

    proptest! {
        #[test]
        fn lines_of_a_field_are_one(values in proptest::collection::vec("[a-z]{0,3}", 1..4)) {
            let fed = |values: &[String]| {
                let lines: Vec<_> = values.iter().map(|value| ("x-api-key", value.as_str())).collect();
                let headers = headers(&lines);
                let mut fields = Fields::of(&headers);
                fields.find();
                let [mut by_slot, mut by_name] = [(); 2].map(|()| Digest::new(Domain::Test));
                fields.feed(2, &mut by_slot);
                let name = HeaderName::from_static("x-api-key");
                feed_named(&headers, &name, &mut by_name);
                (by_slot.finish(), by_name.finish())
            };
            prop_assert_eq!(fed(&values), fed(&[values.join(", ")]));
        }
    }
}
