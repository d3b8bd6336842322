//! A layer over a store, a handler that is watched, and what must hold when a request is gone.

use std::convert::Infallible;
use std::future::pending;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tower_idempotency::store::{SharedStore, Store};
use tower_idempotency::testing::{Living, ManualClock, TokioClock};
use tower_idempotency::{Clock, IdempotencyLayer, Orphan, Reconciled, Timestamp};

use super::door::{Door, Reply, Replying, call, run};
use super::dropping::answer;
use super::scenario::Scenario;
use super::stores::Stores;
use crate::pace::{Alive, pause};

const LEASE: Duration = Duration::from_secs(30);

/// The time that a store lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    Paused,
    Real,
}

impl Time {
    /// How many requests are dropped at the same time.
    pub(crate) const fn at_once(self) -> usize {
        match self {
            Self::Paused => 1,
            Self::Real => 8,
        }
    }

    /// How long a run takes that another request waits for.
    const fn of_run(self) -> Duration {
        match self {
            Self::Paused => Duration::from_secs(2),
            Self::Real => Duration::from_millis(20),
        }
    }

    /// How long it may take until everything is at rest that nobody waits for.
    const fn to_rest(self) -> Duration {
        match self {
            Self::Paused => Duration::from_millis(200),
            Self::Real => Duration::from_secs(10),
        }
    }
}

/// What the handler has done.
#[derive(Default)]
struct Ledger {
    started: AtomicUsize,
    effects: AtomicUsize,
}

pub(crate) struct Fixture<St> {
    layer: IdempotencyLayer<St>,
    /// That of another process.
    elsewhere: IdempotencyLayer<SharedStore>,
    ledger: Arc<Ledger>,
    alive: Alive,
    scenario: Scenario,
    door: Door,
    key: String,
    time: Time,
}

impl<St: Store> Fixture<St> {
    /// What is there before the request that is dropped.
    pub(crate) async fn new(
        stores: Stores<St>,
        scenario: Scenario,
        door: Door,
        time: Time,
    ) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let key = format!("order-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if scenario.has_orphan() {
            leave_orphan(stores.far.clone(), door, &key).await;
        }
        if scenario == Scenario::CompletionFails {
            stores.fail_completions();
        }
        let wait = match scenario {
            scenario if scenario.waits() => Duration::from_secs(60),
            _ => Duration::ZERO,
        };
        let elsewhere = IdempotencyLayer::new(stores.far.clone())
            .report_outcome(true)
            .clock(TokioClock::new())
            .living(Living::of_another_process())
            .heartbeat_on(Handle::current())
            .lease(LEASE)
            .max_response_body(20);
        let fixture = Self {
            elsewhere,
            layer: IdempotencyLayer::new(stores.store)
                .report_outcome(true)
                .clock(TokioClock::new())
                .heartbeat_on(Handle::current())
                .lease(LEASE)
                .orphan(policy(scenario))
                .wait_for_in_flight(wait)
                .max_response_body(20),
            ledger: Arc::default(),
            alive: Alive::default(),
            scenario,
            door,
            key,
            time,
        };
        match scenario {
            scenario if scenario.waits() => {
                tokio::spawn(match scenario {
                    Scenario::Waits => fixture.request(),
                    _ => fixture.request_by(&fixture.elsewhere),
                });
                while fixture.started() == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            Scenario::Replay => {
                let first = answer(fixture.request()).await;
                assert!(first.is(201, "executed: stored"), "{first:?}");
            }
            _ => {}
        }
        fixture
    }

    fn started(&self) -> usize {
        self.ledger.started.load(Ordering::SeqCst)
    }

    /// The request, which was called and not polled yet.
    pub(crate) fn request(&self) -> Replying {
        self.request_by(&self.layer)
    }

    fn request_by<S: Store>(&self, layer: &IdempotencyLayer<S>) -> Replying {
        let (ledger, scenario, time) = (Arc::clone(&self.ledger), self.scenario, self.time);
        match self.door {
            Door::Layer => {
                let alive = self.alive.clone();
                let handler = move |request| {
                    let (ledger, alive) = (Arc::clone(&ledger), alive.clone());
                    async move { Ok(handle(scenario, time, &ledger, &alive, request).await) }
                };
                call(layer, &self.key, &self.alive, handler)
            }
            Door::Executor => {
                let work = async move || work(scenario, time, &ledger).await;
                run(layer, &self.key, work)
            }
        }
    }

    /// After a request was dropped, or got `answer`: everything comes to rest, what was done was
    /// done once and is answered to a retry, and what was not is done by the retry at once.
    pub(crate) async fn check(&self, dropped: Option<Reply>, told: &str) {
        let handle = self.layer.handle();
        if self.scenario.waits() && self.time == Time::Paused {
            sleep(self.time.of_run() / 2).await;
            self.no_body_is_left(told).await;
        }
        let at_rest = timeout(LEASE / 3, handle.idle()).await;
        assert!(at_rest.is_ok(), "{told}: {} in flight", handle.in_flight());
        self.no_body_is_left(told).await;

        let started = self.started();
        let mut retry = answer(self.request()).await;
        let fails_first = matches!(self.scenario, Scenario::Panics | Scenario::Answers500);
        if fails_first && started == 0 {
            assert!(is_failure(&retry), "{told}: {retry:?}");
            retry = answer(self.request()).await;
        }
        let told = format!("{told}: {dropped:?} and then {retry:?}, {started} started before");
        let executed = match (self.scenario, self.door) {
            (Scenario::CompletionFails, Door::Layer) => "executed: pending",
            _ => "executed: stored",
        };
        let stored = retry.is(201, executed);
        let replayed = retry.is(201, "replayed");
        match self.scenario {
            Scenario::Hold => assert!(retry.is(409, "refused: outcome-unknown"), "{told}"),
            Scenario::ReconcileFound => {
                assert!(
                    retry.is(200, "replayed") && retry.body() == "found",
                    "{told}"
                );
            }
            Scenario::TooLong if started > 0 => {
                assert!(retry.is(409, "refused: response-not-stored"), "{told}");
            }
            Scenario::TooLong => {
                assert!(retry.is(201, "executed: not-stored"), "{told}");
                assert_eq!(retry.body(), LONG_BODY.concat(), "{told}");
            }
            Scenario::Panics | Scenario::Answers500 => assert!(stored, "{told}"),
            _ if started > 0 => assert!(replayed && retry.body() == "run 1", "{told}"),
            _ => assert!(stored && retry.body() == "run 1", "{told}"),
        }
        // Until the store has taken what it did not take at first.
        let at_rest = timeout(LEASE / 3, handle.idle()).await;
        assert!(at_rest.is_ok(), "{told}: {} in flight", handle.in_flight());
        let again = answer(self.request()).await;
        if stored || replayed {
            assert!(again.is(201, "replayed"), "{told}: {again:?}");
            assert_eq!(again.body(), retry.body(), "{told}");
        }
        for reply in dropped.iter().chain([&retry, &again]) {
            if let Reply::Answered {
                status: 201,
                has_trailers,
                ..
            } = reply
            {
                assert!(has_trailers, "{told}: {reply:?}");
            }
        }
        let (runs, effects) = match self.scenario {
            Scenario::Hold | Scenario::ReconcileFound => (0, 0),
            Scenario::Panics | Scenario::Answers500 => (2, 1),
            _ => (1, 1),
        };
        assert_eq!(self.started(), runs, "{told}: runs");
        let done = self.ledger.effects.load(Ordering::SeqCst);
        assert_eq!(done, effects, "{told}: effects");
        assert_eq!(handle.in_flight(), 0, "{told}");
        self.no_body_is_left(&told).await;
    }

    /// Soon after whoever wanted them has gone.
    async fn no_body_is_left(&self, told: &str) {
        let gone = async {
            while self.alive.count() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let soon = timeout(self.time.to_rest(), gone).await;
        assert!(soon.is_ok(), "{told}: a body is still in memory");
    }
}

fn is_failure(reply: &Reply) -> bool {
    *reply == Reply::Panicked || reply.is(500, "executed: released")
}

fn policy(scenario: Scenario) -> Orphan<Response<Bytes>> {
    match scenario {
        Scenario::Hold => Orphan::Hold,
        Scenario::ReconcileFound => Orphan::reconcile(|_| async {
            pause(3).await;
            Reconciled::Completed(Response::new(Bytes::from_static(b"found")))
        }),
        Scenario::ReconcileNotExecuted => Orphan::reconcile(|_| async {
            pause(3).await;
            Reconciled::NotExecuted
        }),
        _ => Orphan::Retake,
    }
}

/// A run of a node that vanishes in the middle of it: it never ends, and its clock is far
/// behind, so that its lease has lapsed.
async fn leave_orphan(far: SharedStore, door: Door, key: &str) {
    let an_hour_ago = TokioClock::new().now().as_micros() - 3_600_000_000;
    let clock = ManualClock::starting_at(Timestamp::from_micros(an_hour_ago));
    let layer = IdempotencyLayer::new(far)
        .clock(clock)
        .living(Living::of_another_process())
        .lease(LEASE)
        .report_outcome(true);
    let has_begun = Arc::new(tokio::sync::Semaphore::new(0));
    let begun = Arc::clone(&has_begun);
    let request = match door {
        Door::Layer => call(&layer, key, &Alive::default(), move |_| {
            begun.add_permits(1);
            pending()
        }),
        Door::Executor => run(&layer, key, async move || {
            begun.add_permits(1);
            pending().await
        }),
    };
    tokio::spawn(request);
    drop(has_begun.acquire().await.expect("it is not closed"));
}

const LONG_BODY: [&str; 4] = ["0123456789", "0123456789", "0123456789", "0123456789"];

async fn handle(
    scenario: Scenario,
    time: Time,
    ledger: &Ledger,
    alive: &Alive,
    request: Request<Body>,
) -> Response<Body> {
    let run = ledger.started.fetch_add(1, Ordering::SeqCst) + 1;
    pause(2).await;
    let body = request.into_body().collect().await;
    assert_eq!(body.expect("a whole body").to_bytes(), "amount=1200");
    match scenario {
        // Without a word from the panic hook.
        Scenario::Panics if run == 1 => resume_unwind(Box::new("as planned")),
        Scenario::Answers500 if run == 1 => {
            let mut response = Response::new(alive.body(&["no"]));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        }
        scenario if scenario.waits() => sleep(time.of_run()).await,
        _ => {}
    }
    ledger.effects.fetch_add(1, Ordering::SeqCst);
    pause(2).await;
    let body = match scenario {
        Scenario::TooLong => alive.body(&LONG_BODY),
        _ => alive.body(&["run", " ", &run.to_string()]),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::CREATED;
    response
}

async fn work(scenario: Scenario, time: Time, ledger: &Ledger) -> Result<String, Infallible> {
    let run = ledger.started.fetch_add(1, Ordering::SeqCst) + 1;
    pause(2).await;
    match scenario {
        // Without a word from the panic hook.
        Scenario::Panics if run == 1 => resume_unwind(Box::new("as planned")),
        scenario if scenario.waits() => sleep(time.of_run()).await,
        _ => {}
    }
    ledger.effects.fetch_add(1, Ordering::SeqCst);
    pause(2).await;
    Ok(format!("run {run}"))
}
