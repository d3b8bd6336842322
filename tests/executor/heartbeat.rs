//! Leases that live as long as their runs.

use std::sync::Arc;
use std::time::Duration;

use tower_idempotency::store::MemoryStore;
use tower_idempotency::testing::{Call, Fault, FaultStore};
use tower_idempotency::{Ran, RunError};

use crate::support::{
    LEASE, SKEW, Work, elsewhere, eventually, faulty, fingerprint, in_memory, key, on, settle,
};

#[tokio::test(start_paused = true)]
async fn a_run_may_take_much_longer_than_its_lease() {
    let (executor, work) = (in_memory(), Work::slow());
    let first = work.spawned(&executor).await;
    for _ in 0..20 {
        tokio::time::sleep(LEASE).await;
        let duplicate = work.under(&elsewhere(&executor)).await;
        assert!(
            matches!(duplicate, Err(RunError::InProgress { .. })),
            "{duplicate:?}"
        );
    }
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    assert_eq!(executor.handle().stats().leases_lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_nobody_polls_keeps_its_lease() {
    let (executor, work) = (in_memory(), Work::slow());
    let mut first = Box::pin(work.under(&executor));
    let polled_once = tokio::time::timeout(Duration::from_millis(1), &mut first).await;
    assert!(polled_once.is_err());
    tokio::time::sleep(LEASE * 5).await;
    let duplicate = work.under(&elsewhere(&executor)).await;
    assert!(
        matches!(duplicate, Err(RunError::InProgress { .. })),
        "{duplicate:?}"
    );
    work.end_one();
    assert!(matches!(first.await, Ok(Ran::Executed(1))));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ends_at_once_is_never_renewed() {
    let (executor, work) = (faulty(), Work::quick());
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
    tokio::time::sleep(LEASE * 5).await;
    assert_eq!(executor.store().count(Call::Renew), 0);
}

#[tokio::test(start_paused = true)]
async fn renewals_stop_when_the_run_does() {
    let (executor, work) = (faulty(), Work::slow());
    let first = work.spawned(&executor).await;
    tokio::time::sleep(LEASE * 2).await;
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    let renewals = executor.store().count(Call::Renew);
    assert!(
        (5..=7).contains(&renewals),
        "three for each lease, not {renewals}"
    );
    tokio::time::sleep(LEASE * 5).await;
    assert_eq!(executor.store().count(Call::Renew), renewals);
}

#[tokio::test(start_paused = true)]
async fn renewals_can_go_another_way_to_the_same_records() {
    let records = MemoryStore::new();
    let other = Arc::new(FaultStore::new(records.clone()));
    let executor = on(FaultStore::new(records)).heartbeat_store(Arc::clone(&other));
    let work = Work::slow();
    let first = work.spawned(&executor).await;
    tokio::time::sleep(LEASE * 3).await;
    let duplicate = work.under(&elsewhere(&executor)).await;
    let is_held = matches!(duplicate, Err(RunError::InProgress { .. }));
    assert!(is_held, "{duplicate:?}");
    assert_eq!(executor.store().count(Call::Renew), 0);
    assert!(other.count(Call::Renew) >= 8);
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
}

#[tokio::test(start_paused = true)]
async fn renewals_that_fail_now_and_then_cost_no_lease() {
    // One that hangs is tried again as soon as one that fails.
    for (fault, times) in [
        (Fault::Refused, 3),
        (Fault::RequestLost, 3),
        (Fault::AnswerLost, 3),
        (Fault::RequestHangs, 3),
        (Fault::AnswerHangs, 3),
    ] {
        let (executor, work) = (faulty(), Work::slow());
        let first = work.spawned(&executor).await;
        for _ in 0..times {
            executor.store().fail_next(Call::Renew, fault);
        }
        // Long enough for a lease to lapse that was not renewed, and too short for the next beat.
        tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
        let duplicate = Work::quick().under(&elsewhere(&executor)).await;
        let is_held = matches!(duplicate, Err(RunError::InProgress { .. }));
        assert!(is_held, "{fault:?}: {duplicate:?}");
        work.end_one();
        let first = first.await;
        assert!(
            matches!(first, Ok(Ok(Ran::Executed(1)))),
            "{fault:?}: {first:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_past_its_time_is_no_longer_renewed() {
    let executor = in_memory().max_execution(LEASE * 2);
    let work = Work::slow();
    let first = work.spawned(&executor).await;
    tokio::time::sleep(LEASE * 2).await;
    for executor in [&executor, &elsewhere(&executor)] {
        let duplicate = work.under(executor).await;
        let is_held = matches!(duplicate, Err(RunError::InProgress { .. }));
        assert!(is_held, "{duplicate:?}");
    }
    tokio::time::sleep(LEASE + SKEW).await;
    // In the same process, too.
    let second = work.spawned(&executor).await;
    assert_eq!(work.begun(), 2);
    work.end_one();
    work.end_one();
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lost_its_lease_gets_the_answer_of_its_successor() {
    let (executor, late, successor) = (faulty(), Work::slow(), Work::quick());
    let first = late.spawned(&elsewhere(&executor)).await;
    executor.store().fail_always(Call::Renew, Fault::Refused);
    tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
    let answer = || async { Ok::<u32, &str>(77) };
    let second = executor.run(&key(), fingerprint(), answer).await;
    assert!(matches!(second, Ok(Ran::Executed(77))), "{second:?}");
    late.end_one();
    let first = first.await;
    assert!(matches!(first, Ok(Ok(Ran::Replayed(77)))), "{first:?}");
    assert_eq!(executor.handle().stats().leases_lost, 1);
    let later = successor.under(&executor).await;
    assert!(matches!(later, Ok(Ran::Replayed(77))), "{later:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lost_its_lease_to_one_still_running_gives_no_answer() {
    let (executor, work) = (faulty(), Work::slow());
    let first = work.spawned(&elsewhere(&executor)).await;
    executor.store().fail_always(Call::Renew, Fault::Refused);
    tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
    executor.store().heal();
    let second = work.spawned(&executor).await;
    work.end_one();
    assert!(matches!(first.await, Ok(Err(RunError::LeaseLost))));
    work.end_one();
    assert!(matches!(second.await, Ok(Ok(Ran::Executed(2)))));
    assert!(matches!(work.under(&executor).await, Ok(Ran::Replayed(2))));
}

#[tokio::test(start_paused = true)]
async fn leases_of_unlike_length_are_each_renewed_in_time() {
    let long = faulty().lease(LEASE * 100);
    let short = long.clone().lease(LEASE / 10);
    let (slow, quick) = (Work::slow(), Work::slow());
    let first = slow.spawned(&long).await;
    settle().await;
    let other = tower_idempotency::IdempotencyKey::new("charge", "key-2").expect("a valid key");
    let second = tokio::spawn({
        let (quick, short) = (quick.clone(), short.clone());
        async move { short.run(&other, fingerprint(), || quick.run()).await }
    });
    eventually(|| quick.begun() == 1).await;
    tokio::time::sleep(LEASE).await;
    let renewals = short.store().count(Call::Renew);
    // Three for each lease, and a few more, for they drift apart.
    assert!((25..=35).contains(&renewals), "{renewals}");
    slow.end_one();
    quick.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    assert!(matches!(second.await, Ok(Ok(Ran::Executed(1)))));
}
