//! HTTP onto the executor.

mod call;
mod carried;
mod claim;
mod respond;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

pub(crate) use self::carried::Carry;
pub use self::carried::RunFuture;
use self::claim::{Decided, Guarded, Next};
use self::respond::Asked;
use crate::executor::Detached;
use crate::layer::body::{Drain, FromBuffered};
use crate::layer::problem::{BoxError, Refusal};
use crate::layer::request::Look;
use crate::layer::settings::Shared;
use crate::store::Store;

/// The service that an [`IdempotencyLayer`](crate::IdempotencyLayer) makes.
///
/// Its error is that of the service it wraps; what it refuses, it answers.
///
/// It is always ready: a replay or a refusal waits for no capacity of the service within, and takes
/// none. A request that goes on to the service waits for it then, a guarded one when it holds its
/// key. So a layer that reacts to a service that is not ready, such as one that sheds load, belongs
/// inside of this one.
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

    fn take_inner(&mut self) -> S {
        let inner = self.inner.take();
        inner.unwrap_or_else(|| self.layered.another())
    }

    /// Hands a request on, at once if the service within is ready.
    #[inline]
    fn pass<B>(&mut self, request: Request<B>) -> ResponseFuture<S, B, St>
    where
        S: Service<Request<B>, Response: Send + 'static, Error: Send + 'static>,
    {
        let inner = self.inner();
        // Nobody is woken by this; it is asked again when the future is polled.
        let ready = inner.poll_ready(&mut Context::from_waker(Waker::noop()));
        ResponseFuture::new(match ready {
            Poll::Ready(Ok(())) => State::Passing {
                future: inner.call(request),
            },
            Poll::Ready(Err(error)) => State::answered(Err(error)),
            Poll::Pending => State::Waiting {
                waiting: Some((self.take_inner(), request)),
            },
        })
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

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = &self.layered.shared;
        let Some(mut look) = shared.settings.look(&request) else {
            return self.pass(request);
        };
        let (parts, body) = request.into_parts();
        if !shared.settings.is_picked(&parts) {
            return self.pass(Request::from_parts(parts, body));
        }
        if let Look::InHead = look {
            match shared.settings.look_again(&parts) {
                Some(again) => look = again,
                None => return self.pass(Request::from_parts(parts, body)),
            }
        }
        // What is wrong with a key in a header is said before the body is read.
        let refusal = match &look {
            Look::Absent => Refusal::missing_key(),
            Look::Invalid(invalid) => invalid.clone().into(),
            Look::Found(_) | Look::InBody | Look::InHead => {
                let shared = Arc::clone(shared);
                let inner = self.take_inner();
                return ResponseFuture {
                    state: State::Reading {
                        guarded: Some(Guarded::new(look, parts, body, inner, shared)),
                    },
                };
            }
        };
        let response = shared.refuse(&refusal, Asked::Here(&parts));
        ResponseFuture::new(match Drain::new(&parts, body, false) {
            Some(drain) => State::draining(drain, response),
            None => State::answered(Ok(response)),
        })
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
        /// The service within is not ready, and the layer has no part in the request.
        Waiting { waiting: Option<(S, Request<B>)> },
        /// The layer has the answer, or the service within failed.
        Answered { response: Option<Result<S::Response, S::Error>> },
        /// The layer has the answer, and what the client still sends is discarded.
        Draining {
            drain: Drain<B>,
            response: Option<S::Response>,
        },
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
    fn answered(response: Result<S::Response, S::Error>) -> Self {
        Self::Answered {
            response: Some(response),
        }
    }

    fn draining(drain: Drain<B>, response: S::Response) -> Self {
        Self::Draining {
            drain,
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
                StateProjection::Answered { response } => {
                    return Poll::Ready(response.take().unwrap_or_else(|| polled_again()));
                }
                StateProjection::Running { run } => return Pin::new(run).poll(cx),
                StateProjection::Waiting { waiting } => {
                    let Some((inner, _)) = waiting else {
                        polled_again()
                    };
                    let ready = ready!(inner.poll_ready(cx));
                    let Some((mut inner, request)) = waiting.take() else {
                        polled_again()
                    };
                    match ready {
                        Ok(()) => State::Passing {
                            future: inner.call(request),
                        },
                        Err(error) => State::answered(Err(error)),
                    }
                }
                StateProjection::Draining { drain, response } => {
                    if response.is_some() {
                        ready!(drain.poll(cx));
                    }
                    State::Answered {
                        response: response.take().map(Ok),
                    }
                }
                StateProjection::Reading { guarded } => {
                    let Some(reading) = guarded else {
                        polled_again()
                    };
                    let read = ready!(reading.poll_read(cx));
                    match reading.decide(read) {
                        Decided::Answered(response) => {
                            *guarded = None;
                            return Poll::Ready(Ok(response));
                        }
                        Decided::Unread(response) => {
                            match guarded.take().and_then(Guarded::drain) {
                                Some(drain) => State::draining(drain, response),
                                None => return Poll::Ready(Ok(response)),
                            }
                        }
                        Decided::Goes(goes) => {
                            let Some(guarded) = guarded.take() else {
                                polled_again()
                            };
                            match guarded.go(goes) {
                                Next::Passing(inner, request) => State::Waiting {
                                    waiting: Some((inner, request)),
                                },
                                // Here, so that no more is moved than the run.
                                Next::Running(run) => {
                                    state.set(State::Running { run });
                                    continue;
                                }
                            }
                        }
                    }
                }
            };
            state.set(next);
        }
    }
}

#[cold]
fn polled_again() -> ! {
    panic!("`ResponseFuture` polled after completion")
}

impl<S, B, St> fmt::Debug for ResponseFuture<S, B, St>
where
    S: Service<Request<B>, Response: Send + 'static, Error: Send + 'static>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
