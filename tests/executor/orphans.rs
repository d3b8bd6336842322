//! Runs that left no outcome, by each policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tower_idempotency::store::Store;
use tower_idempotency::testing::{Call, Fault, ManualClock};
use tower_idempotency::{Answer, Executor, Orphan, Ran, Reconciled, RunError};

use crate::support::{
    LEASE, RETENTION, Result, SKEW, Work, elsewhere, faulty, fingerprint, in_memory, key,
};

/// A run that fails, or panics.
async fn lose<St: Store>(executor: &Executor<St>, panics: bool) {
    if !panics {
        let fails = || async { Err::<u32, _>("no outcome") };
        let result = executor.run(&key(), fingerprint(), fails).await;
        assert!(
            matches!(
                result,
                Err(RunError::Work {
                    error: "no outcome",
                    ..
                })
            ),
            "{result:?}"
        );
        return;
    }
    let executor = executor.clone();
    let panicking = tokio::spawn(async move {
        let panics = || async {
            tokio::task::yield_now().await;
            if true {
                panic!("as planned");
            }
            Ok::<u32, &str>(0)
        };
        executor.run(&key(), fingerprint(), panics).await
    });
    let panic = panicking.await.expect_err("the panic goes on");
    let message = panic.into_panic();
    assert_eq!(message.downcast_ref(), Some(&"as planned"));
}

/// A run in another process whose lease lapses while it is stuck.
async fn strand<St: Store>(
    executor: &Executor<tower_idempotency::testing::FaultStore<St>>,
) -> Work {
    let stuck = Work::slow();
    let _task = stuck.spawned(&elsewhere(executor)).await;
    executor.store().fail_always(Call::Renew, Fault::Refused);
    tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
    stuck
}

fn answering(reconciled: fn() -> Reconciled<Answer>) -> (Orphan<Answer>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let orphan = Orphan::reconcile(move |orphaned| {
        assert_eq!(orphaned.key.as_str(), "key-1");
        assert_eq!(orphaned.fingerprint, fingerprint());
        counter.fetch_add(1, Ordering::SeqCst);
        async move { reconciled() }
    });
    (orphan, asked)
}

fn found() -> Reconciled<Answer> {
    Reconciled::Completed(Answer::value(&42).expect("42 is JSON"))
}

async fn then<St: Store>(executor: &Executor<St>) -> Result {
    Work::quick().under(executor).await
}

#[tokio::test(start_paused = true)]
async fn retake_runs_again_after_a_failure_or_a_panic() {
    for panics in [false, true] {
        let executor = in_memory();
        lose(&executor, panics).await;
        assert!(matches!(then(&executor).await, Ok(Ran::Executed(1))));
    }
}

#[tokio::test(start_paused = true)]
async fn retake_runs_again_after_a_lapsed_lease() {
    let executor = faulty();
    strand(&executor).await;
    assert!(matches!(then(&executor).await, Ok(Ran::Executed(1))));
}

#[tokio::test(start_paused = true)]
async fn hold_never_runs_again_until_retention_ends() {
    for panics in [false, true] {
        let executor = in_memory().orphan(Orphan::Hold);
        lose(&executor, panics).await;
        assert!(matches!(
            then(&executor).await,
            Err(RunError::OutcomeUnknown { .. })
        ));
        tokio::time::sleep(RETENTION - Duration::from_secs(1)).await;
        assert!(matches!(
            then(&executor).await,
            Err(RunError::OutcomeUnknown { .. })
        ));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(matches!(then(&executor).await, Ok(Ran::Executed(1))));
    }
}

#[tokio::test(start_paused = true)]
async fn hold_never_runs_again_after_a_lapsed_lease_but_takes_a_late_answer() {
    let executor = faulty().orphan(Orphan::Hold);
    let stuck = strand(&executor).await;
    assert!(matches!(
        then(&executor).await,
        Err(RunError::OutcomeUnknown { .. })
    ));
    stuck.end_one();
    crate::support::eventually(|| stuck.ended() == 1).await;
    assert!(matches!(then(&executor).await, Ok(Ran::Replayed(1))));
}

#[tokio::test(start_paused = true)]
async fn reconcile_completes_a_key_whose_outcome_is_found() {
    for panics in [false, true] {
        let (orphan, asked) = answering(found);
        let executor = in_memory().orphan(orphan);
        lose(&executor, panics).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1, "asked at once");
        assert!(matches!(then(&executor).await, Ok(Ran::Replayed(42))));
        assert_eq!(asked.load(Ordering::SeqCst), 1, "and not again");
    }
}

#[tokio::test(start_paused = true)]
async fn reconcile_runs_again_what_was_not_executed() {
    for panics in [false, true] {
        let (orphan, _) = answering(|| Reconciled::NotExecuted);
        let executor = in_memory().orphan(orphan);
        lose(&executor, panics).await;
        assert!(matches!(then(&executor).await, Ok(Ran::Executed(1))));
    }
}

#[tokio::test(start_paused = true)]
async fn reconcile_asks_again_as_long_as_nobody_knows() {
    for panics in [false, true] {
        let (orphan, asked) = answering(|| Reconciled::Unknown);
        let executor = in_memory().orphan(orphan);
        lose(&executor, panics).await;
        for times in 2..5 {
            assert!(matches!(
                then(&executor).await,
                Err(RunError::OutcomeUnknown { .. })
            ));
            assert_eq!(asked.load(Ordering::SeqCst), times);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reconcile_is_asked_when_a_lease_has_lapsed() {
    let (orphan, asked) = answering(found);
    let executor = faulty().orphan(orphan);
    let stuck = strand(&executor).await;
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    assert!(matches!(then(&executor).await, Ok(Ran::Replayed(42))));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    stuck.end_one();
    crate::support::eventually(|| stuck.ended() == 1).await;
    assert!(matches!(then(&executor).await, Ok(Ran::Replayed(42))));
}

#[tokio::test(start_paused = true)]
async fn reconcile_is_asked_by_one_at_a_time() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let executor = faulty().reconcile_timeout(LEASE * 10);
    let executor = executor.orphan(Orphan::reconcile(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(LEASE * 3).await;
            found()
        }
    }));
    strand(&executor).await;
    executor.store().heal();
    let first = tokio::spawn({
        let executor = executor.clone();
        async move { then(&executor).await }
    });
    crate::support::eventually(|| asked.load(Ordering::SeqCst) == 1).await;
    tokio::time::sleep(LEASE * 2).await;
    assert!(matches!(
        then(&executor).await,
        Err(RunError::InProgress { .. })
    ));
    assert!(matches!(first.await, Ok(Ok(Ran::Replayed(42)))));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_lost_its_lease_while_it_asked_gets_the_recorded_answer() {
    let asks = |_| async {
        tokio::time::sleep(LEASE * 3).await;
        found()
    };
    let executor = faulty()
        .reconcile_timeout(LEASE * 10)
        .orphan(Orphan::reconcile(asks));
    strand(&executor).await;
    let asking = tokio::spawn({
        let executor = executor.clone();
        async move { then(&executor).await }
    });
    tokio::time::sleep(LEASE * 2).await;
    let successor = elsewhere(&executor).orphan(Orphan::Retake);
    let answer = || async { Ok::<u32, &str>(7) };
    let taken_over = successor.run(&key(), fingerprint(), answer).await;
    assert!(matches!(taken_over, Ok(Ran::Executed(7))), "{taken_over:?}");
    let asked = asking.await;
    assert!(matches!(asked, Ok(Ok(Ran::Replayed(7)))), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn reconcile_holds_the_lease_also_after_a_panic_at_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let executor = faulty()
        .reconcile_timeout(LEASE * 10)
        .orphan(Orphan::reconcile(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(LEASE * 3).await;
                found()
            }
        }));
    let fails = || async { Err::<u32, _>("no outcome") };
    let failing = tokio::spawn({
        let executor = executor.clone();
        async move { executor.run(&key(), fingerprint(), fails).await }
    });
    tokio::time::sleep(LEASE * 2).await;
    assert!(matches!(
        then(&executor).await,
        Err(RunError::InProgress { .. })
    ));
    assert!(matches!(
        failing.await,
        Ok(Err(RunError::Work {
            error: "no outcome",
            ..
        }))
    ));
    assert!(matches!(then(&executor).await, Ok(Ran::Replayed(42))));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reconciler_that_panics_or_hangs_knows_nothing() {
    for panics in [false, true] {
        let executor = in_memory().orphan(Orphan::reconcile(move |_| async move {
            if panics {
                panic!("as planned");
            }
            std::future::pending().await
        }));
        lose(&executor, false).await;
        for _ in 0..2 {
            assert!(matches!(
                then(&executor).await,
                Err(RunError::OutcomeUnknown { .. })
            ));
        }
        assert_eq!(executor.handle().in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_used_anew_has_a_new_beginning() {
    let beginnings = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&beginnings);
    let executor = in_memory().orphan(Orphan::reconcile(move |orphaned| {
        seen.lock().expect("no panic").push(orphaned.created_at);
        async { Reconciled::Unknown }
    }));
    lose(&executor, false).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(matches!(
        then(&executor).await,
        Err(RunError::OutcomeUnknown { .. })
    ));
    tokio::time::sleep(RETENTION).await;
    lose(&executor, false).await;
    let beginnings = beginnings.lock().expect("no panic");
    assert_eq!(beginnings[0], beginnings[1], "one use of the key");
    assert!(beginnings[2].since(beginnings[0]) > RETENTION, "another");
}

#[tokio::test(start_paused = true)]
async fn a_reconciled_answer_that_is_not_recorded_can_be_withheld() {
    for withheld in [false, true] {
        let (orphan, asked) = answering(found);
        let executor = faulty().orphan(orphan).answer_unrecorded(!withheld);
        strand(&executor).await;
        executor.store().fail_next(Call::Complete, Fault::Refused);
        match then(&executor).await {
            Ok(Ran::Replayed(42)) => assert!(!withheld),
            Err(RunError::NotRecorded) => assert!(withheld),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
        assert!(matches!(then(&executor).await, Ok(Ran::Replayed(42))));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn work_does_not_begin_under_a_lease_that_lapsed_while_it_was_claimed() {
    let clock = ManualClock::new();
    let executor = faulty().clock(clock.clone());
    let work = Work::quick();
    let delay = Fault::Delayed(Duration::from_secs(1));
    executor.store().fail_next(Call::Claim, delay);
    let (result, ()) = tokio::join!(work.under(&executor), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // As after the process was stopped for so long.
        clock.advance(LEASE);
    });
    assert!(
        matches!(result, Err(RunError::InProgress { .. })),
        "{result:?}"
    );
    assert_eq!(work.begun(), 0);
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
}
