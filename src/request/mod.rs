//! From a request to its idempotency key and fingerprint.

mod fingerprinting;
mod source;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;

pub use self::fingerprinting::FingerprintSource;
pub(crate) use self::fingerprinting::Fingerprinting;
pub(crate) use self::source::Look;
pub use self::source::{KeyFunction, KeySource};
use crate::body::Chunks;
use crate::fingerprint::Fingerprint;
use crate::key::{IdempotencyKey, KeyParts, RecordKey};
use crate::problem::Refusal;

type ScopeFunction = dyn for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync;
type TargetFunction = dyn for<'a> Fn(&'a Parts) -> Cow<'a, str> + Send + Sync;

/// How requests are identified.
#[derive(Clone, Default)]
pub(crate) struct Identification {
    pub(crate) source: KeySource,
    pub(crate) namespace: Cow<'static, str>,
    pub(crate) scope: Option<Arc<ScopeFunction>>,
    pub(crate) target: Option<Arc<TargetFunction>>,
    pub(crate) fingerprinting: Fingerprinting,
}

/// A request that carries a key.
pub(crate) struct Identified<'a> {
    sent: Cow<'a, str>,
    scope: Option<Cow<'a, str>>,
    target: Cow<'a, str>,
    method: &'a str,
    namespace: &'a str,
    pub(crate) fingerprint: Fingerprint,
}

impl Identified<'_> {
    pub(crate) fn parts(&self) -> KeyParts<'_> {
        KeyParts {
            namespace: self.namespace,
            scope: self.scope.as_deref(),
            method: self.method,
            target: &self.target,
            key: &self.sent,
        }
    }

    /// The key to keep, when the request itself goes on to the handler.
    pub(crate) fn to_key(&self, record_key: RecordKey) -> IdempotencyKey {
        IdempotencyKey::assemble(&self.parts(), record_key)
    }
}

impl Identification {
    /// Identifies a request, once: nothing of this is taken again after the handler ran.
    pub(crate) fn identify<'a>(
        &'a self,
        look: &'a Look,
        parts: &'a Parts,
        body: &Chunks,
    ) -> Result<Option<Identified<'a>>, Refusal> {
        let whole = self.needs_whole_body().then(|| body.contiguous());
        let Some(sent) = self.source.key(look, parts, whole.as_ref())? else {
            return Ok(None);
        };
        let scope = self.scope.as_ref().and_then(|scope| scope(parts));
        let target = match &self.target {
            Some(target) => target(parts),
            None => Cow::Borrowed(parts.uri.path()),
        };
        let fingerprint =
            self.fingerprinting
                .fingerprint(parts, scope.as_deref(), body, whole.as_ref());
        Ok(Some(Identified {
            sent,
            scope,
            target,
            method: parts.method.as_str(),
            namespace: &self.namespace,
            fingerprint,
        }))
    }

    fn needs_whole_body(&self) -> bool {
        self.source.needs_body() || self.fingerprinting.needs_whole_body()
    }
}

impl fmt::Debug for Identification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identification")
            .field("source", &self.source)
            .field("namespace", &self.namespace)
            .field("is_scoped", &self.scope.is_some())
            .field("fingerprinting", &self.fingerprinting)
            .finish_non_exhaustive()
    }
}

/// The body of a request, empty when nothing asked for it in one piece.
fn bytes_of(whole: Option<&Bytes>) -> &[u8] {
    whole.map_or(&[], |whole| whole)
}

/// The value of `Content-Type`, empty when there is none.
fn content_type(parts: &Parts) -> &[u8] {
    parts
        .headers
        .get(http::header::CONTENT_TYPE)
        .map_or(&[], http::HeaderValue::as_bytes)
}
