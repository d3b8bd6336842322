//! Work that is no HTTP request, and whose value is recorded as JSON.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use pin_project_lite::pin_project;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::end::{Ending, Finished, Settled};
use super::run::Work;
use super::{Executor, Ran, RunError};
use crate::format::answer::Answer;
use crate::protocol::Recorded;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::record::Owner;
use crate::store::Store;

pin_project! {
    pub(super) struct PlainWork<F, St> {
        executor: Executor<St>,
        owner: Owner,
        #[pin]
        future: F,
    }
}

impl<F, St> PlainWork<F, St> {
    pub(super) const fn new(executor: Executor<St>, owner: Owner, future: F) -> Self {
        Self {
            executor,
            owner,
            future,
        }
    }
}

impl<F, T, E, St> Future for PlainWork<F, St>
where
    F: Future<Output = Result<T, E>>,
    T: Serialize,
    E: 'static,
    St: Store,
{
    type Output = Finished<Result<T, RunError<E>>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.future.poll(cx));
        Poll::Ready(match result {
            Ok(value) => match Answer::value(&value) {
                Ok(answer) => Finished::recorded(Ok(value), answer),
                Err(error) => {
                    let nothing = Answer::Value(Bytes::new());
                    Finished::recorded(Err(RunError::Result(error)), nothing)
                }
            },
            Err(error) => {
                let class = this.executor.class_of_error(*this.owner, &error);
                let error = RunError::Work {
                    error,
                    // Known when the lease has ended.
                    is_retryable: false,
                };
                Finished::new(Err(error), Ending::without_response(class))
            }
        })
    }
}

impl<F, T, E, St> Work<St> for PlainWork<F, St>
where
    F: Future<Output = Result<T, E>>,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Send + 'static,
    St: Store,
{
    type Value = Result<T, RunError<E>>;
    type Given = Result<Ran<T>, RunError<E>>;

    fn executor(&self) -> &Executor<St> {
        &self.executor
    }

    fn give(&self, settled: Settled<Self::Value>) -> Self::Given {
        match settled {
            Settled::Value {
                value, recorded, ..
            } => value.map(Ran::Executed).map_err(|error| match error {
                RunError::Work { error, .. } => RunError::Work {
                    error,
                    is_retryable: match recorded {
                        Recorded::LeaseLost | Recorded::Pending | Recorded::Released => true,
                        Recorded::NotStored | Recorded::Stored => false,
                        Recorded::Unknown => self.executor.reconciles_orphans(),
                    },
                },
                error => error,
            }),
            Settled::Superseded(completed) => replayed(&completed.payload),
            Settled::Withheld(conflict, _) => Err(conflict.into()),
        }
    }

    /// It is an `async` block, which has dropped what it had while the panic went through it.
    fn abandon(self: Pin<&mut Self>) -> Option<Ending> {
        None
    }
}

/// The result that is recorded in `payload`.
pub(super) fn replayed<T: DeserializeOwned, E>(payload: &Bytes) -> Result<Ran<T>, RunError<E>> {
    match Answer::decode(payload) {
        Ok(Answer::Value(value)) => serde_json::from_slice(&value)
            .map(Ran::Replayed)
            .map_err(RunError::Result),
        Ok(Answer::NotStored { .. }) => Err(RunError::NotStored),
        Ok(Answer::Response(_)) => Err(RunError::Store(StoreError::new(
            StoreErrorKind::Damaged,
            "the recorded answer is that of an HTTP request",
        ))),
        Err(damage) => Err(RunError::Store(damage.into())),
    }
}
