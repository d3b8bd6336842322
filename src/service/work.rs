//! The handler at work: its response, and what becomes of the key by it.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response, StatusCode, response};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::body::{Collector, FromBuffered, Rest, Stop};
use crate::executor::{End, Executor, Finished, Held, Recordable, Run, Settled, Work};
use crate::key::IdempotencyKey;
use crate::response::{Answer, encode_response};
use crate::settings::{Keep, Settings, Shared};
use crate::store::Store;

pin_project! {
    /// A call of the handler, and the reading of its response as far as it has to be read.
    pub(super) struct HandlerWork<F, RB, St> {
        shared: Arc<Shared<St>>,
        #[pin]
        state: State<F, RB>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, RB> {
        Calling { #[pin] future: F },
        /// `None`: it is done.
        Reading { reading: Option<Reading<RB>> },
        /// It panicked before there was a future; the panic is for the run to catch.
        Panicked { panic: Option<Box<dyn Any + Send>> },
    }
}

/// A response that is to be recorded.
struct Reading<RB> {
    parts: response::Parts,
    body: RB,
    collector: Collector,
    retention: Option<Duration>,
}

impl<F, RB, E, St> HandlerWork<F, RB, St>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: FromBuffered + Send + 'static,
    E: Send + 'static,
    St: Store,
{
    /// Calls the handler under a lease.
    pub(super) fn begin<S, B>(
        shared: Arc<Shared<St>>,
        mut inner: S,
        mut request: Request<B>,
        held: Held,
        key: IdempotencyKey,
    ) -> Run<Self, St>
    where
        S: Service<Request<B>, Future = F>,
    {
        request.extensions_mut().insert(held.attempt(key.clone()));
        let state = match catch_unwind(AssertUnwindSafe(|| inner.call(request))) {
            Ok(future) => State::Calling { future },
            Err(panic) => State::Panicked { panic: Some(panic) },
        };
        Run::new(held, key, Self { shared, state })
    }
}

impl<F, RB, E, St> Future for HandlerWork<F, RB, St>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: FromBuffered,
{
    type Output = Finished<Result<Response<RB>, E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let settings = &this.shared.settings;
        let response = match this.state.as_mut().project() {
            StateProjection::Calling { future } => {
                let called = ready!(future.poll(cx));
                this.state.set(State::Reading { reading: None });
                match called {
                    Ok(response) => response,
                    Err(error) => return Poll::Ready(Finished::unknown(Err(error))),
                }
            }
            StateProjection::Reading { reading } => {
                let Some(read) = reading else {
                    return Poll::Pending;
                };
                let stop = ready!(read.poll(cx));
                return match reading.take() {
                    Some(reading) => Poll::Ready(reading.finish(stop, settings)),
                    None => Poll::Pending,
                };
            }
            StateProjection::Panicked { panic } => match panic.take() {
                Some(panic) => resume_unwind(panic),
                None => return Poll::Pending,
            },
        };
        let (parts, body) = response.into_parts();
        let retention = match settings.keep(&parts) {
            Keep::Not => {
                let response = Response::from_parts(parts, body);
                return Poll::Ready(Finished::new(Ok(response), End::Release));
            }
            Keep::ThatItWasNotStored(retention) => {
                let end = not_stored(parts.status, retention);
                let response = Response::from_parts(parts, body);
                return Poll::Ready(Finished::new(Ok(response), end));
            }
            Keep::For(retention) => retention,
        };
        let mut reading = Reading {
            parts,
            body,
            collector: Collector::new(settings.max_response_body),
            retention,
        };
        match reading.poll(cx) {
            Poll::Ready(stop) => Poll::Ready(reading.finish(stop, settings)),
            Poll::Pending => {
                let reading = Some(reading);
                this.state.set(State::Reading { reading });
                Poll::Pending
            }
        }
    }
}

impl<F, RB, E, St> Work<St> for HandlerWork<F, RB, St>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: FromBuffered + Send + 'static,
    E: Send + 'static,
    St: Store,
{
    type Value = Result<Response<RB>, E>;
    type Given = Result<Response<RB>, E>;

    fn executor(&self) -> &Executor<St> {
        &self.shared.executor
    }

    fn give(&self, settled: Settled<Self::Value>) -> Self::Given {
        self.shared.settled(settled)
    }

    fn abandon(self: Pin<&mut Self>) {
        self.project().state.set(State::Reading { reading: None });
    }
}

impl<RB: FromBuffered> Reading<RB> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stop<RB::Error>> {
        self.collector.poll(&mut self.body, None, cx)
    }

    fn finish<E>(
        self,
        stop: Stop<RB::Error>,
        settings: &Settings,
    ) -> Finished<Result<Response<RB>, E>> {
        let Self {
            parts,
            body,
            collector,
            retention,
        } = self;
        let (rest, end) = match stop {
            Stop::TooLarge | Stop::Full => (Rest::Body(body), not_stored(parts.status, retention)),
            // The work was done, and its answer is lost.
            Stop::Error(error) => (Rest::Error(error), End::Unknown),
            Stop::End if retention.is_none() && !settings.records(&parts, collector.trailers()) => {
                (Rest::Nothing, End::Release)
            }
            Stop::End => {
                let answer = Recordable::response(encode_response(
                    parts.status,
                    &parts.headers,
                    &settings.stored_headers(&parts.headers),
                    collector.trailers(),
                    collector.chunks().iter(),
                ));
                (Rest::Nothing, End::Record { answer, retention })
            }
        };
        let response = Response::from_parts(parts, collector.into_body(rest));
        Finished::new(Ok(response), end)
    }
}

fn not_stored(status: StatusCode, retention: Option<Duration>) -> End {
    End::Record {
        answer: Answer::NotStored { status }.into(),
        retention,
    }
}
