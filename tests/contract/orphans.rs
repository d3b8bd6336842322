//! Rows 11 and 14: runs that left no outcome, because they failed or because nobody has heard of
//! them for too long.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::sync::Semaphore;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_idempotency::record::FencingToken;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Attempt, IdempotencyKey, IdempotencyLayer, Orphan, Reconciled};

use tower_idempotency::testing::ManualClock;

use crate::support::{
    Body, BoxError, Case, Gate, Runs, Server, Stack, channel, empty, eventually, for_each_stack,
    layer, still_clock, text,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than a lease and the skew of clocks that is allowed for.
const LEASE_AND_SKEW: Duration = Duration::from_millis(32_001);

// A run fails.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Panic,
    Error,
    /// The work was done, and then its response broke off.
    BrokenResponse,
}

const FAILURES: [Failure; 3] = [Failure::Panic, Failure::Error, Failure::BrokenResponse];

type Failing = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

/// A handler whose first run fails, after a first poll that did not end it.
fn fails_once(
    runs: &Runs,
    failure: Failure,
) -> impl Fn(Request<Body>) -> Failing + Clone + Send + Sync + 'static {
    let numbered = runs.numbered();
    move |request| {
        let answer = numbered(request);
        Box::pin(async move {
            let answer = answer.await;
            tokio::task::yield_now().await;
            let answered = http_body_util::BodyExt::collect(answer.into_body()).await?;
            if answered.to_bytes() != "run 1" {
                return Ok(text("run 2"));
            }
            match failure {
                Failure::Panic => panic!("the handler panics"),
                Failure::Error => Err("the service fails".into()),
                Failure::BrokenResponse => {
                    let (sender, body) = channel();
                    sender.chunk("half of ");
                    sender.fail("the disk is gone");
                    Ok(Response::new(body))
                }
            }
        })
    }
}

/// A server on which the request with the key `k` has failed.
async fn failed(
    case: Case,
    layer: &IdempotencyLayer<MemoryStore>,
    failure: Failure,
) -> (Server, Runs) {
    let runs = Runs::default();
    let server = case.serve_fallible(layer, fails_once(&runs, failure)).await;
    let first = server.post("/a").key("k").body("x").try_send().await;
    // It goes on as it would without the layer.
    match (failure, case.stack, first) {
        (Failure::Error, Stack::Axum, Ok(answer)) => {
            assert_eq!(
                (answer.status.as_u16(), &answer.body[..]),
                (500, &b"the service fails"[..])
            );
        }
        (_, _, first) => assert!(first.is_err(), "{first:?}"),
    }
    // A panic ends the connection perhaps before the key has been seen to.
    layer.handle().idle().await;
    assert_eq!(runs.count(), 1);
    (server, runs)
}

async fn retry(server: &Server) -> crate::support::Answer {
    server.post("/a").key("k").body("x").send().await
}

#[tokio::test]
async fn after_a_failure_retake_runs_at_once() {
    for failure in FAILURES {
        for_each_stack(|case| async move {
            let (server, _) = failed(case, &layer(), failure).await;
            retry(&server).await.ran("run 2");
            retry(&server).await.replayed("run 2");
        })
        .await;
    }
}

#[tokio::test]
async fn after_a_failure_hold_never_runs_again_until_retention_ends() {
    for failure in FAILURES {
        for_each_stack(|case| async move {
            let clock = still_clock();
            let layer = layer().clock(clock.clone()).orphan(Orphan::Hold);
            let (server, runs) = failed(case, &layer, failure).await;
            retry(&server).await.refused(409, "outcome-unknown");
            let other = server.post("/a").key("k").body("y").send().await;
            other.refused(422, "key-reused");
            clock.advance(DAY - Duration::from_secs(1));
            retry(&server).await.refused(409, "outcome-unknown");
            assert_eq!(runs.count(), 1);
            clock.advance(Duration::from_secs(1));
            retry(&server).await.ran("run 2");
        })
        .await;
    }
}

/// Asks a business system that says what it is told to say.
#[derive(Clone)]
struct Business {
    says: Arc<std::sync::Mutex<Reconciled<&'static str>>>,
    asked: Arc<AtomicUsize>,
    gate: Option<Gate>,
}

impl Business {
    fn saying(says: Reconciled<&'static str>) -> Self {
        Self {
            says: Arc::new(says.into()),
            asked: Arc::default(),
            gate: None,
        }
    }

    fn says(&self, says: Reconciled<&'static str>) {
        *self.says.lock().expect("not poisoned") = says;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn orphan(&self) -> Orphan<Response<Bytes>> {
        let business = self.clone();
        Orphan::reconcile(move |orphaned| {
            let business = business.clone();
            async move {
                assert_eq!(orphaned.key.as_str(), "k");
                assert_eq!(orphaned.key.parts().target, "/a");
                business.asked.fetch_add(1, Ordering::SeqCst);
                if let Some(gate) = &business.gate {
                    gate.pass().await;
                }
                let says = business.says.lock().expect("not poisoned").clone();
                match says {
                    Reconciled::Completed(text) => {
                        let mut response = Response::new(Bytes::from(text));
                        let header = http::HeaderValue::from_static("yes");
                        response.headers_mut().insert("x-reconciled", header);
                        Reconciled::Completed(response)
                    }
                    Reconciled::NotExecuted => Reconciled::NotExecuted,
                    _ => Reconciled::Unknown,
                }
            }
        })
    }
}

#[tokio::test]
async fn after_a_failure_that_had_an_outcome_a_retry_gets_it() {
    for failure in FAILURES {
        for_each_stack(|case| async move {
            let business = Business::saying(Reconciled::Completed("charged"));
            let layer = layer().orphan(business.orphan());
            let (server, runs) = failed(case, &layer, failure).await;
            for _ in 0..2 {
                let answer = retry(&server).await;
                answer.replayed("charged");
                assert_eq!(answer.values("x-reconciled"), [b"yes"]);
            }
            assert_eq!((runs.count(), business.asked()), (1, 1));
        })
        .await;
    }
}

#[tokio::test]
async fn after_a_failure_that_did_nothing_a_retry_runs() {
    for failure in FAILURES {
        for_each_stack(|case| async move {
            let business = Business::saying(Reconciled::NotExecuted);
            let layer = layer().orphan(business.orphan());
            let (server, _) = failed(case, &layer, failure).await;
            retry(&server).await.ran("run 2");
            retry(&server).await.replayed("run 2");
            assert_eq!(business.asked(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn after_a_failure_of_which_nothing_is_known_the_next_request_asks_again() {
    for failure in FAILURES {
        for_each_stack(|case| async move {
            let business = Business::saying(Reconciled::Unknown);
            let layer = layer().orphan(business.orphan());
            let (server, runs) = failed(case, &layer, failure).await;
            assert_eq!(business.asked(), 1);
            let answer = retry(&server).await;
            answer.refused_for_now(409, "outcome-unknown");
            assert_eq!(answer.retry_after(), Some("1"));
            assert_eq!(business.asked(), 2);
            business.says(Reconciled::Completed("charged"));
            retry(&server).await.replayed("charged");
            retry(&server).await.replayed("charged");
            assert_eq!((runs.count(), business.asked()), (1, 3));
        })
        .await;
    }
}

// A run is lost.

/// A server on which the first run under the key `k` has outlived its lease, and stands at the
/// gate. Those after it answer at once.
struct Lost {
    server: Server,
    runs: Runs,
    clock: ManualClock,
    layer: IdempotencyLayer<MemoryStore>,
    first: tokio::task::JoinHandle<crate::support::Answer>,
}

impl Lost {
    async fn after(case: Case, orphan: Orphan<Response<Bytes>>, time: Duration) -> Self {
        let clock = still_clock();
        let layer = layer().clock(clock.clone()).orphan(orphan);
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let handler = runs.running(move |request, number| {
            let gate = gate.clone();
            async move {
                let attempt = request.extensions().get::<Attempt>().cloned();
                let attempt = attempt.expect("it is guarded").number();
                if number == 1 {
                    gate.pass().await;
                }
                text(format!("run {number}, attempt {attempt}"))
            }
        });
        let server = case.serve(&layer, handler).await;
        let first = server.post("/a").key("k").body("x").spawn();
        runs.gate().arrived().await;
        clock.advance(time);
        Self {
            server,
            runs,
            clock,
            layer,
            first,
        }
    }

    async fn retry(&self) -> crate::support::Answer {
        retry(&self.server).await
    }

    /// The answer that the first client gets in the end.
    async fn first_answer(&mut self) -> crate::support::Answer {
        self.runs.gate().open();
        (&mut self.first).await.expect("no panic")
    }

    fn leases_lost(&self) -> u64 {
        self.layer.handle().stats().leases_lost
    }
}

#[tokio::test]
async fn a_lease_lapses_only_after_the_skew_of_clocks() {
    for orphan in [Orphan::Retake, Orphan::Hold] {
        for_each_stack(|case| {
            let orphan = orphan.clone();
            async move {
                let mut lost = Lost::after(case, orphan, Duration::from_secs(32)).await;
                lost.retry().await.refused(409, "in-progress");
                lost.first_answer().await.ran("run 1, attempt 1");
                assert_eq!(lost.leases_lost(), 0);
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_lost_run_is_retaken_and_its_client_gets_the_answer_of_its_successor() {
    for_each_stack(|case| async move {
        let mut lost = Lost::after(case, Orphan::Retake, LEASE_AND_SKEW).await;
        let other = lost.server.post("/a").key("k").body("y").send().await;
        other.refused(422, "key-reused");
        lost.retry().await.ran("run 2, attempt 2");
        lost.first_answer().await.replayed("run 2, attempt 2");
        assert_eq!(lost.leases_lost(), 1);
        lost.retry().await.replayed("run 2, attempt 2");
    })
    .await;
}

#[tokio::test]
async fn a_late_finisher_does_not_overwrite_a_successor_that_still_runs() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let gates = [Gate::default(), Gate::default()];
        let handler = {
            let gates = gates.clone();
            runs.running(move |_, number| {
                let gate = gates[number - 1].clone();
                async move {
                    gate.pass().await;
                    text(format!("run {number}"))
                }
            })
        };
        let layer = layer().clock(clock.clone());
        let server = case.serve(&layer, handler).await;
        let first = server.post("/a").key("k").body("x").spawn();
        gates[0].arrived().await;
        clock.advance(LEASE_AND_SKEW);
        let second = server.post("/a").key("k").body("x").spawn();
        gates[1].arrived().await;
        gates[0].open();
        // Its own answer is not the one that its retries will get.
        let first = first.await.expect("no panic");
        first.refused(409, "lease-lost");
        assert_eq!(first.retry_after(), Some("1"));
        assert_eq!(layer.handle().stats().leases_lost, 1);
        retry(&server).await.refused(409, "in-progress");
        gates[1].open();
        second.await.expect("no panic").ran("run 2");
        retry(&server).await.replayed("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_lost_run_that_nobody_took_over_is_recorded_all_the_same() {
    for_each_stack(|case| async move {
        let mut lost = Lost::after(case, Orphan::Retake, LEASE_AND_SKEW).await;
        lost.first_answer().await.ran("run 1, attempt 1");
        assert_eq!(lost.leases_lost(), 0);
        lost.retry().await.replayed("run 1, attempt 1");
    })
    .await;
}

#[tokio::test]
async fn a_lost_run_is_held_until_retention_ends() {
    for_each_stack(|case| async move {
        let lost = Lost::after(case, Orphan::Hold, LEASE_AND_SKEW).await;
        lost.retry().await.refused(409, "outcome-unknown");
        lost.clock
            .advance(DAY - LEASE_AND_SKEW - Duration::from_secs(1));
        lost.retry().await.refused(409, "outcome-unknown");
        assert_eq!(lost.runs.count(), 1);
        lost.clock.advance(Duration::from_secs(1));
        lost.retry().await.ran("run 2, attempt 1");
    })
    .await;
}

#[tokio::test]
async fn a_held_run_that_comes_back_is_recorded() {
    for_each_stack(|case| async move {
        let mut lost = Lost::after(case, Orphan::Hold, LEASE_AND_SKEW).await;
        lost.retry().await.refused(409, "outcome-unknown");
        lost.first_answer().await.ran("run 1, attempt 1");
        lost.retry().await.replayed("run 1, attempt 1");
        assert_eq!(lost.runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_lost_run_with_an_outcome_is_answered_with_it() {
    for_each_stack(|case| async move {
        let business = Business::saying(Reconciled::Completed("charged"));
        let mut lost = Lost::after(case, business.orphan(), LEASE_AND_SKEW).await;
        let answer = lost.retry().await;
        answer.replayed("charged");
        assert_eq!(answer.values("x-reconciled"), [b"yes"]);
        lost.retry().await.replayed("charged");
        // It was there after all, and is told what the others were told.
        lost.first_answer().await.replayed("charged");
        assert_eq!((lost.runs.count(), business.asked()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_lost_run_that_did_nothing_is_run_again() {
    for_each_stack(|case| async move {
        let business = Business::saying(Reconciled::NotExecuted);
        let lost = Lost::after(case, business.orphan(), LEASE_AND_SKEW).await;
        lost.retry().await.ran("run 2, attempt 2");
        lost.retry().await.replayed("run 2, attempt 2");
        assert_eq!(business.asked(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_lost_run_of_which_nothing_is_known_is_asked_for_again() {
    for_each_stack(|case| async move {
        let business = Business::saying(Reconciled::Unknown);
        let lost = Lost::after(case, business.orphan(), LEASE_AND_SKEW).await;
        lost.retry().await.refused_for_now(409, "outcome-unknown");
        lost.retry().await.refused_for_now(409, "outcome-unknown");
        assert_eq!(business.asked(), 2);
        business.says(Reconciled::NotExecuted);
        let answer = lost.retry().await;
        assert!(answer.body.starts_with(b"run 2, attempt"), "{answer:?}");
        assert_eq!(business.asked(), 3);
    })
    .await;
}

#[tokio::test]
async fn one_at_a_time_asks_for_a_lost_run() {
    for_each_stack(|case| async move {
        let gate = Gate::default();
        let business = Business {
            gate: Some(gate.clone()),
            ..Business::saying(Reconciled::Completed("charged"))
        };
        let lost = Lost::after(case, business.orphan(), LEASE_AND_SKEW).await;
        let second = lost.server.post("/a").key("k").body("x").spawn();
        gate.arrived().await;
        lost.retry().await.refused(409, "in-progress");
        gate.open();
        second.await.expect("no panic").replayed("charged");
        lost.retry().await.replayed("charged");
        assert_eq!(business.asked(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_successor_has_a_higher_fencing_token_and_the_same_key() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let seen: Arc<std::sync::Mutex<Vec<(FencingToken, IdempotencyKey)>>> = Arc::default();
        let handler = {
            let seen = Arc::clone(&seen);
            runs.running(move |request, number| {
                let attempt = request.extensions().get::<Attempt>().cloned();
                let attempt = attempt.expect("it is guarded");
                let mut seen = seen.lock().expect("not poisoned");
                seen.push((attempt.token(), attempt.key().derive("psp")));
                let gate = gate.clone();
                async move {
                    if number == 1 {
                        gate.pass().await;
                    }
                    text("done")
                }
            })
        };
        let server = case.serve(&layer().clock(clock.clone()), handler).await;
        let _first = server.post("/a").key("k").body("x").spawn();
        runs.gate().arrived().await;
        clock.advance(LEASE_AND_SKEW);
        retry(&server).await.ran("done");
        let seen = seen.lock().expect("not poisoned");
        let [(first, first_derived), (second, second_derived)] = &seen[..] else {
            panic!("it ran {} times", seen.len());
        };
        assert!(first < second, "{first} and {second}");
        assert_eq!(first_derived, second_derived);
    })
    .await;
}

// A run is renewed.

#[tokio::test]
async fn a_run_keeps_its_lease_for_as_long_as_it_needs() {
    for_each_stack(|case| async move {
        let store = crate::support::FaultyStore::new();
        let clock = still_clock();
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(store.clone())
            .clock(clock.clone())
            .clock_skew(Duration::ZERO)
            .lease(Duration::from_millis(30));
        let server = case.serve(&layer, runs.gated()).await;
        let first = server.post("/a").key("k").body("x").spawn();
        runs.gate().arrived().await;
        for _ in 0..5 {
            clock.advance(Duration::from_millis(20));
            // The second from here on has begun after the clock was moved.
            let seen = store.renewals() + 2;
            eventually(async || store.renewals() >= seen).await;
            retry(&server).await.refused(409, "in-progress");
        }
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_run_loses_its_lease_when_it_has_had_its_time() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let lease = Duration::from_millis(30);
        let layer = layer()
            .clock(clock.clone())
            .clock_skew(Duration::ZERO)
            .lease(lease)
            .max_execution(Duration::from_millis(40));
        let gate = runs.gate().clone();
        let handler = runs.running(move |_, number| {
            let gate = gate.clone();
            async move {
                if number == 1 {
                    gate.pass().await;
                }
                text(format!("run {number}"))
            }
        });
        let server = case.serve(&layer, handler).await;
        let first = server.post("/a").key("k").body("x").spawn();
        runs.gate().arrived().await;
        eventually(async || {
            clock.advance(lease + Duration::from_millis(1));
            retry(&server).await.status == 200
        })
        .await;
        assert_eq!(runs.count(), 2);
        // It was not stopped.
        runs.gate().open();
        first.await.expect("no panic").replayed("run 2");
    })
    .await;
}

/// As those of `tower::limit` do it, the future of a service may hold something until it is dropped.
#[tokio::test]
async fn a_call_that_has_ended_holds_nothing_while_its_outcome_is_asked_for() {
    for panics in [false, true] {
        let slots = Arc::new(Semaphore::new(1));
        let free = Arc::new(AtomicUsize::new(usize::MAX));
        let orphan = {
            let (slots, free) = (Arc::clone(&slots), Arc::clone(&free));
            Orphan::reconcile(move |_| {
                free.store(slots.available_permits(), Ordering::SeqCst);
                ready(Reconciled::NotExecuted)
            })
        };
        let mut service = ServiceBuilder::new()
            .layer(layer().orphan(orphan))
            .layer(GlobalConcurrencyLimitLayer::with_semaphore(slots))
            .service_fn(move |_: Request<Body>| async move {
                assert!(!panics, "as it is meant to");
                Err::<Response<Body>, _>("no answer came back")
            });
        let request = Request::post("/a").header("idempotency-key", "k");
        let request = request.body(empty()).expect("it is valid");
        let called = service.ready().await.expect("it is ready").call(request);
        match tokio::spawn(called).await {
            Ok(result) => assert_eq!(result.err(), Some("no answer came back")),
            Err(error) => assert!(panics && error.is_panic()),
        }
        assert_eq!(free.load(Ordering::SeqCst), 1, "panics: {panics}");
    }
}
