//! The settings that shape the digests of caller and request, and their id.

use std::borrow::Cow;

use http::header::HeaderName;

use super::caller::{CallerSource, Calling};
use super::fingerprinting::{FingerprintSource, Fingerprinting, QuerySource};
use crate::format::digest::{Digest, Domain};
use crate::format::version;
use crate::protocol::record::RecipeId;

/// How many earlier recipes a layer accepts.
pub(crate) const MOST_ACCEPTED: usize = 2;

/// The settings by which a layer tells whether a request is a retry of another: what counts as
/// its caller, and what of it must be equal.
///
/// A record keeps the [id](Self::id) of the recipe that made it, and a request is compared with it
/// by that recipe. A layer that does not know it refuses the request with 409 `settings-changed`.
/// So a fleet gets another recipe in two steps: first each node
/// [accepts](crate::IdempotencyLayer::also_accept) the new one, then each node writes it and
/// accepts the old one, until the retention of the old records has ended.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use http::HeaderName;
/// use tower_idempotency::{IdempotencyLayer, Recipe, store::MemoryStore};
///
/// let version = HeaderName::from_static("stripe-version");
/// let old = Recipe::new();
/// let new = Recipe::new().fingerprint_headers([version]);
///
/// // The first deploy.
/// let layer = IdempotencyLayer::new(MemoryStore::new())
///     .recipe(old.clone())
///     .also_accept([new.clone()]);
/// assert_eq!(layer.recipe_id(), old.id());
///
/// // The second one.
/// let layer = IdempotencyLayer::new(MemoryStore::new())
///     .recipe(new.clone())
///     .also_accept([old]);
/// assert_eq!(layer.recipe_id(), new.id());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Recipe {
    pub(super) fingerprinting: Fingerprinting,
    pub(super) calling: Calling,
    id: RecipeId,
}

impl Default for Recipe {
    fn default() -> Self {
        Self::new()
    }
}

impl Recipe {
    /// Returns the recipe of a layer as it comes.
    pub fn new() -> Self {
        let recipe = Self {
            fingerprinting: Fingerprinting::default(),
            calling: Calling::default(),
            id: RecipeId::from_bytes([0; 8]),
        };
        recipe.with_id()
    }

    /// See [`IdempotencyLayer::fingerprint`](crate::IdempotencyLayer::fingerprint).
    #[must_use]
    pub fn fingerprint(mut self, source: FingerprintSource) -> Self {
        self.fingerprinting.source = source;
        self.with_id()
    }

    /// See [`IdempotencyLayer::fingerprint_headers`](crate::IdempotencyLayer::fingerprint_headers).
    #[must_use]
    pub fn fingerprint_headers(mut self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        // In which order they are named has no meaning.
        let mut headers: Vec<_> = headers.into_iter().collect();
        headers.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        headers.dedup();
        self.fingerprinting.headers = headers;
        self.with_id()
    }

    /// See [`IdempotencyLayer::fingerprint_query`](crate::IdempotencyLayer::fingerprint_query).
    #[must_use]
    pub fn fingerprint_query(mut self, query: QuerySource) -> Self {
        self.fingerprinting.query = query;
        self.with_id()
    }

    /// See [`IdempotencyLayer::caller`](crate::IdempotencyLayer::caller).
    #[must_use]
    pub fn caller(mut self, source: CallerSource) -> Self {
        self.calling.source = Some(source);
        self.with_id()
    }

    /// See [`IdempotencyLayer::session_cookies`](crate::IdempotencyLayer::session_cookies).
    #[must_use]
    pub fn session_cookies<I>(mut self, names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Cow<'static, str>>,
    {
        let mut names: Vec<_> = names.into_iter().map(Into::into).collect();
        names.sort_unstable();
        names.dedup();
        self.calling.session_cookies = Some(names);
        self.with_id()
    }

    /// See [`IdempotencyLayer::any_host`](crate::IdempotencyLayer::any_host).
    #[must_use]
    pub fn any_host(mut self) -> Self {
        self.calling.any_host = true;
        self.with_id()
    }

    /// Returns what a record keeps of the recipe: eight bytes of a digest over its settings.
    pub const fn id(&self) -> RecipeId {
        self.id
    }

    fn with_id(mut self) -> Self {
        let mut digest = Digest::new(Domain::Recipe);
        digest.tag(version::REQUEST);
        digest.tag(version::CALLER);
        self.fingerprinting.describe(&mut digest);
        self.calling.describe(&mut digest);
        let mut id = [0; 8];
        id.copy_from_slice(&digest.finish()[..8]);
        self.id = RecipeId::from_bytes(id);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::fields::Field;

    #[test]
    fn each_setting_makes_another_recipe() {
        let header = HeaderName::from_static;
        let fields = |fields: &[&str]| {
            FingerprintSource::fields(fields.iter().copied()).expect("valid pointers")
        };
        let optional = Field::new("/a").expect("a valid pointer").optional();
        let function =
            |name, version| FingerprintSource::function(name, version, |_, body| Some(body.into()));
        let caller = |name, version| CallerSource::function(name, version, |_| None);
        let new = Recipe::new;
        let recipes = [
            new(),
            new().fingerprint(FingerprintSource::canonical()),
            new().fingerprint(FingerprintSource::without(["/a"]).expect("valid")),
            new().fingerprint(fields(&["/a"])),
            new().fingerprint(fields(&["/a", "/b"])),
            new().fingerprint(fields(&["/b", "/a"])),
            new().fingerprint(FingerprintSource::fields([optional]).expect("valid")),
            new().fingerprint(function("f", 1)),
            new().fingerprint(function("f", 2)),
            new().fingerprint(function("g", 1)),
            new().fingerprint_headers([header("a")]),
            new().fingerprint_headers([header("a"), header("b")]),
            new().fingerprint_query(QuerySource::None),
            new().fingerprint_query(QuerySource::without(["t"])),
            new().fingerprint_query(QuerySource::without(["t", "u"])),
            new().caller(CallerSource::credentials()),
            new().caller(CallerSource::signed_identity()),
            new().caller(caller("f", 1)),
            new().caller(caller("f", 2)),
            new().caller(caller("g", 1)),
            new().session_cookies(["sid"]),
            new().session_cookies(["sid", "uid"]),
            new().session_cookies::<[&str; 0]>([]),
            new().any_host(),
        ];
        for (at, recipe) in recipes.iter().enumerate() {
            for other in &recipes[at + 1..] {
                assert_ne!(recipe.id(), other.id(), "{recipe:?} {other:?}");
            }
        }
    }

    #[test]
    fn what_is_a_set_has_no_order() {
        let header = HeaderName::from_static;
        assert_eq!(
            Recipe::new()
                .fingerprint_headers([header("a"), header("b")])
                .id(),
            Recipe::new()
                .fingerprint_headers([header("b"), header("a"), header("b")])
                .id()
        );
        assert_eq!(
            Recipe::new().session_cookies(["a", "b"]).id(),
            Recipe::new()
                .session_cookies(["b".to_owned(), "a".to_owned()])
                .id()
        );
        assert_eq!(
            Recipe::new()
                .fingerprint_query(QuerySource::without(["a", "b"]))
                .id(),
            Recipe::new()
                .fingerprint_query(QuerySource::without(["b", "a"]))
                .id()
        );
        // Nor has it in which order settings are made.
        assert_eq!(
            Recipe::new()
                .any_host()
                .fingerprint_query(QuerySource::None)
                .id(),
            Recipe::new()
                .fingerprint_query(QuerySource::None)
                .any_host()
                .id()
        );
    }

    /// An id that changes by itself makes every record of the nodes before it one that nobody
    /// knows.
    #[test]
    fn ids_stay_as_they_are() {
        let settings = Recipe::new()
            .fingerprint(FingerprintSource::fields(["/a"]).expect("a valid pointer"))
            .fingerprint_headers([HeaderName::from_static("stripe-version")])
            .fingerprint_query(QuerySource::without(["t"]))
            .caller(CallerSource::function("subject", 3, |_| None))
            .session_cookies(["sid"])
            .any_host();
        let ids = [Recipe::new(), settings].map(|recipe| recipe.id().to_string());
        assert_eq!(ids, ["d982d2c7a8e29917", "83b75b4729bff296"]);
    }
}
