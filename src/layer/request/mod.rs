//! From a request to the name of its record and its identity.

mod caller;
mod cookies;
mod fingerprinting;
mod headers;
mod naming;
mod path;
mod recipe;
mod signed;
mod source;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Uri};

pub use self::caller::CallerSource;
use self::caller::Known;
pub use self::cookies::UNIDENTIFYING_COOKIES;
pub use self::fingerprinting::{FingerprintSource, QuerySource};
use self::headers::Fields;
pub use self::headers::{CREDENTIAL_HEADERS, OPERATION_HEADERS};
use self::naming::Named;
pub use self::naming::Naming;
pub use self::path::original_path;
pub(crate) use self::recipe::MOST_ACCEPTED;
pub use self::recipe::Recipe;
pub use self::source::KeySource;
pub(crate) use self::source::Look;
use self::source::Sent;
use crate::layer::body::Chunks;
use crate::layer::problem::{Refusal, RefusalReason};
use crate::protocol::key::{IdempotencyKey, KeyParts, RecordKey};
use crate::protocol::record::Identity;

/// How requests are identified.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identification {
    pub(crate) source: KeySource,
    pub(crate) naming: Naming,
    pub(crate) recipe: Recipe,
    /// Recipes of records that others have made.
    pub(crate) accepted: Vec<Recipe>,
    /// How records were named before.
    pub(crate) previously: Option<Naming>,
    told: Arc<Told>,
}

/// What has been warned of, once for a layer and its clones.
#[derive(Debug, Default)]
struct Told {
    of_strangers: AtomicBool,
    of_signatures: AtomicBool,
}

/// A request that carries a key.
pub(crate) struct Identified<'a> {
    sent: Cow<'a, str>,
    named: Named<'a>,
    pub(crate) record_key: RecordKey,
    pub(crate) identity: Identity,
    /// The same request by the recipes that are accepted, too.
    pub(crate) accepted: Vec<Identity>,
}

impl Identified<'_> {
    pub(crate) fn parts(&self) -> KeyParts<'_> {
        self.named.parts(&self.sent)
    }

    /// The key to keep, when the request itself goes on to the handler.
    pub(crate) fn to_key(&self) -> IdempotencyKey {
        IdempotencyKey::assemble(&self.parts(), self.record_key)
    }
}

impl Identification {
    /// Identifies a request, once: nothing of this is taken again after the handler ran. `None`
    /// when it has no key and needs none.
    pub(crate) fn identify<'a>(
        &'a self,
        look: &'a Look,
        parts: &'a Parts,
        body: &Chunks,
        key_required: bool,
    ) -> Result<Option<Identified<'a>>, Refusal> {
        let whole = self.needs_whole_body().then(|| body.contiguous());
        let sent = match self.source.key(look, parts, whole.as_ref())? {
            Sent::Key(sent) => sent,
            Sent::Nothing(_) if !key_required => return Ok(None),
            Sent::Nothing(None) => return Err(Refusal::missing_key()),
            Sent::Nothing(Some(missing)) => {
                let reason = RefusalReason::MissingKey;
                return Err(Refusal::new(reason, missing.to_string()));
            }
        };
        let identified = self.identify_as(&self.naming, sent, parts, body, whole.as_ref());
        Ok(Some(identified))
    }

    /// Identifies a request as it was named [before](Self::previously); `None` when it is named
    /// as then.
    #[inline]
    pub(crate) fn identify_earlier<'a>(
        &'a self,
        now: &Identified<'a>,
        parts: &'a Parts,
        body: &Chunks,
    ) -> Option<Identified<'a>> {
        let naming = self.previously.as_ref()?;
        let whole = self.needs_whole_body().then(|| body.contiguous());
        let sent = now.sent.clone();
        let earlier = self.identify_as(naming, sent, parts, body, whole.as_ref());
        (earlier.record_key != now.record_key).then_some(earlier)
    }

    #[inline]
    fn identify_as<'a>(
        &'a self,
        naming: &'a Naming,
        sent: Cow<'a, str>,
        parts: &'a Parts,
        body: &Chunks,
        whole: Option<&Bytes>,
    ) -> Identified<'a> {
        let named = naming.name(parts);
        let record_key = named.parts(&sent).record_key();
        let mut fields = Fields::of(&parts.headers);
        fields.find();
        let path = named.path(parts);
        let identity = |recipe: &Recipe| {
            let is_scoped = named.scope.is_some();
            let (caller, known) = recipe
                .calling
                .digest(&record_key, is_scoped, parts, &fields);
            if known == Known::No {
                self.tell_of_stranger();
            }
            Identity {
                caller,
                request: recipe
                    .fingerprinting
                    .fingerprint(parts, &path, &fields, body, whole),
                recipe: recipe.id(),
            }
        };
        let accepted = match &self.accepted[..] {
            [] => Vec::new(),
            accepted => accepted.iter().map(identity).collect(),
        };
        let identity = identity(&self.recipe);
        drop(path);
        Identified {
            sent,
            named,
            record_key,
            identity,
            accepted,
        }
    }

    fn needs_whole_body(&self) -> bool {
        let recipes = std::iter::once(&self.recipe).chain(&self.accepted);
        self.source.needs_body()
            || recipes
                .into_iter()
                .any(|recipe| recipe.fingerprinting.needs_whole_body())
    }

    fn tell_of_stranger(&self) {
        let told = &self.told.of_strangers;
        // To look is cheaper than to write.
        if !told.load(Ordering::Relaxed) && !told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "a guarded request came without a scope and without any credential that is known: whoever uses its key with the same request gets its response; name the tenant by `scope`, or the caller by `caller`"
            );
        }
    }

    /// Tells the log why a request may be another caller's.
    pub(crate) fn tell_of_caller(&self, is_scoped: bool, headers: &HeaderMap, uri: &Uri) {
        let calling = &self.recipe.calling;
        tracing::debug!(
            compared = ?calling.names(is_scoped, headers, uri),
            "a key came from another caller than before"
        );
        let Some(scheme) = calling.signing_scheme(is_scoped, headers) else {
            return;
        };
        if !self.told.of_signatures.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                scheme,
                "credentials of this scheme are made anew for each request, so that a retry comes from another caller: with authentication outside of the layer, set `scope` or `caller(CallerSource::signed_identity())`"
            );
        }
    }
}

/// The body of a request, empty when nothing asked for it in one piece.
fn bytes_of(whole: Option<&Bytes>) -> &[u8] {
    whole.map_or(&[], |whole| whole)
}
