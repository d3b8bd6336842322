//! Answers that the layer gives itself.

use bytes::Bytes;
use http::Response;
use http::header::HeaderValue;

use crate::body::{BufferedBody, FromBuffered};
use crate::error::{StoreError, StoreErrorKind};
use crate::executor::{Conflict, Settled, SharedEnd, What};
use crate::outcome::{IDEMPOTENCY_UNPROTECTED, IDEMPOTENT_REPLAYED, Outcome, mark, report_times};
use crate::problem::Refusal;
use crate::record::Completed;
use crate::response::{Answer, StoredResponse};
use crate::settings::Shared;
use crate::store::Store;

const TRUE: HeaderValue = HeaderValue::from_static("true");

impl<St: Store> Shared<St> {
    /// The recorded answer, or why there is none to give.
    pub(super) fn replay<RB: FromBuffered>(&self, completed: &Completed) -> Response<RB> {
        let stored = match Answer::decode(&completed.payload) {
            Ok(Answer::Response(stored)) => stored,
            Ok(Answer::NotStored { summary, .. }) => {
                return self.refuse(&Refusal::response_not_stored(summary));
            }
            Ok(Answer::Value(_)) => {
                let error = StoreError::new(
                    StoreErrorKind::Damaged,
                    "the recorded answer is not that of an HTTP request",
                );
                return self.refuse(&error.into());
            }
            Err(damage) => return self.refuse(&StoreError::from(damage).into()),
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
        self.told(response, Outcome::Replayed)
    }

    /// The response of the run that a request waited for, which is not recorded.
    pub(super) fn share<RB: FromBuffered>(&self, end: &SharedEnd) -> Response<RB> {
        let payload = match &end.what {
            What::Response(payload) => payload,
            What::Recorded(completed) => return self.replay(completed),
            What::Nothing { .. } => return self.refuse(&Conflict::NothingDone.into()),
        };
        match Answer::decode(payload) {
            Ok(Answer::Response(stored)) => {
                let mut response = made_again(stored);
                mark(response.headers_mut(), IDEMPOTENT_REPLAYED, TRUE);
                self.told(response, Outcome::Replayed)
            }
            _ => self.refuse(&Conflict::NothingDone.into()),
        }
    }

    /// The response to a request whose run has ended.
    pub(super) fn settled<RB: FromBuffered, E>(
        &self,
        settled: Settled<Result<Response<RB>, E>>,
    ) -> Result<Response<RB>, E> {
        match settled {
            Settled::Value {
                value,
                recorded,
                created_at,
                expires_at,
            } => value.map(|mut response| {
                if let Some(expires_at) = expires_at
                    && self.settings.report_times
                {
                    report_times(response.headers_mut(), created_at, expires_at);
                }
                self.told(response, Outcome::Executed(recorded))
            }),
            Settled::Superseded(completed) => Ok(self.replay(&completed)),
            Settled::Withheld(conflict, recorded) => {
                let response = self.refuse(&conflict.into());
                Ok(self.told(response, Outcome::Executed(recorded)))
            }
        }
    }

    pub(super) fn refuse<RB: FromBuffered>(&self, refusal: &Refusal) -> Response<RB> {
        if let Some(error) = refusal.store_error() {
            tracing::warn!(
                error = error as &(dyn std::error::Error + 'static),
                kind = ?error.kind(),
                "a request was refused, for its idempotency record cannot be reached"
            );
        }
        let response = self.settings.responder.respond(refusal);
        let response = response.map(|body| whole(body, None));
        self.told(response, Outcome::Refused(refusal.reason()))
    }

    /// Marks the response of a request that ran without protection.
    pub(super) fn unprotected<RB>(&self, mut response: Response<RB>) -> Response<RB> {
        mark(response.headers_mut(), IDEMPOTENCY_UNPROTECTED, TRUE);
        self.told(response, Outcome::Unprotected)
    }

    /// Tells the layers outside what became of a request, if they want to know.
    pub(super) fn told<RB>(&self, mut response: Response<RB>, outcome: Outcome) -> Response<RB> {
        if self.settings.report_outcome {
            response.extensions_mut().insert(outcome);
        }
        response
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

fn made_again<RB: FromBuffered>(stored: StoredResponse) -> Response<RB> {
    let mut response = Response::new(whole(stored.body, stored.trailers));
    *response.status_mut() = stored.status;
    *response.headers_mut() = stored.headers;
    response
}

fn whole<RB: FromBuffered>(body: Bytes, trailers: Option<http::HeaderMap>) -> RB {
    RB::from_buffered(BufferedBody::whole(body, trailers))
}
