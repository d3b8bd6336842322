use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::*;
use crate::fingerprint::Fingerprint;
use crate::key::KeyParts;
use crate::record::{Identity, Liveness, Owner};

const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn claim(store: &MemoryStore, number: u64, now: Timestamp) -> Result<Claim, StoreError> {
    with_request(number, now, |request| store.claim_now(request))
}

fn with_request<T>(number: u64, now: Timestamp, then: impl Fn(&ClaimRequest<'_>) -> T) -> T {
    let text = number.to_string();
    let parts = KeyParts {
        key: &text,
        ..KeyParts::default()
    };
    then(&ClaimRequest {
        key: &parts.record_key(),
        parts: &parts,
        identity: Identity::of_work(Fingerprint::of(["same"])),
        accepted: &[],
        owner: Owner::new(now).expect("the operating system gives random bytes"),
        now,
        lease: Duration::from_secs(30),
        retention: HOUR,
        clock_skew: Duration::ZERO,
        take_over: true,
        wants_waiter: false,
        liveness: Liveness::UNKNOWN,
    })
}

fn acquire(store: &MemoryStore, number: u64, now: Timestamp) -> Lease {
    match claim(store, number, now) {
        Ok(Claim::Acquired(lease)) => lease,
        other => panic!("the key was not acquired but {other:?}"),
    }
}

fn complete(store: &MemoryStore, lease: &Lease, size: usize, retention: Duration) {
    let completion = Completion {
        payload: Bytes::from(vec![0; size]),
        now: lease.started_at,
        expires_at: lease.started_at.plus(retention),
        is_given_unrecorded: true,
    };
    let fenced = at_once(store.complete(lease, &completion));
    assert!(matches!(fenced, Ok(Fenced::Applied)), "{fenced:?}");
}

/// The output of a future that has nothing to wait for.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn a_renewal_that_comes_late_takes_nothing_back() {
    let store = MemoryStore::new();
    let lease = acquire(&store, 1, START);
    let minutes = |count: u32| START.plus(HOUR / 60 * count);
    for deadline in [minutes(2), minutes(1)] {
        let renewal = Renewal {
            deadline,
            expires_at: lease.expires_at,
        };
        let renewed = at_once(store.renew(&lease, renewal));
        assert!(matches!(renewed, Ok(Fenced::Applied)), "{renewed:?}");
    }
    let claim = claim(&store, 1, minutes(2));
    assert!(
        matches!(claim, Ok(Claim::InProgress { ref lease, .. }) if lease.deadline == minutes(2)),
        "{claim:?}"
    );
}

#[test]
fn no_claim_slips_between_a_lease_and_its_answer() {
    let store = MemoryStore::evicting(20_000);
    let lease = acquire(&store, 1, START);
    let second = with_request(1, START, |request| {
        // The run ends after the claim has found no answer, and before it has the lock.
        let completions = store.shard(request.key).completions();
        assert!(store.cached_answer(request).is_none());
        complete(&store, &lease, 0, HOUR);
        store.claim_uncached(request, completions)
    });
    assert!(matches!(second, Ok(Claim::Completed(_))), "{second:?}");
}

#[test]
fn a_full_store_refuses_new_keys_and_forgets_none() {
    let store = MemoryStore::with_capacity(20_000);
    let mut held = 0;
    let refused = loop {
        match claim(&store, held, START) {
            Ok(Claim::Acquired(lease)) => complete(&store, &lease, 500, HOUR),
            other => break other,
        }
        held += 1;
        assert!(held < 100, "it holds more than it may");
    };
    let error = refused.expect_err("the store is full");
    assert_eq!(error.kind(), StoreErrorKind::Full);
    assert!(held >= 20, "it holds {held}");
    for number in 0..held {
        let replay = claim(&store, number, START);
        assert!(matches!(replay, Ok(Claim::Completed(_))), "{replay:?}");
    }
}

#[test]
fn records_in_progress_count_too() {
    let store = MemoryStore::with_capacity(10 * IN_PROGRESS_WEIGHT);
    let leases: Vec<_> = (0..10)
        .map(|number| acquire(&store, number, START))
        .collect();
    let refused = claim(&store, 10, START).expect_err("the store is full");
    assert_eq!(refused.kind(), StoreErrorKind::Full);
    let duplicate = claim(&store, 0, START);
    assert!(matches!(duplicate, Ok(Claim::InProgress { .. })));
    assert!(leases.len() == 10);
}

#[test]
fn there_is_room_again_when_answers_have_expired() {
    let store = MemoryStore::with_capacity(5_000);
    let moment = Duration::from_millis(1);
    let mut now = START;
    for number in 0..200 {
        let lease = match claim(&store, number, now) {
            Err(error) => {
                assert_eq!(error.kind(), StoreErrorKind::Full);
                now = now.plus(moment);
                acquire(&store, number, now)
            }
            Ok(Claim::Acquired(lease)) => lease,
            Ok(other) => panic!("the key was not acquired but {other:?}"),
        };
        complete(&store, &lease, 500, moment);
    }
    assert!(now > START, "it was never full");
    let weight = store.inner.weight.load(Ordering::Relaxed);
    assert!(weight <= 5_000 + IN_PROGRESS_WEIGHT, "{weight}");
}

#[test]
fn what_is_weighed_is_what_is_there() {
    let store = MemoryStore::new();
    let weight = || store.inner.weight.load(Ordering::Relaxed);
    let of_answer = 500 + MemoryStore::OVERHEAD;
    let moment = Duration::from_millis(1);
    // Enough keys for some to share a shard, where expired answers go when others come.
    let leases: Vec<_> = (0..500).map(|key| acquire(&store, key, START)).collect();
    assert_eq!(weight(), 500 * IN_PROGRESS_WEIGHT);
    for lease in &leases {
        complete(&store, lease, 500, moment);
    }
    assert_eq!(weight(), 500 * of_answer);
    // The first are answered anew, the last forgotten by hand.
    let later = START.plus(moment);
    for number in 0..250 {
        let lease = acquire(&store, number, later);
        complete(&store, &lease, 500, HOUR);
    }
    for lease in &leases[250..] {
        // Some have gone, to make room for those that came.
        assert!(at_once(store.remove(&lease.key)).is_ok());
    }
    assert_eq!(weight(), 250 * of_answer);
    store.inner.forget_expired(later.plus(HOUR));
    assert_eq!(weight(), 0);
}

#[test]
fn orphans_that_nobody_asks_for_are_cleared_away_in_time() {
    let store = MemoryStore::new();
    let orphans = 80 * store.inner.shards.len() as u64;
    for number in 0..orphans {
        acquire(&store, number, START);
    }
    let later = START.plus(HOUR * 2);
    for number in orphans..orphans * 3 {
        acquire(&store, number, later);
    }
    let weight = store.inner.weight.load(Ordering::Relaxed);
    assert_eq!(weight, orphans * 2 * IN_PROGRESS_WEIGHT);
}

#[test]
fn a_near_tier_makes_room() {
    let store = MemoryStore::evicting(20_000);
    for number in 0..1_000 {
        let lease = acquire(&store, number, START);
        complete(&store, &lease, 500, HOUR);
    }
    let cache = store.inner.cache.as_ref().expect("a near tier caches");
    cache.run_pending_tasks();
    assert!(cache.weighted_size() <= 20_000);
    let newest = claim(&store, 999, START);
    assert!(matches!(newest, Ok(Claim::Completed(_))), "{newest:?}");
}
