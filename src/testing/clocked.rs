//! Stores that have a clock of their own.

use std::fmt;

use crate::clock::{Clock, Timestamp};
use crate::error::StoreError;
use crate::key::RecordKey;
use crate::record::{ClaimRequest, Holder, Record, Renewal, Seen};
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

/// A store whose own clock is set, before each call, by what the clock of the caller shows.
pub(super) struct SetStore<St, F> {
    inner: St,
    set: F,
}

impl<St, F> SetStore<St, F> {
    pub(super) const fn new(inner: St, set: F) -> Self {
        Self { inner, set }
    }
}

impl<St: fmt::Debug, F> fmt::Debug for SetStore<St, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SetStore").field(&self.inner).finish()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<St: Store, F: Fn(Timestamp) + Send + Sync + 'static> Store for SetStore<St, F> {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        (self.set)(request.now);
        self.inner.try_claim(request)
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        (self.set)(request.now);
        self.inner.claim(request).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        (self.set)(now);
        self.inner.renew(holder, renewal, now).await
    }

    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        (self.set)(now);
        self.inner.try_complete(holder, completion, now)
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        (self.set)(now);
        self.inner.complete(holder, completion, now).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        (self.set)(now);
        self.inner.release(holder, release, now).await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        (self.set)(now);
        self.inner.get(key, now).await
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
