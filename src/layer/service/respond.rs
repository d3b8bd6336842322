//! Answers that the layer gives itself.

use bytes::Bytes;
use http::Response;
use http::header::HeaderValue;
use http::request::Parts;

use crate::executor::{Conflict, Settled, SharedEnd, What};
use crate::format::answer::{Answer, StoredResponse};
use crate::format::digest::{Digest, Domain, hex};
use crate::layer::body::{BufferedBody, FromBuffered};
use crate::layer::outcome::{
    IDEMPOTENCY_HOLDER, IDEMPOTENCY_UNPROTECTED, IDEMPOTENT_REPLAYED, Outcome, mark, report_times,
};
use crate::layer::problem::{Kept, Refusal, RefusalReason};
use crate::layer::settings::Shared;
use crate::protocol::end::End;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::record::{Completed, Owner};
use crate::store::Store;

const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Whose request is answered.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    /// Its handler has not got it.
    Here(&'a Parts),
    /// Its handler has it.
    Given(&'a Kept),
}

impl<St: Store> Shared<St> {
    /// The recorded answer, or why there is none to give.
    pub(super) fn replay<RB: FromBuffered>(
        &self,
        completed: &Completed,
        asked: Asked<'_>,
    ) -> Response<RB> {
        let stored = match Answer::decode(&completed.payload) {
            Ok(Answer::Response(stored)) => stored,
            Ok(Answer::NotStored { status, summary }) => {
                let refusal = Refusal::response_not_stored(summary)
                    .with_first_status(status)
                    .with_first_seen(completed.created_at);
                return self.refuse(&refusal, asked);
            }
            Ok(Answer::Value(_)) => {
                let error = StoreError::new(
                    StoreErrorKind::Damaged,
                    "the recorded answer is not that of an HTTP request",
                );
                return self.refuse(&error.into(), asked);
            }
            Err(damage) => return self.refuse(&StoreError::from(damage).into(), asked),
        };
        let mut response = made_again(stored);
        mark(response.headers_mut(), IDEMPOTENT_REPLAYED, TRUE);
        if self.settings.report_times {
            report_times(
                response.headers_mut(),
                completed.created_at,
                completed.expires_at,
            );
        }
        self.tell(&mut response, Outcome::Replayed);
        response
    }

    /// The response of the run that a request waited for, which is not recorded.
    pub(super) fn share<RB: FromBuffered>(
        &self,
        end: &SharedEnd,
        asked: Asked<'_>,
    ) -> Response<RB> {
        let payload = match &end.what {
            What::Response(payload) => payload,
            What::Recorded(completed) => return self.replay(completed, asked),
            What::Nothing { class } => return self.refuse(&ended(*class, end).into(), asked),
        };
        match Answer::decode(payload) {
            Ok(Answer::Response(stored)) => {
                let mut response = made_again(stored);
                mark(response.headers_mut(), IDEMPOTENT_REPLAYED, TRUE);
                self.tell(&mut response, Outcome::Replayed);
                response
            }
            _ => self.refuse(&ended(End::Unknown, end).into(), asked),
        }
    }

    /// The response to a request whose run has ended.
    pub(super) fn settled<RB: FromBuffered, E>(
        &self,
        settled: Settled<Result<Response<RB>, E>>,
        kept: &Kept,
    ) -> Result<Response<RB>, E> {
        match settled {
            Settled::Value {
                mut value,
                recorded,
                created_at,
                expires_at,
            } => {
                if let Ok(response) = &mut value {
                    if let Some(expires_at) = expires_at
                        && self.settings.report_times
                    {
                        report_times(response.headers_mut(), created_at, expires_at);
                    }
                    self.tell(response, Outcome::Executed(recorded));
                }
                value
            }
            Settled::Superseded(completed) => Ok(self.replay(&completed, Asked::Given(kept))),
            Settled::Withheld(conflict, recorded) => {
                let mut response = self.refuse(&conflict.into(), Asked::Given(kept));
                self.tell(&mut response, Outcome::Executed(recorded));
                Ok(response)
            }
        }
    }

    pub(super) fn refuse<RB: FromBuffered>(
        &self,
        refusal: &Refusal,
        asked: Asked<'_>,
    ) -> Response<RB> {
        if let Some(error) = refusal.store_error() {
            log(error, refusal.reason());
        }
        let responder = &self.settings.responder;
        let response = match asked {
            Asked::Here(parts) => responder.respond(refusal, parts),
            Asked::Given(kept) => responder.respond_kept(refusal, kept),
        };
        let mut response = response.map(|body| whole(body, None));
        if let Some(holder) = refusal.holder()
            && self.executor.store().is_shared()
        {
            mark(response.headers_mut(), IDEMPOTENCY_HOLDER, tag(holder));
        }
        self.tell(&mut response, Outcome::Refused(refusal.reason()));
        response
    }

    /// Whether a response says that the attempt of `owner` is in progress, to that attempt itself:
    /// the service within has a layer, too, and claimed the same record.
    pub(super) fn is_met_again<RB>(&self, response: &Response<RB>, owner: Owner) -> bool {
        if !self.executor.store().is_shared() {
            return false;
        }
        let is_met = response
            .headers()
            .get(IDEMPOTENCY_HOLDER)
            .is_some_and(|holder| *holder == tag(owner));
        if is_met {
            tracing::error!(
                "a request met its own idempotency record in the service within; services that share a store need a `namespace` each"
            );
        }
        is_met
    }

    /// Marks the response of a request that ran without protection.
    pub(super) fn unprotected<RB>(&self, mut response: Response<RB>) -> Response<RB> {
        mark(response.headers_mut(), IDEMPOTENCY_UNPROTECTED, TRUE);
        self.tell(&mut response, Outcome::Unprotected);
        response
    }

    /// Tells the layers outside what became of a request, if they want to know.
    fn tell<RB>(&self, response: &mut Response<RB>, outcome: Outcome) {
        if self.settings.report_outcome {
            response.extensions_mut().insert(outcome);
        }
    }

    /// Whether a request runs although the store failed with `error`. Not if the operation may
    /// have run already: a damaged record says that something did.
    pub(super) fn runs_unprotected(&self, error: &StoreError) -> bool {
        self.settings.fail_open
            && matches!(
                error.kind(),
                StoreErrorKind::Unavailable | StoreErrorKind::Unusable
            )
    }
}

/// Tells operators of a fault of the store; as an error if it does not pass by itself.
fn log(error: &StoreError, reason: RefusalReason) {
    let kind = error.kind();
    let error: &(dyn std::error::Error + 'static) = error;
    match reason {
        RefusalReason::StoreBroken => {
            tracing::error!(error, ?kind, %reason, "a request was refused");
        }
        _ => tracing::warn!(error, ?kind, %reason, "a request was refused"),
    }
}

/// Names an attempt to those who know its owner, and tells others nothing.
fn tag(owner: Owner) -> HeaderValue {
    let mut digest = Digest::new(Domain::Holder);
    digest.raw(owner.as_bytes());
    let tag = hex(&digest.finish()[..8]);
    HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static(""))
}

/// Why one who waited gets no response.
const fn ended(class: End, end: &SharedEnd) -> Conflict {
    Conflict::Ended {
        class,
        first_seen: end.first_seen,
    }
}

fn made_again<RB: FromBuffered>(stored: StoredResponse) -> Response<RB> {
    let mut response = Response::new(whole(stored.body, stored.trailers));
    *response.status_mut() = stored.status;
    *response.headers_mut() = stored.headers;
    response
}

fn whole<RB: FromBuffered>(body: Bytes, trailers: Option<http::HeaderMap>) -> RB {
    RB::from_buffered(BufferedBody::whole(body, trailers))
}
