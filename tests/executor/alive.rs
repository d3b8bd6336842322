//! Who is alive: what one process knows without a clock, and what others can see of it.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tower_idempotency::record::{ClaimRequest, Holder, Record, Renewal, Seen};
use tower_idempotency::store::{Claim, Completion, Fenced, MemoryStore, Release, Store};
use tower_idempotency::testing::{Call, Fault, FaultStore, Living, ManualClock, TokioClock};
use tower_idempotency::{
    Answer, Clock, Executor, IdempotencyKey, Orphan, Ran, RecordKey, RunError, StoreError,
    StoreErrorKind, Timestamp,
};

use crate::support::{
    LEASE, RETENTION, Result, Work, elsewhere, eventually, faulty, fingerprint, key,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SHORT: Duration = Duration::from_millis(300);

#[track_caller]
fn is_in_progress(result: &Result) {
    let is_in_progress = matches!(result, Err(RunError::InProgress { .. }));
    assert!(is_in_progress, "{result:?}");
}

fn current_thread() -> Runtime {
    let mut runtime = Builder::new_current_thread();
    runtime.enable_all().build().expect("a runtime starts")
}

fn key_of(number: usize) -> IdempotencyKey {
    IdempotencyKey::new("charge", &format!("key-{number}")).expect("a valid key")
}

async fn clock_jumps<St: Store>(store: St, orphan: Orphan<Answer>) {
    let clock = ManualClock::new();
    let executor = Executor::new(store)
        .clock(clock.clone())
        .orphan(orphan)
        .heartbeat_on(Handle::current());
    let patient = executor.clone().wait_for_in_flight(DAY);
    let work = Work::slow();
    let first = work.spawned(&executor).await;
    // Far ahead, past the end of retention, and back to before the run began.
    let start = clock.now();
    for now in [
        start.plus(3 * LEASE),
        start.plus(RETENTION * 3),
        start,
        Timestamp::from_millis(1_000),
        start.plus(RETENTION * 9),
    ] {
        clock.set(now);
        is_in_progress(&work.under(&executor).await);
        // The same from the side of those who only look, as long as there is anything to see.
        if now < start.plus(RETENTION) {
            let full = executor.clone().max_runs(0);
            is_in_progress(&work.under(&full).await);
        }
    }
    // Others come by, and what has expired is swept up.
    for number in 10..2_000 {
        let (key, quick) = (key_of(number), || async { Ok::<u32, &str>(1) });
        let other = executor.run(&key, fingerprint(), quick).await;
        assert!(other.is_ok(), "{other:?}");
    }
    is_in_progress(&work.under(&executor).await);
    let waiting = tokio::spawn({
        let work = work.clone();
        async move { work.under(&patient).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    clock.set(start.plus(RETENTION * 9 + LEASE));
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    let waited = waiting.await.expect("no panic");
    assert!(matches!(waited, Ok(Ran::Replayed(1))), "{waited:?}");
    assert_eq!(executor.handle().stats().leases_lost, 0);
}

#[tokio::test(start_paused = true)]
async fn no_clock_takes_a_key_from_a_run_of_the_same_process() {
    for orphan in [Orphan::Retake, Orphan::Hold] {
        clock_jumps(MemoryStore::new(), orphan.clone()).await;
        clock_jumps(FaultStore::new(MemoryStore::new()), orphan.clone()).await;
        let tiered = MemoryStore::new().over(FaultStore::new(MemoryStore::new()));
        clock_jumps(tiered, orphan).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_run_that_looks_lapsed_does_not_ask_without_a_pause() {
    let executor = faulty();
    let work = Work::slow();
    let first = work.spawned(&executor).await;
    executor.store().fail_always(Call::Renew, Fault::Refused);
    tokio::time::sleep(LEASE * 2).await;
    let before = executor.store().count(Call::Claim);
    let patient = executor.clone().wait_for_in_flight(Duration::from_secs(10));
    is_in_progress(&work.under(&patient).await);
    let claims = executor.store().count(Call::Claim) - before;
    assert!(claims < 15, "{claims} claims in ten seconds");
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
}

#[test]
fn a_run_that_was_dropped_with_its_runtime_is_not_alive() {
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    let executor = Executor::new(Arc::clone(&store)).lease(SHORT);
    let executor = executor.clock_skew(Duration::from_millis(10));
    let runtime = current_thread();
    runtime.block_on(async {
        drop(Work::slow().spawned(&executor).await);
    });
    drop(runtime);
    current_thread().block_on(async {
        let work = Work::quick();
        is_in_progress(&work.under(&executor).await);
        tokio::time::sleep(SHORT * 2).await;
        let retaken = work.under(&executor).await;
        assert!(matches!(retaken, Ok(Ran::Executed(1))), "{retaken:?}");
    });
    assert_eq!(store.count(Call::Renew), 0);
}

#[test]
fn work_that_blocks_its_thread_in_its_first_poll_is_renewed() {
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    let executor = Executor::new(Arc::clone(&store)).lease(Duration::from_millis(200));
    let executor = executor.clock_skew(Duration::ZERO);
    let runs = Arc::new(AtomicUsize::new(0));
    let run = {
        let runs = Arc::clone(&runs);
        move || async move {
            runs.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1_500));
            Ok::<u32, &str>(1)
        }
    };
    let first = thread::spawn({
        let (executor, run) = (executor.clone(), run.clone());
        move || current_thread().block_on(executor.run(&key(), fingerprint(), run))
    });
    thread::sleep(Duration::from_millis(700));
    current_thread().block_on(async {
        for executor in [&executor, &elsewhere(&executor)] {
            is_in_progress(&executor.run(&key(), fingerprint(), run.clone()).await);
        }
    });
    let first = first.join().expect("no panic");
    assert!(matches!(first, Ok(Ran::Executed(1))), "{first:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert!(store.count(Call::Renew) >= 15);
}

#[test]
fn runs_on_several_runtimes_are_renewed_whatever_the_others_do() {
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    let executor = Executor::new(Arc::clone(&store)).lease(SHORT);
    let there = elsewhere(&executor.clone().clock_skew(Duration::ZERO));
    // One ends, one idles, one is blocked, and some run.
    let ended = thread::spawn({
        let executor = executor.clone();
        move || {
            current_thread().block_on(async { drop(Work::slow().spawned(&executor).await) });
        }
    });
    ended.join().expect("no panic");
    let works: Vec<Work> = (0..4).map(|_| Work::slow()).collect();
    let threads: Vec<_> = works
        .iter()
        .enumerate()
        .map(|(number, work)| {
            let (executor, work) = (executor.clone(), work.clone());
            thread::spawn(move || {
                current_thread().block_on(async move {
                    if number == 0 {
                        let quick = || async { Ok::<u32, &str>(1) };
                        let other = executor.run(&key_of(99), fingerprint(), quick).await;
                        assert!(other.is_ok());
                    }
                    let run = work.run();
                    let run = async move {
                        if number == 1 {
                            thread::sleep(SHORT * 5);
                        }
                        run.await
                    };
                    executor
                        .run(&key_of(number + 10), fingerprint(), || run)
                        .await
                })
            })
        })
        .collect();
    thread::sleep(SHORT * 4);
    current_thread().block_on(async {
        for number in 0..4 {
            let never = || pending::<std::result::Result<u32, &str>>();
            is_in_progress(&there.run(&key_of(number + 10), fingerprint(), never).await);
        }
    });
    works.iter().for_each(Work::end_one);
    for thread in threads {
        let ran = thread.join().expect("no panic");
        assert!(matches!(ran, Ok(Ran::Executed(1))), "{ran:?}");
    }
    assert_eq!(executor.handle().stats().leases_lost, 0);
}

#[test]
fn a_heart_whose_runtime_ends_goes_on_elsewhere() {
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    let of_heart = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let executor = Executor::new(Arc::clone(&store))
        .lease(SHORT)
        .heartbeat_on(of_heart.handle().clone());
    current_thread().block_on(async {
        let work = Work::slow();
        let _first = work.spawned(&executor).await;
        tokio::time::sleep(SHORT).await;
        let renewals = store.count(Call::Renew);
        assert!(renewals >= 2, "{renewals}");
        of_heart.shutdown_background();
        tokio::time::sleep(SHORT * 2).await;
        let more = store.count(Call::Renew) - renewals;
        assert!(more >= 4, "{more}");
    });
}

#[test]
fn a_lease_whose_claim_was_answered_late_is_renewed_at_once() {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    runtime.expect("a runtime starts").block_on(async {
        let executor = faulty()
            .lease(Duration::from_secs(9))
            .clock_skew(Duration::ZERO);
        let store = executor.store();
        store.fail_next(Call::Claim, Fault::AnswerHangs);
        store.fail_next(Call::Claim, Fault::Delayed(Duration::from_secs(4)));
        let work = Work::slow();
        let first = work.spawned(&executor).await;
        // The claim counts from its first try, 8.5 s ago, and would lapse in half a second.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(store.count(Call::Renew), 1);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        is_in_progress(&work.under(&elsewhere(&executor)).await);
        work.end_one();
        assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    });
}

#[test]
fn nothing_runs_where_there_are_no_timers_or_no_runtime() {
    async fn refused<St: Store>(executor: &Executor<St>, word: &str) {
        let work = Work::quick();
        let refused = work.under(executor).await;
        let Err(RunError::Store(error)) = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(error.kind(), StoreErrorKind::Unusable);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(work.begun(), 0);
    }
    let (near, far) = (
        Executor::new(MemoryStore::new()),
        Executor::new(FaultStore::new(MemoryStore::new())),
    );
    let without_timers = Builder::new_current_thread().build();
    without_timers.expect("a runtime starts").block_on(async {
        refused(&near, "enable_time").await;
        refused(&far, "enable_time").await;
    });
    assert!(polled_once(refused(&near, "no Tokio runtime")).is_some());
    assert!(polled_once(refused(&far, "no Tokio runtime")).is_some());
    // Nothing was left behind.
    current_thread().block_on(async {
        let work = Work::quick();
        assert!(matches!(work.under(&near).await, Ok(Ran::Executed(1))));
        assert!(matches!(work.under(&far).await, Ok(Ran::Executed(2))));
    });
}

fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn a_runtime_without_timers_is_not_taken_for_the_heartbeat() {
    let without_timers = Builder::new_multi_thread().worker_threads(1).build();
    let without_timers = without_timers.expect("a runtime starts");
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    let executor = Executor::new(Arc::clone(&store))
        .lease(SHORT)
        .heartbeat_on(without_timers.handle().clone());
    current_thread().block_on(async {
        let _running = Work::slow().spawned(&executor).await;
        tokio::time::sleep(SHORT).await;
    });
    assert!(store.count(Call::Renew) >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_costs_no_other_run_its_lease() {
    let store = Arc::new(Panicking::default());
    let executor = Executor::new(Arc::clone(&store))
        .clock(TokioClock::new())
        .heartbeat_on(Handle::current());
    let works: Vec<Work> = (0..50).map(|_| Work::slow()).collect();
    for (number, work) in works.iter().enumerate() {
        let (executor, run) = (executor.clone(), work.clone().run());
        tokio::spawn(async move {
            executor
                .run(&key_of(number), fingerprint(), move || run)
                .await
        });
    }
    eventually(|| works.iter().all(|work| work.begun() == 1)).await;
    tokio::time::sleep(LEASE * 3).await;
    let there = elsewhere(&executor);
    for number in 0..50 {
        let never = || pending::<std::result::Result<u32, &str>>();
        is_in_progress(&there.run(&key_of(number), fingerprint(), never).await);
    }
    assert!(store.panics.load(Ordering::SeqCst) > 50);
}

/// A store for which every third renewal is too much.
#[derive(Debug, Default)]
struct Panicking {
    inner: MemoryStore,
    renewals: AtomicUsize,
    panics: AtomicUsize,
}

impl Store for Panicking {
    async fn claim(&self, request: &ClaimRequest<'_>) -> std::result::Result<Claim, StoreError> {
        self.inner.claim(request).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> std::result::Result<Fenced, StoreError> {
        if self
            .renewals
            .fetch_add(1, Ordering::SeqCst)
            .is_multiple_of(3)
        {
            self.panics.fetch_add(1, Ordering::SeqCst);
            // Without a word from the panic hook.
            std::panic::resume_unwind(Box::new("as planned"));
        }
        self.inner.renew(holder, renewal, now).await
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> std::result::Result<Fenced, StoreError> {
        self.inner.complete(holder, completion, now).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> std::result::Result<Fenced, StoreError> {
        self.inner.release(holder, release, now).await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> std::result::Result<Option<Seen<Record>>, StoreError> {
        self.inner.get(key, now).await
    }

    async fn remove(&self, key: &RecordKey) -> std::result::Result<bool, StoreError> {
        self.inner.remove(key).await
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_of_many_runs_are_spread_and_few_at_a_time() {
    const RUNS: usize = 3_200;
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    store.fail_always(Call::Renew, Fault::Delayed(Duration::from_millis(50)));
    let executor = Executor::new(Arc::clone(&store))
        .clock(TokioClock::new())
        .heartbeat_on(Handle::current());
    let work = Work::slow();
    for number in 0..RUNS {
        let (executor, run) = (executor.clone(), work.clone().run());
        tokio::spawn(async move {
            executor
                .run(&key_of(number), fingerprint(), move || run)
                .await
        });
    }
    eventually(|| work.begun() == RUNS).await;
    let mut most = 0;
    let slice = Duration::from_millis(50);
    for _ in 0..(LEASE * 4).as_millis() / slice.as_millis() {
        let before = store.count(Call::Renew);
        tokio::time::sleep(slice).await;
        most = most.max(store.count(Call::Renew) - before);
    }
    let renewals = store.count(Call::Renew);
    // Three for each lease, and a few more.
    assert!((RUNS * 11..RUNS * 14).contains(&renewals), "{renewals}");
    // All at once at first, they were all due within 50 ms of each other.
    assert!(most <= 250, "{most} at a time");
    let there = elsewhere(&executor);
    for number in (0..RUNS).step_by(100) {
        let never = || pending::<std::result::Result<u32, &str>>();
        is_in_progress(&there.run(&key_of(number), fingerprint(), never).await);
    }
}

#[test]
fn a_run_is_alive_for_other_executors_of_its_process() {
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    store.fail_always(Call::Renew, Fault::Refused);
    let short = |store| {
        let executor = Executor::new(store).lease(Duration::from_millis(50));
        executor.clock_skew(Duration::ZERO)
    };
    let (first, second) = (short(Arc::clone(&store)), short(Arc::clone(&store)));
    let third = short(Arc::clone(&store)).living(Living::of_another_process());
    current_thread().block_on(async {
        let work = Work::slow();
        let _running = work.spawned(&first).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        is_in_progress(&work.under(&second).await);
        let taken_over = Work::quick().under(&third).await;
        assert!(matches!(taken_over, Ok(Ran::Executed(1))), "{taken_over:?}");
    });
}
