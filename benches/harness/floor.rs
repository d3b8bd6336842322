//! The least that could be correct, written by hand for one process: what no idempotency layer
//! can do without, and so the unit that ours is measured in.
//!
//! It takes the key from its header, reads the body, takes SHA-256 of the key (for a key of fixed
//! size) and of method, path and body (the fingerprint), and looks into a sharded map: a key in
//! flight gives 409, one with another fingerprint 422, a completed one its stored response. A new
//! key is marked as in flight, the handler runs, its response is read, packed into one allocation
//! and stored. Records are forgotten when their retention has passed.
//!
//! It leaves out all that this crate does beyond that: leases, heartbeats and fencing (a key whose
//! run was dropped or panicked stays in flight until its retention ends), runs that outlive their
//! client, waiting for the run in flight, other stores, bounds on memory and on body sizes, keys
//! from elsewhere than one header and their parsing, scopes and credentials, the media type and
//! the query in the fingerprint, a choice of what is stored, trailers, what the handler and the
//! layers outside are told in headers and extensions, problem details, statistics and tracing.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use http::{Method, Request, Response, StatusCode, request, response};
use http_body::Body as _;
use pin_project_lite::pin_project;
use sha2::{Digest, Sha256};
use tower::{Layer, Service};

use super::frame;
use super::load::KEY;
use super::rounds::now;

const SHARDS: usize = 64;

type Digested = [u8; 32];

/// The floor; clones share their records.
#[derive(Clone)]
pub(crate) struct FloorLayer(Arc<Records>);

/// The floor around a service.
#[derive(Clone)]
pub(crate) struct Floor<S> {
    inner: S,
    records: Arc<Records>,
}

struct Records {
    shards: [Mutex<Shard>; SHARDS],
    retention: Duration,
}

#[derive(Default)]
struct Shard {
    records: HashMap<Digested, Record, RandomState>,
    /// In the order in which they expire.
    expiring: VecDeque<(Instant, Digested)>,
}

struct Record {
    fingerprint: Digested,
    /// `None` while the run is in flight.
    frame: Option<Bytes>,
    expires_at: Instant,
}

enum Found {
    Nothing,
    InFlight,
    Reused,
    Completed(Bytes),
}

impl FloorLayer {
    pub(crate) fn new(retention: Duration) -> Self {
        Self(Arc::new(Records {
            shards: std::array::from_fn(|_| Mutex::default()),
            retention,
        }))
    }
}

impl<S> Layer<S> for FloorLayer {
    type Service = Floor<S>;

    fn layer(&self, inner: S) -> Floor<S> {
        Floor {
            inner,
            records: Arc::clone(&self.0),
        }
    }
}

impl Records {
    fn shard(&self, key: &Digested) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[usize::from(key[31]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is under the key; if there is nothing, it is in flight from now on.
    fn claim(&self, key: Digested, fingerprint: Digested) -> Found {
        let now = now();
        let mut shard = self.shard(&key);
        match shard.records.get(&key) {
            Some(record) if record.expires_at > now => {
                return match &record.frame {
                    _ if record.fingerprint != fingerprint => Found::Reused,
                    None => Found::InFlight,
                    Some(frame) => Found::Completed(frame.clone()),
                };
            }
            _ => {}
        }
        shard.forget_expired(now);
        let expires_at = now + self.retention;
        shard.expiring.push_back((expires_at, key));
        let record = Record {
            fingerprint,
            frame: None,
            expires_at,
        };
        shard.records.insert(key, record);
        Found::Nothing
    }

    fn complete(&self, key: &Digested, frame: Bytes) {
        if let Some(record) = self.shard(key).records.get_mut(key) {
            record.frame = Some(frame);
        }
    }
}

impl Shard {
    /// Two for one that comes, so that they become no more.
    fn forget_expired(&mut self, now: Instant) {
        for _ in 0..2 {
            match self.expiring.front() {
                Some((expires_at, key)) if *expires_at <= now => {
                    self.records.remove(key);
                    self.expiring.pop_front();
                }
                _ => return,
            }
        }
    }
}

impl<S> Service<Request<Body>> for Floor<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = FloorFuture<S, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_guarded = *request.method() == Method::POST || *request.method() == Method::PATCH;
        if !is_guarded || !request.headers().contains_key(KEY) {
            return FloorFuture {
                state: State::Passing {
                    future: self.inner.call(request),
                },
            };
        }
        let (parts, body) = request.into_parts();
        let clone = self.inner.clone();
        FloorFuture {
            state: State::Reading {
                reading: Some(Reading {
                    inner: std::mem::replace(&mut self.inner, clone),
                    records: Arc::clone(&self.records),
                    parts,
                    body,
                    read: Read::Nothing,
                }),
            },
        }
    }
}

pin_project! {
    pub(crate) struct FloorFuture<S, F> {
        #[pin]
        state: State<S, F>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, F> {
        Passing { #[pin] future: F },
        Reading { reading: Option<Reading<S>> },
        Running { #[pin] future: F, records: Arc<Records>, key: Digested },
        Storing { storing: Option<Storing> },
    }
}

struct Reading<S> {
    inner: S,
    records: Arc<Records>,
    parts: request::Parts,
    body: Body,
    read: Read,
}

struct Storing {
    records: Arc<Records>,
    key: Digested,
    parts: response::Parts,
    body: Body,
    read: Read,
}

/// What was read of a body. One frame, which is what most have, is not copied.
enum Read {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl<S, F> Future for FloorFuture<S, F>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = F>,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Passing { future } => return future.poll(cx),
                StateProjection::Reading { reading } => {
                    let read = reading.as_mut().expect("it is not polled after its end");
                    if !ready!(read.read.poll(&mut read.body, cx)) {
                        return Poll::Ready(Ok(refusal(StatusCode::BAD_REQUEST)));
                    }
                    let reading = reading.take().expect("it was just there");
                    match reading.claim() {
                        ControlFlow::Break(response) => return Poll::Ready(Ok(response)),
                        ControlFlow::Continue(running) => running,
                    }
                }
                StateProjection::Running {
                    future,
                    records,
                    key,
                } => {
                    let Ok(response) = ready!(future.poll(cx));
                    let (parts, body) = response.into_parts();
                    State::Storing {
                        storing: Some(Storing {
                            records: Arc::clone(records),
                            key: *key,
                            parts,
                            body,
                            read: Read::Nothing,
                        }),
                    }
                }
                StateProjection::Storing { storing } => {
                    let read = storing.as_mut().expect("it is not polled after its end");
                    // What was done is not known to be answered: the key stays in flight.
                    if !ready!(read.read.poll(&mut read.body, cx)) {
                        return Poll::Ready(Ok(refusal(StatusCode::BAD_GATEWAY)));
                    }
                    let storing = storing.take().expect("it was just there");
                    let body = storing.read.into_bytes();
                    let frame = frame::encode(&storing.parts, &body);
                    storing.records.complete(&storing.key, frame);
                    let response = Response::from_parts(storing.parts, Body::from(body));
                    return Poll::Ready(Ok(response));
                }
            };
            state.set(next);
        }
    }
}

impl<S> Reading<S>
where
    S: Service<Request<Body>>,
{
    /// The answer that there is already, or the run.
    fn claim(mut self) -> ControlFlow<Response<Body>, State<S, S::Future>> {
        let key = self.parts.headers.get(KEY);
        let key: Digested = Sha256::digest(key.expect("it was there before").as_bytes()).into();
        let body = self.read.into_bytes();
        let path = self.parts.uri.path().as_bytes();
        let method = self.parts.method.as_str().as_bytes();
        let mut fingerprint = Sha256::new();
        for field in [method, path, &body] {
            fingerprint.update((field.len() as u64).to_le_bytes());
            fingerprint.update(field);
        }
        match self.records.claim(key, fingerprint.finalize().into()) {
            Found::InFlight => ControlFlow::Break(refusal(StatusCode::CONFLICT)),
            Found::Reused => ControlFlow::Break(refusal(StatusCode::UNPROCESSABLE_ENTITY)),
            Found::Completed(frame) => {
                let response = frame::decode(&frame);
                ControlFlow::Break(
                    response.unwrap_or_else(|| refusal(StatusCode::SERVICE_UNAVAILABLE)),
                )
            }
            Found::Nothing => {
                let request = Request::from_parts(self.parts, Body::from(body));
                ControlFlow::Continue(State::Running {
                    future: self.inner.call(request),
                    records: self.records,
                    key,
                })
            }
        }
    }
}

impl Read {
    /// Reads a body to its end, and says whether it came to it.
    fn poll(&mut self, body: &mut Body, cx: &mut Context<'_>) -> Poll<bool> {
        while !body.is_end_stream() {
            let data = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data(),
                Some(Err(_)) => return Poll::Ready(false),
                None => break,
            };
            let Ok(data) = data else { break };
            *self = match std::mem::replace(self, Self::Nothing) {
                Self::Nothing => Self::One(data),
                Self::One(first) => {
                    let mut all = BytesMut::from(first);
                    all.extend_from_slice(&data);
                    Self::Many(all)
                }
                Self::Many(mut all) => {
                    all.extend_from_slice(&data);
                    Self::Many(all)
                }
            };
        }
        Poll::Ready(true)
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
