//! The four ways in which each behaviour is tested.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::routing::any;
use axum::serve::ListenerExt;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::{Service, ServiceBuilder};
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::Store;

use super::body::{Body, BoxError, boxed};
use super::client::Server;

/// What the layer is in, and how it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) stack: Stack,
    pub(crate) http: Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    Axum,
    Hyper,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

/// Runs a test four times, and says in which cases it failed. A test that hangs fails.
pub(crate) async fn for_each_stack<F, Fut>(test: F)
where
    F: Fn(Case) -> Fut,
    Fut: Future<Output = ()>,
{
    for_all(&[Stack::Axum, Stack::Hyper], test).await;
}

/// Runs a test of what only axum has.
pub(crate) async fn for_axum<F, Fut>(test: F)
where
    F: Fn(Case) -> Fut,
    Fut: Future<Output = ()>,
{
    for_all(&[Stack::Axum], test).await;
}

async fn for_all<F, Fut>(stacks: &[Stack], test: F)
where
    F: Fn(Case) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut failed = Vec::new();
    for &stack in stacks {
        for http in [Http::One, Http::Two] {
            let case = Case { stack, http };
            let mut run = pin!(timeout(Duration::from_secs(30), test(case)));
            let caught = poll_fn(|cx| {
                let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx)));
                match polled {
                    Ok(Poll::Pending) => Poll::Pending,
                    Ok(Poll::Ready(in_time)) => Poll::Ready(in_time.is_ok()),
                    Err(_) => Poll::Ready(false),
                }
            });
            if !caught.await {
                failed.push(case);
            }
        }
    }
    assert!(failed.is_empty(), "failed with {failed:?}");
}

impl Case {
    /// Serves `handler`, for any path and method, behind `layer`.
    pub(crate) async fn serve<St, F, Fut>(self, layer: &IdempotencyLayer<St>, handler: F) -> Server
    where
        St: Store,
        F: Fn(Request<Body>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        match self.stack {
            Stack::Axum => {
                self.serve_router(router(handler).layer(layer.clone()))
                    .await
            }
            Stack::Hyper => {
                let service = ServiceBuilder::new()
                    .layer(layer.clone().for_any_body())
                    .service(service(handler));
                self.serve_service(service).await
            }
        }
    }

    /// [`serve`](Self::serve), for a service that can fail. With axum an error becomes a 500
    /// outside of the layer; with hyper it ends the exchange.
    pub(crate) async fn serve_fallible<St, F, Fut>(
        self,
        layer: &IdempotencyLayer<St>,
        handler: F,
    ) -> Server
    where
        St: Store,
        F: Fn(Request<Body>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
    {
        let service = Fallible(handler);
        match self.stack {
            Stack::Axum => {
                let service = ServiceBuilder::new()
                    .layer(HandleErrorLayer::new(async |error: BoxError| {
                        (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
                    }))
                    .layer(layer.clone())
                    .map_response(|response: Response<Body>| response.map(axum::body::Body::new))
                    .service(service);
                self.serve_router(Router::new().route_service("/{*path}", service))
                    .await
            }
            Stack::Hyper => {
                let service = ServiceBuilder::new()
                    .layer(layer.clone().for_any_body())
                    .service(service);
                self.serve_service(service).await
            }
        }
    }

    /// Serves an axum router as axum does it.
    pub(crate) async fn serve_router(self, router: Router) -> Server {
        Server::start(self.http, |listener| async move {
            axum::serve(listener.tap_io(at_once), router)
                .await
                .expect("it serves for ever");
        })
        .await
    }

    /// Serves a service as hyper-util does it.
    pub(crate) async fn serve_service<S, B>(self, service: S) -> Server
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        Server::start(self.http, |listener| accept(listener, service)).await
    }
}

/// An axum router with `handler` for any path and method.
pub(crate) fn router<F, Fut>(handler: F) -> Router
where
    F: Fn(Request<Body>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let handler = move |request: axum::extract::Request| {
        let response = handler(request.map(boxed));
        async move { response.await.map(axum::body::Body::new) }
    };
    Router::new().route("/{*path}", any(handler))
}

/// A service of `handler`, for requests with any body.
pub(crate) fn service<F, Fut>(
    handler: F,
) -> Fallible<impl Fn(Request<Body>) -> Succeeding + Clone + Send + Sync + 'static>
where
    F: Fn(Request<Body>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    Fallible(move |request| -> Succeeding {
        let response = handler(request);
        Box::pin(async move { Ok(response.await) })
    })
}

type Succeeding = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A handler that can fail, as a service.
#[derive(Clone)]
pub(crate) struct Fallible<F>(F);

impl<F, Fut, B, E> Service<Request<B>> for Fallible<F>
where
    F: Fn(Request<Body>) -> Fut,
    Fut: Future<Output = Result<Response<Body>, E>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = E;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Fut {
        (self.0)(request.map(boxed))
    }
}

/// Sends small segments at once; otherwise most exchanges wait 40 ms for an acknowledgement.
fn at_once(stream: &mut TcpStream) {
    stream.set_nodelay(true).expect("an open socket");
}

async fn accept<S, B>(listener: TcpListener, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    loop {
        let (mut stream, _) = listener.accept().await.expect("it accepts for ever");
        at_once(&mut stream);
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            // Connections end in all sorts of ways; the client sees how.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
