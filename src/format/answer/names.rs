//! Header names that take one byte in a recorded answer.
//!
//! The place of a name in this list is part of the version of the frame: a change of the list is a
//! new version of the frame, whose reader keeps the list of the version before.

use std::sync::LazyLock;

use http::header::{self, HeaderName};

use crate::format::version;

/// Says whether the names of a version of the frame are known here.
pub(super) const fn are_known(frame: u8) -> bool {
    match frame {
        version::FRAME => true,
        #[cfg(test)]
        version::FRAME_BEFORE => true,
        _ => false,
    }
}

/// There is no version before yet, but its reader.
#[cfg(test)]
static NAMES_BEFORE: [HeaderName; 2] = [header::LOCATION, header::CONTENT_TYPE];

static NAMES: [HeaderName; 64] = [
    header::ACCEPT,
    header::ACCEPT_RANGES,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
    header::AGE,
    header::ALLOW,
    header::ALT_SVC,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_SECURITY_POLICY,
    header::CONTENT_TYPE,
    HeaderName::from_static("cross-origin-opener-policy"),
    HeaderName::from_static("cross-origin-resource-policy"),
    header::ETAG,
    header::EXPIRES,
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-status-details-bin"),
    HeaderName::from_static("idempotency-key"),
    header::LAST_MODIFIED,
    header::LINK,
    header::LOCATION,
    header::ORIGIN,
    HeaderName::from_static("original-request"),
    HeaderName::from_static("permissions-policy"),
    header::PRAGMA,
    HeaderName::from_static("priority"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
    header::REFERRER_POLICY,
    HeaderName::from_static("request-id"),
    header::RETRY_AFTER,
    header::SERVER,
    HeaderName::from_static("server-timing"),
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("stripe-should-retry"),
    HeaderName::from_static("stripe-version"),
    HeaderName::from_static("timing-allow-origin"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    header::TRAILER,
    header::VARY,
    header::VIA,
    header::WARNING,
    header::WWW_AUTHENTICATE,
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderName::from_static("x-correlation-id"),
    header::X_FRAME_OPTIONS,
    HeaderName::from_static("x-request-id"),
];

/// The tag of a name: its place in the list, counted from 1.
pub(super) fn tag(name: &HeaderName) -> Option<u8> {
    let tag = TAGS[slot(name)];
    let known = NAMES.get(usize::from(tag).checked_sub(1)?)?;
    (known == name).then_some(tag)
}

/// By slot: the tag of the name that belongs there, or 0.
static TAGS: LazyLock<[u8; 256]> = LazyLock::new(|| {
    let mut tags = [0; 256];
    for (tag, name) in (1..).zip(&NAMES) {
        tags[slot(name)] = tag;
    }
    tags
});

/// The length and two bytes tell the names of the list apart, and the factors were looked for that
/// give each of them a slot of its own.
fn slot(name: &HeaderName) -> usize {
    let name = name.as_str().as_bytes();
    let byte = |at: usize| usize::from(name.get(at).copied().unwrap_or_default());
    (name.len() + 58 * byte(0) + 181 * byte(name.len() * 3 / 4)) % 256
}

/// The name with a tag in frames of a version that is known here.
#[inline]
pub(super) fn name(frame: u8, tag: u8) -> Option<HeaderName> {
    let index = usize::from(tag).checked_sub(1)?;
    match frame {
        #[cfg(test)]
        version::FRAME_BEFORE => NAMES_BEFORE.get(index).cloned(),
        _ => NAMES.get(index).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_leads_back_to_its_name() {
        for known in &NAMES {
            let name = tag(known).and_then(|tag| name(version::FRAME, tag));
            assert_eq!(name.as_ref(), Some(known));
        }
        assert_eq!(name(version::FRAME, 0), None);
        assert_eq!(name(version::FRAME, 65), None);
    }

    #[test]
    fn a_name_that_is_not_in_the_list_has_no_tag() {
        assert_eq!(tag(&HeaderName::from_static("x-unheard-of")), None);
        // Alike in all that is looked at to find the slot.
        for (known, alike) in [("request-id", "request-ix"), ("etag", "e-ag")] {
            let [known, alike] = [known, alike].map(HeaderName::from_static);
            assert_eq!(slot(&alike), slot(&known));
            assert_eq!(tag(&alike), None);
        }
    }

    #[test]
    fn tags_of_version_1_do_not_change() {
        assert_eq!(tag(&header::CONTENT_TYPE), Some(20));
        assert_eq!(tag(&header::LOCATION), Some(33));
        assert_eq!(tag(&HeaderName::from_static("x-request-id")), Some(64));
    }
}
