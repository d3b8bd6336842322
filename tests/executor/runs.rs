//! One run, and those who come while it runs and after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tower_idempotency::store::Store;
use tower_idempotency::testing::{Call, Fault};
use tower_idempotency::{
    Answer, End, Fingerprint, IdempotencyKey, Orphan, Ran, Reconciled, RunError,
};

use crate::support::{
    LEASE, RETENTION, SKEW, Work, eventually, faulty, fingerprint, in_memory, key, settle,
};

#[tokio::test(start_paused = true)]
async fn work_runs_once_and_its_result_is_replayed() {
    let (executor, work) = (in_memory(), Work::quick());
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
    for _ in 0..3 {
        assert!(matches!(work.under(&executor).await, Ok(Ran::Replayed(1))));
    }
    assert_eq!(work.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_is_forgotten_after_its_retention() {
    let (executor, work) = (in_memory(), Work::quick());
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
    tokio::time::advance(RETENTION).await;
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(2))));
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_in_flight_is_told_when_to_come_back() {
    let (executor, work) = (in_memory(), Work::slow());
    let first = work.spawned(&executor).await;
    let retry_after = async || match work.under(&executor).await {
        Err(RunError::InProgress { retry_after }) => retry_after,
        other => panic!("the work was not in progress but {other:?}"),
    };
    let second = Duration::from_secs(1);
    assert_eq!(retry_after().await, second, "at least a second");
    tokio::time::advance(6 * second).await;
    let as_long_again = retry_after().await;
    assert!(
        (6 * second..7 * second).contains(&as_long_again),
        "{as_long_again:?}"
    );
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
}

#[tokio::test(start_paused = true)]
async fn the_advice_to_come_back_never_passes_the_lease() {
    let (executor, work) = (faulty(), Work::slow());
    let executor = executor.max_execution(Duration::ZERO);
    let _first = work.spawned(&executor).await;
    tokio::time::advance(LEASE).await;
    match work.under(&executor).await {
        Err(RunError::InProgress { retry_after }) => assert!(retry_after <= SKEW),
        other => panic!("the work was not in progress but {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_that_waits_gets_the_first_runs_result() {
    let executor = in_memory().wait_for_in_flight(Duration::from_secs(60));
    waits_for_the_first_run(executor).await;
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_waits_for_a_run_that_is_not_in_its_process() {
    let executor = faulty().wait_for_in_flight(Duration::from_secs(60));
    waits_for_the_first_run(executor).await;
}

async fn waits_for_the_first_run<St: Store>(executor: tower_idempotency::Executor<St>) {
    let work = Work::slow();
    let first = work.spawned(&executor).await;
    let mut waiting = JoinSet::new();
    for _ in 0..20 {
        let (work, executor) = (work.clone(), executor.clone());
        waiting.spawn(async move { work.under(&executor).await });
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(waiting.try_join_next().is_none(), "they wait");
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    for result in waiting.join_all().await {
        assert!(matches!(result, Ok(Ran::Replayed(1))), "{result:?}");
    }
    assert_eq!(work.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_patience_does() {
    let executor = in_memory().wait_for_in_flight(Duration::from_secs(5));
    let work = Work::slow();
    let _first = work.spawned(&executor).await;
    let asked = tokio::time::Instant::now();
    let result = work.under(&executor).await;
    assert!(
        matches!(result, Err(RunError::InProgress { .. })),
        "{result:?}"
    );
    let waited = asked.elapsed();
    assert!((5_000..5_100).contains(&waited.as_millis()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn one_who_waits_shares_the_end_of_the_run_it_waited_for() {
    type Shares = fn(&RunError<&'static str>) -> bool;
    let held: Shares = |error| matches!(error, RunError::OutcomeUnknown { retry_after, .. } if retry_after.is_none());
    let yet: Shares = |error| matches!(error, RunError::OutcomeUnknown { retry_after, .. } if retry_after.is_some());
    let unknown: Shares = |error| matches!(error, RunError::Ended(End::Unknown));
    let nothing: Shares = |error| matches!(error, RunError::Ended(End::NothingDone));
    let asked = |reconciled: Reconciled<Answer>| {
        Orphan::reconcile(move |_| std::future::ready(reconciled.clone()))
    };
    let cases = [
        (Orphan::Retake, End::Unknown, unknown, true),
        (Orphan::Retake, End::NothingDone, nothing, true),
        (Orphan::Hold, End::NothingDone, nothing, true),
        (Orphan::Hold, End::Unknown, held, false),
        (asked(Reconciled::Unknown), End::Unknown, yet, true),
        (asked(Reconciled::NotExecuted), End::Unknown, nothing, true),
    ];
    for (at, (orphan, class, shares, runs_next)) in cases.into_iter().enumerate() {
        let executor = in_memory()
            .orphan(orphan)
            .classify_error(move |_: &&'static str| class)
            .wait_for_in_flight(Duration::from_secs(60));
        let first = tokio::spawn({
            let executor = executor.clone();
            async move {
                let fails = || async {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    Err::<u32, _>("failed")
                };
                executor.run(&key(), fingerprint(), fails).await
            }
        });
        settle().await;
        let work = Work::quick();
        let second = work.under(&executor).await.expect_err("it does not run");
        assert!(shares(&second), "{at}: {second:?}");
        assert_eq!(second.is_retryable(), runs_next, "{at}");
        assert_eq!(work.begun(), 0, "{at}");
        let first = first.await.expect("no panic");
        assert!(
            matches!(first, Err(RunError::Work { .. })),
            "{at}: {first:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_runs() {
    let executor = in_memory().wait_for_in_flight(Duration::from_secs(60));
    let work = Work::quick();
    let mut all = JoinSet::new();
    for _ in 0..200 {
        let (work, executor) = (work.clone(), executor.clone());
        all.spawn(async move { work.under(&executor).await });
    }
    let results = all.join_all().await;
    let executed = results
        .iter()
        .filter(|result| matches!(result, Ok(Ran::Executed(1))));
    assert_eq!(executed.count(), 1);
    let replayed = results
        .iter()
        .filter(|result| matches!(result, Ok(Ran::Replayed(1))));
    assert_eq!(replayed.count(), 199);
}

#[tokio::test(start_paused = true)]
async fn a_key_with_other_inputs_is_refused_in_flight_and_afterwards() {
    let (executor, work) = (in_memory(), Work::slow());
    let first = work.spawned(&executor).await;
    let other = async || {
        let work = work.clone();
        let inputs = Fingerprint::of(["amount=1300"]);
        executor.run(&key(), inputs, || work.run()).await
    };
    assert!(matches!(other().await, Err(RunError::KeyReused)));
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    assert!(matches!(other().await, Err(RunError::KeyReused)));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_knows_its_key_and_token() {
    let executor = in_memory();
    let attempt = |attempt: tower_idempotency::Attempt| async move {
        assert_eq!(attempt.key().as_str(), "key-1");
        assert_eq!(attempt.number(), 1);
        let derived = attempt.key().derive("psp");
        Ok::<_, ()>((attempt.token().as_u64(), derived.as_str().to_owned()))
    };
    let first = executor.run_attempt(&key(), fingerprint(), attempt).await;
    let Ok(Ran::Executed((token, derived))) = first else {
        panic!("it did not run but {first:?}")
    };
    assert!(token > 0);
    assert_eq!(derived, key().derive("psp").as_str());
    let other = IdempotencyKey::new("charge", "key-2").expect("the key is valid");
    let second = executor.run_attempt(&other, fingerprint(), |attempt| async move {
        Ok::<_, ()>(attempt.key().derive("psp").as_str().to_owned())
    });
    let second = second.await.map(Ran::into_inner).expect("it runs");
    assert_ne!(second, derived);
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_work_runs_once_under_a_derived_key() {
    let executor = in_memory();
    let steps: Arc<AtomicU32> = Arc::default();
    for attempt in 1..=2 {
        let (inner, steps) = (executor.clone(), Arc::clone(&steps));
        let work = async move |attempt: tower_idempotency::Attempt| {
            let step = attempt.key().derive("ledger");
            let work = async move || Ok::<_, ()>(steps.fetch_add(1, Ordering::Relaxed));
            let step = inner.run(&step, fingerprint(), work).await;
            // The work itself fails after its step.
            Err::<(), _>(step.map(Ran::into_inner).ok())
        };
        let run = executor.run_attempt(&key(), fingerprint(), work).await;
        assert!(
            matches!(
                run,
                Err(RunError::Work {
                    error: Some(0),
                    is_retryable: true
                })
            ),
            "{attempt}: {run:?}"
        );
    }
    assert_eq!(steps.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_without_a_json_form_is_an_error_and_is_not_made_again() {
    let executor = in_memory();
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for _ in 0..2 {
        let runs = Arc::clone(&runs);
        let work = move || async move {
            runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // JSON has no members named by a list.
            Ok::<_, ()>(BTreeMap::from([(vec![1], 2)]))
        };
        let result = executor.run(&key(), fingerprint(), work).await;
        assert!(matches!(result, Err(RunError::Result(_))), "{result:?}");
    }
    assert_eq!(runs.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn more_runs_than_allowed_are_refused_but_replays_are_not() {
    let executor = in_memory().max_runs(1);
    let quick = Work::quick();
    assert!(matches!(quick.under(&executor).await, Ok(Ran::Executed(1))));

    let slow = Work::slow();
    let other = IdempotencyKey::new("charge", "key-2").expect("the key is valid");
    let running = tokio::spawn({
        let (slow, executor) = (slow.clone(), executor.clone());
        async move { executor.run(&other, fingerprint(), || slow.run()).await }
    });
    eventually(|| slow.begun() == 1).await;
    assert_eq!(executor.handle().in_flight(), 1);

    assert!(matches!(quick.under(&executor).await, Ok(Ran::Replayed(1))));
    let third = IdempotencyKey::new("charge", "key-3").expect("the key is valid");
    let refused = executor
        .run(&third, fingerprint(), || Work::quick().run())
        .await;
    assert!(matches!(refused, Err(RunError::TooManyRuns)), "{refused:?}");

    slow.end_one();
    assert!(matches!(running.await, Ok(Ok(Ran::Executed(1)))));
    let admitted = executor
        .run(&third, fingerprint(), || Work::quick().run())
        .await;
    assert!(matches!(admitted, Ok(Ran::Executed(1))), "{admitted:?}");
}

#[tokio::test(start_paused = true)]
async fn times_without_end_are_no_harm() {
    let executor = faulty()
        .lease(Duration::MAX)
        .retention(Duration::MAX)
        .clock_skew(Duration::MAX)
        .max_execution(Duration::MAX)
        .wait_for_in_flight(Duration::MAX)
        .store_timeout(Duration::MAX)
        .reconcile_timeout(Duration::MAX);
    let store = executor.store();
    store.fail_next(Call::Claim, Fault::AnswerLost);
    store.fail_next(Call::Complete, Fault::Refused);
    store.fail_next(Call::Renew, Fault::Refused);
    let work = Work::slow();
    let first = work.spawned(&executor).await;
    let waiting = tokio::spawn({
        let (work, executor) = (work.clone(), executor.clone());
        async move { work.under(&executor).await }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    assert!(matches!(waiting.await, Ok(Ok(Ran::Replayed(1)))));
}

#[tokio::test(start_paused = true)]
async fn an_executor_that_was_shut_down_only_replays() {
    let (executor, work) = (in_memory(), Work::quick());
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
    executor.handle().shutdown().await;
    assert!(matches!(work.under(&executor).await, Ok(Ran::Replayed(1))));
    let other = IdempotencyKey::new("charge", "key-2").expect("the key is valid");
    let refused = executor
        .run(&other, fingerprint(), || Work::quick().run())
        .await;
    assert!(
        matches!(refused, Err(RunError::ShuttingDown)),
        "{refused:?}"
    );
}
