//! Every store, and everything that stands for one, passes the suite.

use std::time::Duration;

use tower_idempotency::Timestamp;
use tower_idempotency::store::{MemoryStore, SharedStore, Store, Tiered};
use tower_idempotency::testing::{ClockedStore, FaultStore, ManualClock, conformance};

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
    conforms(Tiered::new(near, MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_over_tiers_conform() {
    let far = MemoryStore::new().over(FaultStore::new(MemoryStore::new()));
    conforms(MemoryStore::new().over(far)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_a_clock_of_its_own_conforms() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let moves: [fn(Timestamp) -> Timestamp; 3] =
        [|now| now, |now| now.plus(HOUR), |now| now.minus(HOUR)];
    for moved in moves {
        for is_far in [false, true] {
            let clock = ManualClock::new();
            let store = ClockedStore::new(MemoryStore::new(), clock.clone());
            let set_clock = move |now| clock.set(moved(now));
            match is_far {
                false => conformance::all_by_clock(store, set_clock).await,
                true => {
                    let tiered = MemoryStore::new().over(store);
                    conformance::all_by_clock(tiered, set_clock).await;
                }
            }
        }
    }
}
