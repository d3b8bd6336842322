//! 100,000 keys, each used once, by a client that wants the store full.

use std::convert::Infallible;

use tower_idempotency::record::{ClaimRequest, FencingToken, Holder, Record, Renewal, Seen};
use tower_idempotency::store::{Claim, Completion, Fenced, MemoryStore, Release, Store};
use tower_idempotency::{
    Executor, Fingerprint, IdempotencyKey, IdempotencyLayer, Ran, RecordKey, StoreError, Timestamp,
};

use crate::support::{Runs, ask, peak, request};

const KEYS: usize = 100_000;
const CAPACITY: u64 = 1 << 20;
/// With the runtime, the application, one request, and what is in moka's queues.
const MOST: usize = (1 << 20) + (256 << 10);

#[test]
fn a_full_store_refuses_new_keys_and_forgets_none() {
    let held = peak(
        "full::a_full_store_refuses_new_keys_and_forgets_none",
        async || {
            let runs = Runs::default();
            let app = runs.behind(IdempotencyLayer::new(MemoryStore::with_capacity(CAPACITY)));
            let kept = |number: usize| request(&format!("kept-{number}"), "body");
            let mut count = 0;
            let refused = loop {
                let answer = ask(&app, kept(count)).await;
                if answer.status != 200 {
                    break answer;
                }
                count += 1;
                assert!(count < KEYS / 10, "the store is never full");
            };
            println!("answers in {CAPACITY} bytes: {count}");
            refused.refused(503, "store-full");
            for number in 0..KEYS {
                let new = ask(&app, request(&format!("new-{number}"), "body")).await;
                assert_eq!((new.status, new.body), (503, refused.body.clone()));
            }
            assert_eq!(runs.count(), count);
            for number in 0..count {
                let again = ask(&app, kept(number)).await;
                again.replayed(&format!("run {}", number + 1));
            }
        },
    );
    assert!(held.is_none_or(|held| held <= MOST), "{held:?} of {MOST}");
}

#[test]
fn a_near_tier_stays_within_its_bytes() {
    let held = peak("full::a_near_tier_stays_within_its_bytes", async || {
        let executor = Executor::new(MemoryStore::evicting(CAPACITY).over(GrantsAll));
        let run = async |number: usize| {
            let key = IdempotencyKey::new("charge", &format!("new-{number}"));
            let key = key.expect("the key is valid");
            let work = async move || Ok::<_, Infallible>(number);
            let inputs = Fingerprint::from_bytes([0; 32]);
            executor.run(&key, inputs, work).await.expect("it runs")
        };
        for number in 0..KEYS {
            assert_eq!(run(number).await, Ran::Executed(number));
        }
        assert_eq!(run(KEYS - 1).await, Ran::Replayed(KEYS - 1));
        // Long forgotten.
        assert_eq!(run(0).await, Ran::Executed(0));
    });
    assert!(held.is_none_or(|held| held <= MOST), "{held:?} of {MOST}");
}

/// A far tier that takes no memory: it lets everyone run, and remembers nothing.
#[derive(Debug)]
struct GrantsAll;

impl Store for GrantsAll {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let token = FencingToken::from_u64(1);
        let lease = request.lease(token, 1, request.now);
        Ok(Claim::Acquired(lease.seen_at(request.now)))
    }

    async fn renew(&self, _: &Holder, _: Renewal, _: Timestamp) -> Result<Fenced, StoreError> {
        Ok(Fenced::Applied)
    }

    async fn complete(
        &self,
        _: &Holder,
        _: &Completion,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        Ok(Fenced::Applied)
    }

    async fn release(&self, _: &Holder, _: Release, _: Timestamp) -> Result<Fenced, StoreError> {
        Ok(Fenced::LeaseLost(None))
    }

    async fn get(&self, _: &RecordKey, _: Timestamp) -> Result<Option<Seen<Record>>, StoreError> {
        Ok(None)
    }

    async fn remove(&self, _: &RecordKey) -> Result<bool, StoreError> {
        Ok(false)
    }
}
