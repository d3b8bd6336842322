//! A service, requests to it, and what a call of it allocates.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use allocation_counter::measure;
use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{Full, combinators::UnsyncBoxBody};
use tokio::runtime::Runtime;
use tower::Service;

pub(crate) const TARGET: &str = "/v1/charges";
/// As long as a UUID.
pub(crate) const KEY: &str = "order-1432-5d1c-4f3f-9b7e-0123456789";
pub(crate) const ANSWER: &[u8] = &[b'a'; 200];

/// A request with this header is not answered before it is dropped. It is no part of the
/// fingerprint.
const WAITS: HeaderName = HeaderName::from_static("x-waits");

pub(crate) type BoxBody = UnsyncBoxBody<Bytes, Infallible>;

/// A body that the layer takes as it is.
pub(crate) trait TestBody: Send + 'static {
    fn of(bytes: impl Into<Bytes>) -> Self;
}

impl TestBody for BoxBody {
    fn of(bytes: impl Into<Bytes>) -> Self {
        Self::new(Full::new(bytes.into()))
    }
}

impl TestBody for axum::body::Body {
    fn of(bytes: impl Into<Bytes>) -> Self {
        Self::from(bytes.into())
    }
}

pub(crate) async fn charge<B: TestBody>(request: Request<B>) -> Result<Response<B>, Infallible> {
    if request.headers().contains_key(WAITS) {
        return pending().await;
    }
    drop(request);
    Ok(answer())
}

/// 200 bytes, under header fields with 145 bytes of text.
pub(crate) fn answer<B: TestBody>() -> Response<B> {
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .header("request-id", "req_0123456789abcdefghi")
        .header(header::LOCATION, "/v1/charges/ch_0123456789abcdef")
        .header("stripe-version", "2026-01-01")
        .body(B::of(ANSWER));
    response.expect("the response is valid")
}

pub(crate) fn request<B: TestBody>(method: Method, key: Option<&str>) -> Request<B> {
    let mut request = Request::builder()
        .method(method)
        .uri(TARGET)
        .header(header::HOST, "api.example.com")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, "Bearer sk_test_123");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.body(B::of(vec![b'b'; 1024]));
    request.expect("the request is valid")
}

/// A service that is called by hand, in a runtime of its own.
pub(crate) struct Probe<S> {
    service: S,
    runtime: Runtime,
}

impl<S> Probe<S> {
    pub(crate) fn new(service: S) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        Self { service, runtime }
    }

    /// The allocations from the call to its response, whose body is not read.
    pub(crate) fn allocations<B>(&self, request: Request<B>, status: StatusCode) -> u64
    where
        S: Service<Request<B>, Response = Response<B>, Error = Infallible> + Clone,
    {
        let _runtime = self.runtime.enter();
        let mut service = self.ready();
        let mut polled = Poll::Pending;
        // Neither handler nor store waits, so one poll is enough.
        let call = measure(|| {
            let future = pin!(service.call(request));
            polled = future.poll(&mut Context::from_waker(Waker::noop()));
        });
        let Poll::Ready(Ok(response)) = polled else {
            panic!("the service waited")
        };
        assert_eq!(response.status(), status);
        call.count_total
    }

    /// Begins a request that is in flight until what is returned is dropped.
    pub(crate) fn in_flight<B>(&self, mut request: Request<B>) -> impl Sized + use<S, B>
    where
        S: Service<Request<B>, Response = Response<B>, Error = Infallible> + Clone,
    {
        let _runtime = self.runtime.enter();
        request
            .headers_mut()
            .insert(WAITS, header::HeaderValue::from_static("1"));
        let mut future = Box::pin(self.ready().call(request));
        let polled = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        future
    }

    fn ready<B>(&self) -> S
    where
        S: Service<Request<B>, Error = Infallible> + Clone,
    {
        let mut service = self.service.clone();
        let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
        assert!(ready.is_ready());
        service
    }
}
