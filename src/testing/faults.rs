//! A store that fails when and how a test says.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::{StoreError, StoreErrorKind};
use crate::key::RecordKey;
use crate::record::{ClaimRequest, Lease, Record};
use crate::store::{Claim, Completion, Fenced, Release, Store};

/// A call to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// [`Store::claim`].
    Claim,
    /// [`Store::renew`].
    Renew,
    /// [`Store::complete`].
    Complete,
    /// [`Store::release`].
    Release,
    /// [`Store::get`].
    Get,
    /// [`Store::remove`].
    Remove,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is not applied, and the error says so.
    Refused,
    /// It is not applied, but the error cannot tell.
    RequestLost,
    /// It is applied, but the error cannot tell.
    AnswerLost,
    /// It is not applied, and never ends.
    RequestHangs,
    /// It is applied, and never ends.
    AnswerHangs,
    /// It is no failure, but it takes this long before it is applied.
    Delayed(Duration),
}

/// A store around another one that fails when it is told to, and counts its calls.
///
/// As a store in another process would, it answers no claim at once, so that every call can be
/// waited for and fail, and it gives no waiter, so that those who wait for a run have to look.
#[derive(Debug)]
pub struct FaultStore<St> {
    inner: St,
    script: Mutex<Script>,
}

#[derive(Debug, Default)]
struct Script {
    next: HashMap<Call, VecDeque<Fault>>,
    always: HashMap<Call, Fault>,
    counts: HashMap<Call, usize>,
}

impl<St> FaultStore<St> {
    /// A store that does what `inner` does, until it is told otherwise.
    pub fn new(inner: St) -> Self {
        Self {
            inner,
            script: Mutex::default(),
        }
    }

    /// Fails the next such call, after those that were to fail already.
    pub fn fail_next(&self, call: Call, fault: Fault) {
        self.script().next.entry(call).or_default().push_back(fault);
    }

    /// Fails every such call from now on.
    pub fn fail_always(&self, call: Call, fault: Fault) {
        self.script().always.insert(call, fault);
    }

    /// Fails no more.
    pub fn heal(&self) {
        let mut script = self.script();
        script.next.clear();
        script.always.clear();
    }

    /// How many such calls were made, failed ones included.
    pub fn count(&self, call: Call) -> usize {
        self.script().counts.get(&call).copied().unwrap_or(0)
    }

    /// The store inside.
    pub const fn inner(&self) -> &St {
        &self.inner
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_fault(&self, call: Call) -> Option<Fault> {
        let mut script = self.script();
        *script.counts.entry(call).or_default() += 1;
        let next = script.next.get_mut(&call).and_then(VecDeque::pop_front);
        next.or_else(|| script.always.get(&call).copied())
    }

    async fn with_faults<T: Send>(
        &self,
        call: Call,
        applied: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match self.take_fault(call) {
            None => applied.await,
            Some(Fault::Refused) => Err(fault("the call was refused")),
            Some(Fault::RequestLost) => Err(fault("the request was lost").maybe_applied()),
            Some(Fault::AnswerLost) => {
                applied.await?;
                Err(fault("the answer was lost").maybe_applied())
            }
            Some(Fault::Delayed(delay)) => {
                tokio::time::sleep(delay).await;
                applied.await
            }
            Some(Fault::RequestHangs) => pending().await,
            Some(Fault::AnswerHangs) => {
                applied.await?;
                pending().await
            }
        }
    }
}

fn fault(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, message)
}

impl<St: Store> Store for FaultStore<St> {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let request = ClaimRequest {
            wants_waiter: false,
            ..*request
        };
        self.with_faults(Call::Claim, self.inner.claim(&request))
            .await
    }

    async fn renew(&self, lease: &Lease, deadline: Timestamp) -> Result<Fenced, StoreError> {
        self.with_faults(Call::Renew, self.inner.renew(lease, deadline))
            .await
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<Fenced, StoreError> {
        self.with_faults(Call::Complete, self.inner.complete(lease, completion))
            .await
    }

    async fn release(&self, lease: &Lease, release: Release) -> Result<Fenced, StoreError> {
        self.with_faults(Call::Release, self.inner.release(lease, release))
            .await
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
        self.with_faults(Call::Get, self.inner.get(key, now)).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.with_faults(Call::Remove, self.inner.remove(key)).await
    }
}
