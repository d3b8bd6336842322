//! A client, and what tests say of its answers.

use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_idempotency::IDEMPOTENT_REPLAYED;

use super::body::{Body, BoxError, empty, whole};
use super::case::Http;

/// A running server and a client that speaks to it.
pub(crate) struct Server {
    address: SocketAddr,
    client: Client<HttpConnector, Body>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start<F, Fut>(http: Http, serve: F) -> Self
    where
        F: FnOnce(TcpListener) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut client = Client::builder(TokioExecutor::new());
        match http {
            // A connection each, so that none is taken again that the server is about to close.
            Http::One => client.pool_max_idle_per_host(0),
            Http::Two => client.http2_only(true),
        };
        Self {
            address,
            client: client.build(connector),
            task: tokio::spawn(serve(listener)),
        }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a client names it.
    pub(crate) fn origin(&self) -> Uri {
        let origin = format!("http://{}", self.address);
        origin.parse().expect("a valid URI")
    }

    pub(crate) fn post(&self, path: &str) -> Call {
        self.call(Method::POST, path)
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> Call {
        let mut request = Request::new(empty());
        *request.method_mut() = method;
        *request.uri_mut() = format!("http://{}{path}", self.address)
            .parse()
            .expect("a valid URI");
        Call {
            client: self.client.clone(),
            request,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request to be sent.
pub(crate) struct Call {
    client: Client<HttpConnector, Body>,
    request: Request<Body>,
}

impl Call {
    pub(crate) fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key.as_bytes())
    }

    /// Adds a line.
    pub(crate) fn header(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        let value = HeaderValue::from_bytes(value.as_ref()).expect("a valid value");
        self.request
            .headers_mut()
            .append(HeaderName::from_static(name), value);
        self
    }

    /// A body whose length is announced.
    pub(crate) fn body(self, body: impl Into<Bytes>) -> Self {
        self.stream(whole(body))
    }

    pub(crate) fn stream(mut self, body: Body) -> Self {
        *self.request.body_mut() = body;
        self
    }

    pub(crate) fn json(self, body: &'static str) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    pub(crate) fn form(self, body: &'static str) -> Self {
        self.header("content-type", "application/x-www-form-urlencoded")
            .body(body)
    }

    /// Sends it, and reads the whole answer.
    pub(crate) async fn send(self) -> Answer {
        self.try_send().await.expect("an answer")
    }

    pub(crate) async fn try_send(self) -> Result<Answer, BoxError> {
        let response = self.client.request(self.request).await?;
        read(response).await
    }

    /// Sends it, and gives the answer as soon as its head is there.
    pub(crate) async fn open(self) -> Response<Incoming> {
        self.client.request(self.request).await.expect("an answer")
    }

    /// Sends it meanwhile. The client hangs up when the task is aborted.
    pub(crate) fn spawn(self) -> JoinHandle<Answer> {
        tokio::spawn(self.send())
    }
}

pub(crate) async fn read(response: Response<Incoming>) -> Result<Answer, BoxError> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await?;
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        trailers: collected.trailers().cloned(),
        body: collected.to_bytes(),
    })
}

/// The next chunk of an answer that is being streamed.
pub(crate) async fn next_chunk(response: &mut Response<Incoming>) -> Option<Bytes> {
    loop {
        let frame = response.body_mut().frame().await?;
        let chunk = frame.ok()?.into_data().expect("a chunk");
        // With HTTP/2 the end of a body can come as one more chunk without bytes.
        if !chunk.is_empty() {
            return Some(chunk);
        }
    }
}

/// An answer, all of it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    /// It has status 200 and this body, and the handler has given it now.
    #[track_caller]
    pub(crate) fn ran(&self, body: &str) -> &Self {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.body, body, "{self:?}");
        assert!(!self.is_replayed(), "{self:?}");
        self
    }

    /// It has status 200 and this body, and is marked as a replay.
    #[track_caller]
    pub(crate) fn replayed(&self, body: &str) -> &Self {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.body, body, "{self:?}");
        assert!(self.is_replayed(), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn is_replayed(&self) -> bool {
        let mut marks = self.headers.get_all(IDEMPOTENT_REPLAYED).iter();
        let is_replayed = marks.next().map(|mark| assert_eq!(mark, "true"));
        assert_eq!(marks.next(), None, "it is marked twice");
        is_replayed.is_some()
    }

    /// The layer refused the request, with problem details that are complete. Gives them.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        let is_passing = matches!(
            code,
            "buffers-full"
                | "in-progress"
                | "lease-lost"
                | "not-recorded"
                | "record-newer"
                | "request-timeout"
                | "settings-changed"
                | "shutting-down"
                | "store-full"
                | "store-unavailable"
                | "too-many-runs"
                | "unreadable-request"
        );
        self.problem(status, code, is_passing)
    }

    /// As [`refused`](Self::refused), where a retry may be answered.
    #[track_caller]
    pub(crate) fn refused_for_now(&self, status: u16, code: &str) -> Value {
        self.problem(status, code, true)
    }

    #[track_caller]
    fn problem(&self, status: u16, code: &str, is_retryable: bool) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json");
        assert!(!self.is_replayed(), "{self:?}");
        let problem: Value = serde_json::from_slice(&self.body).expect("it is JSON");
        assert_eq!(problem["code"], code);
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail"] {
            let text = problem[member].as_str().expect("it is a text");
            assert!(!text.is_empty(), "{member} is empty");
        }
        let link = problem["type"].as_str().expect("it is a text");
        assert!(link.ends_with(code), "{link}");
        assert_eq!(problem["retryable"], is_retryable, "{problem}");
        assert_eq!(self.values("idempotency-refused"), [code.as_bytes()]);
        assert_eq!(self.values("cache-control"), [b"no-store"]);
        problem
    }

    /// All values of a field.
    pub(crate) fn values(&self, name: &str) -> Vec<&[u8]> {
        let values = self.headers.get_all(name).iter();
        values.map(HeaderValue::as_bytes).collect()
    }

    pub(crate) fn retry_after(&self) -> Option<&str> {
        let value = self.headers.get(http::header::RETRY_AFTER)?;
        Some(value.to_str().expect("a number"))
    }
}
