//! A store of any kind behind one type.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::{Claim, Completion, Fenced, Release, Store};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::StoreError;
use crate::protocol::key::RecordKey;
use crate::protocol::record::{ClaimRequest, Holder, Record, Renewal, Seen};

/// Any [`Store`], for those who choose at run time. Clones share the store. Each call that does
/// not end at once costs one allocation more than the store's own.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use tower_idempotency::IdempotencyLayer;
/// use tower_idempotency::store::{MemoryStore, SharedStore};
///
/// let store = SharedStore::new(MemoryStore::new());
/// let layer: IdempotencyLayer<SharedStore> = IdempotencyLayer::new(store);
/// # }
/// ```
#[derive(Clone)]
pub struct SharedStore(Arc<dyn ErasedStore>);

impl SharedStore {
    /// Hides the type of `store`.
    pub fn new(store: impl Store) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedStore").field(&self.0).finish()
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for SharedStore {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        self.0.try_claim(request)
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        self.0.claim(request).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.0.renew(holder, renewal, now).await
    }

    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        self.0.try_complete(holder, completion, now)
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.0.complete(holder, completion, now).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.0.release(holder, release, now).await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        self.0.get(key, now).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.0.remove(key).await
    }

    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    fn may_forget(&self) -> bool {
        self.0.may_forget()
    }
}

/// A store that several own is a store.
#[deny(clippy::missing_trait_methods)]
impl<St: Store> Store for Arc<St> {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        (**self).try_claim(request)
    }

    fn claim(
        &self,
        request: &ClaimRequest<'_>,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send {
        (**self).claim(request)
    }

    fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send {
        (**self).renew(holder, renewal, now)
    }

    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        (**self).try_complete(holder, completion, now)
    }

    fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send {
        (**self).complete(holder, completion, now)
    }

    fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send {
        (**self).release(holder, release, now)
    }

    fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Seen<Record>>, StoreError>> + Send {
        (**self).get(key, now)
    }

    fn remove(&self, key: &RecordKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        (**self).remove(key)
    }

    fn is_shared(&self) -> bool {
        (**self).is_shared()
    }

    fn may_forget(&self) -> bool {
        (**self).may_forget()
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// [`Store`] with boxed futures.
trait ErasedStore: fmt::Debug + Send + Sync + 'static {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>>;
    fn claim<'a>(&'a self, request: &'a ClaimRequest<'a>) -> BoxFuture<'a, Claim>;
    fn renew<'a>(
        &'a self,
        holder: &'a Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> BoxFuture<'a, Fenced>;
    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>>;
    fn complete<'a>(
        &'a self,
        holder: &'a Holder,
        completion: &'a Completion,
        now: Timestamp,
    ) -> BoxFuture<'a, Fenced>;
    fn release<'a>(
        &'a self,
        holder: &'a Holder,
        release: Release,
        now: Timestamp,
    ) -> BoxFuture<'a, Fenced>;
    fn get<'a>(&'a self, key: &'a RecordKey, now: Timestamp)
    -> BoxFuture<'a, Option<Seen<Record>>>;
    fn remove<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, bool>;
    fn is_shared(&self) -> bool;
    fn may_forget(&self) -> bool;
}

impl<St: Store> ErasedStore for St {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        Store::try_claim(self, request)
    }

    fn claim<'a>(&'a self, request: &'a ClaimRequest<'a>) -> BoxFuture<'a, Claim> {
        Box::pin(Store::claim(self, request))
    }

    fn renew<'a>(
        &'a self,
        holder: &'a Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> BoxFuture<'a, Fenced> {
        Box::pin(Store::renew(self, holder, renewal, now))
    }

    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        Store::try_complete(self, holder, completion, now)
    }

    fn complete<'a>(
        &'a self,
        holder: &'a Holder,
        completion: &'a Completion,
        now: Timestamp,
    ) -> BoxFuture<'a, Fenced> {
        Box::pin(Store::complete(self, holder, completion, now))
    }

    fn release<'a>(
        &'a self,
        holder: &'a Holder,
        release: Release,
        now: Timestamp,
    ) -> BoxFuture<'a, Fenced> {
        Box::pin(Store::release(self, holder, release, now))
    }

    fn get<'a>(
        &'a self,
        key: &'a RecordKey,
        now: Timestamp,
    ) -> BoxFuture<'a, Option<Seen<Record>>> {
        Box::pin(Store::get(self, key, now))
    }

    fn remove<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, bool> {
        Box::pin(Store::remove(self, key))
    }

    fn is_shared(&self) -> bool {
        Store::is_shared(self)
    }

    fn may_forget(&self) -> bool {
        Store::may_forget(self)
    }
}
