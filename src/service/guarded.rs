//! One guarded request, from its read body to its answer.

use std::error::Error;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::LengthLimitError;
use tower_service::Service;

use super::work::HandlerWork;
use crate::body::{Collector, FromBuffered, Rest, Stop};
use crate::error::StoreError;
use crate::executor::{Begun, Claimant, Conflict, Detached, Earlier, Held, Stage};
use crate::key::{IdempotencyKey, KeyParts};
use crate::problem::{BoxError, Refusal, RefusalReason};
use crate::request::{Identified, Look};
use crate::settings::Shared;
use crate::store::Store;

/// A guarded request, whose body is being read.
pub(super) struct Guarded<S, B, St> {
    look: Look,
    parts: Parts,
    body: B,
    read: Collector,
    inner: S,
    shared: Arc<Shared<St>>,
}

/// What becomes of a request whose body was read.
pub(super) enum Decided<RB> {
    /// There is an answer already.
    Answered(Response<RB>),
    Goes(Goes),
}

/// How a request goes on to the handler.
pub(super) enum Goes {
    /// It has no key.
    Passing,
    /// The store cannot be reached.
    Unprotected,
    Held(Held, IdempotencyKey),
    /// The business system has to be asked what an attempt before this one has done.
    Orphaned(Held, IdempotencyKey),
    /// The store has to be waited for.
    Claiming(Claimant),
}

/// What a request waits for on its way to the handler and back.
pub(super) enum Next<F, St, Response, E>
where
    Response: Send + 'static,
    E: Send + 'static,
{
    Passing(F),
    Unprotected(F, Arc<Shared<St>>),
    Running(Detached<Result<Response, E>>),
}

impl<S, B: FromBuffered, St: Store> Guarded<S, B, St> {
    pub(super) fn new(
        look: Look,
        parts: Parts,
        body: B,
        inner: S,
        shared: Arc<Shared<St>>,
    ) -> Self {
        Self {
            look,
            parts,
            body,
            read: Collector::new(shared.settings.longest_request_body()),
            inner,
            shared,
        }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Stop<B::Error>> {
        let room = self.shared.room();
        self.read.poll(&mut self.body, Some(room), cx)
    }

    /// Decides by what was read, and claims the key if that can be done without waiting.
    ///
    /// The request stays where it is: most that are answered here are answered for good.
    pub(super) fn decide<RB: FromBuffered>(&self, stop: Stop<B::Error>) -> Decided<RB>
    where
        B::Error: Into<BoxError>,
    {
        let read = match stop {
            Stop::End => self.claim(),
            Stop::TooLarge => Err(too_large(&self.shared)),
            Stop::Full => Err(Refusal::buffers_full()),
            Stop::Error(error) => Err(unreadable(&*error.into(), &self.shared)),
        };
        read.unwrap_or_else(|refusal| Decided::Answered(self.shared.refuse(&refusal)))
    }

    fn claim<RB: FromBuffered>(&self) -> Result<Decided<RB>, Refusal> {
        let Shared { executor, settings } = &*self.shared;
        let identification = &settings.identification;
        let Some(identified) = identification.identify(
            &self.look,
            &self.parts,
            self.read.chunks(),
            settings.key_required,
        )?
        else {
            return Ok(Decided::Goes(Goes::Passing));
        };
        let parts = identified.parts();
        let (record_key, identity) = (&identified.record_key, identified.identity);
        let earlier = identification.identify_earlier(&identified, &self.parts, self.read.chunks());
        if let Some(earlier) = earlier {
            let claimant = self.claimant(identified)?;
            return Ok(Decided::Goes(Goes::Claiming(claimant.known_earlier_as(
                Earlier {
                    key: earlier.to_key(),
                    identity: earlier.identity,
                    accepted: earlier.accepted,
                },
            ))));
        }
        Ok(Decided::Goes(
            match executor.begin_now(&parts, record_key, identity, &identified.accepted) {
                Some(Begun::Completed(completed)) => {
                    return Ok(Decided::Answered(self.shared.replay(&completed)));
                }
                Some(Begun::Held(held)) => {
                    let key = identified.to_key();
                    match executor.reconciles(&held) {
                        true => Goes::Orphaned(held, key),
                        false => Goes::Held(held, key),
                    }
                }
                Some(Begun::Refused(Conflict::Store(error)))
                    if self.shared.runs_unprotected(&error) =>
                {
                    Goes::Unprotected
                }
                Some(Begun::Refused(conflict)) => {
                    let Parts { headers, uri, .. } = &self.parts;
                    self.shared.tell_of(&conflict, &parts, headers, uri);
                    return Err(conflict.into());
                }
                // Nobody has waited yet.
                Some(Begun::Shared(_)) | None => Goes::Claiming(self.claimant(identified)?),
            },
        ))
    }

    fn claimant(&self, identified: Identified<'_>) -> Result<Claimant, StoreError> {
        let key = identified.to_key();
        let now = self.shared.executor.now();
        Claimant::new(key, identified.identity, identified.accepted, now)
    }

    pub(super) fn go<RB>(mut self, goes: Goes) -> Next<S::Future, St, Response<RB>, S::Error>
    where
        S: Service<Request<B>, Response = Response<RB>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        RB: FromBuffered + Send + 'static,
    {
        self.read.take_room(self.shared.room());
        let request = Request::from_parts(self.parts, self.read.into_body(Rest::Nothing));
        let runs = self.shared.executor.runs();
        Next::Running(match goes {
            Goes::Passing => return Next::Passing(self.inner.call(request)),
            Goes::Unprotected => return Next::Unprotected(self.inner.call(request), self.shared),
            Goes::Held(held, key) => {
                let run = HandlerWork::begin(self.shared, self.inner, request, held, key);
                Detached::new(runs, None, run)
            }
            Goes::Orphaned(held, key) => {
                let stage = Arc::new(Stage::holding());
                let start = Start::Orphaned(held, key);
                let run =
                    run_when_held(self.shared, self.inner, request, start, Arc::clone(&stage));
                Detached::new(runs, Some(stage), run)
            }
            Goes::Claiming(claimant) => {
                let stage: Arc<Stage> = Arc::default();
                let start = Start::Claim(claimant);
                let run =
                    run_when_held(self.shared, self.inner, request, start, Arc::clone(&stage));
                Detached::new(runs, Some(stage), run)
            }
        })
    }
}

/// What there is to wait for before the handler runs.
enum Start {
    Orphaned(Held, IdempotencyKey),
    Claim(Claimant),
}

async fn run_when_held<S, St, B, RB>(
    shared: Arc<Shared<St>>,
    mut inner: S,
    request: Request<B>,
    start: Start,
    stage: Arc<Stage>,
) -> Result<Response<RB>, S::Error>
where
    S: Service<Request<B>, Response = Response<RB>> + Send,
    S::Future: Send,
    S::Error: Send + 'static,
    St: Store,
    B: Send,
    RB: FromBuffered + Send + 'static,
{
    let executor = &shared.executor;
    let (begun, key) = match start {
        Start::Orphaned(held, key) => {
            let begun = Box::pin(executor.reconcile(held, &key, &stage)).await;
            (begun, key)
        }
        Start::Claim(claimant) => (executor.begin(&claimant, &stage).await, claimant.key),
    };
    match begun {
        Begun::Held(held) => {
            HandlerWork::begin(Arc::clone(&shared), inner, request, held, key).await
        }
        Begun::Completed(completed) => Ok(shared.replay(&completed)),
        Begun::Shared(end) => Ok(shared.share(&end)),
        Begun::Refused(Conflict::Store(error)) if shared.runs_unprotected(&error) => {
            let response = inner.call(request).await;
            response.map(|response| shared.unprotected(response))
        }
        Begun::Refused(conflict) => {
            shared.tell_of(&conflict, &key.parts(), request.headers(), request.uri());
            Ok(shared.refuse(&conflict.into()))
        }
    }
}

impl<St> Shared<St> {
    /// Tells the log what a refusal does not say.
    fn tell_of(&self, conflict: &Conflict, key: &KeyParts<'_>, headers: &HeaderMap, uri: &Uri) {
        if let Conflict::CallerDiffers = conflict {
            let identification = &self.settings.identification;
            identification.tell_of_caller(key.scope.is_some(), headers, uri);
        }
    }
}

fn too_large<St>(shared: &Shared<St>) -> Refusal {
    Refusal::new(
        RefusalReason::RequestTooLarge,
        format!(
            "the request body is longer than the {} bytes that a request with an idempotency key may have",
            shared.settings.longest_request_body()
        ),
    )
}

/// The body broke off, or a limit outside of this layer was reached.
fn unreadable<St>(error: &(dyn Error + 'static), shared: &Shared<St>) -> Refusal {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return too_large(shared);
        }
        cause = error.source();
    }
    Refusal::new(
        RefusalReason::UnreadableRequest,
        "the request body broke off before its end",
    )
}
