//! The layer for services of any body types: what goes in and out is put into [`GuardedBody`].

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::GuardedBody;
use crate::layer::IdempotencyLayer;
use crate::layer::service::Idempotency;
use crate::store::Store;

/// An [`IdempotencyLayer`] for services of any body types; see
/// [`IdempotencyLayer::for_any_body`].
#[derive(Debug)]
pub struct AnyBodyLayer<St> {
    layer: IdempotencyLayer<St>,
}

impl<St> AnyBodyLayer<St> {
    pub(crate) const fn new(layer: IdempotencyLayer<St>) -> Self {
        Self { layer }
    }
}

impl<St> Clone for AnyBodyLayer<St> {
    fn clone(&self) -> Self {
        Self::new(self.layer.clone())
    }
}

impl<S: Clone, St: Store> Layer<S> for AnyBodyLayer<St> {
    type Service = AnyBody<Idempotency<WrapResponse<S>, St>>;

    fn layer(&self, inner: S) -> Self::Service {
        AnyBody {
            inner: self.layer.layer(WrapResponse { inner }),
        }
    }
}

/// Takes requests with any body, and puts it into [`GuardedBody`].
#[derive(Clone, Debug)]
pub struct AnyBody<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for AnyBody<S>
where
    S: Service<Request<GuardedBody<B>>>,
    B: Body + Unpin,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        self.inner.call(request.map(GuardedBody::new))
    }
}

/// Puts the body of a service's response into [`GuardedBody`].
#[derive(Clone, Debug)]
pub struct WrapResponse<S> {
    inner: S,
}

impl<S, Req, B> Service<Req> for WrapResponse<S>
where
    S: Service<Req, Response = Response<B>>,
    B: Body + Unpin,
{
    type Response = Response<GuardedBody<B>>;
    type Error = S::Error;
    type Future = AnyBodyFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        AnyBodyFuture {
            future: self.inner.call(request),
        }
    }
}

pin_project! {
    /// The future of [`WrapResponse`].
    #[derive(Debug)]
    pub struct AnyBodyFuture<F> {
        #[pin]
        future: F,
    }
}

impl<F, B, E> Future for AnyBodyFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + Unpin,
{
    type Output = Result<Response<GuardedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().future.poll(cx))?;
        Poll::Ready(Ok(response.map(GuardedBody::new)))
    }
}
