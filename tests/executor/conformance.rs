//! Every store, and everything that stands for one, passes the suite.

use std::time::Duration;

use tower_idempotency::store::{MemoryStore, SharedStore, Store};
use tower_idempotency::testing::{FaultStore, conformance};

/// A store that lets a claim hang fails, too.
async fn conforms(store: impl Store) {
    let suite = tokio::time::timeout(Duration::from_secs(120), conformance::all(store));
    suite.await.expect("a claim hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_conforms() {
    conforms(MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_store_conforms() {
    conforms(SharedStore::new(MemoryStore::new())).await;
    conforms(std::sync::Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_could_fail_but_does_not_conforms() {
    conforms(FaultStore::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_in_stores_conform() {
    let store = SharedStore::new(FaultStore::new(MemoryStore::new()));
    conforms(SharedStore::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tiered_store_conforms() {
    conforms(MemoryStore::new().over(MemoryStore::new())).await;
    let far = FaultStore::new(MemoryStore::new());
    conforms(MemoryStore::new().over(far)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_that_has_to_be_waited_for_conforms() {
    let near = FaultStore::new(MemoryStore::evicting(1 << 20));
    conforms(near.over(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_over_tiers_conform() {
    let far = MemoryStore::new().over(FaultStore::new(MemoryStore::new()));
    conforms(MemoryStore::new().over(far)).await;
}
