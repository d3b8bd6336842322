//! A table that takes few write units a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower_idempotency::store::{Fenced, Store};

use crate::support::{Claimer, Dynamo, START, completes, completion, noise};

/// Records so many answers of this size at so many write units a second, while others charge.
/// Nothing is refused, and little is written twice. Returns how long it took, to the ideal time.
async fn records(answers: usize, size: usize, rate: f64) -> f64 {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    let store = dynamo.retrying();
    let mut leases = Vec::new();
    for _ in 0..answers {
        leases.push(Claimer::new().acquires(&store).await);
    }
    dynamo.wire.units();
    dynamo.wire.limit(rate);
    let is_over = Arc::new(AtomicBool::new(false));
    let charging = tokio::spawn({
        let (store, is_over) = (store.clone(), Arc::clone(&is_over));
        async move {
            let mut charges = 0;
            let mut slowest = Duration::ZERO;
            while !is_over.load(Ordering::SeqCst) {
                let began = Instant::now();
                let lease = Claimer::new().acquires(&store).await;
                slowest = slowest.max(began.elapsed());
                completes(&store, &lease, "answer").await;
                charges += 1;
                sleep(Duration::from_millis(20)).await;
            }
            (charges, slowest)
        }
    });
    let began = Instant::now();
    let mut completing = JoinSet::new();
    for lease in leases {
        let store = store.clone();
        completing.spawn(async move {
            let (holder, answer) = (lease.holder(), completion(noise(size)));
            // As the executor does: broken off, and made again.
            loop {
                let completed = store.complete(&holder, &answer, START);
                match timeout(Duration::from_secs(2), completed).await {
                    Ok(fenced) => break assert!(matches!(fenced, Ok(Fenced::Applied))),
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        });
    }
    completing.join_all().await;
    let took = began.elapsed();
    is_over.store(true, Ordering::SeqCst);
    let (charges, slowest) = charging.await.expect("no charge is refused");
    let units = dynamo.wire.units().0;
    let ideal = (answers * size.div_ceil(1_024)) as f64;
    println!(
        "{answers} answers of {size} bytes at {rate} units a second: {units} units ({:.2} of the \
         ideal) in {took:.2?} ({:.2}); {charges} charges beside, the slowest claim {slowest:.2?}",
        (units - f64::from(charges) * 2.0) / ideal,
        took.as_secs_f64() * rate / ideal,
    );
    assert!(units - f64::from(charges) * 2.0 <= 1.2 * ideal);
    took.as_secs_f64() * rate / ideal
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_is_recorded_within_its_units_and_no_charge_is_refused() {
    records(1, 1 << 20, 1_000.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute; its figures are in docs/performance.md"]
async fn figures() {
    assert!(records(1, 4 << 20, 1_000.0).await <= 2.0);
    assert!(records(32, 1 << 20, 4_000.0).await <= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_written_is_not_written_again_when_the_completion_is_made_anew() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    dynamo.wire.units();
    dynamo.wire.limit(2_000.0);
    let answer = completion(noise(1 << 20));
    let holder = lease.holder();
    let completed = store.complete(&holder, &answer, START);
    let cut_off = timeout(Duration::from_millis(200), completed).await;
    cut_off.expect_err("it takes half a second");
    let fenced = store.complete(&holder, &answer, START).await;
    assert!(matches!(fenced, Ok(Fenced::Applied)));
    let units = dynamo.wire.units().0;
    assert!(units <= 1_024.0 * 1.02, "{units}");
    assert!(first.other().is_answered(&store).await == noise(1 << 20));
}
