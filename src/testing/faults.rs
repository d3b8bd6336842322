//! A store that fails when and how a test says.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::{KeyParts, RecordKey};
use crate::protocol::record::{ClaimRequest, Holder, Liveness, Record, Renewal, Seen};
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
    /// It is no failure, but it is delivered twice: it is applied and answered, and applied once
    /// more so much later, whatever has become of the record by then. On the runtime of the caller;
    /// nobody hears what the second one gives, and it is not counted.
    Repeated(Duration),
}

/// A store around another one that fails when it is told to, and counts its calls.
///
/// As a store in another process would, it answers no claim at once, so that every call can be
/// waited for and fail, and it gives no waiter, so that those who wait for a run have to look.
#[derive(Debug)]
pub struct FaultStore<St> {
    inner: Arc<St>,
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
            inner: Arc::new(inner),
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
    pub fn inner(&self) -> &St {
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

    /// Makes a call, or what is left of it. `again` makes it from what it may keep.
    async fn with_faults<T: Send, Again>(
        &self,
        call: Call,
        applied: impl Future<Output = Result<T, StoreError>> + Send,
        again: impl FnOnce(Arc<St>) -> Again + Send,
    ) -> Result<T, StoreError>
    where
        Again: Future<Output = ()> + Send + 'static,
    {
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
            Some(Fault::Repeated(delay)) => {
                let again = again(Arc::clone(&self.inner));
                let answer = applied.await;
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    again.await;
                });
                answer
            }
            Some(Fault::RequestHangs) => pending().await,
            Some(Fault::AnswerHangs) => {
                applied.await?;
                pending().await
            }
        }
    }
}

/// A claim that keeps what `request` only borrows.
fn claim_again<St: Store>(
    inner: Arc<St>,
    request: &ClaimRequest<'_>,
) -> impl Future<Output = ()> + Send + use<St> {
    let KeyParts {
        namespace,
        scope,
        method,
        target,
        key,
    } = *request.parts;
    let texts = [namespace, method, target, key].map(str::to_owned);
    let scope = scope.map(str::to_owned);
    let record_key = *request.key;
    let ClaimRequest {
        identity,
        owner,
        now,
        lease,
        retention,
        clock_skew,
        wants_waiter,
        ..
    } = *request;
    let accepted = request.accepted.to_vec();
    async move {
        let [namespace, method, target, key] = &texts;
        let parts = KeyParts {
            namespace,
            scope: scope.as_deref(),
            method,
            target,
            key,
        };
        let request = ClaimRequest {
            accepted: &accepted,
            lease,
            retention,
            clock_skew,
            wants_waiter,
            // Whoever sent it is not asked any more who is alive. So a store must not take over by
            // it what was held when it was sent; as DynamoDB's condition on what was seen sees to.
            take_over: false,
            liveness: Liveness::UNKNOWN,
            ..ClaimRequest::new(&record_key, &parts, identity, owner, now)
        };
        drop(inner.claim(&request).await);
    }
}

fn fault(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, message)
}

#[deny(clippy::missing_trait_methods)]
impl<St: Store> Store for FaultStore<St> {
    fn try_claim(&self, _: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        None
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let request = ClaimRequest {
            wants_waiter: false,
            ..*request
        };
        let again = |inner: Arc<St>| claim_again(inner, &request);
        self.with_faults(Call::Claim, self.inner.claim(&request), again)
            .await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let again = |inner: Arc<St>| {
            let holder = *holder;
            async move { drop(inner.renew(&holder, renewal, now).await) }
        };
        let applied = self.inner.renew(holder, renewal, now);
        self.with_faults(Call::Renew, applied, again).await
    }

    fn try_complete(
        &self,
        _: &Holder,
        _: &Completion,
        _: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        None
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let again = |inner: Arc<St>| {
            let (holder, completion) = (*holder, completion.clone());
            async move { drop(inner.complete(&holder, &completion, now).await) }
        };
        let applied = self.inner.complete(holder, completion, now);
        self.with_faults(Call::Complete, applied, again).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let again = |inner: Arc<St>| {
            let holder = *holder;
            async move { drop(inner.release(&holder, release, now).await) }
        };
        let applied = self.inner.release(holder, release, now);
        self.with_faults(Call::Release, applied, again).await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        let again = |inner: Arc<St>| {
            let key = *key;
            async move { drop(inner.get(&key, now).await) }
        };
        self.with_faults(Call::Get, self.inner.get(key, now), again)
            .await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let again = |inner: Arc<St>| {
            let key = *key;
            async move { drop(inner.remove(&key).await) }
        };
        self.with_faults(Call::Remove, self.inner.remove(key), again)
            .await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn may_forget(&self) -> bool {
        self.inner.may_forget()
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use super::*;
    use crate::protocol::fingerprint::Fingerprint;
    use crate::protocol::record::{Identity, Owner};
    use crate::store::MemoryStore;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
    const LATER: Duration = Duration::from_secs(5);

    async fn claim(store: &impl Store, parts: &KeyParts<'_>, owner: u8) -> Claim {
        let (key, owner) = (parts.record_key(), Owner::from_bytes([owner; 16]));
        let identity = Identity::of_work(Fingerprint::of(["same"]));
        let request = ClaimRequest {
            wants_waiter: true,
            ..ClaimRequest::new(&key, parts, identity, owner, NOW)
        };
        store.claim(&request).await.expect("the call succeeds")
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_call_is_applied_once_more_in_its_time() {
        let store = FaultStore::new(MemoryStore::new());
        let parts = KeyParts {
            scope: Some("tenant"),
            key: "key-1",
            ..KeyParts::default()
        };
        store.fail_next(Call::Claim, Fault::Repeated(LATER));
        let Claim::Acquired(lease) = claim(&store, &parts, 1).await else {
            panic!("the key is free");
        };
        let lease = lease.by_clock(NOW);
        let released = store.release(&lease.holder(), Release::Free, NOW).await;
        assert_eq!(released.expect("the call succeeds"), Fenced::Applied);
        tokio::time::sleep(LATER - Duration::from_millis(1)).await;
        let before = store.get(&lease.key, NOW).await;
        assert_eq!(before.expect("the call succeeds"), None);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let after = store.get(&lease.key, NOW).await;
        let held = Record::InProgress(lease.clone()).seen_at(NOW);
        assert_eq!(after.expect("the call succeeds"), held);
        assert_eq!(store.count(Call::Claim), 1);

        store.fail_next(Call::Release, Fault::Repeated(LATER));
        let released = store.release(&lease.holder(), Release::Free, NOW).await;
        assert_eq!(released.expect("the call succeeds"), Fenced::Applied);
        let second = claim(&store, &parts, 2).await;
        assert!(matches!(second, Claim::Acquired(_)), "{second:?}");
        tokio::time::sleep(LATER * 2).await;
        let third = claim(&store, &parts, 3).await;
        assert!(matches!(third, Claim::InProgress { .. }), "{third:?}");
    }
}
