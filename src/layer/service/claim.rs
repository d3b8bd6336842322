//! One guarded request, from its read body to its answer.

use std::error::Error;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::LengthLimitError;
use tower_service::Service;

use super::call::HandlerWork;
use super::carried::Carried;
use super::respond::Asked;
use crate::executor::{
    Attempt, Begun, BoxFuture, Claimant, Conflict, Detached, Earlier, Held, Stage, Unprotected,
};
use crate::layer::body::{Collector, Drain, FromBuffered, Patience, Rest, Stop};
use crate::layer::problem::{BoxError, Refusal, RefusalReason};
use crate::layer::request::{Identified, Look};
use crate::layer::settings::Shared;
use crate::protocol::error::StoreError;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::{IdempotencyKey, KeyParts};
use crate::store::Store;

/// A guarded request, whose body is being read.
pub(super) struct Guarded<S, B, St> {
    look: Look,
    parts: Parts,
    body: B,
    read: Collector,
    patience: Patience,
    inner: S,
    shared: Arc<Shared<St>>,
}

/// How the reading of a body ended.
pub(super) enum Read<E> {
    Stopped(Stop<E>),
    /// It did not come in time.
    TimedOut,
}

/// What becomes of a request whose body was read.
pub(super) enum Decided<RB> {
    /// There is an answer already.
    Answered(Response<RB>),
    /// There is an answer, and the body was not read to its end.
    Unread(Response<RB>),
    Goes(Goes),
}

/// How a request goes on to the handler.
pub(super) enum Goes {
    /// It has no key.
    Passing,
    /// The store cannot be reached.
    Unprotected(Unprotected),
    Held(Held, IdempotencyKey),
    /// The business system has to be asked what an attempt before this one has done.
    Orphaned(Held, IdempotencyKey),
    /// The store has to be waited for.
    Claiming(Claimant),
}

/// What a request waits for on its way to the handler and back.
pub(super) enum Next<S, B, Response, E>
where
    Response: Send + 'static,
    E: Send + 'static,
{
    Passing(S, Request<B>),
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
        let settings = &shared.settings;
        Self {
            look,
            parts,
            body,
            read: Collector::new(settings.longest_request_body()),
            patience: Patience::default(),
            inner,
            shared,
        }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Read<B::Error>> {
        let room = self.shared.room();
        match self.read.poll(&mut self.body, Some(room), cx) {
            Poll::Ready(stop) => Poll::Ready(Read::Stopped(stop)),
            Poll::Pending => {
                let limits = self.shared.settings.body_limits();
                let waited = self.patience.poll(limits, self.read.length(), cx);
                waited.map(|()| Read::TimedOut)
            }
        }
    }

    /// Decides by what was read, and claims the key if that can be done without waiting.
    ///
    /// The request stays where it is: most that are answered here are answered for good.
    pub(super) fn decide<RB: FromBuffered>(&self, read: Read<B::Error>) -> Decided<RB>
    where
        B::Error: Into<BoxError>,
    {
        let asked = Asked::Here(&self.parts);
        let refusal = match read {
            Read::Stopped(Stop::End) => {
                let claimed = self.claim();
                return claimed.unwrap_or_else(|refusal| {
                    Decided::Answered(self.shared.refuse(&refusal, asked))
                });
            }
            Read::Stopped(Stop::TooLarge) => too_large(&self.shared),
            Read::Stopped(Stop::Full) => Refusal::buffers_full(),
            Read::Stopped(Stop::Error(error)) => unreadable(&*error.into(), &self.shared),
            // It had its time.
            Read::TimedOut => {
                let refusal = Refusal::request_timeout();
                return Decided::Answered(self.shared.refuse(&refusal, asked));
            }
        };
        Decided::Unread(self.shared.refuse(&refusal, asked))
    }

    /// What is left of the body, to be discarded.
    pub(super) fn drain(self) -> Option<Drain<B>> {
        let has_begun = self.read.length() > 0 || self.patience.is_armed();
        Drain::new(&self.parts, self.body, has_begun)
    }

    fn claim<RB: FromBuffered>(&self) -> Result<Decided<RB>, Refusal> {
        let Shared {
            executor, settings, ..
        } = &*self.shared;
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
        let attempt = self.parts.extensions.get::<Attempt>();
        let within = match attempt.and_then(|attempt| executor.held_by(attempt, record_key)) {
            // A layer outside of this one guards the request already.
            Some((_, true)) => return Ok(Decided::Goes(Goes::Passing)),
            Some((owner, false)) => Some(owner),
            None => None,
        };
        let earlier = identification.identify_earlier(&identified, &self.parts, self.read.chunks());
        if let Some(earlier) = earlier {
            let claimant = self.claimant(identified)?.within(within);
            return Ok(Decided::Goes(Goes::Claiming(claimant.known_earlier_as(
                Earlier {
                    key: earlier.to_key(),
                    identity: earlier.identity,
                    accepted: earlier.accepted,
                },
            ))));
        }
        let accepted = &identified.accepted;
        Ok(Decided::Goes(
            match executor.begin_now(&parts, record_key, identity, accepted, within) {
                Some(Begun::Completed(completed)) => {
                    let asked = Asked::Here(&self.parts);
                    return Ok(Decided::Answered(self.shared.replay(&completed, asked)));
                }
                Some(Begun::Held(held)) => {
                    let key = identified.to_key();
                    match held.asks_first() {
                        true => Goes::Orphaned(held, key),
                        false => Goes::Held(held, key),
                    }
                }
                Some(Begun::Refused(conflict)) => {
                    let Parts { headers, uri, .. } = &self.parts;
                    self.shared.tell_of(&conflict, &parts, headers, uri);
                    let key = || identified.to_key();
                    let open = open(&self.shared, conflict, key, identity.request)?;
                    Goes::Unprotected(open)
                }
                Some(Begun::Within) => Goes::Passing,
                // Nobody has waited yet.
                Some(Begun::Shared(_)) | None => {
                    Goes::Claiming(self.claimant(identified)?.within(within))
                }
            },
        ))
    }

    fn claimant(&self, identified: Identified<'_>) -> Result<Claimant, StoreError> {
        let key = identified.to_key();
        let now = self.shared.executor.now();
        Claimant::new(key, identified.identity, identified.accepted, now)
    }

    pub(super) fn go<RB>(mut self, goes: Goes) -> Next<S, B, Response<RB>, S::Error>
    where
        S: Service<Request<B>, Response = Response<RB>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        RB: FromBuffered + Send + 'static,
    {
        self.read.take_room(self.shared.room());
        let body = self.read.into_body(Rest::Nothing);
        let layer = Arc::clone(&self.shared);
        let start = match goes {
            Goes::Passing => {
                return Next::Passing(self.inner, Request::from_parts(self.parts, body));
            }
            Goes::Held(held, key) => {
                let mut stage = None;
                let mut run = Box::pin(HandlerWork::new(self.shared, &self.parts, held, key));
                let request = Request::from_parts(self.parts, body);
                HandlerWork::call(run.as_mut(), self.inner, request, &mut stage);
                return Next::Running(detached(&layer, stage, run));
            }
            Goes::Unprotected(open) => {
                let stage: Arc<Stage> = Arc::default();
                let run = run_unprotected(
                    self.shared,
                    self.inner,
                    self.parts,
                    body,
                    open,
                    Arc::clone(&stage),
                );
                return Next::Running(detached(&layer, Some(stage), Box::pin(run)));
            }
            Goes::Orphaned(held, key) => Start::Orphaned(held, key),
            Goes::Claiming(claimant) => Start::Claim(claimant),
        };
        let stage = Arc::new(start.stage());
        let run = run_when_held(
            self.shared,
            self.inner,
            self.parts,
            body,
            start,
            Arc::clone(&stage),
        );
        Next::Running(detached(&layer, Some(stage), Box::pin(run)))
    }
}

/// A run that outlives its request, and takes along what the application wants carried.
fn detached<St: Store, T: Send + 'static>(
    shared: &Shared<St>,
    stage: Option<Arc<Stage>>,
    run: BoxFuture<T>,
) -> Detached<T> {
    let runs = shared.executor.runs();
    match &shared.settings.carry {
        None => Detached::new(runs, stage, run),
        Some(carry) => Detached::new(runs, stage, Box::pin(Carried::new(carry, run))),
    }
}

/// What there is to wait for before the handler runs.
enum Start {
    Orphaned(Held, IdempotencyKey),
    Claim(Claimant),
}

impl Start {
    /// How far the request has come with it.
    fn stage(&self) -> Stage {
        match self {
            Self::Orphaned(..) => Stage::holding(),
            Self::Claim(_) => Stage::default(),
        }
    }
}

async fn run_when_held<S, St, B, RB>(
    shared: Arc<Shared<St>>,
    inner: S,
    parts: Parts,
    body: B,
    start: Start,
    stage: Arc<Stage>,
) -> Result<Response<RB>, S::Error>
where
    S: Service<Request<B>, Response = Response<RB>> + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    St: Store,
    B: Send + 'static,
    RB: FromBuffered + Send + 'static,
{
    let executor = &shared.executor;
    let (begun, key, fingerprint) = match start {
        Start::Orphaned(held, key) => {
            let fingerprint = held.fingerprint();
            let begun = Box::pin(executor.reconcile(held, &key, &stage)).await;
            (begun, key, fingerprint)
        }
        Start::Claim(claimant) => {
            let begun = executor.begin(&claimant, &stage).await;
            let fingerprint = claimant.fingerprint();
            (begun, claimant.key, fingerprint)
        }
    };
    let conflict = match begun {
        Begun::Held(held) => {
            let mut stage = Some(stage);
            let shared = Arc::clone(&shared);
            let mut run = pin!(HandlerWork::new(shared, &parts, held, key));
            let request = Request::from_parts(parts, body);
            HandlerWork::call(run.as_mut(), inner, request, &mut stage);
            return run.await;
        }
        Begun::Completed(completed) => return Ok(shared.replay(&completed, Asked::Here(&parts))),
        Begun::Shared(end) => return Ok(shared.share(&end, Asked::Here(&parts))),
        Begun::Refused(conflict) => conflict,
        Begun::Within => {
            let mut inner = inner;
            stage.may_hold();
            poll_fn(|cx| inner.poll_ready(cx)).await?;
            return inner.call(Request::from_parts(parts, body)).await;
        }
    };
    shared.tell_of(&conflict, &key.parts(), &parts.headers, &parts.uri);
    match open(&shared, conflict, || key, fingerprint) {
        Ok(open) => {
            let shared = Arc::clone(&shared);
            Box::pin(run_unprotected(shared, inner, parts, body, open, stage)).await
        }
        Err(refusal) => Ok(shared.refuse(&refusal, Asked::Here(&parts))),
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

/// Lets a request run unprotected if the store is why it would be refused, and if that is set.
fn open<St: Store>(
    shared: &Shared<St>,
    conflict: Conflict,
    key: impl FnOnce() -> IdempotencyKey,
    fingerprint: Fingerprint,
) -> Result<Unprotected, Refusal> {
    match conflict {
        Conflict::Store(error) if shared.runs_unprotected(&error) => {
            warn_unprotected(&error);
            Ok(shared.executor.enter_unprotected(key(), fingerprint)?)
        }
        conflict => Err(conflict.into()),
    }
}

fn warn_unprotected(error: &StoreError) {
    tracing::warn!(
        error = error as &(dyn Error + 'static),
        kind = ?error.kind(),
        "a request runs unprotected, because its idempotency record cannot be reached"
    );
}

/// Runs the handler without a lease, as soon as it is ready. It has not begun when it is dropped
/// before.
async fn run_unprotected<S, St, B, RB>(
    shared: Arc<Shared<St>>,
    mut inner: S,
    parts: Parts,
    body: B,
    open: Unprotected,
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
    stage.holds_nothing();
    poll_fn(|cx| inner.poll_ready(cx)).await?;
    if stage.is_left() {
        let refusal = Conflict::Left.into();
        return Ok(shared.refuse(&refusal, Asked::Here(&parts)));
    }
    stage.may_hold();
    let Unprotected { attempt, counted } = open;
    let mut request = Request::from_parts(parts, body);
    attempt.put_into(request.extensions_mut());
    let response = inner.call(request).await;
    drop(counted);
    response.map(|response| shared.unprotected(response))
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
