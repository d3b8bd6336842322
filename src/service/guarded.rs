//! One guarded request, from its read body to its answer.

use std::error::Error;
use std::future::poll_fn;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response};
use http_body_util::LengthLimitError;
use tower_service::Service;

use crate::body::{Collector, FromBuffered, Rest, Stop};
use crate::executor::{
    Begun, Claimant, Conflict, Detached, End, Finished, Held, Recordable, Settled, Stage,
};
use crate::key::IdempotencyKey;
use crate::outcome::{Outcome, report_times};
use crate::problem::{BoxError, Refusal, RefusalReason};
use crate::response::{Answer, encode_response};
use crate::settings::{Keep, Settings, Shared};
use crate::store::Store;

pub(super) struct Guarded<S, St> {
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

/// How far the claim has come when the run becomes a future of its own.
enum Start {
    /// The store gave the lease at once.
    Held(Held, IdempotencyKey),
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
        let identified = match shared
            .settings
            .identification
            .identify(&self.parts, body.chunks())
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
            Some(Begun::Held(held)) => Start::Held(held, identified.to_key(record_key)),
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
            Start::Held(..) => None,
            Start::Claim(_, stage) => Some(Arc::clone(stage)),
        };
        let request = Request::from_parts(self.parts, body.into_body(Rest::Nothing));
        let run = run(Arc::clone(&shared), self.inner, request, start);
        Next::Running(shared.executor.detached(stage, run))
    }
}

async fn run<S, St, B, RB>(
    shared: Arc<Shared<St>>,
    mut inner: S,
    mut request: Request<B>,
    start: Start,
) -> Result<Response<RB>, S::Error>
where
    S: Service<Request<B>, Response = Response<RB>> + Send,
    S::Future: Send,
    S::Error: Send,
    St: Store,
    B: Send,
    RB: FromBuffered + Send,
{
    let executor = &shared.executor;
    let (begun, key) = match start {
        Start::Held(held, key) => (executor.reconcile_if_orphaned(held, &key).await, key),
        Start::Claim(claimant, stage) => (executor.begin(&claimant, &stage).await, claimant.key),
    };
    let held = match begun {
        Begun::Held(held) => held,
        Begun::Completed(completed) => return Ok(shared.replay(&completed)),
        Begun::Refused(Conflict::Store(error)) if shared.runs_unprotected(&error) => {
            let response = inner.call(request).await;
            return response.map(|response| shared.unprotected(response));
        }
        Begun::Refused(conflict) => return Ok(shared.refuse(&conflict.into())),
    };
    request.extensions_mut().insert(held.attempt(key.clone()));
    let settings = &shared.settings;
    let work = async move {
        match inner.call(request).await {
            Ok(response) => capture(response, settings).await,
            Err(error) => Finished::unknown(Err(error)),
        }
    };
    match executor.run_held(held, key, work).await {
        Settled::Value {
            value,
            recorded,
            created_at,
            expires_at,
        } => value.map(|mut response| {
            if let Some(expires_at) = expires_at
                && settings.report_times
            {
                report_times(response.headers_mut(), created_at, expires_at);
            }
            shared.told(response, Outcome::Executed(recorded))
        }),
        Settled::Superseded(completed) => Ok(shared.replay(&completed)),
        Settled::Withheld(conflict, recorded) => {
            let response = shared.refuse(&conflict.into());
            Ok(shared.told(response, Outcome::Executed(recorded)))
        }
    }
}

/// Reads a response as far as it has to be read, and says what becomes of the key.
async fn capture<RB: FromBuffered, E>(
    response: Response<RB>,
    settings: &Settings,
) -> Finished<Result<Response<RB>, E>> {
    let (parts, mut body) = response.into_parts();
    let status = parts.status;
    let not_stored = |retention| End::Record {
        answer: Answer::NotStored { status }.into(),
        retention,
    };
    let retention = match settings.keep(&parts) {
        Keep::Not => return Finished::new(Ok(Response::from_parts(parts, body)), End::Release),
        Keep::ThatItWasNotStored(retention) => {
            let response = Response::from_parts(parts, body);
            return Finished::new(Ok(response), not_stored(retention));
        }
        Keep::For(retention) => retention,
    };
    let mut collector = Collector::new(settings.max_response_body);
    let (rest, end) = match poll_fn(|cx| collector.poll(&mut body, None, cx)).await {
        Stop::TooLarge | Stop::Full => (Rest::Body(body), not_stored(retention)),
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
