//! gRPC services: a client of tonic's speaks to a server of tonic's, with the layer in between.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tower::{ServiceBuilder, service_fn};
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::Store;

use crate::support::{Case, Http, Runs, Server, Stack, layer};

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

type Answering<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// Answers each call with the number of its run, as soon as it may.
#[derive(Clone)]
struct Charge(Runs);

impl UnaryService<Bytes> for Charge {
    type Response = Bytes;
    type Future = Answering<Bytes>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        let handler = self.0.gated();
        Box::pin(async move {
            let response = handler(http::Request::new(crate::support::empty())).await;
            Ok(Response::new(
                crate::support::read_body(response).await.into(),
            ))
        })
    }
}

/// Sends back what is sent.
struct Echo;

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Answering<Messages>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let messages: Messages = Box::pin(request.into_inner());
        Box::pin(async { Ok(Response::new(messages)) })
    }
}

const CHARGE: &str = "/shop.Till/Charge";
const ECHO: &str = "/shop.Till/Echo";

async fn serve<St: Store>(layer: IdempotencyLayer<St>, runs: &Runs) -> Server {
    let runs = runs.clone();
    let service = ServiceBuilder::new()
        .map_request(|request: http::Request<Incoming>| request.map(Body::new))
        .layer(layer)
        .service(service_fn(move |request: http::Request<Body>| {
            let charge = Charge(runs.clone());
            async move {
                let mut grpc = Grpc::new(Raw);
                Ok::<_, Infallible>(match request.uri().path() {
                    ECHO => grpc.streaming(Echo, request).await,
                    _ => grpc.unary(charge, request).await,
                })
            }
        }));
    let case = Case {
        stack: Stack::Hyper,
        http: Http::Two,
    };
    case.serve_service(service).await
}

type Till = tonic::client::Grpc<Client<HttpConnector, Body>>;

fn till(server: &Server) -> Till {
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build(HttpConnector::new());
    tonic::client::Grpc::with_origin(client, server.origin())
}

fn request<T>(message: T, key: Option<&'static str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(key) = key {
        let key = key.parse().expect("a valid value");
        request.metadata_mut().insert("idempotency-key", key);
    }
    request
}

async fn charge(
    server: &Server,
    message: &'static str,
    key: Option<&'static str>,
) -> Result<Response<Bytes>, Status> {
    let mut till = till(server);
    till.ready().await.expect("it connects");
    let request = request(Bytes::from_static(message.as_bytes()), key);
    till.unary(request, PathAndQuery::from_static(CHARGE), Raw)
        .await
}

#[track_caller]
fn refused(answer: Result<Response<Bytes>, Status>, status: Code, code: &str) -> Status {
    let refused = answer.expect_err("it is refused");
    assert_eq!(refused.code(), status, "{refused}");
    assert_eq!(
        refused
            .metadata()
            .get("idempotency-refused")
            .expect("a code"),
        code
    );
    assert!(!refused.message().is_empty());
    refused
}

#[tokio::test]
async fn a_grpc_client_gets_statuses_without_a_setting() {
    let runs = Runs::default();
    let layer = layer().require_key(true);
    let server = serve(layer.clone(), &runs).await;

    let missing = charge(&server, "12", None).await;
    refused(missing, Code::InvalidArgument, "missing-key");
    let invalid = charge(&server, "12", Some("two words")).await;
    refused(invalid, Code::InvalidArgument, "invalid-key");

    let (first, duplicate) = tokio::join!(charge(&server, "12", Some("k")), async {
        runs.gate().arrived().await;
        let duplicate = charge(&server, "12", Some("k")).await;
        runs.gate().open_for_good();
        duplicate
    });
    assert_eq!(first.expect("it runs").into_inner(), "run 1");
    let duplicate = refused(duplicate, Code::Aborted, "in-progress");
    let pushback = duplicate.metadata().get("grpc-retry-pushback-ms");
    assert_eq!(pushback.expect("it is told when"), "1000");

    let replayed = charge(&server, "12", Some("k"))
        .await
        .expect("it is replayed");
    assert_eq!(
        replayed
            .metadata()
            .get("idempotent-replayed")
            .expect("a mark"),
        "true"
    );
    assert_eq!(replayed.into_inner(), "run 1");
    let reused = charge(&server, "13", Some("k")).await;
    refused(reused, Code::InvalidArgument, "key-reused");

    layer.handle().close();
    let closed = charge(&server, "12", Some("new")).await;
    refused(closed, Code::Unavailable, "shutting-down");
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn an_application_s_responder_answers_grpc_calls_too() {
    let layer = layer().require_key(true).on_refusal(|refusal, request| {
        let mut response = refusal.to_response(request);
        let status = http::HeaderValue::from_static("9");
        response.headers_mut().insert("grpc-status", status);
        response
    });
    let server = serve(layer, &Runs::default()).await;
    let missing = charge(&server, "12", None).await;
    refused(missing, Code::FailedPrecondition, "missing-key");
}

#[tokio::test]
async fn a_call_whose_client_streams_ends_in_time_and_claims_nothing() {
    let idle = layer().body_idle(Duration::from_millis(50));
    let endless = layer().request_timeout(Duration::from_millis(50));
    for layer in [idle, endless] {
        let server = serve(layer.clone(), &Runs::default()).await;
        let mut till = till(&server);
        till.ready().await.expect("it connects");
        let messages = request(Never, Some("k"));
        let path = PathAndQuery::from_static(ECHO);
        let answer = till
            .streaming::<_, Bytes, Bytes, _>(messages, path, Raw)
            .await;
        let refused = answer.expect_err("it is refused");
        assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
        let code = refused.metadata().get("idempotency-refused");
        assert_eq!(code.expect("a code"), "request-timeout");
        assert_eq!(layer.handle().in_flight(), 0);
    }
}

/// Messages that never come.
struct Never;

impl Stream for Never {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn only_the_grpc_methods_that_are_named_are_guarded() {
    let runs = Runs::default();
    runs.gate().open_for_good();
    let layer = layer().grpc_methods(["shop.Till/Charge"]).require_key(true);
    let server = serve(layer, &runs).await;
    // With a key and without one.
    for key in [Some("k"), None] {
        let mut till = till(&server);
        till.ready().await.expect("it connects");
        let (sender, messages) = tokio::sync::mpsc::unbounded_channel();
        let messages = tokio_stream::wrappers::UnboundedReceiverStream::new(messages);
        let path = PathAndQuery::from_static(ECHO);
        sender.send(Bytes::from_static(b"one")).expect("it listens");
        let answer = till.streaming(request(messages, key), path, Raw).await;
        let mut echo: Streaming<Bytes> = answer.expect("it passes").into_inner();
        assert_eq!(echo.message().await.expect("whole"), Some("one".into()));
        sender.send(Bytes::from_static(b"two")).expect("it listens");
        assert_eq!(echo.message().await.expect("whole"), Some("two".into()));
        drop(sender);
        assert_eq!(echo.message().await.expect("whole"), None);
    }
    for _ in 0..2 {
        let charged = charge(&server, "12", Some("k")).await.expect("it runs");
        assert_eq!(charged.into_inner(), "run 1");
    }
    let missing = charge(&server, "12", None).await;
    refused(missing, Code::InvalidArgument, "missing-key");
    // What is no gRPC is guarded as ever.
    server.post(ECHO).send().await.refused(400, "missing-key");
}
