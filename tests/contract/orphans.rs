//! Runs whose outcome is unknown, because they failed or because nobody has heard of them for too
//! long.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::error::Overloaded;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_http::timeout::TimeoutLayer;
use tower_idempotency::record::{FencingToken, Record};
use tower_idempotency::store::{MemoryStore, Store};
use tower_idempotency::{
    Attempt, AttemptEnded, End, IdempotencyKey, IdempotencyLayer, Orphan, Reconciled,
    RecordingOverride,
};

use tower_idempotency::testing::ManualClock;

use crate::support::{
    Body, BoxError, Case, Gate, NONE, Runs, Server, Stack, channel, elsewhere, empty, eventually,
    for_each_stack, layer, serve, still_clock, text,
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
    /// The work was done, and then something else went wrong.
    Status(u16),
}

const FAILURES: [Failure; 5] = [
    Failure::Panic,
    Failure::Error,
    Failure::BrokenResponse,
    Failure::Status(500),
    Failure::Status(408),
];

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
                Failure::Status(status) => Ok(with_status(status, "something went wrong")),
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
        (Failure::Status(status), _, Ok(answer)) => {
            assert_eq!(
                (answer.status.as_u16(), &answer.body[..]),
                (status, &b"something went wrong"[..])
            );
        }
        (_, _, first) => assert!(first.is_err(), "{first:?}"),
    }
    // A panic ends the connection perhaps before the key has been seen to.
    layer.handle().idle().await;
    assert_eq!(runs.count(), 1);
    (server, runs)
}

fn with_status(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = text(body);
    *response.status_mut() = status.try_into().expect("a status");
    response
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

/// A layer for two nodes, which have two host names here: its keys belong to one tenant.
fn on_two_nodes() -> IdempotencyLayer<MemoryStore> {
    layer().scope(|_| Some("tenant".into()))
}

/// A server on whose key `k` the first run, in another process, has outlived its lease, and stands
/// at the gate. Those after it answer at once.
struct Lost {
    server: Server,
    _elsewhere: Server,
    runs: Runs,
    clock: ManualClock,
    layer: IdempotencyLayer<MemoryStore>,
    first: tokio::task::JoinHandle<crate::support::Answer>,
}

impl Lost {
    async fn after(case: Case, orphan: Orphan<Response<Bytes>>, time: Duration) -> Self {
        let clock = still_clock();
        let layer = on_two_nodes().clock(clock.clone()).orphan(orphan);
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
        let elsewhere = case.serve(&elsewhere(&layer), handler.clone()).await;
        let server = case.serve(&layer, handler).await;
        let first = elsewhere.post("/a").key("k").body("x").spawn();
        runs.gate().arrived().await;
        clock.advance(time);
        Self {
            server,
            _elsewhere: elsewhere,
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
        let layer = on_two_nodes().clock(clock.clone());
        let elsewhere = case.serve(&elsewhere(&layer), handler.clone()).await;
        let server = case.serve(&layer, handler).await;
        let first = elsewhere.post("/a").key("k").body("x").spawn();
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
        let layer = on_two_nodes().clock(clock.clone());
        let elsewhere = case.serve(&elsewhere(&layer), handler.clone()).await;
        let server = case.serve(&layer, handler).await;
        let _first = elsewhere.post("/a").key("k").body("x").spawn();
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

// What a layer within makes of a run.

const TIMEOUTS: [StatusCode; 2] = [StatusCode::REQUEST_TIMEOUT, StatusCode::GATEWAY_TIMEOUT];

/// A server whose handler charges, and then takes longer than a timeout within lets it.
async fn timed_out(
    case: Case,
    layer: IdempotencyLayer<MemoryStore>,
    status: StatusCode,
) -> (Server, Runs) {
    let runs = Runs::default();
    let handler = runs.running(|_, _| std::future::pending());
    let short = Duration::from_millis(20);
    let timeout = TimeoutLayer::with_status_code(status, short);
    let server = serve!(case, NONE, layer, timeout, handler);
    assert_eq!(retry(&server).await.status, status);
    (server, runs)
}

#[tokio::test]
async fn a_timeout_within_leaves_an_unknown_outcome() {
    for_each_stack(|case| async move {
        for status in TIMEOUTS {
            let held = layer().orphan(Orphan::Hold);
            let (server, runs) = timed_out(case, held, status).await;
            for _ in 0..2 {
                retry(&server).await.refused(409, "outcome-unknown");
            }
            assert_eq!(runs.count(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_timeout_within_has_cut_off_is_asked_for_once() {
    for_each_stack(|case| async move {
        for status in TIMEOUTS {
            let business = Business::saying(Reconciled::Completed("charged"));
            let layer = layer().orphan(business.orphan());
            let (server, runs) = timed_out(case, layer, status).await;
            for _ in 0..2 {
                retry(&server).await.replayed("charged");
            }
            assert_eq!((runs.count(), business.asked()), (1, 1));
        }
    })
    .await;
}

#[tokio::test]
async fn an_orphan_keeps_the_status_of_its_response() {
    for_each_stack(|case| async move {
        for (path, status) in [("/504", Some(504)), ("/200", Some(200)), ("/panic", None)] {
            let keys: Arc<std::sync::Mutex<Vec<IdempotencyKey>>> = Arc::default();
            let seen = Arc::clone(&keys);
            let handler = Runs::default().answering(move |request, _| {
                let attempt = request.extensions().get::<Attempt>().cloned();
                let key = attempt.expect("it is guarded").key().clone();
                seen.lock().expect("not poisoned").push(key);
                match request.uri().path() {
                    "/504" => with_status(504, "too late"),
                    "/200" => {
                        let (sender, body) = channel();
                        sender.fail("the disk is gone");
                        Response::new(body)
                    }
                    _ => panic!("as planned"),
                }
            });
            let clock = still_clock();
            let layer = layer().orphan(Orphan::Hold).clock(clock.clone());
            let server = case.serve(&layer, handler).await;
            let _ = server.post(path).key("k").try_send().await;
            layer.handle().idle().await;
            let key = keys.lock().expect("not poisoned")[0].clone();
            let store = layer.executor().store();
            let now = tower_idempotency::Clock::now(&clock);
            let record = store.get(key.record_key(), now).await;
            let record = record.expect("the store answers");
            match record.map(|record| record.by_clock(now)) {
                Some(Record::InProgress(lease)) => assert_eq!(lease.first_status, status),
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_orphan_is_kept_for_the_retention_after_its_end() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let handler = runs.running(move |_, number| {
            let gate = gate.clone();
            async move {
                if number == 1 {
                    gate.pass().await;
                    panic!("as planned");
                }
                text(format!("run {number}"))
            }
        });
        let retention = Duration::from_secs(60);
        let layer = layer()
            .clock(clock.clone())
            .orphan(Orphan::Hold)
            .retention(retention);
        let server = case.serve(&layer, handler).await;
        let call = server.post("/a").key("k").body("x");
        let first = tokio::spawn(call.try_send());
        runs.gate().arrived().await;
        clock.advance(retention + Duration::from_secs(1));
        runs.gate().open();
        let _ = first.await.expect("no panic");
        layer.handle().idle().await;
        retry(&server).await.refused(409, "outcome-unknown");
        clock.advance(retention - Duration::from_secs(1));
        retry(&server).await.refused(409, "outcome-unknown");
        assert_eq!(runs.count(), 1);
        clock.advance(Duration::from_secs(1));
        retry(&server).await.ran("run 2");
    })
    .await;
}

// What the business system answers goes the way of any response.

#[tokio::test]
async fn a_reconciled_answer_is_stored_as_any_response() {
    for_each_stack(|case| async move {
        let orphan = Orphan::reconcile(async |_| {
            let mut found = Response::new(Bytes::from("charged"));
            let fields = [
                ("connection", "close, x-hop"),
                ("content-length", "3"),
                ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("set-cookie", "a=1"),
                ("transfer-encoding", "chunked"),
                ("x-hop", "1"),
                ("x-kept", "1"),
            ];
            for (name, value) in fields {
                let value = HeaderValue::from_static(value);
                found.headers_mut().insert(name, value);
            }
            Reconciled::Completed(found)
        });
        let layer = layer().orphan(orphan);
        let (server, _) = failed(case, &layer, Failure::Status(500)).await;
        for _ in 0..2 {
            let answer = retry(&server).await;
            answer.replayed("charged");
            for name in ["set-cookie", "transfer-encoding", "x-hop"] {
                assert_eq!(answer.values(name), [b""; 0], "{name}");
            }
            assert_eq!(answer.values("x-kept"), [b"1"]);
            assert_eq!(answer.values("content-length"), [b"7"]);
            assert_ne!(answer.values("date"), [b"Sun, 06 Nov 1994 08:49:37 GMT"]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_reconciled_answer_that_is_too_large_is_not_stored() {
    for_each_stack(|case| async move {
        for failure in [Failure::Error, Failure::Status(500)] {
            let business = Business::saying(Reconciled::Completed("charged"));
            // Whatever is set first.
            let layer = layer().orphan(business.orphan()).max_response_body(6);
            let (server, runs) = failed(case, &layer, failure).await;
            for _ in 0..2 {
                retry(&server).await.refused(409, "response-not-stored");
            }
            assert_eq!((runs.count(), business.asked()), (1, 1));
        }
    })
    .await;
}

// The point of no return.

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Panic,
    Status(u16),
    Broken,
    Late,
}

/// What a retry gets of a handler that announces its effects, perhaps begins them, and ends so.
/// Under `Hold`, so that what is unknown shows.
async fn left(
    case: Case,
    layer: IdempotencyLayer<MemoryStore>,
    begins: bool,
    leaves: Leaves,
) -> crate::support::Answer {
    let announces_itself = !begins || matches!(leaves, Leaves::Panic);
    let runs = Runs::default();
    let handler = runs.running(move |request, number| async move {
        if number > 1 {
            return text("run 2");
        }
        let attempt = request.extensions().get::<Attempt>().cloned();
        let attempt = attempt.expect("it is guarded");
        if announces_itself {
            attempt.announce_effects();
        }
        if begins {
            attempt.begin_effects().expect("it has not ended");
        }
        tokio::task::yield_now().await;
        match leaves {
            Leaves::Panic => panic!("as planned"),
            Leaves::Status(status) => with_status(status, "run 1"),
            Leaves::Broken => {
                let (sender, body) = channel();
                sender.fail("the disk is gone");
                Response::new(body)
            }
            Leaves::Late => std::future::pending().await,
        }
    });
    // On a busy machine, others may need a while.
    let patience = match leaves {
        Leaves::Late => Duration::from_millis(20),
        _ => Duration::from_secs(60),
    };
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, patience);
    let layer = layer.orphan(Orphan::Hold);
    let server = serve!(case, NONE, layer, timeout, handler);
    let _ = server.post("/a").key("k").body("x").try_send().await;
    layer.handle().idle().await;
    retry(&server).await
}

#[tokio::test]
async fn before_its_effects_begin_a_run_has_done_nothing_however_it_ends() {
    for leaves in [
        Leaves::Panic,
        Leaves::Status(422),
        Leaves::Status(499),
        Leaves::Status(500),
        Leaves::Broken,
        Leaves::Late,
    ] {
        for_each_stack(|case| async move {
            left(case, layer(), false, leaves).await.ran("run 2");
        })
        .await;
    }
    for_each_stack(|case| async move {
        let answer = left(case, layer(), false, Leaves::Status(201)).await;
        assert_eq!(answer.status, 201);
        assert!(
            answer.is_replayed(),
            "a success is one without effects, too"
        );
    })
    .await;
}

#[tokio::test]
async fn after_its_effects_have_begun_a_4xx_is_final_and_other_failures_are_unknown() {
    for leaves in [
        Leaves::Panic,
        Leaves::Status(424),
        Leaves::Status(499),
        Leaves::Status(500),
        Leaves::Status(501),
        Leaves::Broken,
        Leaves::Late,
    ] {
        for_each_stack(|case| async move {
            let answer = left(case, layer(), true, leaves).await;
            answer.refused(409, "outcome-unknown");
        })
        .await;
    }
    for status in [201, 402, 404, 409, 422] {
        for_each_stack(|case| async move {
            let answer = left(case, layer(), true, Leaves::Status(status)).await;
            assert_eq!(answer.status, status);
            assert!(answer.is_replayed());
        })
        .await;
    }
}

#[tokio::test]
async fn a_layer_may_say_of_all_handlers_that_they_announce_their_effects() {
    for_each_stack(|case| async move {
        for (announces, expected) in [(true, "run again"), (false, "held")] {
            let layer = layer().announces_effects(announces).orphan(Orphan::Hold);
            let (server, _) = failed(case, &layer, Failure::Status(500)).await;
            let answer = retry(&server).await;
            match expected {
                "held" => {
                    answer.refused(409, "outcome-unknown");
                }
                _ => {
                    answer.ran("run 2");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_handler_says_of_its_response_counts_more_than_its_effects() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.answering(|request, _| {
            let attempt = request.extensions().get::<Attempt>().cloned();
            attempt.expect("it is guarded").announce_effects();
            let mut response = with_status(500, "declined");
            response.extensions_mut().insert(RecordingOverride::Final);
            response
        });
        let server = case.serve(&layer(), handler).await;
        retry(&server).await;
        assert!(retry(&server).await.is_replayed());
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_task_that_a_timeout_has_left_behind_must_not_begin() {
    for_each_stack(|case| async move {
        let (began, begins) = tokio::sync::oneshot::channel();
        let began = Arc::new(std::sync::Mutex::new(Some(began)));
        let gate = Gate::default();
        let late = gate.clone();
        let handler = Runs::default().running(move |request, number| {
            let (began, late) = (Arc::clone(&began), late.clone());
            async move {
                if number > 1 {
                    return text("run 2");
                }
                let attempt = request.extensions().get::<Attempt>().cloned();
                let attempt = attempt.expect("it is guarded");
                attempt.announce_effects();
                let began = began.lock().expect("not poisoned").take();
                tokio::spawn(async move {
                    late.pass().await;
                    let began = began.expect("it runs once");
                    began
                        .send(attempt.begin_effects())
                        .expect("the test listens");
                });
                std::future::pending().await
            }
        });
        let short = Duration::from_millis(20);
        let status = StatusCode::REQUEST_TIMEOUT;
        let timeout = TimeoutLayer::with_status_code(status, short);
        let layer = layer();
        let server = serve!(case, NONE, layer, timeout, handler);
        assert_eq!(retry(&server).await.status, status);
        gate.open();
        assert_eq!(begins.await, Ok(Err(AttemptEnded)));
        retry(&server).await.ran("run 2");
    })
    .await;
}

// Errors of the service within.

/// Makes an error of tower's own, and says what a retry gets, under `Hold`.
async fn after_an_error_of_tower(
    layer: IdempotencyLayer<MemoryStore>,
    is_overloaded: bool,
) -> Response<Body> {
    let gate = Gate::default();
    let held_up = gate.clone();
    let layer = layer.orphan(Orphan::Hold);
    let mut service = ServiceBuilder::new()
        .layer(layer)
        .load_shed()
        .concurrency_limit(1)
        .timeout(Duration::from_millis(200))
        .service_fn(move |request: Request<Body>| {
            let gate = held_up.clone();
            async move {
                if request.uri().path() == "/slow" {
                    gate.pass().await;
                }
                Ok::<_, BoxError>(text("done"))
            }
        });
    let request = |path, key| {
        let request = Request::post(path).header("idempotency-key", key);
        request.body(empty()).expect("it is valid")
    };
    let slow = service
        .ready()
        .await
        .expect("it is ready")
        .call(request("/slow", "slow"));
    let slow = tokio::spawn(slow);
    gate.arrived().await;
    let key = match is_overloaded {
        true => {
            let call = service
                .ready()
                .await
                .expect("it is ready")
                .call(request("/a", "k"));
            let error = call.await.expect_err("it is overloaded");
            assert!(error.is::<Overloaded>(), "{error}");
            gate.open();
            slow.await.expect("no panic").expect("it is done");
            ("/a", "k")
        }
        false => {
            let error = slow
                .await
                .expect("no panic")
                .expect_err("it takes too long");
            assert!(error.is::<tower::timeout::error::Elapsed>(), "{error}");
            gate.open_for_good();
            ("/slow", "slow")
        }
    };
    let call = service
        .ready()
        .await
        .expect("it is ready")
        .call(request(key.0, key.1));
    call.await.expect("it does not fail")
}

fn classified(layer: IdempotencyLayer<MemoryStore>) -> IdempotencyLayer<MemoryStore> {
    layer
        .classify_error(|_: &std::io::Error| panic!("it is of another type"))
        .classify_error(|error: &BoxError| match error.is::<Overloaded>() {
            true => End::NothingDone,
            false => End::Unknown,
        })
}

#[tokio::test]
async fn an_error_of_the_service_within_can_be_classified() {
    let overloaded = after_an_error_of_tower(classified(layer()), true).await;
    assert_eq!(overloaded.status(), StatusCode::OK, "it ran now");
    let elapsed = after_an_error_of_tower(classified(layer()), false).await;
    assert_eq!(elapsed.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn an_error_that_nobody_classifies_is_unknown() {
    for (panics, is_overloaded) in [(false, true), (false, false), (true, true)] {
        let layer = match panics {
            true => layer().classify_error(|_: &BoxError| panic!("as planned")),
            false => layer(),
        };
        let answer = after_an_error_of_tower(layer, is_overloaded).await;
        assert_eq!(answer.status(), StatusCode::CONFLICT);
    }
}

#[tokio::test]
async fn an_error_that_is_final_is_recorded_as_not_stored() {
    for_each_stack(|case| async move {
        let layer = layer().classify_error(|_: &BoxError| End::Final);
        let (server, runs) = failed(case, &layer, Failure::Error).await;
        retry(&server).await.refused(409, "response-not-stored");
        assert_eq!(runs.count(), 1);
    })
    .await;
}
