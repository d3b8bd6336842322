//! Every store, and everything that stands for one, passes the suite.

use std::time::Duration;

use tower_idempotency::Timestamp;
use tower_idempotency::store::{MemoryStore, SharedStore, Tiered};
use tower_idempotency::testing::conformance::{Capabilities, Suite, all, behaviours};
use tower_idempotency::testing::{ClockedStore, FaultStore, ManualClock};

const IN_PROCESS: Capabilities = Capabilities::all().shares(false).persists(false);

mod memory_store {
    use super::*;

    async fn make_store() -> MemoryStore {
        MemoryStore::new()
    }

    tower_idempotency::conformance!(make_store, IN_PROCESS);
}

mod store_with_a_clock_of_its_own {
    use super::*;

    tower_idempotency::conformance!(suite: {
        let clock = ManualClock::new();
        Suite::of(ClockedStore::new(MemoryStore::new(), clock.clone()))
            .clock_is_set_by(move |now| clock.set(now))
    });
}

/// Handles of one store are made as those of a database are: each from what all have in common.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_that_share_their_records_conform() {
    let store = MemoryStore::new();
    let make_store = move || {
        let store = store.clone();
        async move { store }
    };
    Suite::made_by(make_store, Capabilities::all()).all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_store_conforms() {
    all(SharedStore::new(MemoryStore::new())).await;
    all(std::sync::Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_could_fail_but_does_not_conforms() {
    all(FaultStore::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_in_stores_conform() {
    let store = SharedStore::new(FaultStore::new(MemoryStore::new()));
    all(SharedStore::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tiered_store_conforms() {
    all(MemoryStore::new().over(MemoryStore::new())).await;
    let far = FaultStore::new(MemoryStore::new());
    all(MemoryStore::new().over(far)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_over_one_store_conform() {
    let far = MemoryStore::new();
    let make_store = move || {
        let far = far.clone();
        async move { MemoryStore::new().over(far) }
    };
    Suite::made_by(make_store, Capabilities::all()).all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_that_has_to_be_waited_for_conforms() {
    let near = FaultStore::new(MemoryStore::evicting(1 << 20));
    all(Tiered::new(near, MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_over_tiers_conform() {
    let far = MemoryStore::new().over(FaultStore::new(MemoryStore::new()));
    all(MemoryStore::new().over(far)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_clock_is_far_from_its_callers_conforms() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let moves: [fn(Timestamp) -> Timestamp; 2] = [|now| now.plus(HOUR), |now| now.minus(HOUR)];
    for moved in moves {
        let clock = ManualClock::new();
        let store = ClockedStore::new(MemoryStore::new(), clock.clone());
        let set_clock = move |now| clock.set(moved(now));
        Suite::of(store).clock_is_set_by(set_clock).all().await;

        let clock = ManualClock::new();
        let far = ClockedStore::new(MemoryStore::new(), clock.clone());
        let set_clock = move |now| clock.set(moved(now));
        let tiered = MemoryStore::new().over(far);
        Suite::of(tiered).clock_is_set_by(set_clock).all().await;
    }
}

#[test]
fn each_behaviour_has_a_name_of_its_own() {
    let mut names: Vec<_> = behaviours::<MemoryStore>()
        .iter()
        .map(|behaviour| behaviour.name())
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
