use std::pin::pin;
use std::ptr;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::KeyParts;
use crate::protocol::record::{Identity, Lease, Owner};
use crate::runtime::random_u64;

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
    let key = parts.record_key();
    let identity = Identity::of_work(Fingerprint::of(["same"]));
    let owner = Owner::new(random_u64().expect("there is randomness"), now);
    then(&ClaimRequest {
        retention: HOUR,
        clock_skew: Duration::ZERO,
        ..ClaimRequest::new(&key, &parts, identity, owner, now)
    })
}

fn acquire(store: &MemoryStore, number: u64, now: Timestamp) -> Lease {
    match claim(store, number, now) {
        Ok(Claim::Acquired(lease)) => lease.by_clock(now),
        other => panic!("the key was not acquired but {other:?}"),
    }
}

fn complete(store: &MemoryStore, lease: &Lease, size: usize, retention: Duration) {
    let completion = Completion::new(Bytes::from(vec![0; size]), retention);
    let fenced = at_once(store.complete(&lease.holder(), &completion, lease.started_at));
    assert!(matches!(fenced, Ok(Fenced::Applied)), "{fenced:?}");
}

/// What the thread of the sweeper does from time to time.
fn sweep_all(store: &MemoryStore) {
    sweeper::sweep(&Arc::downgrade(&store.inner));
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
    let renewal = Renewal::new(HOUR / 60, HOUR);
    for now in [minutes(1), START] {
        let renewed = at_once(store.renew(&lease.holder(), renewal, now));
        assert!(matches!(renewed, Ok(Fenced::Applied)), "{renewed:?}");
    }
    let claim = claim(&store, 1, minutes(1));
    assert!(
        matches!(claim, Ok(Claim::InProgress { ref lease, .. }) if lease.remaining() == HOUR / 60),
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
        store.claim_uncached(request, completions, true)
    });
    assert!(matches!(second, Ok(Claim::Completed(_))), "{second:?}");
}

#[test]
fn a_full_store_refuses_new_keys_and_forgets_none() {
    let store = MemoryStore::with_capacity(20_000);
    let mut held = 0;
    let refused = loop {
        match claim(&store, held, START) {
            Ok(Claim::Acquired(lease)) => complete(&store, &lease.by_clock(START), 500, HOUR),
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
            Ok(Claim::Acquired(lease)) => lease.by_clock(now),
            Ok(other) => panic!("the key was not acquired but {other:?}"),
        };
        complete(&store, &lease, 500, moment);
    }
    assert!(now > START, "it was never full");
    let weight = store.inner.weight.load(Ordering::Relaxed);
    // The answer of the last run that found room may not fit.
    assert!(weight < 5_000 + 500 + MemoryStore::OVERHEAD, "{weight}");
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
    store.inner.told.tell(later.plus(HOUR));
    sweep_all(&store);
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

/// A store of its own sweeper, which looks often.
fn swept_store(capacity: u64, cache: Option<Cached>) -> MemoryStore {
    static OFTEN: Sweeper = Sweeper::new(Duration::from_millis(5));
    MemoryStore::build(capacity, cache, &OFTEN)
}

/// Orphans that were released as such, or left without a word.
fn orphans(store: &MemoryStore, count: u64, are_released: bool) {
    for number in 0..count {
        let lease = acquire(store, number, START);
        if are_released {
            let release = Release::Orphan {
                retention: HOUR,
                first_status: None,
            };
            let released = at_once(store.release(&lease.holder(), release, START));
            assert!(matches!(released, Ok(Fenced::Applied)), "{released:?}");
        }
    }
}

/// Waits until it holds, while nothing is asked of the store.
fn soon(holds: impl Fn() -> bool) -> bool {
    (0..2_000).any(|_| {
        thread::sleep(Duration::from_millis(5));
        holds()
    })
}

#[test]
fn orphans_that_have_expired_make_room_in_a_full_store() {
    let thirty_days = START.plus(HOUR * 24 * 30);
    for are_released in [false, true] {
        for number in 128..256 {
            let store = MemoryStore::with_capacity(64 << 10);
            orphans(&store, 128, are_released);
            let refused = claim(&store, number, START).expect_err("the store is full");
            assert_eq!(refused.kind(), StoreErrorKind::Full);
            acquire(&store, number, thirty_days);
        }
    }
}

#[test]
fn one_record_that_has_expired_makes_room_whatever_shard_it_is_in() {
    for number in 1..65 {
        let store = MemoryStore::with_capacity(2 * IN_PROGRESS_WEIGHT);
        let lease = acquire(&store, 0, START);
        complete(&store, &lease, 1_000, Duration::from_millis(1));
        let now = START.plus(Duration::from_millis(1));
        assert!(claim(&store, number, START).is_err());
        acquire(&store, number, now);
        assert_eq!(store.len(), 1);
    }
}

#[test]
fn a_claim_on_a_full_store_clears_away_a_bounded_part_of_what_has_expired() {
    let store = MemoryStore::with_capacity(u64::MAX);
    let moment = Duration::from_millis(1);
    for number in 0..10_000 {
        let lease = acquire(&store, number, START);
        complete(&store, &lease, 0, moment);
    }
    let mut inner = Arc::into_inner(store.inner).expect("nobody else has it");
    inner.capacity = 1;
    let store = MemoryStore {
        inner: Arc::new(inner),
    };
    let before = store.len();
    let refused = claim(&store, 10_000, START.plus(moment)).expect_err("there is no room yet");
    let most = CLEARED_AT_ONCE + CLEARED_BY_CLAIM + CLEARED_AT_ONCE;
    let cleared = before - store.len();
    assert!(cleared > 0 && cleared <= most as u64, "{cleared}");
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(1)));
}

#[test]
fn a_claim_that_is_refused_waits_for_no_other_shard() {
    for have_expired in [false, true] {
        let store = MemoryStore::with_capacity(64 << 10);
        orphans(&store, 128, true);
        let now = match have_expired {
            true => START.plus(HOUR * 2),
            false => START,
        };
        // Its own shard has nothing to clear away, and the store is as full as before.
        let mine = store.shard(&with_request(128, now, |request| *request.key));
        mine.clear(&mut mine.lock(), START.plus(HOUR * 2), 0, |_| true);
        let others = store.inner.shards.iter();
        let locks: Vec<_> = others
            .filter(|shard| !ptr::eq(*shard, mine))
            .map(Shard::lock)
            .collect();
        let (tell, told) = mpsc::channel();
        let claimer = store.clone();
        thread::spawn(move || drop(tell.send(claim(&claimer, 128, now))));
        let claim = told.recv_timeout(Duration::from_secs(10));
        let refused = claim.expect("it waits").expect_err("the store is full");
        assert_eq!(refused.kind(), StoreErrorKind::Full);
        drop(locks);
    }
}

#[test]
fn a_full_store_says_when_its_oldest_record_expires() {
    let store = MemoryStore::with_capacity(2_000);
    for (number, minutes) in [(1, 40), (2, 30)] {
        let lease = acquire(&store, number, START);
        complete(&store, &lease, 700, HOUR / 60 * minutes);
    }
    assert_eq!(store.oldest_expiry(), Some(START.plus(HOUR / 2)));
    let refused = |now| {
        claim(&store, 3, now)
            .expect_err("the store is full")
            .retry_after()
    };
    assert_eq!(refused(START), Some(HOUR / 2));
    assert_eq!(refused(START.plus(HOUR / 4)), Some(HOUR / 4));
    acquire(&store, 3, START.plus(HOUR / 2));
    assert_eq!(store.oldest_expiry(), Some(START.plus(HOUR / 60 * 40)));
}

#[test]
fn its_size_is_told() {
    let store = MemoryStore::new();
    assert_eq!((store.weight(), store.len()), (0, 0));
    assert!(store.is_empty());
    assert_eq!(store.oldest_expiry(), None);
    let first = acquire(&store, 1, START);
    acquire(&store, 2, START.plus(HOUR));
    assert_eq!((store.weight(), store.len()), (2 * IN_PROGRESS_WEIGHT, 2));
    assert_eq!(store.oldest_expiry(), Some(START.plus(HOUR)));
    complete(&store, &first, 100, HOUR * 3);
    let weight = IN_PROGRESS_WEIGHT + 100 + MemoryStore::OVERHEAD;
    assert_eq!((store.weight(), store.len()), (weight, 2));
    assert!(!store.is_empty());
    assert_eq!(store.oldest_expiry(), Some(START.plus(HOUR * 2)));
}

#[test]
fn what_has_expired_goes_without_a_request() {
    let store = swept_store(1 << 20, None);
    orphans(&store, 200, true);
    let moment = Duration::from_millis(100);
    for number in 200..2_000 {
        let lease = acquire(&store, number, START);
        complete(&store, &lease, 0, moment);
    }
    let last = acquire(&store, 2_000, START.plus(HOUR).plus(moment));
    assert!(soon(|| store.len() == 1), "{} are left", store.len());
    assert_eq!(store.weight(), IN_PROGRESS_WEIGHT);
    complete(&store, &last, 0, HOUR);
}

#[test]
fn what_expires_later_goes_without_a_request() {
    let store = swept_store(1 << 20, None);
    let lease = acquire(&store, 1, START);
    complete(&store, &lease, 0, Duration::from_millis(100));
    assert_eq!(store.len(), 1);
    assert!(soon(|| store.is_empty()));
}

#[test]
fn the_sweeper_ends_no_run_that_may_be_alive() {
    let store = MemoryStore::new();
    let lease = acquire(&store, 1, START);
    store.inner.told.tell(START.plus(HOUR * 2));
    sweep_all(&store);
    assert_eq!(store.len(), 1);
    let release = Release::Orphan {
        retention: HOUR,
        first_status: None,
    };
    assert!(at_once(store.release(&lease.holder(), release, START)).is_ok());
    sweep_all(&store);
    assert_eq!(store.len(), 0);
}

#[test]
fn the_sweeper_holds_no_store() {
    let store = swept_store(1 << 20, None);
    acquire(&store, 1, START);
    let weak = Arc::downgrade(&store.inner);
    thread::sleep(Duration::from_millis(20));
    drop(store);
    assert!(soon(|| weak.strong_count() == 0));
}

#[test]
fn the_thread_of_the_sweeper_ends_after_the_last_store() {
    static OWN: Sweeper = Sweeper::new(Duration::from_millis(5));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        OWN.run();
        drop(tell);
    });
    let ended = told.recv_timeout(Duration::from_secs(10));
    assert_eq!(ended, Err::<(), _>(mpsc::RecvTimeoutError::Disconnected));
    // The next store has one again.
    for _ in 0..2 {
        let store = MemoryStore::build(1 << 20, None, &OWN);
        let lease = acquire(&store, 1, START);
        complete(&store, &lease, 0, Duration::ZERO);
        assert!(soon(|| store.is_empty()));
        drop(store);
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn answers_of_a_near_tier_go_without_a_request() {
    let store = swept_store(1 << 20, Some(cached(1 << 20)));
    let lease = acquire(&store, 1, START);
    complete(&store, &lease, 0, Duration::from_millis(200));
    // moka counts it when it finds the time.
    store.inner.tidy_cache();
    assert_eq!(store.len(), 1);
    assert!(soon(|| store.is_empty() && store.weight() == 0));
}

#[test]
fn no_shard_has_much_more_than_its_share() {
    for shards in [1, 8, 16, 512] {
        let mut numbers = vec![0; shards];
        for number in 0..=u16::MAX {
            numbers[shard_of(number, shards)] += 1;
        }
        let even = 65_536.0 / shards as f64;
        for numbers in numbers {
            let share = f64::from(numbers) / even;
            assert!(
                shards == 1 || (0.7..1.55).contains(&share),
                "{share} of {shards}"
            );
        }
    }
}
