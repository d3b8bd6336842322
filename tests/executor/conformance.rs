//! Every store, and everything that stands for one, passes the suite.

use tower_idempotency::store::{MemoryStore, SharedStore, Store};
use tower_idempotency::testing::{FaultStore, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_conforms() {
    conformance::all(MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_store_conforms() {
    conformance::all(SharedStore::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_could_fail_but_does_not_conforms() {
    conformance::all(FaultStore::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_in_stores_conform() {
    let store = SharedStore::new(FaultStore::new(MemoryStore::new()));
    conformance::all(SharedStore::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tiered_store_conforms() {
    conformance::all(MemoryStore::new().over(MemoryStore::new())).await;
    let far = FaultStore::new(MemoryStore::new());
    conformance::all(MemoryStore::new().over(far)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_that_has_to_be_waited_for_conforms() {
    let near = FaultStore::new(MemoryStore::evicting(1 << 20));
    conformance::all(near.over(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_over_tiers_conform() {
    let far = MemoryStore::new().over(FaultStore::new(MemoryStore::new()));
    conformance::all(MemoryStore::new().over(far)).await;
}
