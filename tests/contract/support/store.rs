//! A store that fails when it is told to, and that never answers at once, as one across a
//! network does not.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::task::yield_now;
use tower_idempotency::record::{ClaimRequest, Holder, Record, Renewal, Seen};
use tower_idempotency::store::{Claim, Completion, Fenced, MemoryStore, Release, Store, Waiter};
use tower_idempotency::{RecordKey, StoreError, StoreErrorKind, Timestamp};

use super::runs::Gate;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// The store cannot be reached: the call is not applied.
    Unreachable,
    /// The record is there and cannot be read: the call is not applied.
    Unreadable,
    /// The call is applied, and its answer is lost.
    AnswerLost,
    /// [`Fault::AnswerLost`], for the next call alone.
    NextAnswerLost,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct FaultyStore {
    inner: MemoryStore,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    claims: Mutex<Fault>,
    ends: Mutex<Fault>,
    renewals: Mutex<Fault>,
    instead: Mutex<Option<&'static [u8]>>,
    remote: AtomicBool,
    claim_gate: Mutex<Option<Gate>>,
    claim_count: AtomicUsize,
    renewal_count: AtomicUsize,
    waiting: Arc<()>,
}

impl FaultyStore {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn fail_claims(&self, fault: Fault) {
        *self.faults.claims.lock().expect("not poisoned") = fault;
    }

    /// Of `complete` and `release`.
    pub(crate) fn fail_ends(&self, fault: Fault) {
        *self.faults.ends.lock().expect("not poisoned") = fault;
    }

    pub(crate) fn fail_renewals(&self, fault: Fault) {
        *self.faults.renewals.lock().expect("not poisoned") = fault;
    }

    /// Gives these bytes back in the place of each answer.
    pub(crate) fn answer_with(&self, instead: Option<&'static [u8]>) {
        *self.faults.instead.lock().expect("not poisoned") = instead;
    }

    /// Tells nobody when a run ends, as if all runs were in other processes.
    pub(crate) fn be_remote(&self) {
        self.faults.remote.store(true, Ordering::SeqCst);
    }

    /// Holds claims up before they are applied, until the gate is opened.
    pub(crate) fn hold_claims_up(&self) -> Gate {
        let gate = Gate::default();
        *self.faults.claim_gate.lock().expect("not poisoned") = Some(gate.clone());
        gate
    }

    /// How many claims it was asked for.
    pub(crate) fn claims(&self) -> usize {
        self.faults.claim_count.load(Ordering::SeqCst)
    }

    /// How many leases it has renewed.
    pub(crate) fn renewals(&self) -> usize {
        self.faults.renewal_count.load(Ordering::SeqCst)
    }

    /// How many wait for the end of a run.
    pub(crate) fn waiting(&self) -> usize {
        Arc::strong_count(&self.faults.waiting) - 1
    }

    fn give_back(&self, claim: Claim, now: Timestamp) -> Claim {
        match claim {
            Claim::InProgress { lease, waiter, .. } => {
                let is_remote = self.faults.remote.load(Ordering::SeqCst);
                let waiter = waiter.filter(|_| !is_remote).map(|waiter| {
                    let waiting = Arc::clone(&self.faults.waiting);
                    Waiter::new(async move {
                        waiter.await;
                        drop(waiting);
                    })
                });
                Claim::in_progress(lease, waiter)
            }
            Claim::Completed(completed) => {
                let mut completed = completed.by_clock(now);
                if let Some(instead) = *self.faults.instead.lock().expect("not poisoned") {
                    completed.payload = Bytes::from_static(instead);
                }
                Claim::Completed(completed.seen_at(now))
            }
            claim => claim,
        }
    }
}

fn next(fault: &Mutex<Fault>) -> Fault {
    let mut fault = fault.lock().expect("not poisoned");
    match *fault {
        Fault::NextAnswerLost => std::mem::take(&mut *fault),
        fault => fault,
    }
}

async fn suffer<T>(
    fault: Fault,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    yield_now().await;
    let unavailable = || StoreError::new(StoreErrorKind::Unavailable, "the cable is cut");
    match fault {
        Fault::None => call.await,
        Fault::Unreachable => Err(unavailable()),
        Fault::Unreadable => Err(StoreError::new(StoreErrorKind::Damaged, "half a record")),
        Fault::AnswerLost | Fault::NextAnswerLost => {
            call.await?;
            Err(unavailable().maybe_applied())
        }
    }
}

impl Store for FaultyStore {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        self.faults.claim_count.fetch_add(1, Ordering::SeqCst);
        let gate = self.faults.claim_gate.lock().expect("not poisoned").clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        let claim = suffer(next(&self.faults.claims), self.inner.claim(request)).await?;
        Ok(self.give_back(claim, request.now))
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let renewing = self.inner.renew(holder, renewal, now);
        let renewed = suffer(next(&self.faults.renewals), renewing).await?;
        self.faults.renewal_count.fetch_add(1, Ordering::SeqCst);
        Ok(renewed)
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        suffer(
            next(&self.faults.ends),
            self.inner.complete(holder, completion, now),
        )
        .await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        suffer(
            next(&self.faults.ends),
            self.inner.release(holder, release, now),
        )
        .await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        self.inner.get(key, now).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.inner.remove(key).await
    }

    fn is_shared(&self) -> bool {
        self.faults.remote.load(Ordering::SeqCst)
    }
}
