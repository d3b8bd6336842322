//! Clients that pay, and retry as Stripe's do until they know what became of a payment.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower_idempotency::IDEMPOTENT_REPLAYED;

use crate::Result;
use crate::fleet::{Fleet, locked, now};
use crate::storm::Storm;

/// Stripe's clients make two retries, half a second to a second apart.
const RETRIES: usize = 2;
/// When a client takes a connection for dead.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

pub(crate) struct Clients {
    fleet: Arc<Fleet>,
    http: Client<HttpConnector, Full<Bytes>>,
    seed: u64,
    requests: usize,
    next: AtomicUsize,
    paid: AtomicUsize,
    sent: AtomicUsize,
    enough: AtomicBool,
    answers: Mutex<BTreeMap<String, usize>>,
    told: Mutex<HashMap<usize, Told>>,
}

/// What clients were told about one payment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// All different answers that said that it was made.
    pub(crate) answers: Vec<(StatusCode, Bytes)>,
    /// When the first of them came, and when it was first said that nobody knows. Microseconds
    /// since the Unix epoch.
    pub(crate) answered: Option<u64>,
    pub(crate) held: Option<u64>,
}

/// What one try came to.
enum Try {
    Answered,
    /// Nobody knows what became of the payment, and nobody will find out by asking.
    Held,
    Again,
}

impl Clients {
    pub(crate) fn new(storm: &Storm, fleet: Arc<Fleet>) -> Self {
        Self {
            fleet,
            http: Client::builder(TokioExecutor::new()).build_http(),
            seed: storm.seed,
            requests: storm.requests,
            next: AtomicUsize::new(0),
            paid: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            enough: AtomicBool::new(false),
            answers: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Payments that clients know the outcome of.
    pub(crate) fn paid(&self) -> usize {
        self.paid.load(Ordering::Relaxed)
    }

    pub(crate) fn payments(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// From here on, the payments that were asked for are enough.
    pub(crate) fn have_paid_enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    pub(crate) fn answers(&self) -> BTreeMap<String, usize> {
        locked(&self.answers).clone()
    }

    pub(crate) fn told(&self) -> HashMap<usize, Told> {
        locked(&self.told).clone()
    }

    /// Makes payments, each until its outcome is known; some are asked for twice at once.
    pub(crate) async fn pay(self: &Arc<Self>, clients: usize) -> Result<()> {
        let mut paying = JoinSet::new();
        for number in 0..clients {
            let clients = Arc::clone(self);
            let mut rng = Rng::with_seed(self.seed ^ (number as u64 + 1) << 32);
            paying.spawn(async move {
                while let Some(payment) = clients.next_payment() {
                    let mut twin = rng.fork();
                    match rng.u8(..10) {
                        0 => {
                            tokio::join!(
                                clients.settle(payment, &mut rng),
                                clients.settle(payment, &mut twin)
                            );
                        }
                        _ => clients.settle(payment, &mut rng).await,
                    }
                    clients.paid.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while let Some(paid) = paying.join_next().await {
            paid?;
        }
        Ok(())
    }

    fn next_payment(&self) -> Option<usize> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        if next < self.requests || !self.enough.load(Ordering::Relaxed) {
            return Some(next);
        }
        self.next.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Calls until the outcome is known, as an application does that cannot leave it open.
    async fn settle(&self, payment: usize, rng: &mut Rng) {
        while !self.call(payment, rng).await {
            sleep(between(rng, 200, 1000)).await;
        }
    }

    /// One call of a client library: a try, and its retries. Says whether the outcome is known.
    async fn call(&self, payment: usize, rng: &mut Rng) -> bool {
        for retry in 0..=RETRIES {
            if retry > 0 {
                sleep(between(rng, 500, 1000)).await;
            }
            // Some hang up before they could have an answer.
            let patience = match rng.u8(..30) {
                0 => between(rng, 0, 40),
                _ => ANSWERS_WITHIN,
            };
            match self.attempt(payment, rng, patience).await {
                Try::Answered | Try::Held => return true,
                Try::Again => {}
            }
        }
        false
    }

    /// Asks for one payment until it is answered, for so long: what the clients know in the end.
    pub(crate) async fn ask_again(&self, payment: usize, within: Duration) -> Last {
        let mut rng = Rng::with_seed(self.seed ^ payment as u64);
        let asked = Instant::now();
        loop {
            match self.attempt(payment, &mut rng, ANSWERS_WITHIN).await {
                Try::Answered => return Last::Answered,
                Try::Held => return Last::Held,
                Try::Again if asked.elapsed() > within => return Last::Stuck,
                Try::Again => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn attempt(&self, payment: usize, rng: &mut Rng, patience: Duration) -> Try {
        let nodes = self.fleet.addresses();
        if nodes.is_empty() {
            sleep(Duration::from_millis(10)).await;
            return Try::Again;
        }
        let node = nodes[rng.usize(..nodes.len())];
        self.sent.fetch_add(1, Ordering::Relaxed);
        let answered = timeout(patience, async {
            let answer = self.http.request(request(payment, node)).await.ok()?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            Some((parts, body))
        });
        let (kind, tried) = match answered.await {
            Err(_) if patience < ANSWERS_WITHIN => ("client hung up".to_owned(), Try::Again),
            Err(_) => ("no answer in time".to_owned(), Try::Again),
            Ok(None) => ("connection lost".to_owned(), Try::Again),
            Ok(Some((parts, body))) => {
                let kind = kind_of(&parts, &body);
                let tried = self.note(payment, &parts, body);
                (kind, tried)
            }
        };
        *locked(&self.answers).entry(kind).or_default() += 1;
        tried
    }

    fn note(&self, payment: usize, answer: &http::response::Parts, body: Bytes) -> Try {
        let mut told = locked(&self.told);
        let told = told.entry(payment).or_default();
        if answer.status.is_success() {
            let answer = (answer.status, body);
            told.answered.get_or_insert_with(now);
            if !told.answers.contains(&answer) {
                told.answers.push(answer);
            }
            return Try::Answered;
        }
        let should_retry = answer.headers.get("stripe-should-retry");
        match should_retry.is_some_and(|value| value == "false") {
            true => {
                told.held.get_or_insert_with(now);
                Try::Held
            }
            false => Try::Again,
        }
    }
}

/// What became of a payment when it was asked for the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    Answered,
    Held,
    Stuck,
}

pub(crate) fn key_of(payment: usize) -> String {
    format!("payment-{payment}")
}

/// The number in a key.
pub(crate) fn payment_of(key: &str) -> Option<usize> {
    key.strip_prefix("payment-")?.parse().ok()
}

fn request(payment: usize, node: std::net::SocketAddr) -> Request<Full<Bytes>> {
    // Some take as long as a lease, so that there is a heartbeat to be disturbed.
    let source = match payment % 200 {
        0 => "tok_slow",
        _ => "tok_visa",
    };
    let key = key_of(payment);
    let amount = payment % 1000 + 1;
    let body = format!("amount={amount}&currency=usd&source={source}&description={key}");
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{node}/v1/charges"))
        .header("content-type", "application/x-www-form-urlencoded")
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from(body)))
        .expect("every part is valid")
}

fn kind_of(answer: &http::response::Parts, body: &[u8]) -> String {
    let status = answer.status.as_u16();
    if answer.headers.contains_key(IDEMPOTENT_REPLAYED) {
        return format!("{status} replayed");
    }
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let error = problem.as_ref().and_then(|problem| problem.get("error"));
    let said = error.and_then(|error| error.get("code").or_else(|| error.get("message")));
    match said.and_then(serde_json::Value::as_str) {
        Some(said) => format!("{status} {said}"),
        None => format!("{status} executed"),
    }
}

fn between(rng: &mut Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(rng.u64(least..=most))
}
