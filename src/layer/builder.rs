//! The layer and its settings.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderName;
use http::request::Parts;
use http::{Method, Response};
use tower_layer::Layer;

use crate::executor::orphan::Orphan;
use crate::executor::{Executor, Handle};
use crate::format::answer::{Answer, StoredResponse};
use crate::layer::body::AnyBodyLayer;
use crate::layer::problem::{Refusal, Responder};
use crate::layer::recording::Recording;
use crate::layer::request::{
    CallerSource, FingerprintSource, Identification, KeySource, MOST_ACCEPTED, Naming, QuerySource,
    Recipe,
};
use crate::layer::service::{Carry, Idempotency, RunFuture};
use crate::layer::settings::{Settings, Shared};
use crate::protocol::end::End;
use crate::protocol::record::RecipeId;
use crate::runtime::Clock;
use crate::store::Store;

/// Makes each request that carries an idempotency key take effect once, as far as the
/// [orphan policy](Orphan) allows, and replays its answer to every retry. What clients see is
/// [the contract](crate#the-contract).
///
/// ```
/// # #[cfg(all(feature = "memory", feature = "axum"))] {
/// use std::time::Duration;
/// use axum::{Router, routing::post};
/// use tower_idempotency::{IdempotencyLayer, store::MemoryStore};
///
/// async fn charge() -> &'static str {
///     "charged"
/// }
///
/// let idempotency = IdempotencyLayer::new(MemoryStore::new())
///     .require_key(true)
///     .wait_for_in_flight(Duration::from_secs(10));
/// let app: Router = Router::new().route("/v1/charges", post(charge)).layer(idempotency);
/// # }
/// ```
///
/// Clones share the store, the count of runs and the [`handle`](Self::handle), also when their
/// settings are changed afterwards: a layer with other settings for some routes is a clone.
///
/// # Where to put it
///
/// Inside of what must see every request, replayed or not: tracing, rate limits, CORS, and above
/// all authentication, so that a caller whose access was withdrawn does not get a replay. Inside,
/// too, of what changes requests or responses for one client alone, such as compression and
/// decompression: the layer stores what comes out of the service it wraps. Outside of what waits
/// for capacity: limits on concurrency, and what sheds load. With [`Router::layer`] that order is
/// bottom to top. `docs/composition.md` has a table of it, with what happens otherwise.
///
/// Where a layer that catches panics stands makes no difference to the key: a panic, and the 500
/// that such a layer makes of one, are both [unknown](End::Unknown).
///
/// [`Router::layer`]: https://docs.rs/axum/latest/axum/struct.Router.html#method.layer
#[derive(Debug)]
pub struct IdempotencyLayer<St> {
    shared: Arc<Shared<St>>,
}

impl<St: Store> IdempotencyLayer<St> {
    /// A layer that keeps its records in `store`, with the defaults that each setting names.
    pub fn new(store: St) -> Self {
        Self::with_executor(Executor::new(store))
    }

    /// A layer that runs requests on an executor of your own, which then shares its records,
    /// lease settings and limits with other work.
    ///
    /// Its orphan policy applies as it is; a reconciled [`Answer`] should be an
    /// [`Answer::Response`], of which is stored what would be of the handler's.
    pub fn with_executor(executor: Executor<St>) -> Self {
        Self {
            shared: Arc::new(Shared::new(executor, Settings::default())),
        }
    }

    // Which requests are guarded.

    /// The methods that are guarded. Requests with others pass through. Default: `POST` and
    /// `PATCH`.
    #[must_use]
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        let methods = methods.into_iter().collect();
        self.set(|settings| settings.methods = methods)
    }

    /// Guards only requests that `guard` picks. Default: all with a guarded method.
    #[must_use]
    pub fn filter(self, guard: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.filter = Some(Arc::new(guard)))
    }

    /// The gRPC methods that are guarded, as `package.Service/Method`. Calls of others pass through
    /// untouched, also with a key. Default: all are guarded.
    ///
    /// A method whose client streams, in one direction or both, does not belong here: the layer
    /// reads all of a request before the handler gets it.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{IdempotencyLayer, store::MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new())
    ///     .grpc_methods(["shop.Till/Charge", "shop.Till/Refund"]);
    /// # }
    /// ```
    #[must_use]
    pub fn grpc_methods<I>(self, methods: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let path = |method: I::Item| format!("/{}", method.as_ref().trim_start_matches('/'));
        let methods = methods.into_iter().map(path).collect();
        self.set(|settings| settings.grpc_methods = Some(methods))
    }

    /// Whether a request without a key is refused with 400 `missing-key`, or passes through.
    /// Default: `false`, it passes.
    #[must_use]
    pub fn require_key(self, required: bool) -> Self {
        self.set(|settings| settings.key_required = required)
    }

    // Whose key it is.

    /// Says where the key comes from. Default: the header `Idempotency-Key`, bare or quoted.
    ///
    /// PayPal's clients send `PayPal-Request-Id`, others `X-Idempotency-Key`, and Square's a member
    /// of the body: see the table of [`KeySource`].
    #[must_use]
    pub fn key_source(self, source: KeySource) -> Self {
        self.identify(|identification| identification.source = source)
    }

    /// Keeps the keys of this service or environment apart from those of others in the same
    /// store. Default: empty.
    ///
    /// Two services that share a store and serve the same paths need one each. A layer with
    /// another namespace does not find what was recorded before; see
    /// [`previously`](Self::previously).
    #[must_use]
    pub fn namespace(self, namespace: impl Into<Cow<'static, str>>) -> Self {
        self.name(|naming| naming.namespace(namespace))
    }

    /// Names the tenant that a request's key belongs to: two tenants may use one key, and never
    /// meet. Default: none.
    ///
    /// Take the tenant from what authentication has established, not from what the client says.
    /// Tenants that do not trust each other need a scope: without one, whoever uses a key first
    /// owns it, and every other caller is refused with 422 `caller-differs`.
    ///
    /// Where there is a scope, it is what tells callers apart: with which credentials a request
    /// comes, and to which host, does not count, so that a token may be renewed between two tries.
    /// Where there is none, or `scope` gives `None`, the [caller](Self::caller) counts.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use std::borrow::Cow;
    /// use tower_idempotency::{IdempotencyLayer, store::MemoryStore};
    ///
    /// #[derive(Clone)]
    /// struct Account(String);
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).scope(|request| {
    ///     let account = request.extensions.get::<Account>()?;
    ///     Some(Cow::Borrowed(account.0.as_str()))
    /// });
    /// # }
    /// ```
    ///
    /// One client may act for several accounts with the same credentials, such as a platform that
    /// sends `Stripe-Account`. Its keys belong to the account, so the account belongs to the scope:
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use std::borrow::Cow;
    /// use tower_idempotency::{IdempotencyLayer, store::MemoryStore};
    ///
    /// # #[derive(Clone)]
    /// # struct Account(String);
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).scope(|request| {
    ///     // Authentication has checked that the one may act for the other.
    ///     let platform = &request.extensions.get::<Account>()?.0;
    ///     match request.headers.get("stripe-account") {
    ///         None => Some(Cow::Borrowed(platform.as_str())),
    ///         Some(account) => Some(format!("{platform} for {account:?}").into()),
    ///     }
    /// });
    /// # }
    /// ```
    #[must_use]
    pub fn scope<F>(self, scope: F) -> Self
    where
        F: for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    {
        self.name(|naming| naming.scope(scope))
    }

    /// Names what a request is done to. With the method, it is the operation that a key belongs
    /// to: the same key may be used for each operation once. Default:
    /// [`original_path`](crate::original_path), which tells nested routers of axum apart and does
    /// not mind how a path is percent-encoded.
    ///
    /// A target that is coarser than the path lets two paths share their keys. The original path
    /// and the query count as part of the request in any case: the same key for another path is
    /// then refused with 422 `key-reused`.
    #[must_use]
    pub fn target<F>(self, target: F) -> Self
    where
        F: for<'a> Fn(&'a Parts) -> Cow<'a, str> + Send + Sync + 'static,
    {
        self.name(|naming| naming.target(target))
    }

    /// Names one earlier way in which records were named, such as without the
    /// [namespace](Self::namespace) or [scope](Self::scope) that the layer has now. Default: none.
    ///
    /// A request whose key is not found by its name is looked up by its earlier name before the
    /// handler starts. Without this, a retry whose first try came before the change runs again.
    /// Set it for as long as records are retained. For nodes of both names at work at one time,
    /// `docs/deploys.md` has the two steps.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{IdempotencyLayer, Naming, store::MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new())
    ///     .namespace("payments")
    ///     .previously(Naming::new());
    /// # }
    /// ```
    #[must_use]
    pub fn previously(self, naming: Naming) -> Self {
        self.identify(|identification| identification.previously = Some(naming))
    }

    /// Says what tells the callers of one key apart. Default: their
    /// [credentials](CallerSource::credentials) where there is no [scope](Self::scope), and nothing
    /// where there is one.
    ///
    /// A request with the key of another caller is refused with 422 `caller-differs`: it is never
    /// executed, and the answer tells neither whether it is the same request nor what has become
    /// of that one. So is a retry whose token was renewed, or whose session began anew, since the
    /// first try. It has to be sent with the credentials of the first try; a new key would run the
    /// operation again. Where tokens are renewed, name the tenant by [`scope`](Self::scope), or
    /// the subject of the token by [`CallerSource::function`].
    ///
    /// Schemes that sign each request anew, such as AWS Signature Version 4, Digest, OAuth 1 and
    /// Hawk, make another caller of each retry; the layer warns of it once. With authentication
    /// outside of the layer, set a scope, or
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{CallerSource, IdempotencyLayer, store::MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new())
    ///     .caller(CallerSource::signed_identity());
    /// # }
    /// ```
    ///
    /// With a scope, a source that is set here counts in addition to it. Without one, the host
    /// counts in addition to the source, unless it is [any](Self::any_host).
    #[must_use]
    pub fn caller(self, source: CallerSource) -> Self {
        self.mix(|recipe| recipe.caller(source))
    }

    /// Names the cookies that tell callers apart. Default: all but
    /// [`UNIDENTIFYING_COOKIES`](crate::UNIDENTIFYING_COOKIES).
    ///
    /// A cookie that changes at each response makes another caller of each retry. Laravel's
    /// `laravel_session` does, since it is encrypted anew, as does every session that is renewed
    /// with each request: there, name the cookies that stay, or set a [scope](Self::scope).
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{IdempotencyLayer, store::MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).session_cookies(["sid"]);
    /// # }
    /// ```
    #[must_use]
    pub fn session_cookies<I>(self, names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Cow<'static, str>>,
    {
        self.mix(|recipe| recipe.session_cookies(names))
    }

    /// Lets a retry come to another host than the first try. By default, where there is no
    /// [scope](Self::scope), the host tells callers apart, since services of several customers are
    /// often told apart by it: the authority of the URI, or else the `Host` header, in lower case
    /// and without port 80 or 443.
    ///
    /// Set this where clients know the nodes of a service by their own names.
    #[must_use]
    pub fn any_host(self) -> Self {
        self.mix(Recipe::any_host)
    }

    /// Says what of the body must be equal in a request and its retry. Default: all of it.
    /// Operation, query, media type and the headers of
    /// [`OPERATION_HEADERS`](crate::OPERATION_HEADERS) must be equal in any case.
    ///
    /// Another request with the same key is refused with 422 `key-reused`: it is never executed,
    /// and never answered with a response that is not its own.
    #[must_use]
    pub fn fingerprint(self, source: FingerprintSource) -> Self {
        self.mix(|recipe| recipe.fingerprint(source))
    }

    /// Names request headers that must be equal in a request and its retry, such as
    /// `Stripe-Version`. Default: none beside [`OPERATION_HEADERS`](crate::OPERATION_HEADERS).
    ///
    /// Several lines of one header are one, joined by a comma and a space.
    #[must_use]
    pub fn fingerprint_headers(self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        self.mix(|recipe| recipe.fingerprint_headers(headers))
    }

    /// Says what of the query must be equal in a request and its retry. Default: all of it.
    ///
    /// Clients that sign the query make a part of it anew for each try:
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{IdempotencyLayer, QuerySource, store::MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new())
    ///     .fingerprint_query(QuerySource::without(["timestamp", "signature"]));
    /// # }
    /// ```
    #[must_use]
    pub fn fingerprint_query(self, query: QuerySource) -> Self {
        self.mix(|recipe| recipe.fingerprint_query(query))
    }

    /// Sets everything by which requests are told apart at once: [`fingerprint`](Self::fingerprint),
    /// [`fingerprint_headers`](Self::fingerprint_headers),
    /// [`fingerprint_query`](Self::fingerprint_query), [`caller`](Self::caller),
    /// [`session_cookies`](Self::session_cookies) and [`any_host`](Self::any_host).
    #[must_use]
    pub fn recipe(self, recipe: Recipe) -> Self {
        self.identify(|identification| identification.recipe = recipe)
    }

    /// Accepts records that were made by up to two other recipes, such as those of a deploy before
    /// or after this one; see [`Recipe`]. Default: none, and such a record is refused with 409
    /// `settings-changed`. More than two do not compile.
    ///
    /// The body of each request is hashed once more for each of them.
    #[must_use]
    pub fn also_accept<const N: usize>(self, recipes: [Recipe; N]) -> Self {
        const { assert!(N <= MOST_ACCEPTED, "at most two other recipes are accepted") };
        self.identify(|identification| identification.accepted = recipes.into())
    }

    /// Returns the id of the recipe that this layer's records are made by, for logs.
    pub fn recipe_id(&self) -> RecipeId {
        self.shared.settings.identification.recipe.id()
    }

    // Bodies and responses.

    /// The longest body, in bytes, that a request with a key may have; a longer one is refused
    /// with 413 `request-too-large`. Default: 1 MiB; at most
    /// [`max_buffered`](Self::max_buffered).
    #[must_use]
    pub fn max_request_body(self, bytes: usize) -> Self {
        self.set(|settings| settings.max_request_body = bytes)
    }

    /// How many bytes of request bodies may be buffered at a time, by all requests of this layer,
    /// its clones and others on the same executor: of requests that are still being read, that
    /// wait for a run in flight, and of runs whose handler has not taken the body yet. A request
    /// that finds no room is refused with 503 `buffers-full`, if it can be before its body is
    /// read, and nothing is claimed. Default: 256 MiB.
    ///
    /// Only bytes that have come count, not those that a client announces, nor those of a request
    /// that is read and answered in one go; so each thread may pass this by the one that it reads.
    /// A body that comes in pieces may take up to twice its length. What a server needs for a
    /// connection, its headers above all, comes on top of it. [`Handle::buffered`] tells how much
    /// is buffered now.
    ///
    /// This bounds what clients can make the layer hold that send slowly, or all at once. One that
    /// stalls is cut off by [`body_idle`](Self::body_idle) and
    /// [`request_timeout`](Self::request_timeout).
    #[must_use]
    pub fn max_buffered(self, bytes: usize) -> Self {
        self.set(|settings| settings.max_buffered = bytes)
    }

    /// How long the body of a request with a key may be silent before the request is refused with
    /// 408 `request-timeout`, and nothing is claimed. Default: 30 s.
    ///
    /// Time in which the server does not read does not count.
    #[must_use]
    pub fn body_idle(self, body_idle: Duration) -> Self {
        self.set(|settings| settings.body_idle = body_idle)
    }

    /// How long the body of a request with a key may take in all before the request is refused
    /// with 408 `request-timeout`, and nothing is claimed. Default: 5 minutes.
    ///
    /// The handler has no part in it: this is the time until all of the request is there. A gRPC
    /// call whose client streams ends by this, too; see [`grpc_methods`](Self::grpc_methods).
    #[must_use]
    pub fn request_timeout(self, request_timeout: Duration) -> Self {
        self.set(|settings| settings.request_timeout = request_timeout)
    }

    /// The longest response body, in bytes, that is stored. A longer one is handed through as it
    /// comes, and retries are refused with 409 `response-not-stored`. Default: 1 MiB.
    ///
    /// Up to here a response is read to its end before the client gets its first byte. These are
    /// handed through at once, and are not stored:
    ///
    /// * streams by their media type: `text/event-stream`, `multipart/x-mixed-replace`, lines of
    ///   JSON (`application/x-ndjson`, `application/jsonl` and their kin), JSON sequences
    ///   (`application/json-seq`, and what ends with `+json-seq`) and `application/stream+json`;
    /// * a gRPC response, from its second message on;
    /// * a protocol switch;
    /// * what the handler marks with
    ///   [`RecordingOverride::Stream`](crate::RecordingOverride::Stream).
    ///
    /// When the client has gone, what is left of a response is read for 60 s at most. One that has
    /// not ended by then is not stored, either.
    #[must_use]
    pub fn max_response_body(self, bytes: usize) -> Self {
        self.with(|executor| executor.sieved(|sieve| sieve.holding(bytes)))
    }

    /// Of which class each response is, and so which are recorded. Default: the table of
    /// [`End`].
    #[must_use]
    pub fn recording(self, recording: Recording) -> Self {
        self.set(|settings| settings.recording = recording)
    }

    /// Says what it means that the inner service failed with an error of type `E`. Default: whether
    /// anything was done is [unknown](End::Unknown).
    ///
    /// The type is that of the service's error; tower's own middleware has a boxed one. Several
    /// functions may be added; the first whose type fits decides. See
    /// [`Executor::classify_error`] for more.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower::BoxError;
    /// use tower::load_shed::error::Overloaded;
    /// use tower_idempotency::{End, IdempotencyLayer, store::MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).classify_error(|error: &BoxError| {
    ///     match error.is::<Overloaded>() {
    ///         true => End::NothingDone,
    ///         // `Elapsed` above all: the handler had begun, and was dropped.
    ///         false => End::Unknown,
    ///     }
    /// });
    /// # }
    /// ```
    #[must_use]
    pub fn classify_error<E: 'static>(
        self,
        classify: impl Fn(&E) -> End + Send + Sync + 'static,
    ) -> Self {
        self.with(|executor| executor.classify_error(classify))
    }

    /// Whether all handlers announce when their effects begin, by
    /// [`Attempt::begin_effects`](crate::Attempt::begin_effects). Default: `false`; a handler that
    /// does so alone says [`Attempt::announce_effects`](crate::Attempt::announce_effects).
    ///
    /// Then every end before that moment but 2xx and 3xx is [nothing done](End::NothingDone): a
    /// 500, a panic, an error, and what a timeout inside of this layer makes of the handler.
    #[must_use]
    pub fn announces_effects(self, announces: bool) -> Self {
        self.with(|executor| executor.announces_effects(announces))
    }

    /// Response headers, and trailers, that are not stored. Default:
    /// [`UNSTORED_HEADERS`](crate::UNSTORED_HEADERS). `Date`,
    /// `Age` and the fields of one connection ([RFC 9110, section 7.6.1]) never are.
    ///
    /// A name that ends with `*` stands for all names that begin so. The first client gets all
    /// headers; this is about replays, and about what a [reconciled](Orphan::Reconcile) answer
    /// keeps. An empty list makes cookies part of them.
    ///
    /// [RFC 9110, section 7.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
    #[must_use]
    pub fn unstored_headers(self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with(|executor| executor.sieved(|sieve| sieve.without(headers)))
    }

    /// Whether answers tell when the key was first seen and when it expires, in
    /// [`IDEMPOTENCY_FIRST_SEEN`](crate::IDEMPOTENCY_FIRST_SEEN) and
    /// [`IDEMPOTENCY_EXPIRES`](crate::IDEMPOTENCY_EXPIRES). Default: `false`.
    #[must_use]
    pub fn report_times(self, report: bool) -> Self {
        self.set(|settings| settings.report_times = report)
    }

    /// Whether responses tell the layers outside what this one did with their request: by an
    /// [`Outcome`](crate::Outcome) in their extensions, for logs and metrics. Default: `false`,
    /// for it costs each response up to three allocations.
    #[must_use]
    pub fn report_outcome(self, report: bool) -> Self {
        self.set(|settings| settings.report_outcome = report)
    }

    // Refusals and failures.

    /// What a problem's code is appended to, to make its `type`. Default: a page of this crate's
    /// documentation.
    #[must_use]
    pub fn problem_type(self, base: impl Into<Cow<'static, str>>) -> Self {
        self.set(|settings| settings.responder = Responder::problem(base.into()))
    }

    /// Makes the response to a refusal. Default: [`Refusal::to_problem`], and
    /// [`Refusal::to_grpc`] for gRPC requests.
    ///
    /// The responder sees the head of the request, so that it can echo the key or name the
    /// request. It is kept, as a copy, while the handler runs. Each response gets
    /// [`IDEMPOTENCY_REFUSED`](crate::IDEMPOTENCY_REFUSED), and `Cache-Control: no-store` where
    /// the responder says nothing else.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use http::request::Parts;
    /// use tower_idempotency::{IDEMPOTENCY_KEY, IdempotencyLayer, Refusal, store::MemoryStore};
    ///
    /// let respond = |refusal: &Refusal, request: &Parts| {
    ///     let mut response = refusal.to_response(request);
    ///     if let Some(key) = request.headers.get(IDEMPOTENCY_KEY) {
    ///         response.headers_mut().insert(IDEMPOTENCY_KEY, key.clone());
    ///     }
    ///     response
    /// };
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).on_refusal(respond);
    /// # }
    /// ```
    #[must_use]
    pub fn on_refusal(
        self,
        respond: impl Fn(&Refusal, &Parts) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.set(|settings| settings.responder = Responder::application(respond))
    }

    /// Whether a request runs unprotected while the store cannot be reached. Its response then
    /// says so, in [`IDEMPOTENCY_UNPROTECTED`](crate::IDEMPOTENCY_UNPROTECTED). Default: `false`,
    /// it is refused with 503 `store-unavailable` and does not run.
    ///
    /// Such a run has its key and an [`Attempt`](crate::Attempt) as any other, counts among the
    /// [runs](Self::max_runs), and is finished when its client goes.
    ///
    /// A store that is full, or a record that is damaged, is refused in any case: there, the
    /// operation may have run already.
    #[must_use]
    pub fn fail_open(self, fail_open: bool) -> Self {
        self.set(|settings| settings.fail_open = fail_open)
    }

    // Who holds it.

    /// See [`Executor::lease`]. Default: 30 s.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.with(|executor| executor.lease(lease))
    }

    /// See [`Executor::retention`]. Default: 24 h.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        self.with(|executor| executor.retention(retention))
    }

    /// See [`Executor::clock_skew`]. Default: 2 s.
    #[must_use]
    pub fn clock_skew(self, clock_skew: Duration) -> Self {
        self.with(|executor| executor.clock_skew(clock_skew))
    }

    /// See [`Executor::answer_unrecorded`]. Default: `true`; with `false`, a client is refused with
    /// 503 `not-recorded` until the store has its answer.
    #[must_use]
    pub fn answer_unrecorded(self, answer_unrecorded: bool) -> Self {
        self.with(|executor| executor.answer_unrecorded(answer_unrecorded))
    }

    /// See [`Executor::max_execution`]. Default: `None`.
    #[must_use]
    pub fn max_execution(self, max_execution: impl Into<Option<Duration>>) -> Self {
        self.with(|executor| executor.max_execution(max_execution))
    }

    /// See [`Executor::heartbeat_on`]. Default: a thread of its own.
    #[must_use]
    pub fn heartbeat_on(self, runtime: tokio::runtime::Handle) -> Self {
        self.with(|executor| executor.heartbeat_on(runtime))
    }

    /// See [`Executor::heartbeat_store`]. Default: the store that the records are in.
    #[must_use]
    pub fn heartbeat_store(self, store: impl Store) -> Self {
        self.with(|executor| executor.heartbeat_store(store))
    }

    /// See [`Executor::living`].
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn living(self, living: crate::testing::Living) -> Self {
        self.with(|executor| executor.living(living))
    }

    /// See [`Executor::max_runs`]. Default: 10,000.
    #[must_use]
    pub fn max_runs(self, max_runs: usize) -> Self {
        self.with(|executor| executor.max_runs(max_runs))
    }

    /// See [`Executor::wait_for_in_flight`]. Default: zero.
    #[must_use]
    pub fn wait_for_in_flight(self, max: Duration) -> Self {
        self.with(|executor| executor.wait_for_in_flight(max))
    }

    /// See [`Executor::store_timeout`]. Default: 5 s.
    #[must_use]
    pub fn store_timeout(self, store_timeout: Duration) -> Self {
        self.with(|executor| executor.store_timeout(store_timeout))
    }

    /// See [`Executor::reconcile_timeout`]. Default: 30 s.
    #[must_use]
    pub fn reconcile_timeout(self, reconcile_timeout: Duration) -> Self {
        self.with(|executor| executor.reconcile_timeout(reconcile_timeout))
    }

    /// What becomes of a key whose run has an unknown outcome. Default: [`Orphan::Retake`].
    ///
    /// A reconciled response is stored as any other: without what is
    /// [not stored](Self::unstored_headers), and only up to
    /// [`max_response_body`](Self::max_response_body).
    #[must_use]
    pub fn orphan(self, orphan: Orphan<Response<Bytes>>) -> Self {
        let orphan = orphan.map(|response| Answer::Response(StoredResponse::from(response)));
        self.with(|executor| executor.orphan(orphan))
    }

    /// See [`Executor::clock`].
    #[must_use]
    pub fn clock(self, clock: impl Clock) -> Self {
        self.with(|executor| executor.clock(clock))
    }

    /// Stops new runs and waits for those in flight.
    pub fn handle(&self) -> Handle {
        self.shared.executor.handle()
    }

    /// Carries along what the layers outside keep around a future, such as task-locals or the
    /// context of OpenTelemetry. Default: nothing is; the current [`tracing::Span`] is in any case.
    ///
    /// A run is polled where its request is, until its client goes; then it is finished by a task of
    /// its own, where nothing is around it any more. `carry` is called once for each run, before
    /// the run is polled first and in the context of its request, and gives back the run with
    /// around it what it needs. It must not put a deadline on it: a run that has begun is to end.
    /// If it panics or drops the run, the run goes on without the context.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{IdempotencyLayer, store::MemoryStore};
    ///
    /// tokio::task_local! {
    ///     static TENANT: String;
    /// }
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).carry_context(|run| {
    ///     match TENANT.try_with(Clone::clone) {
    ///         Ok(tenant) => Box::pin(TENANT.scope(tenant, run)),
    ///         Err(_) => run,
    ///     }
    /// });
    /// # }
    /// ```
    #[must_use]
    pub fn carry_context(
        self,
        carry: impl Fn(RunFuture) -> RunFuture + Send + Sync + 'static,
    ) -> Self {
        self.set(|settings| settings.carry = Some(Carry::new(carry)))
    }

    /// What the requests run on.
    pub fn executor(&self) -> &Executor<St> {
        &self.shared.executor
    }

    /// The same layer for services whose bodies cannot be made from buffered bytes: it puts the
    /// bodies of requests and responses into [`GuardedBody`](crate::GuardedBody).
    ///
    /// For axum, tonic and boxed bodies the layer itself is the better choice, for it leaves
    /// their types as they are.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use std::convert::Infallible;
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::Full;
    /// use tower::ServiceBuilder;
    /// use tower_idempotency::{GuardedBody, IdempotencyLayer, store::MemoryStore};
    ///
    /// type Incoming = Full<Bytes>; // hyper::body::Incoming, in a server
    ///
    /// async fn charge(_: Request<GuardedBody<Incoming>>) -> Result<Response<Full<Bytes>>, Infallible> {
    ///     Ok(Response::new(Full::from("charged")))
    /// }
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new()).for_any_body();
    /// let service = ServiceBuilder::new().layer(layer).service_fn(charge);
    /// # }
    /// ```
    pub fn for_any_body(self) -> AnyBodyLayer<St> {
        AnyBodyLayer::new(self)
    }

    fn identify(self, change: impl FnOnce(&mut Identification)) -> Self {
        self.set(|settings| change(&mut settings.identification))
    }

    fn name(self, change: impl FnOnce(Naming) -> Naming) -> Self {
        self.identify(|identification| {
            identification.naming = change(std::mem::take(&mut identification.naming));
        })
    }

    fn mix(self, change: impl FnOnce(Recipe) -> Recipe) -> Self {
        self.identify(|identification| {
            identification.recipe = change(std::mem::take(&mut identification.recipe));
        })
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut Arc::make_mut(&mut self.shared).settings);
        self
    }

    fn with(mut self, change: impl FnOnce(Executor<St>) -> Executor<St>) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.executor = change(shared.executor.clone());
        self
    }
}

/// Whether a service of this process is behind a layer.
static LAYERED: AtomicBool = AtomicBool::new(false);

#[cfg(feature = "axum")]
pub(crate) fn is_layered() -> bool {
    LAYERED.load(Ordering::Relaxed)
}

impl<St> Clone for IdempotencyLayer<St> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: Clone, St: Store> Layer<S> for IdempotencyLayer<St> {
    type Service = Idempotency<S, St>;

    fn layer(&self, inner: S) -> Self::Service {
        LAYERED.store(true, Ordering::Relaxed);
        self.shared.tell_misuse();
        Idempotency::new(inner, Arc::clone(&self.shared))
    }
}
