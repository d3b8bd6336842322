//! HTTP onto the executor.

mod answer;
mod guarded;
mod work;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use self::guarded::{Decided, Guarded, Next};
use crate::body::FromBuffered;
use crate::executor::Detached;
use crate::problem::{BoxError, Refusal};
use crate::request::Look;
use crate::settings::Shared;
use crate::store::Store;

/// The service that an [`IdempotencyLayer`](crate::IdempotencyLayer) makes.
///
/// Its error is that of the service it wraps; what it refuses, it answers.
pub struct Idempotency<S, St> {
    /// `None` once a request took it, until somebody asks whether it is ready.
    inner: Option<S>,
    layered: Arc<Layered<S, St>>,
}

/// What all clones of a service share.
struct Layered<S, St> {
    /// To make others of. A request takes the service that was polled ready with it, and most
    /// servers clone theirs for each request: then no other is needed in its place.
    inner: Mutex<S>,
    shared: Arc<Shared<St>>,
}

impl<S: Clone, St> Idempotency<S, St> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<St>>) -> Self {
        Self {
            inner: Some(inner.clone()),
            layered: Arc::new(Layered {
                inner: Mutex::new(inner),
                shared,
            }),
        }
    }

    fn inner(&mut self) -> &mut S {
        self.inner.get_or_insert_with(|| self.layered.another())
    }
}

impl<S: Clone, St> Layered<S, St> {
    fn another(&self) -> S {
        let inner = self.inner.lock();
        inner.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S: Clone, St> Clone for Idempotency<S, St> {
    fn clone(&self) -> Self {
        let inner = self.inner.clone();
        Self {
            inner: Some(inner.unwrap_or_else(|| self.layered.another())),
            layered: Arc::clone(&self.layered),
        }
    }
}

impl<S: fmt::Debug, St: fmt::Debug> fmt::Debug for Idempotency<S, St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("inner", &self.layered.inner)
            .field("shared", &self.layered.shared)
            .finish()
    }
}

impl<S, St, B, RB> Service<Request<B>> for Idempotency<S, St>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    St: Store,
    B: FromBuffered<Error: Into<BoxError>> + Send + 'static,
    RB: FromBuffered + Send + 'static,
{
    type Response = Response<RB>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, St>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner().poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = &self.layered.shared;
        let Some(look) = shared.settings.look(&request) else {
            return ResponseFuture::new(State::passing(self.inner().call(request)));
        };
        let (parts, body) = request.into_parts();
        let look = match look {
            _ if !shared.settings.is_picked(&parts) => None,
            Look::InHead => shared.settings.look_again(&parts),
            look => Some(look),
        };
        let Some(look) = look else {
            let request = Request::from_parts(parts, body);
            return ResponseFuture::new(State::passing(self.inner().call(request)));
        };
        // What is wrong with a key in a header is said before the body is read.
        let refusal = match look {
            Look::Absent => Refusal::missing_key(),
            Look::Invalid(invalid) => invalid.into(),
            look => {
                let inner = self.inner.take();
                let inner = inner.unwrap_or_else(|| self.layered.another());
                let guarded = Guarded::new(look, parts, body, inner, Arc::clone(shared));
                return ResponseFuture::new(State::Reading {
                    guarded: Some(guarded),
                });
            }
        };
        ResponseFuture::new(State::answered(shared.refuse(&refusal)))
    }
}

pin_project! {
    /// The future of [`Idempotency`].
    ///
    /// When it is dropped before its end, a run that has begun is finished on the runtime.
    pub struct ResponseFuture<S, B, St>
    where
        S: Service<Request<B>>,
        S::Response: Send,
        S::Response: 'static,
        S::Error: Send,
        S::Error: 'static,
    {
        #[pin]
        state: State<S, B, St>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, St>
    where
        S: Service<Request<B>>,
        S::Response: Send,
        S::Response: 'static,
        S::Error: Send,
        S::Error: 'static,
    {
        /// The handler runs, and the layer has no part in it.
        Passing {
            #[pin]
            future: S::Future,
        },
        /// The handler runs although the store cannot be reached.
        Unprotected {
            #[pin]
            future: S::Future,
            shared: Arc<Shared<St>>,
        },
        /// The layer has the answer.
        Answered { response: Option<S::Response> },
        /// The body is being read; nothing is claimed yet.
        Reading { guarded: Option<Guarded<S, B, St>> },
        /// The key is being claimed, or the handler runs under it.
        Running { run: Detached<Result<S::Response, S::Error>> },
    }
}

impl<S, B, St> ResponseFuture<S, B, St>
where
    S: Service<Request<B>, Response: Send + 'static, Error: Send + 'static>,
{
    fn new(state: State<S, B, St>) -> Self {
        Self { state }
    }
}

impl<S, B, St> State<S, B, St>
where
    S: Service<Request<B>, Response: Send + 'static, Error: Send + 'static>,
{
    fn passing(future: S::Future) -> Self {
        Self::Passing { future }
    }

    fn answered(response: S::Response) -> Self {
        Self::Answered {
            response: Some(response),
        }
    }
}

impl<S, St, B, RB> Future for ResponseFuture<S, B, St>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    St: Store,
    B: FromBuffered<Error: Into<BoxError>> + Send + 'static,
    RB: FromBuffered + Send + 'static,
{
    type Output = Result<Response<RB>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Passing { future } => return future.poll(cx),
                StateProjection::Unprotected { future, shared } => {
                    let response = ready!(future.poll(cx));
                    return Poll::Ready(response.map(|response| shared.unprotected(response)));
                }
                StateProjection::Answered { response } => match response.take() {
                    Some(response) => return Poll::Ready(Ok(response)),
                    // Polled again after it was ready: there is nothing left to give.
                    None => return Poll::Pending,
                },
                StateProjection::Running { run } => return Pin::new(run).poll(cx),
                StateProjection::Reading { guarded } => {
                    let Some(reading) = guarded else {
                        return Poll::Pending;
                    };
                    let stop = ready!(reading.poll_read(cx));
                    let goes = match reading.decide(stop) {
                        Decided::Goes(goes) => goes,
                        Decided::Answered(response) => {
                            *guarded = None;
                            return Poll::Ready(Ok(response));
                        }
                    };
                    match guarded.take() {
                        Some(guarded) => guarded.go(goes),
                        None => return Poll::Pending,
                    }
                }
            };
            state.set(match next {
                Next::Passing(future) => State::passing(future),
                Next::Unprotected(future, shared) => State::Unprotected { future, shared },
                Next::Running(run) => State::Running { run },
            });
        }
    }
}

impl<S, B, St> fmt::Debug for ResponseFuture<S, B, St>
where
    S: Service<Request<B>, Response: Send + 'static, Error: Send + 'static>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
