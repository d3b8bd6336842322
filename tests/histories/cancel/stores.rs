//! The stores that requests are dropped on, whose every call waits.

use std::future::Future;
use std::sync::Arc;

use tower_idempotency::record::{ClaimRequest, Holder, Record, Renewal, Seen};
use tower_idempotency::store::{
    Claim, Completion, Fenced, MemoryStore, Release, SharedStore, Store, Tiered,
};
use tower_idempotency::testing::{Call, Fault, FaultStore};
use tower_idempotency::{RecordKey, StoreError, Timestamp};

use crate::pace::pause;

/// A store, and what it stands on.
pub(crate) struct Stores<St> {
    pub(crate) store: St,
    /// What another node would use.
    pub(crate) far: SharedStore,
    faults: Option<Arc<FaultStore<SharedStore>>>,
}

impl<St> Stores<St> {
    pub(crate) fn can_fail(&self) -> bool {
        self.faults.is_some()
    }

    /// The next completions fail, in each way once.
    pub(crate) fn fail_completions(&self) {
        let faults = self.faults.as_ref().expect("the store can fail");
        faults.fail_next(Call::Complete, Fault::Refused);
        faults.fail_next(Call::Complete, Fault::RequestLost);
        faults.fail_next(Call::Complete, Fault::AnswerLost);
    }
}

/// A store in another process, which answers nothing at once.
type Remote = Yielding<Arc<FaultStore<SharedStore>>>;

pub(crate) fn memory() -> Stores<MemoryStore> {
    let store = MemoryStore::new();
    Stores {
        far: SharedStore::new(store.clone()),
        store,
        faults: None,
    }
}

pub(crate) fn yielding() -> Stores<Yielding<MemoryStore>> {
    let Stores { store, far, .. } = memory();
    Stores {
        store: Yielding(store),
        far,
        faults: None,
    }
}

fn remote() -> Stores<Remote> {
    over(SharedStore::new(MemoryStore::new()), Yielding)
}

pub(crate) fn over<St>(
    far: SharedStore,
    store: impl FnOnce(Arc<FaultStore<SharedStore>>) -> St,
) -> Stores<St> {
    let faults = Arc::new(FaultStore::new(far.clone()));
    Stores {
        store: store(Arc::clone(&faults)),
        far,
        faults: Some(faults),
    }
}

impl<St> Stores<St> {
    fn map<T>(self, under: impl FnOnce(St) -> T) -> Stores<T> {
        Stores {
            store: under(self.store),
            far: self.far,
            faults: self.faults,
        }
    }
}

pub(crate) fn tiered() -> Stores<Tiered<MemoryStore, Remote>> {
    remote().map(|remote| MemoryStore::new().over(remote))
}

type ThreeTiers = Tiered<MemoryStore, Tiered<Yielding<MemoryStore>, Remote>>;

pub(crate) fn tiered_twice() -> Stores<ThreeTiers> {
    remote().map(|remote| {
        let middle = Yielding(MemoryStore::evicting(MemoryStore::DEFAULT_CAPACITY));
        MemoryStore::new().over(Tiered::new(middle, remote))
    })
}

pub(crate) fn shared() -> Stores<SharedStore> {
    remote().map(SharedStore::new)
}

/// Yields before each call and after it, and answers no claim at once.
#[derive(Debug)]
pub(crate) struct Yielding<St>(St);

async fn yielding_around<T>(call: impl Future<Output = T>) -> T {
    pause(1).await;
    let result = call.await;
    pause(1).await;
    result
}

impl<St: Store> Store for Yielding<St> {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        yielding_around(self.0.claim(request)).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        yielding_around(self.0.renew(holder, renewal, now)).await
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        yielding_around(self.0.complete(holder, completion, now)).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        yielding_around(self.0.release(holder, release, now)).await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        yielding_around(self.0.get(key, now)).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        yielding_around(self.0.remove(key)).await
    }
}
