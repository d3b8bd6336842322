//! What every store has to do, as tests.
//!
//! A store of your own passes when this does not panic:
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use tower_idempotency::{store::MemoryStore, testing::conformance};
//!
//! conformance::all(MemoryStore::new()).await;
//! # }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```
//!
//! Each behaviour uses keys of its own, so the store may hold others. Nothing here waits: what a
//! caller's clock shows is handed in with each call, and a store that has a clock of its own is held
//! to the suite by [`all_by_clock`], which moves that clock.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::clocked::SetStore;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::fingerprint::Fingerprint;
use crate::key::{IdempotencyKey, KeyParts};
use crate::record::{
    CallerDigest, ClaimRequest, Completed, Identity, Lease, Owner, RecipeId, Record, Renewal,
    random_u64,
};
use crate::store::{Claim, Completion, Fenced, Release, Store};

const LEASE: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
const SKEW: Duration = Duration::from_secs(2);
/// How many claims race for a key, and for how many keys.
const RACERS: usize = 16;
const RACES: usize = 20;

/// Runs the whole suite, one behaviour after the other.
///
/// # Panics
///
/// At the first behaviour that is not as [`Store`] promises; the place of the panic names it.
pub async fn all<St: Store>(store: St) {
    let store = Arc::new(store);
    a_claim_gets_the_lease_it_asked_for(&*store).await;
    a_claim_repeated_by_its_owner_gets_the_same_lease(&*store).await;
    a_key_that_is_held_is_in_progress_for_others(&*store).await;
    another_request_with_the_key_is_told_so(&*store).await;
    another_caller_with_the_key_learns_nothing_else(&*store).await;
    a_record_of_another_recipe_is_in_progress_or_not_compared(&*store).await;
    a_record_is_compared_by_a_recipe_that_is_accepted(&*store).await;
    a_completed_key_gives_its_answer(&*store).await;
    an_answer_of_any_size_and_bytes_comes_back(&*store).await;
    an_answer_is_forgotten_when_it_expires(&*store).await;
    a_released_key_can_be_claimed(&*store).await;
    a_lapsed_lease_is_taken_over(&*store).await;
    a_lease_lapses_only_after_the_clock_skew(&*store).await;
    an_orphan_is_held_for_those_who_may_not_take_over(&*store).await;
    an_attempt_without_an_outcome_is_an_orphan_at_once(&*store).await;
    an_orphan_is_forgotten_when_its_retention_ends(&*store).await;
    an_orphans_retention_counts_from_its_end(&*store).await;
    a_renewal_moves_the_expiry_of_the_record(&*store).await;
    a_renewed_lease_lives_longer(&*store).await;
    a_live_lease_outlives_its_records_expiry(&*store).await;
    a_late_finisher_changes_nothing(&*store).await;
    a_lapsed_lease_that_nobody_took_can_still_be_completed(&*store).await;
    only_the_owner_releases(&*store).await;
    repeated_writes_are_harmless(&*store).await;
    get_shows_what_is_there(&*store).await;
    remove_forgets_a_key(&*store).await;
    tokens_grow_over_the_lives_of_a_record(&*store).await;
    one_of_many_claims_wins(&store).await;
    one_of_many_takes_an_orphan_over(&store).await;
    a_waiter_if_there_is_one_sees_the_end(&*store).await;
}

/// Runs the whole suite on a store that has a clock of its own. Before each call, `set_clock` is told
/// what the caller's clock shows; it moves the store's clock as far, forward or back. By how much the
/// two differ makes no difference.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
/// use tower_idempotency::store::MemoryStore;
/// use tower_idempotency::testing::{ClockedStore, ManualClock, conformance};
///
/// let clock = ManualClock::new();
/// let store = ClockedStore::new(MemoryStore::new(), clock.clone());
/// let an_hour_ahead = Duration::from_secs(60 * 60);
/// conformance::all_by_clock(store, move |now| clock.set(now.plus(an_hour_ahead))).await;
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
///
/// # Panics
///
/// As [`all`].
pub async fn all_by_clock<St: Store>(
    store: St,
    set_clock: impl Fn(Timestamp) + Send + Sync + 'static,
) {
    all(SetStore::new(store, set_clock)).await;
}

/// A key that no other test uses, and who claims it.
struct Subject {
    key: IdempotencyKey,
    start: Timestamp,
}

impl Subject {
    fn new() -> Self {
        let unique = random_u64().expect("the operating system gives random bytes");
        let text = format!("conformance-{unique:016x}");
        Self {
            key: IdempotencyKey::from_parts(&KeyParts {
                namespace: "conformance",
                scope: Some("acct_1"),
                method: "POST",
                target: "/v1/charges",
                key: &text,
            })
            .expect("the key is valid"),
            start: SystemClock.now(),
        }
    }

    fn claim(&self) -> Attempt<'_> {
        Attempt {
            subject: self,
            accepted: &[],
            owner: Owner::new(self.start).expect("the operating system gives random bytes"),
            identity: identity(b"me", "amount=1200"),
            now: self.start,
            retention: RETENTION,
            take_over: true,
            wants_waiter: false,
        }
    }

    async fn acquired<St: Store>(&self, store: &St) -> Lease {
        self.claim().acquires(store).await
    }
}

/// One claim; the methods change it.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    subject: &'a Subject,
    accepted: &'a [Identity],
    owner: Owner,
    identity: Identity,
    now: Timestamp,
    retention: Duration,
    take_over: bool,
    wants_waiter: bool,
}

impl Attempt<'_> {
    fn after(self, later: Duration) -> Self {
        Self {
            now: self.subject.start.plus(later),
            ..self
        }
    }

    fn for_another_request(self) -> Self {
        Self {
            identity: Identity {
                request: Fingerprint::of(["amount=1300"]),
                ..self.identity
            },
            ..self
        }
    }

    fn by_another_caller(self) -> Self {
        Self {
            identity: Identity {
                caller: identity(b"you", "").caller,
                ..self.identity
            },
            ..self
        }
    }

    fn by_another_recipe(self) -> Self {
        Self {
            identity: Identity {
                caller: CallerDigest::from_bytes([1; 16]),
                request: Fingerprint::from_bytes([2; 32]),
                recipe: RecipeId::from_bytes(*b"recipe 2"),
            },
            ..self
        }
    }

    fn without_taking_over(self) -> Self {
        Self {
            take_over: false,
            ..self
        }
    }

    async fn on<St: Store>(self, store: &St) -> Claim {
        let parts = self.subject.key.parts();
        let key = self.subject.key.record_key();
        let request = ClaimRequest {
            accepted: self.accepted,
            lease: LEASE,
            retention: self.retention,
            clock_skew: SKEW,
            take_over: self.take_over,
            wants_waiter: self.wants_waiter,
            ..ClaimRequest::new(key, &parts, self.identity, self.owner, self.now)
        };
        if let Some(claim) = store.try_claim(&request) {
            return claim.expect("a claim succeeds");
        }
        store.claim(&request).await.expect("a claim succeeds")
    }

    async fn acquires<St: Store>(self, store: &St) -> Lease {
        match self.on(store).await {
            Claim::Acquired(lease) => lease.by_clock(self.now),
            other => panic!("the key was not acquired but {other:?}"),
        }
    }

    async fn is_in_progress<St: Store>(self, store: &St) {
        let claim = self.on(store).await;
        assert!(matches!(claim, Claim::InProgress { .. }), "{claim:?}");
    }

    async fn is_orphaned<St: Store>(self, store: &St) {
        let claim = self.on(store).await;
        assert!(matches!(claim, Claim::Orphaned(_)), "{claim:?}");
    }

    async fn is_refused_to_another_caller<St: Store>(self, store: &St) {
        let claim = self.by_another_caller().on(store).await;
        assert!(matches!(claim, Claim::CallerDiffers), "{claim:?}");
        let claim = self
            .by_another_caller()
            .for_another_request()
            .on(store)
            .await;
        assert!(matches!(claim, Claim::CallerDiffers), "{claim:?}");
    }

    async fn is_not_compared<St: Store>(self, store: &St) {
        let claim = self.by_another_recipe().on(store).await;
        let recorded = self.identity.recipe;
        assert!(
            matches!(claim, Claim::SettingsChanged { recorded: of } if of == recorded),
            "{claim:?}"
        );
    }

    async fn is_reused<St: Store>(self, store: &St) {
        let claim = self.on(store).await;
        assert!(matches!(claim, Claim::Reused), "{claim:?}");
    }

    async fn is_answered<St: Store>(self, store: &St) -> Completed {
        match self.on(store).await {
            Claim::Completed(completed) => completed.by_clock(self.now),
            other => panic!("the key was not answered but {other:?}"),
        }
    }
}

fn identity(caller: &[u8], request: &str) -> Identity {
    let mut digest = [0; 16];
    digest[..caller.len()].copy_from_slice(caller);
    Identity {
        caller: CallerDigest::from_bytes(digest),
        request: Fingerprint::of([request]),
        recipe: RecipeId::from_bytes(*b"recipe 1"),
    }
}

fn orphan() -> Release {
    Release::orphan(RETENTION, Some(504))
}

/// The moment after which a lease from the start has lapsed for everyone.
fn lapse() -> Duration {
    LEASE + SKEW + Duration::from_millis(1)
}

fn completion(payload: &'static [u8]) -> Completion {
    Completion::new(Bytes::from_static(payload), RETENTION)
}

async fn complete<St: Store>(store: &St, lease: &Lease, payload: &'static [u8]) -> Fenced {
    complete_at(store, lease, &completion(payload), lease.started_at).await
}

async fn complete_at<St: Store>(
    store: &St,
    lease: &Lease,
    completion: &Completion,
    now: Timestamp,
) -> Fenced {
    let holder = lease.holder();
    let fenced = match store.try_complete(&holder, completion, now) {
        Some(fenced) => fenced,
        None => store.complete(&holder, completion, now).await,
    };
    fenced.expect("a completion succeeds")
}

async fn release<St: Store>(store: &St, lease: &Lease, release: Release) -> Fenced {
    release_at(store, lease, release, lease.started_at).await
}

async fn release_at<St: Store>(
    store: &St,
    lease: &Lease,
    release: Release,
    now: Timestamp,
) -> Fenced {
    let released = store.release(&lease.holder(), release, now).await;
    released.expect("a release succeeds")
}

async fn renew_at<St: Store>(store: &St, lease: &Lease, now: Timestamp) -> Fenced {
    let renewal = Renewal::new(LEASE, RETENTION);
    let renewed = store.renew(&lease.holder(), renewal, now).await;
    renewed.expect("a renewal succeeds")
}

async fn get<St: Store>(store: &St, subject: &Subject, now: Timestamp) -> Option<Record> {
    let got = store.get(subject.key.record_key(), now).await;
    got.expect("a look succeeds")
        .map(|record| record.by_clock(now))
}

/// The lease names its claim, is the first attempt, and lasts as long as was asked for.
async fn a_claim_gets_the_lease_it_asked_for<St: Store>(store: &St) {
    let subject = Subject::new();
    let claim = subject.claim();
    let lease = claim.acquires(store).await;
    assert_eq!(lease.key, *subject.key.record_key());
    assert_eq!(lease.identity, claim.identity);
    assert_eq!(lease.first_status, None);
    assert_eq!(lease.owner, claim.owner);
    assert_eq!(lease.attempt, 1);
    assert_eq!(lease.created_at.as_millis(), subject.start.as_millis());
    assert_eq!(lease.started_at.as_millis(), subject.start.as_millis());
    let deadline = subject.start.plus(LEASE);
    assert_eq!(lease.deadline.as_millis(), deadline.as_millis());
}

/// A claim whose answer was lost can be made again.
async fn a_claim_repeated_by_its_owner_gets_the_same_lease<St: Store>(store: &St) {
    let subject = Subject::new();
    let claim = subject.claim();
    let first = claim.acquires(store).await;
    let second = claim.after(Duration::from_secs(1)).acquires(store).await;
    assert_eq!(first.token, second.token);
    assert_eq!(first.attempt, second.attempt);
    assert_eq!(complete(store, &second, b"answer").await, Fenced::Applied);
}

/// Others see since when the attempt runs, and until when its lease lasts.
async fn a_key_that_is_held_is_in_progress_for_others<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let later = subject.claim().after(Duration::from_secs(5));
    match later.on(store).await {
        Claim::InProgress { lease: seen, .. } => {
            assert_eq!(seen.holder(), lease.holder());
            assert_eq!(seen.running_for().as_millis(), 5_000);
            assert_eq!(seen.age().as_millis(), 5_000);
            assert_eq!(seen.remaining().as_millis(), (LEASE.as_millis() - 5_000));
        }
        other => panic!("the key was not in progress but {other:?}"),
    }
}

/// Whatever the state of the record.
async fn another_request_with_the_key_is_told_so<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let other = subject.claim().for_another_request();
    other.is_reused(store).await;
    other.after(lapse()).is_reused(store).await;
    let other_who_stays = other.without_taking_over();
    other_who_stays.after(lapse()).is_reused(store).await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    other.is_reused(store).await;
}

/// Whatever the state of the record, and whatever it asks for.
async fn another_caller_with_the_key_learns_nothing_else<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let claim = subject.claim();
    claim.is_refused_to_another_caller(store).await;
    claim
        .after(lapse())
        .is_refused_to_another_caller(store)
        .await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    claim.is_refused_to_another_caller(store).await;
}

/// Nobody can say whether it is the same request, but a run in flight can be told.
async fn a_record_of_another_recipe_is_in_progress_or_not_compared<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let claim = subject.claim();
    claim.by_another_recipe().is_in_progress(store).await;
    claim.after(lapse()).is_not_compared(store).await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    claim.is_not_compared(store).await;
}

/// While in progress, as an orphan, and completed.
async fn a_record_is_compared_by_a_recipe_that_is_accepted<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let other = identity(b"me", "amount=1300");
    let accepting = |accepted| Attempt {
        accepted,
        ..subject.claim().by_another_recipe()
    };
    let (same, reused) = ([lease.identity], [other]);
    accepting(&same).is_in_progress(store).await;
    accepting(&reused).is_reused(store).await;
    let next = accepting(&same).after(lapse()).acquires(store).await;
    assert_eq!(next.attempt, 2);
    assert_eq!(next.identity, accepting(&same).identity);
    assert_eq!(complete(store, &next, b"answer").await, Fenced::Applied);
    accepting(&[]).is_answered(store).await;
    let by_the_first = Attempt {
        accepted: &[next.identity],
        ..subject.claim()
    };
    let completed = by_the_first.is_answered(store).await;
    assert_eq!(completed.identity, next.identity);
}

/// With the identity and the times of its record.
async fn a_completed_key_gives_its_answer<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    for take_over in [true, false] {
        let claim = Attempt {
            take_over,
            ..subject.claim().after(lapse())
        };
        let completed = claim.is_answered(store).await;
        assert_eq!(completed.payload, &b"answer"[..]);
        assert_eq!(completed.identity, lease.identity);
        assert_eq!(completed.created_at.as_millis(), subject.start.as_millis());
        let expires_at = subject.start.plus(RETENTION);
        // A store may keep whole seconds, and then must not forget early.
        assert!(completed.expires_at >= Timestamp::from_millis(expires_at.as_millis()));
    }
}

/// From none to some hundred kilobytes.
async fn an_answer_of_any_size_and_bytes_comes_back<St: Store>(store: &St) {
    for size in [0, 1, 255, 256, 4_096, 70_000, 300_000] {
        let subject = Subject::new();
        let lease = subject.acquired(store).await;
        let payload: Bytes = (0..size).map(|index| (index * 31 % 251) as u8).collect();
        let completion = Completion {
            payload: payload.clone(),
            ..completion(b"")
        };
        let fenced = complete_at(store, &lease, &completion, subject.start).await;
        assert_eq!(fenced, Fenced::Applied);
        let completed = subject.claim().is_answered(store).await;
        assert!(completed.payload == payload, "{size} bytes came back other");
    }
}

/// The next claim is a first attempt again.
async fn an_answer_is_forgotten_when_it_expires<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    let just_before = RETENTION - Duration::from_secs(1);
    subject.claim().after(just_before).is_answered(store).await;
    let after = RETENTION + Duration::from_secs(1);
    let next = subject.claim().for_another_request().after(after);
    let lease = next.acquires(store).await;
    assert_eq!(lease.attempt, 1);
    assert_eq!(lease.created_at.as_millis(), next.now.as_millis());
    assert_eq!(complete(store, &lease, b"second").await, Fenced::Applied);
    let completed = next.is_answered(store).await;
    assert_eq!(completed.payload, &b"second"[..]);
}

/// By anyone, for any request, as a first attempt.
async fn a_released_key_can_be_claimed<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let fenced = release(store, &lease, Release::Free).await;
    assert_eq!(fenced, Fenced::Applied);
    assert_eq!(get(store, &subject, subject.start).await, None);
    let next = subject.claim().for_another_request();
    assert_eq!(next.acquires(store).await.attempt, 1);
}

/// As the next attempt, with a higher token, and with the age of the key.
async fn a_lapsed_lease_is_taken_over<St: Store>(store: &St) {
    let subject = Subject::new();
    let first = subject.acquired(store).await;
    let second = subject.claim().after(lapse()).acquires(store).await;
    assert_eq!(second.attempt, 2);
    assert!(second.token > first.token);
    assert_eq!(second.created_at.as_millis(), first.created_at.as_millis());
    let deadline = subject.start.plus(lapse()).plus(LEASE);
    assert_eq!(second.deadline.as_millis(), deadline.as_millis());
    let third = subject.claim().after(lapse());
    third.is_in_progress(store).await;
}

/// Up to and including the margin it is alive.
async fn a_lease_lapses_only_after_the_clock_skew<St: Store>(store: &St) {
    let subject = Subject::new();
    subject.acquired(store).await;
    subject
        .claim()
        .after(LEASE + SKEW - Duration::from_millis(1))
        .is_in_progress(store)
        .await;
    let mut without_margin = subject.claim().after(LEASE + SKEW);
    without_margin.take_over = false;
    without_margin.is_in_progress(store).await;
}

/// Again and again, until somebody may.
async fn an_orphan_is_held_for_those_who_may_not_take_over<St: Store>(store: &St) {
    let subject = Subject::new();
    subject.acquired(store).await;
    for later in [lapse(), RETENTION - Duration::from_secs(1)] {
        let stays = subject.claim().after(later).without_taking_over();
        stays.is_orphaned(store).await;
    }
    subject.claim().after(lapse()).acquires(store).await;
}

/// Without waiting for the lease.
async fn an_attempt_without_an_outcome_is_an_orphan_at_once<St: Store>(store: &St) {
    let subject = Subject::new();
    let first = subject.acquired(store).await;
    let fenced = release(store, &first, orphan()).await;
    assert_eq!(fenced, Fenced::Applied);
    let stays = subject.claim().without_taking_over();
    match stays.on(store).await {
        Claim::Orphaned(lease) => {
            let lease = lease.by_clock(subject.start);
            assert_eq!(lease.created_at.as_millis(), subject.start.as_millis());
            assert_eq!(lease.first_status, Some(504));
        }
        other => panic!("the key was not orphaned but {other:?}"),
    }
    let second = subject.claim().acquires(store).await;
    assert_eq!(second.attempt, 2);
    assert_eq!(second.first_status, None);
    assert!(second.token > first.token);
}

/// Not from its claim: a run may take longer than the retention.
async fn an_orphans_retention_counts_from_its_end<St: Store>(store: &St) {
    let subject = Subject::new();
    let short = Attempt {
        retention: Duration::from_secs(1),
        ..subject.claim()
    };
    let lease = short.acquires(store).await;
    let end = Duration::from_secs(10);
    let fenced = release_at(store, &lease, orphan(), subject.start.plus(end)).await;
    assert_eq!(fenced, Fenced::Applied);
    for later in [end, end + RETENTION - Duration::from_secs(1)] {
        let stays = subject.claim().after(later).without_taking_over();
        stays.is_orphaned(store).await;
    }
    let after = end + RETENTION + Duration::from_secs(1);
    let stays = subject.claim().after(after).without_taking_over();
    assert_eq!(stays.acquires(store).await.attempt, 1);
}

/// So that a holder which is not heard of again leaves an orphan that is kept long enough.
async fn a_renewal_moves_the_expiry_of_the_record<St: Store>(store: &St) {
    let subject = Subject::new();
    let short = Attempt {
        retention: Duration::from_secs(1),
        ..subject.claim()
    };
    let lease = short.acquires(store).await;
    let renewed = renew_at(store, &lease, subject.start.plus(LEASE)).await;
    assert_eq!(renewed, Fenced::Applied);
    let later = LEASE * 2 + RETENTION - Duration::from_secs(1);
    let stays = subject.claim().after(later).without_taking_over();
    stays.is_orphaned(store).await;
}

/// For those who may not take over, too; as a first attempt.
async fn an_orphan_is_forgotten_when_its_retention_ends<St: Store>(store: &St) {
    let subject = Subject::new();
    let first = subject.acquired(store).await;
    let after = RETENTION + Duration::from_secs(1);
    let stays = subject.claim().after(after).without_taking_over();
    let second = stays.for_another_request().acquires(store).await;
    assert_eq!(second.attempt, 1);
    assert!(second.token > first.token);
}

/// Until its latest deadline, for its owner alone.
async fn a_renewed_lease_lives_longer<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    // And one that was sent before it, and comes after it.
    for now in [subject.start.plus(LEASE), subject.start] {
        assert_eq!(renew_at(store, &lease, now).await, Fenced::Applied);
    }
    subject.claim().after(lapse()).is_in_progress(store).await;
    let later = subject.claim().after(lapse() + LEASE);
    later.acquires(store).await;
    let fenced = renew_at(store, &lease, subject.start.plus(LEASE * 3)).await;
    assert!(matches!(fenced, Fenced::LeaseLost(_)), "{fenced:?}");
}

/// Work that takes longer than the retention is not run beside itself.
async fn a_live_lease_outlives_its_records_expiry<St: Store>(store: &St) {
    let subject = Subject::new();
    let short = Attempt {
        retention: Duration::from_secs(1),
        ..subject.claim()
    };
    let lease = short.acquires(store).await;
    let later = Duration::from_secs(10);
    subject.claim().after(later).is_in_progress(store).await;
    let now = subject.start.plus(later);
    assert!(get(store, &subject, now).await.is_some());
    let completed = complete_at(store, &lease, &completion(b"answer"), now).await;
    assert_eq!(completed, Fenced::Applied);
    subject.claim().after(later).is_answered(store).await;
}

/// It is told that it lost its lease, and what was recorded instead.
async fn a_late_finisher_changes_nothing<St: Store>(store: &St) {
    let subject = Subject::new();
    let late = subject.acquired(store).await;
    let successor = subject.claim().after(lapse()).acquires(store).await;
    for fenced in [
        complete(store, &late, b"late").await,
        release(store, &late, Release::Free).await,
        release(store, &late, orphan()).await,
        renew_at(store, &late, subject.start.plus(lapse())).await,
    ] {
        assert_eq!(fenced, Fenced::LeaseLost(None));
    }
    let other = subject.claim().after(lapse());
    other.is_in_progress(store).await;
    let fenced = complete(store, &successor, b"answer").await;
    assert_eq!(fenced, Fenced::Applied);
    match complete(store, &late, b"late").await {
        Fenced::LeaseLost(Some(completed)) => assert_eq!(completed.payload(), &b"answer"[..]),
        other => panic!("the late finisher was not told the answer but {other:?}"),
    }
    let completed = other.is_answered(store).await;
    assert_eq!(completed.payload, &b"answer"[..]);
}

/// It was slow, but nobody took its place.
async fn a_lapsed_lease_that_nobody_took_can_still_be_completed<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let now = subject.start.plus(lapse());
    let fenced = complete_at(store, &lease, &completion(b"answer"), now).await;
    assert_eq!(fenced, Fenced::Applied);
    subject.claim().after(lapse()).is_answered(store).await;
}

/// Someone who was refused the key cannot give it away.
async fn only_the_owner_releases<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    let stranger = Lease {
        owner: subject.claim().owner,
        ..lease.clone()
    };
    for fenced in [
        release(store, &stranger, Release::Free).await,
        release(store, &stranger, orphan()).await,
        complete(store, &stranger, b"stolen").await,
        renew_at(store, &stranger, subject.start).await,
    ] {
        assert_eq!(fenced, Fenced::LeaseLost(None));
    }
    subject.claim().is_in_progress(store).await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
}

/// A write whose answer was lost is made again, and gets the same answer.
async fn repeated_writes_are_harmless<St: Store>(store: &St) {
    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    let completed = subject.claim().is_answered(store).await;
    assert_eq!(completed.payload, &b"answer"[..]);

    let subject = Subject::new();
    let lease = subject.acquired(store).await;
    for _ in 0..2 {
        let fenced = release(store, &lease, orphan()).await;
        assert_eq!(fenced, Fenced::Applied);
    }
    let stays = subject.claim().without_taking_over();
    stays.is_orphaned(store).await;
}

/// Until it has expired.
async fn get_shows_what_is_there<St: Store>(store: &St) {
    let subject = Subject::new();
    assert_eq!(get(store, &subject, subject.start).await, None);
    let lease = subject.acquired(store).await;
    match get(store, &subject, subject.start).await {
        Some(Record::InProgress(held)) => {
            assert_eq!(held.owner, lease.owner);
            assert_eq!(held.token, lease.token);
            assert_eq!(held.attempt, lease.attempt);
            assert_eq!(held.identity, lease.identity);
            assert_eq!(held.deadline.as_millis(), lease.deadline.as_millis());
        }
        other => panic!("the record was not in progress but {other:?}"),
    }
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    match get(store, &subject, subject.start).await {
        Some(Record::Completed(completed)) => assert_eq!(completed.payload, &b"answer"[..]),
        other => panic!("the record was not completed but {other:?}"),
    }
    let after = subject.start.plus(RETENTION + Duration::from_secs(1));
    assert_eq!(get(store, &subject, after).await, None);
}

/// In progress or completed; whoever held it finds its lease lost.
async fn remove_forgets_a_key<St: Store>(store: &St) {
    let subject = Subject::new();
    let remove = || async {
        let removed = store.remove(subject.key.record_key()).await;
        removed.expect("a removal succeeds")
    };
    assert!(!remove().await);
    let lease = subject.acquired(store).await;
    assert!(remove().await);
    let fenced = complete(store, &lease, b"answer").await;
    assert_eq!(fenced, Fenced::LeaseLost(None));
    let lease = subject.acquired(store).await;
    assert_eq!(complete(store, &lease, b"answer").await, Fenced::Applied);
    assert!(remove().await);
    assert_eq!(get(store, &subject, subject.start).await, None);
    subject.acquired(store).await;
}

/// A release and an expiry in between do not set them back.
async fn tokens_grow_over_the_lives_of_a_record<St: Store>(store: &St) {
    let subject = Subject::new();
    let first = subject.acquired(store).await;
    release(store, &first, Release::Free).await;
    let later = Duration::from_millis(1);
    let second = subject.claim().after(later).acquires(store).await;
    assert!(second.token > first.token);
    assert_eq!(complete(store, &second, b"answer").await, Fenced::Applied);
    let expired = RETENTION + Duration::from_secs(1);
    let third = subject.claim().after(expired).acquires(store).await;
    assert!(third.token > second.token);
}

/// At the same time, from many tasks.
async fn one_of_many_claims_wins<St: Store>(store: &Arc<St>) {
    for _ in 0..RACES {
        let subject = Arc::new(Subject::new());
        assert_eq!(race(store, &subject, Duration::ZERO).await, 1);
    }
}

/// At the same time, from many tasks.
async fn one_of_many_takes_an_orphan_over<St: Store>(store: &Arc<St>) {
    for _ in 0..RACES {
        let subject = Arc::new(Subject::new());
        subject.acquired(&**store).await;
        assert_eq!(race(store, &subject, lapse()).await, 1);
    }
}

async fn race<St: Store>(store: &Arc<St>, subject: &Arc<Subject>, later: Duration) -> usize {
    let barrier = Arc::new(Barrier::new(RACERS));
    let mut racers = JoinSet::new();
    for _ in 0..RACERS {
        let (store, subject) = (Arc::clone(store), Arc::clone(subject));
        let barrier = Arc::clone(&barrier);
        racers.spawn(async move {
            barrier.wait().await;
            match subject.claim().after(later).on(&*store).await {
                Claim::Acquired(_) => 1,
                Claim::InProgress { .. } => 0,
                other => panic!("a racer got {other:?}"),
            }
        });
    }
    racers.join_all().await.into_iter().sum()
}

/// However the attempt ends; a store that cannot see it gives no waiter.
async fn a_waiter_if_there_is_one_sees_the_end<St: Store>(store: &St) {
    for end in 0..4 {
        let subject = Subject::new();
        let lease = subject.acquired(store).await;
        let waiting = Attempt {
            wants_waiter: true,
            ..subject.claim()
        };
        let waiter = match waiting.on(store).await {
            Claim::InProgress { waiter, .. } => waiter,
            other => panic!("the key was not in progress but {other:?}"),
        };
        match end {
            0 => drop(complete(store, &lease, b"answer").await),
            1 => drop(release(store, &lease, Release::Free).await),
            2 => drop(release(store, &lease, orphan()).await),
            _ => drop(store.remove(subject.key.record_key()).await),
        }
        if let Some(waiter) = waiter {
            waiter.await;
        }
    }
}
