//! Who waits for the capacity of the service within, and who does not.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Request;
use tokio::time::{Instant, timeout};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::error::Overloaded;
use tower::{Layer, Service, ServiceBuilder};
use tower_idempotency::store::Store;
use tower_idempotency::testing::Living;
use tower_idempotency::{IdempotencyLayer, Orphan};

use crate::support::{
    Body, BoxError, Fault, FaultyStore, Runs, answer, call, channel, direct, eventually, layer,
    service, spawn, whole,
};

const SECOND: Duration = Duration::from_secs(1);

fn request(key: &str) -> Request<Body> {
    let request = Request::post("/a").header("idempotency-key", key);
    request.body(whole("it")).expect("it is valid")
}

fn keyless() -> Request<Body> {
    let mut request = request("k");
    request.headers_mut().clear();
    request
}

#[tokio::test]
async fn replays_and_refusals_wait_for_no_capacity_and_take_none() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer().require_key(true).max_request_body(10))
            .layer(GlobalConcurrencyLimitLayer::new(1))
            .service(service(runs.gated())),
    );
    runs.gate().open();
    assert_eq!(answer(&stack, request("old")).await, "run 1");

    // One whose body has not come yet takes none, either.
    let (sender, body) = channel();
    let slow = spawn(&stack, request("slow").map(|_| body));
    let running = spawn(&stack, request("running"));
    runs.gate().arrived().await;
    runs.gate().arrived().await;

    let at_once = async |request| {
        let answered = timeout(SECOND, answer(&stack, request)).await;
        answered.expect("it waits for nothing")
    };
    assert_eq!(at_once(request("old")).await, "replayed: run 1");
    assert_eq!(at_once(request("running")).await, "in-progress");
    assert_eq!(at_once(request("two words")).await, "invalid-key");
    let other = request("old").map(|_| whole("else"));
    assert_eq!(at_once(other).await, "key-reused");
    let large = request("large").map(|_| whole("0123456789a"));
    assert_eq!(at_once(large).await, "request-too-large");

    runs.gate().open_for_good();
    drop(sender);
    assert_eq!(running.await.expect("no panic"), "run 2");
    assert_eq!(slow.await.expect("no panic"), "run 3");
}

#[tokio::test]
async fn a_request_that_passes_waits_for_capacity() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer())
            .layer(GlobalConcurrencyLimitLayer::new(1))
            .service(service(runs.gated())),
    );
    let calls: Vec<_> = (0..5).map(|_| spawn(&stack, keyless())).collect();
    for number in 1..=calls.len() {
        runs.gate().arrived().await;
        assert_eq!(runs.count(), number, "two run at once");
        runs.gate().open();
    }
    for call in calls {
        call.await.expect("no panic");
    }
}

#[tokio::test]
async fn a_handler_that_waits_for_capacity_never_begins_when_its_client_goes() {
    for orphan in [Orphan::Retake, Orphan::Hold] {
        let layer = layer().orphan(orphan.clone());
        goes_while_it_waits(&layer).await;
        // One that is waited for.
        let layer = IdempotencyLayer::new(FaultyStore::new()).orphan(orphan);
        goes_while_it_waits(&layer).await;
    }
}

#[tokio::test]
async fn a_handler_that_waited_for_longer_than_its_lease_does_not_begin_beside_another() {
    let store = FaultyStore::new();
    store.be_remote();
    let layer = IdempotencyLayer::new(store.clone())
        .namespace("shop")
        .any_host()
        .lease(Duration::from_millis(100))
        .clock_skew(Duration::ZERO);
    let runs = Runs::default();
    let node = |layer: IdempotencyLayer<FaultyStore>, runs: &Runs| {
        direct(
            ServiceBuilder::new()
                .layer(layer)
                .layer(GlobalConcurrencyLimitLayer::new(1))
                .service(service(runs.gated())),
        )
    };
    let busy = node(layer.clone(), &runs);
    let others = Runs::default();
    others.gate().open_for_good();
    let other = IdempotencyLayer::new(store.clone())
        .namespace("shop")
        .any_host()
        .lease(Duration::from_millis(100))
        .clock_skew(Duration::ZERO)
        .living(Living::of_another_process());
    let other = node(other, &others);

    let before = spawn(&busy, request("before"));
    runs.gate().arrived().await;
    store.fail_renewals(Fault::Unreachable);
    let waits = spawn(&busy, request("k"));
    eventually(async || layer.handle().in_flight() == 2).await;
    eventually(async || answer(&other, request("k")).await == "run 1").await;
    store.fail_renewals(Fault::None);
    runs.gate().open_for_good();
    before.await.expect("no panic");
    assert_eq!(waits.await.expect("no panic"), "replayed: run 1");
    assert_eq!(runs.count(), 1);
    assert_eq!(answer(&busy, request("k")).await, "replayed: run 1");
}

async fn goes_while_it_waits<St: Store>(layer: &IdempotencyLayer<St>) {
    let runs = Runs::default();
    let handle = layer.handle();
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer.clone())
            .layer(GlobalConcurrencyLimitLayer::new(1))
            .service(service(runs.gated())),
    );
    let first = spawn(&stack, request("first"));
    runs.gate().arrived().await;
    let gone = spawn(&stack, request("gone"));
    eventually(async || handle.in_flight() == 2).await;
    gone.abort();
    // Its key comes free although there is still no capacity.
    eventually(async || handle.in_flight() == 1).await;
    runs.gate().open_for_good();
    assert_eq!(first.await.expect("no panic"), "run 1");
    assert_eq!(answer(&stack, request("gone")).await, "run 2");
    assert_eq!(runs.count(), 2);
}

#[tokio::test]
async fn a_retry_runs_when_the_one_it_waited_for_never_began() {
    for orphan in [Orphan::Retake, Orphan::Hold] {
        let store = FaultyStore::new();
        let layer = IdempotencyLayer::new(store.clone())
            .orphan(orphan)
            .wait_for_in_flight(30 * SECOND);
        let (handle, runs) = (layer.handle(), Runs::default());
        let stack = direct(
            ServiceBuilder::new()
                .layer(layer)
                .layer(GlobalConcurrencyLimitLayer::new(1))
                .service(service(runs.gated())),
        );
        let other = spawn(&stack, request("other"));
        runs.gate().arrived().await;
        let gone = spawn(&stack, request("k"));
        eventually(async || handle.in_flight() == 2).await;
        let retries = [(); 5].map(|()| spawn(&stack, request("k")));
        eventually(async || store.waiting() == 5).await;
        gone.abort();
        eventually(async || store.claims() > 2 + 5).await;
        runs.gate().open_for_good();
        assert_eq!(other.await.expect("no panic"), "run 1");
        let mut ran = 0;
        for retry in retries {
            let answer = retry.await.expect("no panic");
            assert_eq!(answer.trim_start_matches("replayed: "), "run 2");
            ran += usize::from(answer == "run 2");
        }
        assert_eq!((ran, runs.count()), (1, 2));
    }
}

#[tokio::test]
async fn a_shutdown_waits_for_no_capacity_that_nobody_wants() {
    let layer = layer().orphan(Orphan::Hold);
    let (handle, runs) = (layer.handle(), Runs::default());
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer)
            .layer(GlobalConcurrencyLimitLayer::new(1))
            .service(service(runs.gated())),
    );
    let other = spawn(&stack, request("other"));
    runs.gate().arrived().await;
    let wanted = spawn(&stack, request("wanted"));
    let gone = spawn(&stack, request("gone"));
    eventually(async || handle.in_flight() == 3).await;
    let shutdown = tokio::spawn({
        let handle = handle.clone();
        async move { handle.shutdown().await }
    });
    gone.abort();
    eventually(async || handle.in_flight() == 2).await;
    assert!(!shutdown.is_finished());
    runs.gate().open_for_good();
    // What was claimed before is run to its end.
    assert_eq!(other.await.expect("no panic"), "run 1");
    assert_eq!(wanted.await.expect("no panic"), "run 2");
    shutdown.await.expect("no panic");
    assert_eq!(answer(&stack, request("gone")).await, "shutting-down");
    assert_eq!(runs.count(), 2);
}

#[tokio::test]
async fn a_buffer_within_is_asked_by_those_who_run() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer())
            .buffer(1)
            .concurrency_limit(1)
            .service(service(runs.numbered())),
    );
    for _ in 0..3 {
        for number in 1..=5 {
            let answer = answer(&stack, request(&format!("k-{number}"))).await;
            assert!(answer.ends_with(&format!("run {number}")), "{answer}");
        }
    }
    assert_eq!(runs.count(), 5);
}

#[tokio::test]
async fn load_is_shed_within_and_replays_are_served() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer())
            .load_shed()
            .layer(GlobalConcurrencyLimitLayer::new(1))
            .service(service(runs.gated())),
    );
    runs.gate().open();
    assert_eq!(answer(&stack, request("old")).await, "run 1");
    let running = spawn(&stack, request("running"));
    runs.gate().arrived().await;
    runs.gate().arrived().await;
    let shed = call(&stack, request("new")).await.expect_err("it is shed");
    assert!(shed.is::<Overloaded>(), "{shed}");
    assert_eq!(answer(&stack, request("old")).await, "replayed: run 1");
    runs.gate().open_for_good();
    assert_eq!(running.await.expect("no panic"), "run 2");
    assert_eq!(answer(&stack, request("new")).await, "run 3");
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_the_rate_within_counts_runs_alone() {
    let runs = Runs::default();
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer())
            .buffer(8)
            .rate_limit(1, SECOND)
            .service(service(runs.numbered())),
    );
    let began = Instant::now();
    for _ in 0..100 {
        let answer = answer(&stack, request("k")).await;
        assert!(answer.ends_with("run 1"), "{answer}");
    }
    assert_eq!(began.elapsed().as_millis() / 10, 0);
    answer(&stack, request("other")).await;
    assert!(began.elapsed() >= SECOND);
}

/// Fails to get ready as long as it is told to, and is called only when it was ready.
#[derive(Clone)]
struct Failing<S> {
    inner: S,
    fails: Arc<AtomicBool>,
    is_ready: bool,
}

impl<S, R> Service<R> for Failing<S>
where
    S: Service<R, Error = BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = S::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.fails.load(Ordering::SeqCst) {
            return Poll::Ready(Err("the pool is closed".into()));
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "it was not ready");
        self.inner.call(request)
    }
}

#[tokio::test]
async fn a_service_that_fails_to_get_ready_has_done_nothing() {
    let runs = Runs::default();
    let fails = Arc::new(AtomicBool::new(true));
    let stack = direct(
        ServiceBuilder::new()
            .layer(layer().orphan(Orphan::Hold))
            .service(Failing {
                inner: direct(service(runs.numbered())),
                fails: Arc::clone(&fails),
                is_ready: false,
            }),
    );
    for request in [request("k"), keyless()] {
        let failed = call(&stack, request).await.expect_err("it is not ready");
        assert_eq!(failed.to_string(), "the pool is closed");
    }
    fails.store(false, Ordering::SeqCst);
    assert_eq!(answer(&stack, request("k")).await, "run 1");
}

#[tokio::test]
async fn a_future_that_is_polled_after_its_end_says_so() {
    let runs = Runs::default();
    let mut stack = layer().layer(service(runs.numbered()));
    for key in ["k", "k", "two words"] {
        let mut future = Box::pin(stack.call(request(key)));
        let first = future.as_mut().await;
        first.expect("it never fails");
        let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = future
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
        }));
        let said = again.expect_err("it panics");
        let said = said.downcast_ref::<&str>().expect("a text");
        assert_eq!(*said, "`ResponseFuture` polled after completion");
    }
}
