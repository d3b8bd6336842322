//! A store that fails.

use std::time::Duration;

use tokio::time::timeout;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::testing::{Call, Fault, FaultStore};
use tower_idempotency::{Orphan, Ran, RunError, StoreErrorKind};

use crate::support::{LEASE, Work, eventually, faulty, settle};

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_refused_runs_nothing() {
    let (executor, work) = (faulty(), Work::quick());
    executor.store().fail_next(Call::Claim, Fault::Refused);
    match work.under(&executor).await {
        Err(RunError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Unavailable),
        other => panic!("the store did not fail but {other:?}"),
    }
    assert_eq!(work.begun(), 0);
    assert_eq!(executor.store().count(Call::Claim), 1, "there was no doubt");
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
}

#[tokio::test(start_paused = true)]
async fn a_claim_in_doubt_is_looked_at_and_runs_once() {
    for fault in [Fault::RequestLost, Fault::AnswerLost] {
        let (executor, work) = (faulty(), Work::quick());
        executor.store().fail_next(Call::Claim, fault);
        assert!(
            matches!(work.under(&executor).await, Ok(Ran::Executed(1))),
            "{fault:?}"
        );
        assert_eq!(executor.store().count(Call::Claim), 2);
        assert!(matches!(work.under(&executor).await, Ok(Ran::Replayed(1))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_stays_in_doubt_runs_nothing_and_is_given_back() {
    for second in [Fault::Refused, Fault::RequestLost, Fault::AnswerLost] {
        let executor = faulty().orphan(Orphan::Hold);
        let work = Work::quick();
        executor.store().fail_next(Call::Claim, Fault::AnswerLost);
        executor.store().fail_next(Call::Claim, second);
        let result = work.under(&executor).await;
        assert!(matches!(result, Err(RunError::Store(_))), "{result:?}");
        assert_eq!(work.begun(), 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let retried = work.under(&executor).await;
        assert!(
            matches!(retried, Ok(Ran::Executed(1))),
            "{second:?}: {retried:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_work_was_not_begun_is_given_back_until_the_store_takes_it() {
    let doubtful: [fn(&FaultStore<MemoryStore>); 2] = [
        // The claim stays in doubt.
        |store| {
            store.fail_next(Call::Claim, Fault::AnswerLost);
            store.fail_next(Call::Claim, Fault::RequestLost);
        },
        // The one who asked goes while the claim is under way.
        |store| store.fail_next(Call::Claim, Fault::Delayed(Duration::from_secs(1))),
    ];
    for doubt in doubtful {
        let executor = faulty().orphan(Orphan::Hold);
        let work = Work::quick();
        doubt(executor.store());
        for call in [Call::Get, Call::Renew, Call::Release] {
            executor.store().fail_always(call, Fault::Refused);
        }
        let asked = timeout(Duration::from_millis(500), work.under(&executor));
        assert!(!matches!(asked.await, Ok(Ok(_))));
        // Long enough for the lease to lapse.
        tokio::time::sleep(LEASE * 3).await;
        executor.store().heal();
        tokio::time::sleep(LEASE).await;
        let retried = work.under(&executor).await;
        assert!(matches!(retried, Ok(Ran::Executed(1))), "{retried:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_never_ends_is_given_up_and_given_back() {
    for fault in [Fault::RequestHangs, Fault::AnswerHangs] {
        let executor = faulty().orphan(Orphan::Hold);
        let work = Work::quick();
        executor.store().fail_next(Call::Claim, fault);
        executor.store().fail_next(Call::Claim, fault);
        let asked = tokio::time::Instant::now();
        let result = work.under(&executor).await;
        assert!(matches!(result, Err(RunError::Store(_))), "{result:?}");
        assert_eq!(asked.elapsed().as_secs(), 10, "two tries of 5 s");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let retried = work.under(&executor).await;
        assert!(
            matches!(retried, Ok(Ran::Executed(1))),
            "{fault:?}: {retried:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_failed_is_made_in_the_background_under_the_lease() {
    for fault in [
        Fault::Refused,
        Fault::RequestLost,
        Fault::AnswerLost,
        Fault::RequestHangs,
    ] {
        let (executor, work) = (faulty(), Work::quick());
        executor.store().fail_always(Call::Complete, fault);
        let first = work.under(&executor).await;
        assert!(
            matches!(first, Ok(Ran::Executed(1))),
            "{fault:?}: {first:?}"
        );
        assert_eq!(executor.handle().stats().completions_retried, 1);
        assert_eq!(executor.handle().in_flight(), 1);
        tokio::time::sleep(LEASE * 10).await;
        let meanwhile = work.under(&executor).await;
        let is_answered = matches!(meanwhile, Ok(Ran::Replayed(1)));
        let is_held = matches!(meanwhile, Err(RunError::InProgress { .. }));
        assert!(is_answered == (fault == Fault::AnswerLost), "{meanwhile:?}");
        assert!(is_held != is_answered, "{meanwhile:?}");
        executor.store().heal();
        eventually(|| executor.handle().in_flight() == 0).await;
        assert!(
            matches!(work.under(&executor).await, Ok(Ran::Replayed(1))),
            "{fault:?}"
        );
        assert_eq!(work.begun(), 1);
        assert_eq!(executor.handle().stats().leases_lost, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_get_an_unrecorded_answer_only_where_the_first_one_does() {
    for is_given in [true, false] {
        let executor = faulty()
            .answer_unrecorded(is_given)
            .wait_for_in_flight(LEASE * 10);
        executor.store().fail_always(Call::Complete, Fault::Refused);
        let work = Work::slow();
        let first = work.spawned(&executor).await;
        let mut second = tokio::spawn({
            let (executor, work) = (executor.clone(), work.clone());
            async move { work.under(&executor).await }
        });
        settle().await;
        work.end_one();
        let first = first.await.expect("no panic");
        let second_now = timeout(LEASE, &mut second).await;
        if is_given {
            assert!(matches!(first, Ok(Ran::Executed(1))), "{first:?}");
            let second = second_now.expect("it is told").expect("no panic");
            assert!(matches!(second, Ok(Ran::Replayed(1))), "{second:?}");
            continue;
        }
        assert!(matches!(first, Err(RunError::NotRecorded)), "{first:?}");
        assert!(second_now.is_err(), "{second_now:?}");
        executor.store().heal();
        let second = second.await.expect("no panic");
        assert!(matches!(second, Ok(Ran::Replayed(1))), "{second:?}");
        assert_eq!(work.begun(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_tried_again_several_times_within_each_lease() {
    let lease = Duration::from_secs(3);
    let (executor, work) = (faulty().lease(lease), Work::quick());
    executor.store().fail_always(Call::Complete, Fault::Refused);
    let first = work.under(&executor).await;
    assert!(matches!(first, Ok(Ran::Executed(1))), "{first:?}");
    tokio::time::sleep(lease * 10).await;
    // A third of a lease apart, or half as far again; closer in the first second.
    let tries = executor.store().count(Call::Complete);
    assert!((20..=60).contains(&tries), "{tries} tries");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_failed_is_made_in_the_background() {
    let executor = faulty();
    executor.store().fail_always(Call::Release, Fault::Refused);
    let fails = || async { Err::<u32, _>("failed") };
    let result = executor
        .run(&crate::support::key(), crate::support::fingerprint(), fails)
        .await;
    assert!(
        matches!(
            result,
            Err(RunError::Work {
                error: "failed",
                ..
            })
        ),
        "{result:?}"
    );
    let work = Work::quick();
    assert!(matches!(
        work.under(&executor).await,
        Err(RunError::InProgress { .. })
    ));
    executor.store().heal();
    eventually(|| executor.handle().in_flight() == 0).await;
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
}
