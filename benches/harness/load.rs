//! Requests, the handler they are for, and services that are timed under them.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::runtime::{Builder, Runtime};
use tower::{Service, service_fn};

use super::rounds::{Batch, Random, now};

pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(crate) const PATH: &str = "/v1/charges";

/// What a service is made for.
pub(crate) struct Setup {
    /// The body of each answer.
    pub(crate) answer: Bytes,
    /// How long answers are remembered.
    pub(crate) retention: Duration,
    /// How often the handler has run.
    pub(crate) runs: AtomicU64,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self {
            answer: bytes(200),
            retention: Duration::from_secs(24 * 60 * 60),
            runs: AtomicU64::new(0),
        }
    }

    /// What the handler does: it reads the request's body and answers.
    pub(crate) async fn handle(&self, body: Body) -> Response<Body> {
        read(body).await;
        self.respond()
    }

    /// Counts a run, and makes its answer.
    pub(crate) fn respond(&self) -> Response<Body> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(Body::from(self.answer.clone()));
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "private, max-age=0"),
            (HeaderName::from_static("request-id"), "req_0123456789abcd"),
            (header::LOCATION, "/v1/charges/ch_0123456789abcdef"),
            (HeaderName::from_static("stripe-version"), "2026-01-01"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    pub(crate) fn runs_so_far(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }
}

/// The handler as a service of its own.
pub(crate) fn handler(
    setup: &Arc<Setup>,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
+ use<> {
    let setup = Arc::clone(setup);
    service_fn(move |request: Request<Body>| {
        let setup = Arc::clone(&setup);
        async move { Ok(setup.handle(request.into_body()).await) }
    })
}

/// Which requests are sent.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) method: Method,
    pub(crate) keys: Keys,
    pub(crate) body: Bytes,
    /// Makes the value of a cookie from the number of the key.
    pub(crate) cookie: Option<fn(u64) -> String>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Keys {
    None,
    /// One that nobody looks at.
    Unguarded,
    /// A new one for each request.
    Fresh,
    /// Of so many, each of which was used before.
    Known(u64),
}

impl Load {
    /// A `POST` with a body of 1 KB.
    pub(crate) fn new(keys: Keys) -> Self {
        Self {
            method: Method::POST,
            keys,
            body: bytes(1024),
            cookie: None,
        }
    }

    pub(crate) fn get(mut self) -> Self {
        self.method = Method::GET;
        self
    }

    pub(crate) fn body(mut self, length: usize) -> Self {
        self.body = bytes(length);
        self
    }

    /// What a request has that others do not: not timed.
    pub(crate) fn item(&self, number: u64) -> Item {
        let key = || value(&format!("3f0c6f2e-7f5b-4c1d-9a55-{number:012x}"));
        Item {
            key: (self.keys != Keys::None).then(key),
            cookie: self.cookie.map(|cookie| value(&cookie(number))),
        }
    }

    /// The request: timed, for a server has to make it, too.
    pub(crate) fn request(&self, item: Item) -> Request<Body> {
        let mut request = Request::new(Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = http::Uri::from_static(PATH);
        let headers = request.headers_mut();
        for (name, value) in [
            (header::HOST, "api.example.com"),
            (header::USER_AGENT, "bench/1"),
            (header::ACCEPT, "application/json"),
            (header::CONTENT_TYPE, "application/json"),
            (header::AUTHORIZATION, "Bearer sk_test_0123456789"),
            (HeaderName::from_static("x-request-id"), "0123456789abcdef"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        insert(headers, KEY, item.key);
        insert(headers, header::COOKIE, item.cookie);
        request
    }
}

pub(crate) struct Item {
    key: Option<HeaderValue>,
    cookie: Option<HeaderValue>,
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("it is visible ASCII")
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// A service that is timed, whatever its type.
pub(crate) trait Contestant {
    /// Sends one request for each item, and says how long that took.
    fn call_all(&mut self, runtime: &Runtime, load: &Load, items: Vec<Item>) -> Duration;

    fn call(&mut self, runtime: &Runtime, request: Request<Body>) -> Response<Body>;
}

/// Makes a contestant; inside of a runtime.
pub(crate) type Make = fn(&Arc<Setup>) -> Box<dyn Contestant>;

struct Timed<S>(S);

pub(crate) fn contestant<S>(service: S) -> Box<dyn Contestant>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + 'static,
{
    Box::new(Timed(service))
}

impl<S> Contestant for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    fn call_all(&mut self, runtime: &Runtime, load: &Load, items: Vec<Item>) -> Duration {
        runtime.block_on(async {
            let start = now();
            for item in items {
                let response = call(&mut self.0, load.request(item)).await;
                read(response.into_body()).await;
            }
            start.elapsed()
        })
    }

    fn call(&mut self, runtime: &Runtime, request: Request<Body>) -> Response<Body> {
        runtime.block_on(call(&mut self.0, request))
    }
}

async fn call<S>(service: &mut S, request: Request<Body>) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let Ok(()) = poll_fn(|cx| service.poll_ready(cx)).await;
    let Ok(response) = service.call(request).await;
    response
}

/// Reads a body to its end without putting its parts together, as a server sends it.
pub(crate) async fn read(mut body: Body) -> usize {
    let mut length = 0;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.expect("the body is whole");
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    length
}

/// A contestant under a load.
pub(crate) struct Calls {
    runtime: Runtime,
    make: Make,
    setup: Arc<Setup>,
    contestant: Box<dyn Contestant>,
    load: Load,
    /// The number of the last key that was fresh.
    last: u64,
    random: Random,
    /// The bytes of answers that the contestant keeps.
    kept: usize,
}

/// A contestant that keeps more than this is made anew, for memory has an end.
const MOST_KEPT: usize = 128 << 20;

impl Calls {
    /// # Panics
    ///
    /// When the contestant does not do what it is timed for.
    pub(crate) fn new(make: Make, setup: Setup, load: Load) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let setup = Arc::new(setup);
        let contestant = made(&runtime, make, &setup);
        let mut calls = Self {
            runtime,
            make,
            setup,
            contestant,
            load,
            last: 0,
            random: Random::default(),
            kept: 0,
        };
        if let Keys::Known(keys) = calls.load.keys {
            for number in 0..keys {
                assert_eq!(calls.send(vec![calls.load.item(number)]).1, 1);
            }
        }
        calls
    }

    /// Checks that a contestant is an idempotency layer: one that does nothing would win.
    pub(crate) fn guarding(make: Make, setup: Setup, load: Load) -> Self {
        let mut calls = Self::new(make, setup, load);
        let runs = calls.setup.runs_so_far();
        // Not one of those that are timed.
        let number = u64::MAX >> 16;
        let load = Load {
            method: Method::POST,
            keys: Keys::Fresh,
            ..calls.load.clone()
        };
        let [first, second] = [0, 1].map(|_| {
            let request = load.request(load.item(number));
            let response = calls.contestant.call(&calls.runtime, request);
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX);
            let body = calls.runtime.block_on(body).expect("the body is whole");
            (parts, body)
        });
        assert_eq!(calls.setup.runs_so_far(), runs + 1, "the handler runs once");
        assert_eq!(first.0.status, StatusCode::OK);
        assert_eq!(second.0.status, StatusCode::OK);
        assert_eq!(first.1, calls.setup.answer);
        assert_eq!(second.1, calls.setup.answer);
        for (name, value) in calls.setup.respond().headers() {
            assert_eq!(first.0.headers.get(name), Some(value));
            assert_eq!(second.0.headers.get(name), Some(value));
        }
        calls
    }

    /// Sends these, and says how long it took and how often the handler ran.
    fn send(&mut self, items: Vec<Item>) -> (Duration, u64) {
        let before = self.setup.runs_so_far();
        let took = self.contestant.call_all(&self.runtime, &self.load, items);
        (took, self.setup.runs_so_far() - before)
    }

    fn next_number(&mut self) -> u64 {
        match self.load.keys {
            Keys::None | Keys::Unguarded => 0,
            Keys::Fresh => {
                self.last += 1;
                self.last
            }
            Keys::Known(keys) => self.random.below(keys),
        }
    }
}

impl Batch for Calls {
    fn run(&mut self, count: usize) -> Duration {
        if self.load.keys == Keys::Fresh && self.kept > MOST_KEPT {
            self.contestant = made(&self.runtime, self.make, &self.setup);
            self.kept = 0;
        }
        self.kept += count * self.setup.answer.len();
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let number = self.next_number();
            items.push(self.load.item(number));
        }
        let (took, runs) = self.send(items);
        // Nobody wins by doing nothing, or by doing it twice.
        match self.load.keys {
            Keys::Known(_) => assert_eq!(runs, 0, "replays do not run the handler"),
            Keys::None | Keys::Unguarded | Keys::Fresh => assert_eq!(runs, count as u64),
        }
        took
    }
}

fn made(runtime: &Runtime, make: Make, setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let _inside = runtime.enter();
    make(setup)
}

pub(crate) fn bytes(length: usize) -> Bytes {
    vec![b'a'; length].into()
}
