//! One guarded request, from its read body to its answer.

use std::error::Error;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response};
use http_body_util::LengthLimitError;
use tower_service::Service;

use super::run::HandlerRun;
use crate::body::{Collector, FromBuffered, Rest, Stop};
use crate::executor::{Begun, Claimant, Conflict, Detached, Held, Stage};
use crate::key::IdempotencyKey;
use crate::problem::{BoxError, Refusal, RefusalReason};
use crate::request::Look;
use crate::settings::Shared;
use crate::store::Store;

pub(super) struct Guarded<S, St> {
    pub(super) look: Look,
    pub(super) parts: Parts,
    pub(super) inner: S,
    pub(super) shared: Arc<Shared<St>>,
}

/// What a request waits for after its body was read.
pub(super) enum Next<F, St, Response, E>
where
    Response: Send + 'static,
    E: Send + 'static,
{
    Passing(F),
    Unprotected(F, Arc<Shared<St>>),
    Answered(Response),
    Running(Detached<Result<Response, E>>),
}

/// What there is to wait for before the handler runs.
enum Start {
    /// The business system has to be asked what an attempt before this one has done.
    Orphaned(Held, IdempotencyKey),
    /// The store has to be waited for.
    Claim(Claimant, Arc<Stage>),
}

impl<S, St: Store> Guarded<S, St> {
    pub(super) fn begin<B, RB>(
        mut self,
        body: Collector,
        stop: Stop<B::Error>,
    ) -> Next<S::Future, St, Response<RB>, S::Error>
    where
        S: Service<Request<B>, Response = Response<RB>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: FromBuffered<Error: Into<BoxError>> + Send + 'static,
        RB: FromBuffered + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        match stop {
            Stop::End => {}
            Stop::TooLarge => return Next::Answered(shared.refuse(&too_large(&shared))),
            Stop::Full => return Next::Answered(shared.refuse(&Refusal::buffers_full())),
            Stop::Error(error) => {
                let refusal = unreadable(&*error.into(), &shared);
                return Next::Answered(shared.refuse(&refusal));
            }
        }
        let identified =
            match shared
                .settings
                .identification
                .identify(&self.look, &self.parts, body.chunks())
            {
                Ok(Some(identified)) => identified,
                Ok(None) if shared.settings.key_required => {
                    return Next::Answered(shared.refuse(&Refusal::missing_key()));
                }
                Ok(None) => {
                    let request = Request::from_parts(self.parts, body.into_body(Rest::Nothing));
                    return Next::Passing(self.inner.call(request));
                }
                Err(refusal) => return Next::Answered(shared.refuse(&refusal)),
            };
        let executor = &shared.executor;
        let parts = identified.parts();
        let record_key = parts.record_key();
        let fingerprint = identified.fingerprint;
        let start = match executor.begin_now(&parts, &record_key, fingerprint) {
            Some(Begun::Held(held)) => {
                let key = identified.to_key(record_key);
                if executor.reconciles(&held) {
                    Start::Orphaned(held, key)
                } else {
                    let request = Request::from_parts(self.parts, body.into_body(Rest::Nothing));
                    let run = HandlerRun::begin(self.shared, self.inner, request, held, key);
                    return Next::Running(shared.executor.detached(None, run));
                }
            }
            Some(Begun::Completed(completed)) => return Next::Answered(shared.replay(&completed)),
            Some(Begun::Refused(Conflict::Store(error))) if shared.runs_unprotected(&error) => {
                let request = Request::from_parts(self.parts, body.into_body(Rest::Nothing));
                return Next::Unprotected(self.inner.call(request), shared);
            }
            Some(Begun::Refused(conflict)) => {
                return Next::Answered(shared.refuse(&conflict.into()));
            }
            None => {
                let key = identified.to_key(record_key);
                match Claimant::new(key, fingerprint, executor.now()) {
                    Ok(claimant) => Start::Claim(claimant, Arc::default()),
                    Err(error) => return Next::Answered(shared.refuse(&error.into())),
                }
            }
        };
        let stage = match &start {
            Start::Orphaned(..) => None,
            Start::Claim(_, stage) => Some(Arc::clone(stage)),
        };
        let request = Request::from_parts(self.parts, body.into_body(Rest::Nothing));
        let run = run_when_held(self.shared, self.inner, request, start);
        Next::Running(shared.executor.detached(stage, run))
    }
}

async fn run_when_held<S, St, B, RB>(
    shared: Arc<Shared<St>>,
    mut inner: S,
    request: Request<B>,
    start: Start,
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
        Start::Orphaned(held, key) => (Box::pin(executor.reconcile(held, &key)).await, key),
        Start::Claim(claimant, stage) => (executor.begin(&claimant, &stage).await, claimant.key),
    };
    match begun {
        Begun::Held(held) => {
            HandlerRun::begin(Arc::clone(&shared), inner, request, held, key).await
        }
        Begun::Completed(completed) => Ok(shared.replay(&completed)),
        Begun::Refused(Conflict::Store(error)) if shared.runs_unprotected(&error) => {
            let response = inner.call(request).await;
            response.map(|response| shared.unprotected(response))
        }
        Begun::Refused(conflict) => Ok(shared.refuse(&conflict.into())),
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
