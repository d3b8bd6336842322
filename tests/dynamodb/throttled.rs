//! A table that takes few units a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower_idempotency::store::{Claim, Fenced, Store};

use crate::embedded::units::Units;
use crate::embedded::{Capacity, Limits};
use crate::support::{Claimer, Dynamo, START, completes, completion, eventually, noise};

/// A provisioned table that keeps what it does not use for a second only.
fn capacity(writes: f64, reads: f64) -> Capacity {
    Capacity {
        units: Units { writes, reads },
        burst: Duration::from_secs(1),
        is_on_demand: false,
    }
}

/// Records so many answers of this size at so many write units a second, while others charge.
/// Nothing is refused, and little is written twice. Returns how long it took, to the ideal time.
async fn records(answers: usize, size: usize, rate: f64) -> f64 {
    let (dynamo, limits) = Dynamo::limited().await;
    dynamo.store().await;
    let store = dynamo.retrying();
    let mut leases = Vec::new();
    for _ in 0..answers {
        leases.push(Claimer::new().acquires(&store).await);
    }
    dynamo.wire.units();
    limits.set(Some(capacity(rate, 1_000.0)));
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
    let units = dynamo.wire.units().writes;
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
    retries_of_a_hot_key(
        200,
        380_000,
        capacity(1_000.0, 2_000.0),
        Duration::from_secs(10),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_refuses_no_claim_of_another_key() {
    retries_of_a_hot_key(40, 100_000, capacity(100.0, 50.0), Duration::from_secs(2)).await;
}

/// Asks three nodes so many times a second for one large answer, while others charge. The reads of
/// its chunks are throttled, and no claim is, on this key or another.
async fn retries_of_a_hot_key(rate: u32, size: usize, capacity: Capacity, during: Duration) {
    let (dynamo, limits) = Dynamo::limited().await;
    dynamo.store().await;
    let nodes = [(); 3].map(|()| dynamo.retrying());
    let first = Claimer::new();
    let lease = first.acquires(&nodes[0]).await;
    completes(&nodes[0], &lease, noise(size)).await;
    limits.set(Some(capacity));
    // So that the first claims find something left.
    sleep(Duration::from_secs(1)).await;

    let began = Instant::now();
    let mut retries = JoinSet::new();
    let mut charges = JoinSet::new();
    let count = (during.as_secs_f64() * f64::from(rate)) as u32;
    for retry in 0..count {
        sleep_until(began + Duration::from_secs(1) * retry / rate).await;
        let (node, retrier) = (nodes[retry as usize % 3].clone(), first.other());
        retries.spawn(async move {
            let claimed = timeout(Duration::from_secs(5), retrier.claims(&node)).await;
            matches!(claimed, Ok(Ok(Claim::Completed(_))))
        });
        if retry % 4 == 0 {
            let node = nodes[(retry as usize + 1) % 3].clone();
            charges.spawn(async move {
                let began = Instant::now();
                let lease = Claimer::new().acquires(&node).await;
                let claimed = began.elapsed();
                completes(&node, &lease, "answer").await;
                claimed
            });
        }
    }
    let slowest = charges.join_all().await.into_iter().max();
    let retries = retries.join_all().await;
    let replayed = retries.iter().filter(|is_replayed| **is_replayed).count();
    let throttled = throttled(&limits);
    println!(
        "{rate} retries a second of {size} bytes for {during:?}: {replayed} of {count} replayed;          {} other charges, the slowest claim {slowest:.2?}; throttled: {throttled:?}",
        count / 4,
    );
    let (writes, reads) = throttled;
    assert_eq!(writes, 0, "no claim is throttled");
    assert!(reads > 0, "the reads of the chunks are");
    assert_eq!(replayed, retries.len());
}

/// How many writes and how many reads were throttled.
fn throttled(limits: &Limits) -> (usize, usize) {
    let writes = ["PutItem", "UpdateItem", "DeleteItem"];
    let writes = writes.map(|write| limits.throttled(write)).iter().sum();
    let reads = ["GetItem", "BatchGetItem"].map(|read| limits.throttled(read));
    (writes, reads.iter().sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_parts_are_throttled_at_first_is_replayed() {
    let (dynamo, limits) = Dynamo::limited().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, noise(300_000)).await;
    limits.set(Some(capacity(100.0, 50.0)));
    assert!(first.other().is_answered(&store).await == noise(300_000));
    assert!(throttled(&limits).1 > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_that_come_at_the_same_time_read_the_parts_of_an_answer_once() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, noise(100_000)).await;
    dynamo.wire.calls();
    let (arrived, goes_on) = dynamo.wire.hold_next("BatchGetItem");
    let mut duplicates = JoinSet::new();
    for _ in 0..10 {
        let (store, duplicate) = (store.clone(), first.other());
        duplicates.spawn(async move { duplicate.is_answered(&store).await });
    }
    arrived.await.expect("one of them reads");
    eventually(async || dynamo.wire.seen("PutItem") == 10).await;
    goes_on.send(()).expect("it waits");
    for answer in duplicates.join_all().await {
        assert!(answer == noise(100_000));
    }
    let calls = dynamo.wire.calls();
    let reads = calls.iter().filter(|call| *call == "BatchGetItem");
    assert_eq!(reads.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_written_is_not_written_again_when_the_completion_is_made_anew() {
    let (dynamo, limits) = Dynamo::limited().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    dynamo.wire.units();
    limits.set(Some(capacity(2_000.0, 1_000.0)));
    let answer = completion(noise(1 << 20));
    let holder = lease.holder();
    let completed = store.complete(&holder, &answer, START);
    let cut_off = timeout(Duration::from_millis(200), completed).await;
    cut_off.expect_err("it takes half a second");
    let fenced = store.complete(&holder, &answer, START).await;
    assert!(matches!(fenced, Ok(Fenced::Applied)));
    let units = dynamo.wire.units().writes;
    assert!(units <= 1_024.0 * 1.02, "{units}");
    assert!(first.other().is_answered(&store).await == noise(1 << 20));
}
