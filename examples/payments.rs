//! A payment API in the shape of Stripe's, which charges a card once however often it is asked.
//!
//! ```text
//! cargo run --example payments
//! ```
//!
//! Sent twice, this charges once. The second answer is the first one's, and says so:
//!
//! ```text
//! $ curl -i http://127.0.0.1:3000/v1/charges -H 'Idempotency-Key: order-1432' \
//!     -d amount=2000 -d currency=usd -d source=tok_visa
//! HTTP/1.1 200 OK
//! content-type: application/json
//! idempotent-replayed: true
//! content-length: 300
//! date: Sat, 21 Nov 2026 10:08:00 GMT
//!
//! {"id":"ch_0000000000000001","object":"charge","amount":2000,"amount_captured":2000,"captured":true,"created":1795255680,"currency":"usd","description":null,"livemode":false,"metadata":{},"paid":true,"payment_method_details":{"card":{"brand":"visa","last4":"4242"},"type":"card"},"status":"succeeded"}
//! ```
//!
//! This takes two seconds. Sent again after one, it is refused until the first has its answer;
//! with `--wait 5`, it waits for that answer instead:
//!
//! ```text
//! $ curl -i http://127.0.0.1:3000/v1/charges -H 'Idempotency-Key: order-1433' \
//!     -d amount=2000 -d currency=usd -d source=tok_slow
//! HTTP/1.1 409 Conflict
//! content-type: application/json
//! stripe-should-retry: true
//! retry-after: 2
//! content-length: 154
//! date: Sat, 21 Nov 2026 10:08:01 GMT
//!
//! {"error":{"type":"invalid_request_error","code":"idempotency_key_in_use","message":"the first request with this idempotency key is still being executed"}}
//! ```
//!
//! What can be charged, after Stripe's test tokens:
//!
//! | `source` | what happens |
//! |---|---|
//! | `tok_visa` | it is charged |
//! | `tok_slow` | it is charged after 2 s, also when the client has hung up by then |
//! | `tok_chargeDeclined` | 402: an answer like any other, so it is recorded |
//! | `tok_error` | 500, and nothing is charged: not recorded, so a retry runs |
//! | `tok_panic` | a panic before the charge: `--orphan` says what the key is worth |
//! | `tok_panicAfterCharge` | a panic after it: each retry charges again, unless `--orphan` is `hold` or `reconcile` |
//!
//! Stripe's own client libraries work against it: the address is their API base, and any API
//! key will do.

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{IsTerminal, stderr};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Json, Path, Query, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{
    Clock, IdempotencyKey, IdempotencyLayer, Orphan, Orphaned, Outcome, Reconciled, Recording,
    RecordingOverride, Refusal, RefusalReason, SystemClock, Timestamp,
};
use tracing_subscriber::EnvFilter;

/// How long to wait at the end for runs whose clients have gone.
const SHUTDOWN: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();

    let ledger = Ledger::default();
    let idempotency = idempotency(&flags, &ledger);
    let handle = idempotency.handle();
    let listener = TcpListener::bind(flags.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(ledger, idempotency))
        .with_graceful_shutdown(told_to_stop())
        .await?;

    // Every connection is closed; a run whose client went away may still be charging a card.
    if timeout(SHUTDOWN, handle.shutdown()).await.is_err() {
        tracing::error!(runs = handle.in_flight(), "stopped before all runs ended");
    }
    Ok(())
}

fn app(ledger: Ledger, idempotency: IdempotencyLayer<MemoryStore>) -> Router {
    Router::new()
        .route("/v1/charges", get(list_charges).post(create_charge))
        .route("/v1/charges/{id}", get(get_charge))
        .with_state(ledger)
        .layer(
            // From the outside in.
            ServiceBuilder::new()
                // Sees every answer: the handlers', replays, refusals, and what became of panics.
                .layer(from_fn(log))
                // Outside of the idempotency layer, which has to see a panic for what it is: a
                // run without an outcome. A 500 made further in would hide it.
                .layer(CatchPanicLayer::custom(panicked))
                .layer(idempotency),
        )
}

/// Stripe's behaviour, as far as it is a matter of settings.
///
/// No scope is set, for there are no accounts here to name. `Authorization` is therefore part of
/// each request's fingerprint: another caller with the same key is refused, and never gets
/// somebody else's charge. An API with accounts sets `scope` to the one it has authenticated.
fn idempotency(flags: &Flags, ledger: &Ledger) -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new())
        .lease(flags.lease)
        .retention(flags.retention)
        .wait_for_in_flight(flags.wait)
        .recording(match flags.record {
            Record::Deterministic => Recording::Deterministic,
            Record::All => Recording::All,
            Record::Success => Recording::Success,
        })
        .orphan(match flags.orphan {
            OnOrphan::Retake => Orphan::Retake,
            OnOrphan::Hold => Orphan::Hold,
            OnOrphan::Reconcile => reconcile(ledger.clone()),
        })
        .on_refusal(refused)
}

/// Asks the ledger whether a run that left no outcome has charged.
fn reconcile(ledger: Ledger) -> Orphan<http::Response<Bytes>> {
    Orphan::reconcile(move |orphaned: Orphaned| {
        let reconciled = match ledger.made_under(&orphaned.key, orphaned.created_at) {
            Some(charge) => Reconciled::Completed(answer(StatusCode::OK, &charge)),
            // Certain only because nobody else writes this ledger, and the run is over.
            None => Reconciled::NotExecuted,
        };
        std::future::ready(reconciled)
    })
}

/// One line for each request. Never the key: who has it can ask for the answer.
async fn log(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::info!(%method, path, status, outcome = outcome(&response));
    response
}

/// What the layer did, from the extension that it leaves on the response.
fn outcome(response: &Response) -> String {
    let extensions = response.extensions();
    match extensions.get::<Outcome>() {
        Some(outcome) => outcome.to_string(),
        None if extensions.get::<Panicked>().is_some() => "panicked".to_owned(),
        None => "passed through".to_owned(),
    }
}

// The API.

async fn create_charge(
    State(ledger): State<Ledger>,
    key: Option<IdempotencyKey>,
    new: NewCharge,
) -> Result<Json<Charge>, ApiError> {
    match new.source.as_str() {
        "tok_visa" => Ok(Json(ledger.charge(new, key))),
        "tok_slow" => {
            sleep(Duration::from_secs(2)).await;
            Ok(Json(ledger.charge(new, key)))
        }
        "tok_chargeDeclined" => Err(ApiError::declined(next_id())),
        "tok_error" => Err(ApiError::internal("The card network is out of reach.")),
        "tok_panic" => panic!("as requested, before the charge"),
        "tok_panicAfterCharge" => {
            ledger.charge(new, key);
            panic!("as requested, after the charge")
        }
        unknown => Err(ApiError::missing(
            "source",
            format!("No such token: '{unknown}'"),
        )),
    }
}

async fn get_charge(
    State(ledger): State<Ledger>,
    Path(id): Path<String>,
) -> Result<Json<Charge>, ApiError> {
    let charges = ledger.charges();
    match charges.iter().find(|charge| charge.id == id) {
        Some(charge) => Ok(Json(charge.clone())),
        None => Err(ApiError::no_such_charge("id", &id)),
    }
}

async fn list_charges(
    State(ledger): State<Ledger>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(page) = page.map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
    let limit = page.limit.unwrap_or(10);
    if !(1..=100).contains(&limit) {
        return Err(ApiError::param("limit", "Must be between 1 and 100."));
    }
    let charges = ledger.charges();
    let older = match page.starting_after {
        None => charges.as_slice(),
        Some(id) => match charges.iter().position(|charge| charge.id == id) {
            Some(position) => &charges[..position],
            None => return Err(ApiError::no_such_charge("starting_after", &id)),
        },
    };
    let data: Vec<_> = older.iter().rev().take(limit).collect();
    Ok(Json(json!({
        "object": "list",
        "url": "/v1/charges",
        "has_more": older.len() > data.len(),
        "data": data,
    })))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    starting_after: Option<String>,
}

/// What a client asks for: as a form, which Stripe's libraries send, or as JSON.
struct NewCharge {
    amount: u32,
    currency: String,
    source: String,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
}

impl<S: Send + Sync> FromRequest<S> for NewCharge {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let is_json = is_json(request.headers());
        let body = Bytes::from_request(request, state)
            .await
            .map_err(IntoResponse::into_response)?;
        Self::read(&body, is_json).map_err(|error| {
            // Nothing has begun, so nothing is recorded: a corrected request may use the same key.
            (Extension(RecordingOverride::Release), error).into_response()
        })
    }
}

impl NewCharge {
    fn read(body: &[u8], is_json: bool) -> Result<Self, ApiError> {
        let mut fields = if is_json {
            serde_json::from_slice(body)
                .map(as_form)
                .map_err(|error| ApiError::invalid(error.to_string()))?
        } else {
            form_urlencoded::parse(body).into_owned().collect()
        };
        let mut required = |name| {
            let value = fields.remove(name);
            value.ok_or_else(|| ApiError::param(name, format!("Missing required param: {name}.")))
        };
        let amount = match required("amount")?.parse() {
            Ok(amount) if amount > 0 => amount,
            _ => return Err(ApiError::param("amount", "Must be a positive integer.")),
        };
        let currency = required("currency")?.to_ascii_lowercase();
        if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return Err(ApiError::param("currency", "Must be three letters."));
        }
        Ok(Self {
            amount,
            currency,
            source: required("source")?,
            description: fields.remove("description"),
            metadata: fields.into_iter().filter_map(metadata).collect(),
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

/// The pairs that a form would have in the place of a JSON object.
fn as_form(object: Map<String, Value>) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for (name, value) in object {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            Value::Object(nested) => {
                let nested = as_form(nested).into_iter();
                fields.extend(nested.map(|(key, value)| (format!("{name}[{key}]"), value)));
                continue;
            }
            other => other.to_string(),
        };
        fields.insert(name, text);
    }
    fields
}

/// The entry that `metadata[order]=7` makes.
fn metadata((name, value): (String, String)) -> Option<(String, String)> {
    let key = name.strip_prefix("metadata[")?.strip_suffix(']')?;
    Some((key.to_owned(), value))
}

// The business system.

/// Which cards were charged, oldest first.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<Charge>>>);

#[derive(Clone, Serialize)]
struct Charge {
    id: String,
    object: &'static str,
    amount: u32,
    amount_captured: u32,
    captured: bool,
    created: u64,
    currency: String,
    description: Option<String>,
    livemode: bool,
    metadata: BTreeMap<String, String>,
    paid: bool,
    payment_method_details: Value,
    status: &'static str,
    #[serde(skip)]
    made_at: Timestamp,
    /// The key that the charge was made under, so that a reconciliation finds it. Keys are equal
    /// when their record keys are, so scopes and operations do not get into each other's way.
    #[serde(skip)]
    key: Option<IdempotencyKey>,
}

impl Ledger {
    fn charge(&self, new: NewCharge, key: Option<IdempotencyKey>) -> Charge {
        let mut charges = self.charges();
        let made_at = SystemClock.now();
        let charge = Charge {
            id: next_id(),
            object: "charge",
            amount: new.amount,
            amount_captured: new.amount,
            captured: true,
            created: made_at.as_millis() / 1_000,
            currency: new.currency,
            description: new.description,
            livemode: false,
            metadata: new.metadata,
            paid: true,
            payment_method_details: json!({
                "type": "card",
                "card": { "brand": "visa", "last4": "4242" },
            }),
            status: "succeeded",
            made_at,
            key,
        };
        charges.push(charge.clone());
        charge
    }

    /// The charge made under `key` since it was claimed. One from before belongs to an earlier
    /// use of the key, which is long forgotten.
    fn made_under(&self, key: &IdempotencyKey, since: Timestamp) -> Option<Charge> {
        let is_it = |charge: &&Charge| charge.key.as_ref() == Some(key) && charge.made_at >= since;
        self.charges().iter().rev().find(is_it).cloned()
    }

    fn charges(&self) -> MutexGuard<'_, Vec<Charge>> {
        // Nothing panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id for a charge, also for one that is declined: it tells an attempt from a replay.
fn next_id() -> String {
    static TRIED: AtomicU64 = AtomicU64::new(0);
    format!("ch_{:016}", TRIED.fetch_add(1, Ordering::Relaxed) + 1)
}

// What went wrong, in Stripe's words.

#[derive(Serialize)]
struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decline_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    charge: Option<String>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            decline_code: None,
            charge: None,
            message: message.into(),
            param: None,
        }
    }

    fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "api_error", message)
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    fn param(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::invalid(message)
        }
    }

    fn missing(param: &'static str, message: String) -> Self {
        Self {
            code: Some("resource_missing"),
            ..Self::param(param, message)
        }
    }

    fn no_such_charge(param: &'static str, id: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            ..Self::missing(param, format!("No such charge: '{id}'"))
        }
    }

    fn declined(charge: String) -> Self {
        let status = StatusCode::PAYMENT_REQUIRED;
        Self {
            code: Some("card_declined"),
            decline_code: Some("generic_decline"),
            charge: Some(charge),
            ..Self::new(status, "card_error", "Your card was declined.")
        }
    }

    fn to_answer(&self) -> http::Response<Bytes> {
        answer(self.status, &BTreeMap::from([("error", self)]))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.to_answer().map(Body::from)
    }
}

/// The layer's refusals, as Stripe says them. Its libraries obey `Stripe-Should-Retry`, and would
/// otherwise retry each 409.
fn refused(refusal: &Refusal) -> http::Response<Bytes> {
    const STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");
    let reason = refusal.reason();
    let (status, kind) = match reason {
        RefusalReason::KeyReused => (StatusCode::BAD_REQUEST, "idempotency_error"),
        _ if reason.status().is_server_error() => (reason.status(), "api_error"),
        _ => (reason.status(), "invalid_request_error"),
    };
    let code = match reason {
        RefusalReason::InProgress => Some("idempotency_key_in_use"),
        RefusalReason::OutcomeUnknown => Some("outcome_unknown"),
        RefusalReason::ResponseNotStored => Some("response_not_stored"),
        _ => None,
    };
    let error = ApiError {
        code,
        ..ApiError::new(status, kind, refusal.detail())
    };
    let mut response = error.to_answer();
    let headers = response.headers_mut();
    let should_retry = HeaderValue::from_static(match refusal.is_retryable() {
        true => "true",
        false => "false",
    });
    headers.insert(STRIPE_SHOULD_RETRY, should_retry);
    if let Some(seconds) = refusal.retry_after_seconds() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// Marks the answer to a request whose handler panicked, for the log.
#[derive(Clone)]
struct Panicked;

fn panicked(_: Box<dyn Any + Send>) -> Response {
    let error = ApiError::internal("Something went wrong on our side.");
    (Extension(Panicked), error).into_response()
}

fn answer(status: StatusCode, body: &impl Serialize) -> http::Response<Bytes> {
    // Strings, numbers and maps with strings for keys: all of it can be written as JSON.
    let body = serde_json::to_vec(body).expect("it is JSON");
    let mut response = http::Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

// The process.

/// A payment API in the shape of Stripe's.
#[derive(Parser)]
struct Flags {
    /// Where to listen; with port 0, the system picks one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// How long a run may be silent before its key counts as orphaned.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    lease: Duration,
    /// How long answers are remembered.
    #[arg(long, value_name = "SECONDS", default_value = "86400", value_parser = seconds)]
    retention: Duration,
    /// What becomes of a key whose run left no outcome.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = OnOrphan::Retake)]
    orphan: OnOrphan,
    /// Which answers are recorded.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = Record::Deterministic)]
    record: Record,
    /// How long a duplicate waits for the run in flight before it is refused.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    wait: Duration,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnOrphan {
    /// Run it again.
    Retake,
    /// Never run it again.
    Hold,
    /// Ask the ledger.
    Reconcile,
}

#[derive(Clone, Copy, ValueEnum)]
enum Record {
    /// All but those which say that nothing was done, such as a 500.
    Deterministic,
    /// All, as Stripe does it.
    All,
    /// Successes only.
    Success,
}

fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

async fn told_to_stop() {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}
