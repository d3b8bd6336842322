//! Stores that have a clock of their own.

use crate::protocol::clock::Timestamp;
use crate::protocol::error::StoreError;
use crate::protocol::key::RecordKey;
use crate::protocol::record::{ClaimRequest, Holder, Record, Renewal, Seen};
use crate::runtime::Clock;
use crate::store::{Claim, Completion, Fenced, Release, Store};

/// A store around another one that has a clock of its own, as a database server has: it decides by
/// that, whatever the clocks of its callers show.
#[derive(Debug)]
pub struct ClockedStore<St, C> {
    inner: St,
    clock: C,
}

impl<St: Store, C: Clock> ClockedStore<St, C> {
    /// A store that keeps its records in `inner` and decides by `clock`.
    pub const fn new(inner: St, clock: C) -> Self {
        Self { inner, clock }
    }

    /// The store inside.
    pub const fn inner(&self) -> &St {
        &self.inner
    }
}

#[deny(clippy::missing_trait_methods)]
impl<St: Store, C: Clock> Store for ClockedStore<St, C> {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        self.inner.try_claim(&request.at(self.clock.now()))
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        self.inner.claim(&request.at(self.clock.now())).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.inner.renew(holder, renewal, self.clock.now()).await
    }

    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        _: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        let now = self.clock.now();
        self.inner.try_complete(holder, completion, now)
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let now = self.clock.now();
        self.inner.complete(holder, completion, now).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.inner.release(holder, release, self.clock.now()).await
    }

    async fn get(&self, key: &RecordKey, _: Timestamp) -> Result<Option<Seen<Record>>, StoreError> {
        self.inner.get(key, self.clock.now()).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.inner.remove(key).await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn may_forget(&self) -> bool {
        self.inner.may_forget()
    }
}
