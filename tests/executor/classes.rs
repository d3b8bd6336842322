//! What it means that work fails: final, nothing done, or unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Answer, Attempt, End, Executor, Orphan, Ran, Reconciled, RunError};

use crate::support::{RETENTION, Work, fingerprint, in_memory, key};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PayError {
    Deadlock,
    Declined,
    NoAnswer,
}

fn classified() -> Executor<MemoryStore> {
    in_memory()
        .classify_error(|_: &String| panic!("it is of another type"))
        .classify_error(|error: &PayError| match error {
            PayError::Deadlock => End::NothingDone,
            PayError::Declined => End::Final,
            PayError::NoAnswer => End::Unknown,
        })
        .classify_error(|_: &PayError| End::NothingDone)
}

async fn failing(
    executor: &Executor<MemoryStore>,
    error: PayError,
) -> Result<Ran<u32>, RunError<PayError>> {
    let fails = move || async move { Err::<u32, _>(error) };
    executor.run(&key(), fingerprint(), fails).await
}

fn is_retryable(result: &Result<Ran<u32>, RunError<PayError>>, expected: PayError) -> bool {
    let Err(run_error) = result else {
        panic!("{result:?}")
    };
    assert_eq!(run_error.is_retryable(), run_error.retry_after().is_some());
    match run_error {
        RunError::Work {
            error,
            is_retryable,
        } => {
            assert_eq!(
                (*error, run_error.is_retryable()),
                (expected, *is_retryable)
            );
            *is_retryable
        }
        _ => panic!("{result:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_did_nothing_lets_the_work_run_again() {
    let executor = classified().orphan(Orphan::Hold);
    let failed = failing(&executor, PayError::Deadlock).await;
    assert!(is_retryable(&failed, PayError::Deadlock));
    let again = Work::quick().under(&executor).await;
    assert!(matches!(again, Ok(Ran::Executed(1))), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn an_error_that_is_final_is_not_repeated() {
    let executor = classified();
    let failed = failing(&executor, PayError::Declined).await;
    assert!(!is_retryable(&failed, PayError::Declined));
    let again = Work::quick().under(&executor).await;
    assert!(matches!(again, Err(RunError::NotStored)), "{again:?}");
    assert!(again.is_err_and(|error| !error.is_retryable()));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_unknown_outcome_is_left_to_the_orphan_policy() {
    let failed = failing(&classified(), PayError::NoAnswer).await;
    assert!(is_retryable(&failed, PayError::NoAnswer), "it is retaken");

    let held = classified().orphan(Orphan::Hold);
    let failed = failing(&held, PayError::NoAnswer).await;
    assert!(!is_retryable(&failed, PayError::NoAnswer), "it is held");
    let again = Work::quick().under(&held).await;
    let Err(RunError::OutcomeUnknown {
        retry_after: None, ..
    }) = again
    else {
        panic!("{again:?}")
    };
    assert!(again.is_err_and(|error| !error.is_retryable()));

    let asked = classified().orphan(Orphan::reconcile(async |_| Reconciled::Unknown));
    let failed = failing(&asked, PayError::NoAnswer).await;
    assert!(is_retryable(&failed, PayError::NoAnswer), "it is asked for");
    let again = Work::quick().under(&asked).await;
    let Err(RunError::OutcomeUnknown {
        retry_after: Some(_),
        ..
    }) = again
    else {
        panic!("{again:?}")
    };
    assert!(again.is_err_and(|error| error.is_retryable()));
}

#[tokio::test(start_paused = true)]
async fn an_error_is_unknown_when_nobody_classifies_it_or_the_function_panics() {
    let unclassified = in_memory();
    let panicking = in_memory().classify_error(|_: &PayError| panic!("as planned"));
    for executor in [unclassified, panicking] {
        let executor = executor.orphan(Orphan::Hold);
        failing(&executor, PayError::Deadlock)
            .await
            .expect_err("it fails");
        let again = Work::quick().under(&executor).await;
        assert!(
            matches!(again, Err(RunError::OutcomeUnknown { .. })),
            "{again:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_says_when_its_key_was_first_seen() {
    let executor = in_memory().orphan(Orphan::Hold);
    let seen = Arc::new(std::sync::Mutex::new(None));
    let note = Arc::clone(&seen);
    let fails = move |attempt: Attempt| {
        *note.lock().expect("no panic") = Some(attempt.created_at());
        async { Err::<u32, _>("no outcome") }
    };
    let failed = executor.run_attempt(&key(), fingerprint(), fails).await;
    assert!(failed.is_err());
    tokio::time::sleep(RETENTION / 2).await;
    let again = Work::quick().under(&executor).await;
    let Err(RunError::OutcomeUnknown { first_seen, .. }) = again else {
        panic!("{again:?}")
    };
    assert_eq!(Some(first_seen), *seen.lock().expect("no panic"));
}

/// How work ends that announces its effects.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Error,
    Panic,
}

/// What the next call gets after work that announces its effects, perhaps begins them, and fails.
async fn after(
    executor: &Executor<MemoryStore>,
    begins: bool,
    leaves: Leaves,
) -> crate::support::Result {
    let work = move |attempt: Attempt| async move {
        attempt.announce_effects();
        if begins {
            attempt.begin_effects().expect("it has not ended");
        }
        tokio::task::yield_now().await;
        match leaves {
            Leaves::Error => Err::<u32, _>(PayError::NoAnswer),
            Leaves::Panic => panic!("as planned"),
        }
    };
    let running = tokio::spawn({
        let executor = executor.clone();
        async move { executor.run_attempt(&key(), fingerprint(), work).await }
    });
    let _ = running.await;
    Work::quick().under(executor).await
}

#[tokio::test(start_paused = true)]
async fn work_has_done_nothing_before_its_effects_begin() {
    for leaves in [Leaves::Error, Leaves::Panic] {
        for executor in [in_memory(), classified()] {
            let executor = executor.orphan(Orphan::Hold);
            let again = after(&executor, false, leaves).await;
            assert!(
                matches!(again, Ok(Ran::Executed(1))),
                "{leaves:?}: {again:?}"
            );
            let executor = in_memory().orphan(Orphan::Hold);
            let again = after(&executor, true, leaves).await;
            assert!(
                matches!(again, Err(RunError::OutcomeUnknown { .. })),
                "{leaves:?}: {again:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_executor_may_say_of_all_work_that_it_announces_its_effects() {
    let executor = in_memory().announces_effects(true).orphan(Orphan::Hold);
    failing(&executor, PayError::NoAnswer)
        .await
        .expect_err("it fails");
    let again = Work::quick().under(&executor).await;
    assert!(matches!(again, Ok(Ran::Executed(1))), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn effects_must_not_begin_after_the_end() {
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keep = Arc::clone(&kept);
    let work = move |attempt: Attempt| {
        *keep.lock().expect("no panic") = Some(attempt);
        async { Ok::<_, PayError>(1) }
    };
    let executor = in_memory();
    let ran = executor.run_attempt(&key(), fingerprint(), work).await;
    assert!(matches!(ran, Ok(Ran::Executed(1))), "{ran:?}");
    let attempt = kept.lock().expect("no panic").take().expect("it ran");
    assert!(attempt.begin_effects().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_orphan_is_kept_for_the_retention_after_its_end() {
    let executor = in_memory().orphan(Orphan::Hold);
    let late = || async {
        tokio::time::sleep(RETENTION + Duration::from_secs(1)).await;
        Err::<u32, _>("no outcome")
    };
    let failed = executor.run(&key(), fingerprint(), late).await;
    assert!(failed.is_err());
    for _ in 0..2 {
        let again = Work::quick().under(&executor).await;
        assert!(
            matches!(again, Err(RunError::OutcomeUnknown { .. })),
            "{again:?}"
        );
        tokio::time::sleep(RETENTION - Duration::from_secs(1)).await;
    }
    let again = Work::quick().under(&executor).await;
    assert!(matches!(again, Ok(Ran::Executed(1))), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reconciled_response_is_no_result_of_work() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let executor = in_memory().orphan(Orphan::reconcile(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async {
            let response = http::Response::new(bytes::Bytes::from_static(b"charged"));
            Reconciled::Completed(Answer::Response(response.into()))
        }
    }));
    failing(&executor, PayError::NoAnswer)
        .await
        .expect_err("it fails");
    let again = Work::quick().under(&executor).await;
    assert!(
        matches!(&again, Err(error @ RunError::Store(_)) if !error.is_retryable()),
        "{again:?}"
    );
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
