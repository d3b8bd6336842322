//! Futures that are dropped, and shutting down.

use std::time::Duration;

use tokio::time::timeout;
use tower_idempotency::testing::{Call, Fault};
use tower_idempotency::{Orphan, Ran, RunError};

use crate::support::{Work, eventually, faulty, fingerprint, in_memory, key, settle};

const A_MOMENT: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_run_whose_future_is_dropped_is_finished_and_recorded() {
    let (executor, work) = (in_memory(), Work::slow());
    assert!(timeout(A_MOMENT, work.under(&executor)).await.is_err());
    assert_eq!(executor.handle().stats().detached, 1);
    assert!(matches!(
        work.under(&executor).await,
        Err(RunError::InProgress { .. })
    ));
    work.end_one();
    eventually(|| executor.handle().in_flight() == 0).await;
    assert!(matches!(work.under(&executor).await, Ok(Ran::Replayed(1))));
}

#[tokio::test(start_paused = true)]
async fn shutting_down_waits_for_a_detached_run() {
    let (executor, work) = (in_memory(), Work::slow());
    assert!(timeout(A_MOMENT, work.under(&executor)).await.is_err());
    let handle = executor.handle();
    let waiting = timeout(Duration::from_secs(60), handle.shutdown());
    assert!(waiting.await.is_err(), "the run is not finished");
    work.end_one();
    handle.shutdown().await;
    assert_eq!(work.ended(), 1);
    assert_eq!(handle.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_future_dropped_while_it_claims_does_not_begin_and_gives_the_key_back() {
    // Held, the key would stay refused: that it was given back shows.
    let executor = faulty().orphan(Orphan::Hold);
    let work = Work::quick();
    for fault in [Fault::RequestLost, Fault::AnswerLost] {
        // The first try ends in doubt; the drop comes while the second one is under way.
        executor.store().fail_next(Call::Claim, fault);
        executor.store().fail_next(Call::Claim, Fault::AnswerHangs);
        assert!(timeout(A_MOMENT, work.under(&executor)).await.is_err());
        eventually(|| executor.handle().in_flight() == 0).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(work.begun(), 0, "{fault:?}");
    }
    assert!(matches!(work.under(&executor).await, Ok(Ran::Executed(1))));
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_dropped_while_it_waits_is_not_kept_alive() {
    let executor = in_memory().wait_for_in_flight(Duration::from_secs(600));
    let work = Work::slow();
    let first = work.spawned(&executor).await;
    assert!(timeout(A_MOMENT, work.under(&executor)).await.is_err());
    settle().await;
    assert_eq!(executor.handle().stats().detached, 0);
    assert_eq!(executor.handle().in_flight(), 1);
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_not_handed_over() {
    let executor = in_memory();
    let panicking = tokio::spawn({
        let executor = executor.clone();
        async move {
            let panics = || async {
                if true {
                    panic!("as planned");
                }
                Ok::<u32, &str>(0)
            };
            executor.run(&key(), fingerprint(), panics).await
        }
    });
    assert!(panicking.await.is_err());
    assert_eq!(executor.handle().stats().detached, 0);
    assert_eq!(executor.handle().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_was_never_polled_begins_nothing() {
    let (executor, work) = (in_memory(), Work::quick());
    drop(work.under(&executor));
    settle().await;
    assert_eq!(work.begun(), 0);
    assert_eq!(executor.handle().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_detached_run_stays_in_the_span_of_its_caller() {
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry());
    let executor = in_memory();
    let (sender, name) = tokio::sync::oneshot::channel();
    let names_its_span = || async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let span = tracing::Span::current();
        let name = span.metadata().map(tracing::Metadata::name);
        sender.send(name).expect("the test listens");
        Ok::<u32, &str>(1)
    };
    let caller = tracing::info_span!("the caller's");
    let key = key();
    let run = executor.run(&key, fingerprint(), names_its_span);
    let run = tracing::Instrument::instrument(run, caller);
    assert!(timeout(A_MOMENT, run).await.is_err());
    assert_eq!(name.await, Ok(Some("the caller's")));
}
