//! The handler at work: its response, and what becomes of the key by it.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::respond::Asked;
use crate::executor::{
    Conflict, Ending, Executor, Finished, Held, Recordable, Run, Settled, Stage, Work, is_detached,
};
use crate::format::answer::Summary;
use crate::format::answer::{Answer, encode_response};
use crate::layer::body::{Collector, FromBuffered, Rest, Stop};
use crate::layer::problem::{Kept, Refusal};
use crate::layer::recording::{Judged, has_second_message};
use crate::layer::settings::Shared;
use crate::protocol::end::End;
use crate::protocol::key::IdempotencyKey;
use crate::protocol::record::{Lease, Owner};
use crate::runtime::{Sleep, sleep};
use crate::store::Store;

/// How long a response is read that nobody waits for any more.
const LONGEST_UNWANTED: Duration = Duration::from_secs(60);

pin_project! {
    #[project = Projection]
    /// A call of the handler, and the reading of its response as far as it has to be read.
    pub(super) struct HandlerWork<F, RB, St>
    where
        F: Future,
    {
        shared: Arc<Shared<St>>,
        kept: Kept,
        owner: Owner,
        // The end of a response that is being read, where its body does not matter to that. Boxed,
        // because few have it.
        known: Option<Box<Ending>>,
        #[pin]
        state: State<F, RB>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, RB>
    where
        F: Future,
    {
        /// The handler is not ready yet.
        Waiting { waiting: Waiting<F> },
        /// The handler will not be called.
        NotCalled { instead: Option<F::Output> },
        Calling { #[pin] future: F },
        /// `None`: it is done.
        Reading { reading: Option<Reading<RB>> },
        /// It panicked before there was a future; the panic is for the run to catch.
        Panicked { panic: Option<Box<dyn Any + Send>> },
    }
}

/// Gives a call of the handler when it is ready, or what there is instead.
type Waiting<F> = Pin<Box<dyn Future<Output = Result<F, <F as Future>::Output>> + Send>>;

/// A response that is to be recorded, or to be shared with those who wait for the run.
struct Reading<RB> {
    parts: response::Parts,
    body: RB,
    collector: Collector,
    judged: Judged,
    /// Ends the reading of what nobody waits for any more.
    patience: Option<Pin<Box<Sleep>>>,
}

/// Why the reading of a response stopped.
enum Halt<E> {
    Body(Stop<E>),
    /// It has shown to be a stream.
    Stream,
    /// Nobody waits for it, and it does not end.
    Unwanted,
}

impl<F, RB, E, St> HandlerWork<F, RB, St>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: FromBuffered + Send + 'static,
    E: Send + 'static,
    St: Store,
{
    /// Work under a lease. Its handler is to be [called](Self::call) before it is polled.
    pub(super) fn new(
        shared: Arc<Shared<St>>,
        parts: &Parts,
        held: Held,
        key: IdempotencyKey,
    ) -> Run<Self, St> {
        let work = Self {
            kept: shared.settings.responder.keep(parts),
            owner: held.owner(),
            shared,
            known: None,
            state: State::NotCalled { instead: None },
        };
        Run::new(held, key, work)
    }

    /// Calls the handler, as soon as it is ready. It is called for a run that is in its place, for
    /// its future is large.
    ///
    /// If it is not ready, `stage` tells when nobody wants its answer any more: then it is not
    /// called.
    pub(super) fn call<S, B>(
        run: Pin<&mut Run<Self, St>>,
        mut inner: S,
        mut request: Request<B>,
        stage: &mut Option<Arc<Stage>>,
    ) where
        S: Service<Request<B>, Response = Response<RB>, Error = E, Future = F> + Send + 'static,
        F: Send,
        B: Send + 'static,
    {
        if let Some(attempt) = run.attempt() {
            attempt.put_into(request.extensions_mut());
        }
        let (work, lease) = run.work();
        let Projection {
            shared,
            kept,
            mut state,
            ..
        } = work.project();
        let called = catch_unwind(AssertUnwindSafe(|| {
            // Nobody is woken by this; if it is not ready, it is asked again at once.
            state.set(
                match inner.poll_ready(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(())) => State::Calling {
                        future: inner.call(request),
                    },
                    Poll::Ready(Err(error)) => State::NotCalled {
                        instead: Some(Err(error)),
                    },
                    Poll::Pending => {
                        let stage = stage.get_or_insert_default();
                        stage.may_hold();
                        let stage = Arc::clone(stage);
                        let held = (lease.cloned(), kept.clone());
                        let waiting = wait(Arc::clone(shared), inner, request, held, stage);
                        State::Waiting {
                            waiting: Box::pin(waiting),
                        }
                    }
                },
            );
        }));
        if let Err(panic) = called {
            state.set(State::Panicked { panic: Some(panic) });
        }
    }
}

/// Waits until the handler is ready, and calls it then if the key is still held and somebody still
/// wants its answer.
async fn wait<S, B, RB, St>(
    shared: Arc<Shared<St>>,
    mut inner: S,
    request: Request<B>,
    (lease, kept): (Option<Lease>, Kept),
    stage: Arc<Stage>,
) -> Result<S::Future, Result<Response<RB>, S::Error>>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: FromBuffered,
    St: Store,
{
    let ready = poll_fn(|cx| match stage.is_left() {
        true => Poll::Ready(None),
        false => inner.poll_ready(cx).map(Some),
    });
    let conflict = match ready.await {
        Some(Ok(())) => match lease {
            Some(lease) => match shared.executor.still_holds(&lease).await {
                Ok(_) => return Ok(inner.call(request)),
                Err(conflict) => conflict,
            },
            None => Conflict::LeaseLost,
        },
        Some(Err(error)) => return Err(Err(error)),
        None => Conflict::Left,
    };
    Err(Ok(shared.refuse(&conflict.into(), Asked::Given(&kept))))
}

impl<F, RB, E, St> Future for HandlerWork<F, RB, St>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: FromBuffered,
    E: 'static,
    St: Store,
{
    type Output = Finished<Result<Response<RB>, E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (shared, owner) = (&**this.shared, *this.owner);
        if let StateProjection::Waiting { waiting } = this.state.as_mut().project() {
            let state = match ready!(waiting.as_mut().poll(cx)) {
                Ok(future) => State::Calling { future },
                Err(instead) => State::NotCalled {
                    instead: Some(instead),
                },
            };
            this.state.set(state);
        }
        let response = match this.state.as_mut().project() {
            StateProjection::Waiting { .. } => return Poll::Pending,
            StateProjection::NotCalled { instead } => match instead.take() {
                Some(instead) => return Poll::Ready(Finished::new(instead, Ending::NotBegun)),
                None => return Poll::Pending,
            },
            StateProjection::Calling { future } => {
                let called = ready!(future.poll(cx));
                this.state.set(State::Reading { reading: None });
                match called {
                    Ok(response) => response,
                    Err(error) => {
                        let class = shared.executor.class_of_error(owner, &error);
                        let ending = Ending::without_response(class);
                        return Poll::Ready(Finished::new(Err(error), ending));
                    }
                }
            }
            StateProjection::Reading { reading } => {
                let Some(read) = reading else {
                    return Poll::Pending;
                };
                let halt = ready!(read.poll(cx));
                return match reading.take() {
                    Some(reading) => Poll::Ready(reading.finish(halt, shared, owner)),
                    None => Poll::Pending,
                };
            }
            StateProjection::Panicked { panic } => match panic.take() {
                Some(panic) => resume_unwind(panic),
                None => return Poll::Pending,
            },
        };
        if shared.is_met_again(&response, owner) {
            let refusal = Refusal::shared_record();
            let refused = shared.refuse(&refusal, Asked::Given(this.kept));
            let ending = Ending::without_response(End::NothingDone);
            return Poll::Ready(Finished::new(Ok(refused), ending));
        }
        let (parts, body) = response.into_parts();
        let recording = &shared.settings.recording;
        let judged = recording.judge(&parts, || shared.executor.effects(owner));
        let is_read = !judged.is_stream
            && (judged.class() == End::Final || shared.executor.is_awaited(owner));
        if !is_read {
            let ending = unread(&parts, &judged);
            let response = Response::from_parts(parts, body);
            return Poll::Ready(Finished::new(Ok(response), ending));
        }
        if judged.is_said || judged.class() != End::Final {
            *this.known = Some(Box::new(unread(&parts, &judged)));
        }
        let mut reading = Reading {
            parts,
            body,
            collector: Collector::new(shared.executor.sieve().max_body()),
            judged,
            patience: None,
        };
        match reading.poll(cx) {
            Poll::Ready(halt) => Poll::Ready(reading.finish(halt, shared, owner)),
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
        self.shared.settled(settled, &self.kept)
    }

    fn abandon(self: Pin<&mut Self>) -> Option<Ending> {
        let mut this = self.project();
        this.state.set(State::Reading { reading: None });
        this.known.take().map(|ending| *ending)
    }
}

impl<RB: FromBuffered> Reading<RB> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Halt<RB::Error>> {
        if let Poll::Ready(stop) = self.collector.poll(&mut self.body, None, cx) {
            return Poll::Ready(Halt::Body(stop));
        }
        if self.is_grpc_stream() {
            return Poll::Ready(Halt::Stream);
        }
        if is_detached() {
            let patience = || Box::pin(sleep(LONGEST_UNWANTED));
            let patience = self.patience.get_or_insert_with(patience);
            ready!(patience.as_mut().poll(cx));
            return Poll::Ready(Halt::Unwanted);
        }
        Poll::Pending
    }

    fn is_grpc_stream(&self) -> bool {
        self.judged.is_grpc() && has_second_message(self.collector.chunks().iter())
    }

    fn finish<St: Store, E>(
        self,
        halt: Halt<RB::Error>,
        shared: &Shared<St>,
        owner: Owner,
    ) -> Finished<Result<Response<RB>, E>> {
        let class = self.class(&halt, shared, owner);
        let is_whole = matches!(halt, Halt::Body(Stop::End));
        let ending = match class {
            End::Final if is_whole && !self.is_grpc_stream() => Ending::Final {
                answer: self.recorded(shared),
                retention: self.judged.retention,
            },
            End::Final => not_stored(&self.parts, self.judged.retention),
            End::NothingDone | End::Unknown => {
                let is_shared = is_whole && shared.executor.is_awaited(owner);
                let frame = is_shared.then(|| self.recorded(shared).into_payload());
                match class {
                    End::Unknown => unknown(&self.parts, &self.judged, frame),
                    _ => Ending::NothingDone { shared: frame },
                }
            }
        };
        let rest = match halt {
            Halt::Body(Stop::End) => Rest::Nothing,
            Halt::Body(Stop::Error(error)) => Rest::Error(error),
            Halt::Body(Stop::TooLarge | Stop::Full) | Halt::Stream | Halt::Unwanted => {
                Rest::Body(self.body)
            }
        };
        let response = Response::from_parts(self.parts, self.collector.into_body(rest));
        Finished::new(Ok(response), ending)
    }

    fn class<St: Store>(&self, halt: &Halt<RB::Error>, shared: &Shared<St>, owner: Owner) -> End {
        let Self { parts, judged, .. } = self;
        let effects = || shared.executor.effects(owner);
        let recording = &shared.settings.recording;
        match halt {
            Halt::Body(Stop::End) => {
                let chunks = self.collector.chunks();
                let trailers = self.collector.trailers();
                recording.judge_whole(judged, parts, || chunks.contiguous(), trailers, effects)
            }
            // The work may have been done, and its response is lost. What the handler has said of
            // it, and a response that is not recorded anyway, do not depend on that.
            Halt::Body(Stop::Error(_)) if !judged.is_said && judged.class() == End::Final => {
                effects().end_of_failure()
            }
            _ => recording.judge_unread(judged, parts, effects),
        }
    }

    /// The response in its recorded form.
    fn recorded<St: Store>(&self, shared: &Shared<St>) -> Recordable {
        Recordable::response(encode_response(
            self.parts.status,
            &self.parts.headers,
            &shared.executor.sieve().stored(&self.parts.headers),
            self.collector.trailers(),
            self.collector.chunks().iter(),
        ))
    }
}

/// The end of a response by its head alone.
fn unread(parts: &response::Parts, judged: &Judged) -> Ending {
    match judged.class() {
        End::Final => not_stored(parts, judged.retention),
        End::NothingDone => Ending::NothingDone { shared: None },
        End::Unknown => unknown(parts, judged, None),
    }
}

fn not_stored(parts: &response::Parts, retention: Option<Duration>) -> Ending {
    let answer = Answer::NotStored {
        status: parts.status,
        summary: parts.extensions.get::<Summary>().cloned(),
    };
    Ending::Final {
        answer: answer.into(),
        retention,
    }
}

fn unknown(parts: &response::Parts, judged: &Judged, shared: Option<Bytes>) -> Ending {
    Ending::Unknown {
        // That of every gRPC response is the same.
        status: (!judged.is_grpc()).then_some(parts.status.as_u16()),
        shared,
    }
}
