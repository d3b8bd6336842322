//! Stores that have a clock of their own, which is far from that of the process.

use std::time::Duration;

use tower_idempotency::record::{ClaimRequest, Identity, Owner};
use tower_idempotency::store::{Claim, MemoryStore, Store};
use tower_idempotency::testing::{Call, ClockedStore, FaultStore, TokioClock};
use tower_idempotency::{Clock, Executor, Orphan, Ran, RunError};

use crate::support::{LEASE, SKEW, Work, elsewhere, fingerprint, key, on};

const HOUR: Duration = Duration::from_secs(60 * 60);
const SECOND: Duration = Duration::from_secs(1);

type Remote = FaultStore<ClockedStore<MemoryStore, TokioClock>>;

/// Executors whose store has a clock that is behind theirs or ahead of it, with their own clock.
fn apart() -> [(Executor<Remote>, TokioClock); 4] {
    let clock = TokioClock::new();
    let with = |here: TokioClock, there: TokioClock| {
        let store = ClockedStore::new(MemoryStore::new(), there);
        (on(FaultStore::new(store)).clock(here), here)
    };
    [
        with(clock.ahead_by(LEASE + SKEW * 2), clock),
        with(clock.ahead_by(HOUR), clock),
        with(clock, clock.ahead_by(LEASE + SKEW * 2)),
        with(clock, clock.ahead_by(HOUR)),
    ]
}

/// Claims as a process does that is not heard of again.
async fn leave_lease(executor: &Executor<Remote>, clock: TokioClock) {
    let key = key();
    let parts = key.parts();
    let (identity, owner) = (Identity::of_work(fingerprint()), Owner::from_bytes([9; 16]));
    let request = ClaimRequest::new(key.record_key(), &parts, identity, owner, clock.now());
    let claim = executor.store().claim(&request).await;
    assert!(matches!(claim, Ok(Claim::Acquired(_))), "{claim:?}");
}

fn retry_after<T: std::fmt::Debug, E: std::fmt::Debug>(
    refused: Result<T, RunError<E>>,
) -> Duration {
    match refused {
        Err(RunError::InProgress { retry_after }) => retry_after,
        other => panic!("the key was not in progress but {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_is_renewed_completed_and_replayed() {
    for (executor, _) in apart() {
        let work = Work::slow();
        let first = work.spawned(&executor).await;
        tokio::time::sleep(LEASE / 2).await;
        // Each third of the lease, no more often.
        assert_eq!(executor.store().count(Call::Renew), 1);
        for _ in 0..4 {
            tokio::time::sleep(LEASE).await;
            retry_after(work.under(&elsewhere(&executor)).await);
        }
        assert!(executor.store().count(Call::Renew) <= 16);
        work.end_one();
        assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
        let replayed = work.under(&elsewhere(&executor)).await;
        assert!(matches!(replayed, Ok(Ran::Replayed(1))), "{replayed:?}");
        assert_eq!(executor.handle().stats().leases_lost, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_told_when_to_come_back() {
    for (executor, clock) in apart() {
        leave_lease(&executor, clock).await;
        let duplicate = async || Work::quick().under(&executor).await;
        tokio::time::sleep(SECOND * 10).await;
        assert_eq!(retry_after(duplicate().await), SECOND * 10);
        // What is left of the lease.
        tokio::time::sleep(SECOND * 12).await;
        assert_eq!(retry_after(duplicate().await), LEASE - SECOND * 22);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_taken_over_when_it_has_lapsed_and_not_before() {
    for (executor, clock) in apart() {
        leave_lease(&executor, clock).await;
        let claimed_at = clock.now();
        tokio::time::sleep(LEASE + SKEW).await;
        retry_after(Work::quick().under(&executor).await);
        tokio::time::sleep(SECOND).await;
        let taken_over = executor
            .run_attempt(&key(), fingerprint(), move |attempt| async move {
                Ok::<_, ()>((attempt.number(), attempt.created_at().as_micros()))
            })
            .await;
        let ran = taken_over.map(Ran::into_inner);
        assert!(
            matches!(ran, Ok((2, created_at)) if created_at == claimed_at.as_micros()),
            "{ran:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lost_run_waits_until_its_lease_has_lapsed() {
    for (executor, clock) in apart() {
        let executor = executor.wait_for_in_flight(HOUR);
        leave_lease(&executor, clock).await;
        let asked_at = clock.now();
        let ran = Work::quick().under(&executor).await;
        assert!(matches!(ran, Ok(Ran::Executed(1))), "{ran:?}");
        let waited = clock.now().since(asked_at);
        assert!((LEASE..LEASE + SKEW * 2).contains(&waited), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_says_when_the_key_was_first_seen() {
    for (executor, clock) in apart() {
        let executor = executor.orphan(Orphan::Hold);
        leave_lease(&executor, clock).await;
        let claimed_at = clock.now();
        tokio::time::sleep(LEASE * 2).await;
        let held = Work::quick().under(&executor).await;
        assert!(
            matches!(held, Err(RunError::OutcomeUnknown { first_seen, .. }) if first_seen == claimed_at),
            "{held:?}"
        );
    }
}
