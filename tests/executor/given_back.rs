//! Keys whose work was not begun: given back, counted, and waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tower_idempotency::record::{ClaimRequest, Identity, Owner};
use tower_idempotency::store::{Claim, Store};
use tower_idempotency::testing::{Call, Fault, TokioClock};
use tower_idempotency::{
    Clock, Executor, IdempotencyKey, Orphan, Ran, Reconciled, RunError, Timestamp,
};

use crate::support::{LEASE, RETENTION, SKEW, Work, elsewhere, faulty, fingerprint, key, settle};

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_until_a_claim_without_an_answer_is_given_back() {
    let executor = faulty().orphan(Orphan::Hold);
    let (store, work) = (executor.store(), Work::quick());
    for _ in 0..2 {
        store.fail_next(Call::Claim, Fault::AnswerLost);
    }
    store.fail_next(Call::Get, Fault::RequestLost);
    let lost = work.under(&executor).await;
    assert!(matches!(lost, Err(RunError::Store(_))), "{lost:?}");
    executor.handle().shutdown().await;
    let record = store.get(key().record_key(), Timestamp::EPOCH).await;
    assert_eq!(record.expect("a look succeeds"), None);
    assert_eq!(work.begun(), 0);
}

#[tokio::test(start_paused = true)]
async fn claims_without_an_answer_are_no_more_than_runs_may_be() {
    let executor = faulty().max_runs(10);
    executor
        .store()
        .fail_always(Call::Claim, Fault::RequestLost);
    let mut asking = JoinSet::new();
    for number in 0..1_000 {
        let executor = executor.clone();
        asking.spawn(async move {
            let key = IdempotencyKey::new("charge", &format!("key-{number}"));
            let work = || async { Ok::<u32, &str>(1) };
            executor
                .run(&key.expect("a valid key"), fingerprint(), work)
                .await
        });
    }
    let mut refused = 0;
    while let Some(result) = asking.join_next().await {
        match result.expect("no panic") {
            Err(RunError::TooManyRuns) => refused += 1,
            Err(RunError::Store(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 990);
    assert_eq!(executor.handle().in_flight(), 10);
    let looks = || executor.store().count(Call::Get);
    let before = looks();
    executor.handle().idle().await;
    assert!(looks() - before <= 10 * 15, "{} looks", looks() - before);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_given_back_is_looked_for_no_more() {
    let executor = faulty();
    for _ in 0..2 {
        executor.store().fail_next(Call::Claim, Fault::AnswerLost);
    }
    let lost = Work::quick().under(&executor).await;
    assert!(matches!(lost, Err(RunError::Store(_))), "{lost:?}");
    settle().await;
    assert_eq!(executor.handle().in_flight(), 0);
    assert_eq!(executor.store().count(Call::Get), 1);
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_an_answer_is_looked_for_as_long_as_its_lease_would_last() {
    let (lease, skew) = (Duration::from_millis(600), Duration::from_secs(10));
    let executor = faulty().lease(lease).clock_skew(skew);
    for _ in 0..2 {
        executor.store().fail_next(Call::Claim, Fault::RequestLost);
    }
    let began = Instant::now();
    let lost = Work::quick().under(&executor).await;
    assert!(matches!(lost, Err(RunError::Store(_))), "{lost:?}");
    executor.handle().idle().await;
    let (looked_for, lapses) = (began.elapsed(), lease + skew);
    assert!(
        (lapses..=lapses + lease / 2).contains(&looked_for),
        "{looked_for:?}"
    );
    // A third of a lease apart, or half as far again; closer at first.
    let looks = executor.store().count(Call::Get);
    assert!((35..=120).contains(&looks), "{looks} looks");
}

#[tokio::test(start_paused = true)]
async fn the_key_of_another_is_not_given_back() {
    let (executor, work) = (faulty(), Work::slow());
    let other = work.spawned(&elsewhere(&executor)).await;
    for _ in 0..2 {
        executor.store().fail_next(Call::Claim, Fault::RequestLost);
    }
    let lost = work.under(&executor).await;
    assert!(matches!(lost, Err(RunError::Store(_))), "{lost:?}");
    tokio::time::sleep(LEASE * 2).await;
    assert!(executor.store().count(Call::Get) > 1, "it was looked for");
    let duplicate = work.under(&executor).await;
    assert!(
        matches!(duplicate, Err(RunError::InProgress { .. })),
        "{duplicate:?}"
    );
    work.end_one();
    assert!(matches!(other.await, Ok(Ok(Ran::Executed(1)))));
}

#[tokio::test(start_paused = true)]
async fn work_is_not_begun_for_one_who_has_gone_while_the_business_system_was_asked() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let executor = faulty().orphan(Orphan::reconcile(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Reconciled::NotExecuted
        }
    }));
    leave_orphan(&executor).await;
    let work = Work::quick();
    let gone = tokio::time::timeout(Duration::from_millis(50), work.under(&executor)).await;
    assert!(gone.is_err());
    executor.handle().idle().await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(work.begun(), 0);
    // Asked again for the next, who stays.
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// Leaves what an attempt leaves that was never heard of again.
async fn leave_orphan<St: Store>(executor: &Executor<St>) {
    let key = key();
    let parts = key.parts();
    let owner = Owner::from_bytes([9; 16]);
    let (identity, now) = (Identity::of_work(fingerprint()), TokioClock::new().now());
    let mut claim = ClaimRequest::new(key.record_key(), &parts, identity, owner, now);
    claim.lease = LEASE;
    claim.retention = RETENTION;
    claim.clock_skew = SKEW;
    let claim = executor.store().claim(&claim).await;
    assert!(matches!(claim, Ok(Claim::Acquired(_))), "{claim:?}");
    tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
}
