//! Nodes, their business, and clients that do as clients do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower::{Service, service_fn};
use tower_idempotency::store::SharedStore;
use tower_idempotency::{
    Attempt, Clock, IdempotencyLayer, Orphan, Orphaned, Outcome, Reconciled, Timestamp,
};
use tower_layer::Layer;

use super::event::{EPOCH, End, History, Reply, What, moment};
use super::random::Random;
use super::stores::Kind;
use super::watched::{Keys, Life};

/// What an orphan means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Retake,
    Hold,
    Reconcile,
}

/// How a history goes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) policy: Policy,
    pub(crate) answer_unrecorded: bool,
    pub(crate) nodes: usize,
    pub(crate) keys: usize,
    pub(crate) clients: usize,
    pub(crate) requests_each: usize,
    /// Of a hundred calls to the store, so many fail.
    pub(crate) faults: u64,
    /// Nothing waits for as long as chance in the product says.
    pub(crate) is_calm: bool,
    pub(crate) lease: Duration,
    pub(crate) skew: Duration,
    /// Whether the store of record is seen through, call by call.
    pub(crate) is_exact: bool,
}

impl Plan {
    /// How late a call to the store is applied at most.
    pub(crate) fn latest(&self) -> Duration {
        self.lease * 2
    }
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) history: History,
    pub(crate) keys: Keys,
    kind: Kind,
    nodes: Mutex<Vec<Arc<Node>>>,
    /// Shared by all nodes.
    life: Life,
    business: Mutex<HashMap<usize, Business>>,
    requests: AtomicUsize,
    runs: AtomicUsize,
    incarnations: AtomicUsize,
}

/// What the business system knows of a key.
#[derive(Default)]
struct Business {
    starts: u64,
    highest_token: u64,
    answer: Option<String>,
}

struct Node {
    number: usize,
    layer: IdempotencyLayer<SharedStore>,
    life: Life,
}

/// Wall time that begins at the same moment in each history, and differs from node to node.
#[derive(Clone, Copy, Debug)]
struct NodeClock {
    began: Instant,
    ahead: Duration,
}

impl Clock for NodeClock {
    fn now(&self) -> Timestamp {
        EPOCH.plus(self.began.elapsed() + self.ahead)
    }
}

impl World {
    /// Lets a history happen.
    pub(crate) async fn run(plan: Plan, kind: Kind) -> History {
        let world = Arc::new(Self {
            history: History::new(),
            keys: Keys::default(),
            kind,
            nodes: Mutex::default(),
            life: Life::default(),
            business: Mutex::default(),
            requests: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            incarnations: AtomicUsize::new(0),
            plan,
        });
        let began = Instant::now();
        for place in 0..world.plan.nodes {
            let node = world.start_node(place, began);
            locked(&world.nodes).push(node);
        }
        let mut clients = JoinSet::new();
        for client in 0..world.plan.clients {
            clients.spawn(Arc::clone(&world).client(client as u64));
        }
        let crashes = tokio::spawn(Arc::clone(&world).crash_now_and_then(began));
        clients.join_all().await;
        crashes.abort();
        world.come_to_rest().await;
        world.probe().await;
        world.history.clone()
    }

    fn start_node(self: &Arc<Self>, place: usize, began: Instant) -> Arc<Node> {
        let number = self.incarnations.fetch_add(1, Ordering::SeqCst);
        let life = self.life.another();
        let plan = &self.plan;
        let mut random = Random::about(plan.seed, [1, number as u64]);
        let wait = match plan.is_calm || random.happens(50) {
            true => Duration::ZERO,
            false => plan.lease,
        };
        let store = self.kind.store(self, number, &life);
        let layer = IdempotencyLayer::new(store)
            .clock(NodeClock {
                began,
                ahead: plan.skew * u32::try_from(place).expect("few nodes") / 4,
            })
            .namespace(format!("history {}", plan.seed))
            .lease(plan.lease)
            .clock_skew(plan.skew)
            .store_timeout(plan.lease / 4)
            .wait_for_in_flight(wait)
            .answer_unrecorded(plan.answer_unrecorded)
            .orphan(self.policy(&life));
        Arc::new(Node {
            number,
            layer,
            life,
        })
    }

    fn policy(self: &Arc<Self>, life: &Life) -> Orphan<Response<Bytes>> {
        match self.plan.policy {
            Policy::Retake => Orphan::Retake,
            Policy::Hold => Orphan::Hold,
            Policy::Reconcile => {
                let (world, life) = (Arc::clone(self), life.clone());
                Orphan::reconcile(move |orphaned| {
                    Arc::clone(&world).reconcile(life.clone(), orphaned)
                })
            }
        }
    }

    /// Finds an effect, or sees to it that there will be none of an older attempt.
    async fn reconcile(
        self: Arc<Self>,
        life: Life,
        orphaned: Orphaned,
    ) -> Reconciled<Response<Bytes>> {
        let key = number_in(orphaned.key.as_str());
        let token = orphaned.token.as_u64();
        let mut random = Random::about(self.plan.seed, [2, key as u64, token]);
        sleep(random.duration(self.plan.lease / 2)).await;
        life.goes_on().await;
        if !life.is_healed() && random.happens(10) {
            return Reconciled::Unknown;
        }
        let mut business = locked(&self.business);
        let business = business.entry(key).or_default();
        business.highest_token = business.highest_token.max(token);
        let has_effect = business.answer.is_some();
        let token = moment(Timestamp::from_micros(token));
        self.history.note(key, What::Asked { token, has_effect });
        match &business.answer {
            Some(answer) => Reconciled::Completed(created(Bytes::from(answer.clone()))),
            None => Reconciled::NotExecuted,
        }
    }

    /// The handler.
    async fn charge(self: Arc<Self>, life: Life, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let content = number_in(&String::from_utf8_lossy(&body));
        let header = |name| {
            let value: &http::HeaderValue = &parts.headers[name];
            number_in(value.to_str().expect("visible"))
        };
        let (key, request) = (header("idempotency-key"), header("x-request"));
        let attempt = parts.extensions.get::<Attempt>().expect("it is guarded");
        let token = attempt.token().as_u64();
        life.goes_on().await;

        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        let start = {
            let mut business = locked(&self.business);
            let business = business.entry(key).or_default();
            business.starts += 1;
            business.starts
        };
        self.history.note(
            key,
            What::Started {
                run,
                request,
                token: moment(Timestamp::from_micros(token)),
            },
        );
        let mut random = Random::about(self.plan.seed, [3, key as u64, start]);
        let fate = match life.is_healed() {
            true => u64::MAX,
            false => random.below(20),
        };
        let ended = |how| self.history.note(key, What::Ended { run, how });
        // Now and then longer than a lease that is not renewed.
        let at_least = match random.happens(25) && !life.is_healed() {
            true => self.plan.lease,
            false => Duration::ZERO,
        };
        sleep(at_least + random.duration(self.plan.lease * 2)).await;
        life.goes_on().await;
        match fate {
            0 => {
                ended(End::Panics);
                resume_unwind(Box::new("as planned"));
            }
            1 => {
                ended(End::Answers(500));
                return failed();
            }
            _ => {}
        }
        let answer = format!("order {key} run {run} content {content}");
        let is_refused = self.has_effect(key, token, &answer);
        self.history.note(key, What::Effect { run, is_refused });
        if is_refused {
            ended(End::Answers(500));
            return failed();
        }
        sleep(random.duration(self.plan.lease / 2)).await;
        life.goes_on().await;
        if fate == 2 {
            ended(End::Panics);
            resume_unwind(Box::new("as planned"));
        }
        ended(End::Answers(201));
        created(Body::from(answer))
    }

    /// Does what must not be done twice, if the policy is to ask and nobody has asked since.
    fn has_effect(&self, key: usize, token: u64, answer: &str) -> bool {
        let mut business = locked(&self.business);
        let business = business.entry(key).or_default();
        let is_refused = self.plan.policy == Policy::Reconcile && token < business.highest_token;
        if !is_refused {
            business.highest_token = business.highest_token.max(token);
            business.answer.get_or_insert_with(|| answer.to_owned());
        }
        is_refused
    }

    async fn client(self: Arc<Self>, client: u64) {
        let plan = &self.plan;
        let mut random = Random::about(plan.seed, [4, client]);
        for _ in 0..plan.requests_each {
            let key = random.below(plan.keys as u64) as usize;
            let content = u64::from(random.happens(8));
            for _ in 0..4 {
                sleep(random.duration(plan.lease)).await;
                let patience = match random.happens(20) {
                    true => random.duration(plan.lease),
                    false => plan.lease * 100,
                };
                let node = self.node(random.next());
                let reply = self.ask(&node, key, content, patience, false).await;
                if reply.is_some_and(|reply| matches!(reply.status, 201 | 422)) {
                    break;
                }
            }
        }
    }

    fn node(&self, chance: u64) -> Arc<Node> {
        let nodes = locked(&self.nodes);
        Arc::clone(&nodes[(chance % nodes.len() as u64) as usize])
    }

    /// Sends a request, and waits for its answer until `patience` is over or the node dies.
    async fn ask(
        self: &Arc<Self>,
        node: &Node,
        key: usize,
        content: u64,
        patience: Duration,
        is_probe: bool,
    ) -> Option<Reply> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let sent = What::Sent {
            request: number,
            node: node.number,
            content,
            is_probe,
        };
        self.history.note(key, sent);
        let request = Request::post("/charges")
            .header("idempotency-key", format!("order-{key}"))
            .header("x-request", format!("request-{number}"))
            .body(Body::from(format!("content-{content}")))
            .expect("a valid request");
        let (world, life) = (Arc::clone(self), node.life.clone());
        let handler = service_fn(move |request| {
            let charging = Arc::clone(&world).charge(life.clone(), request);
            async move { Ok::<_, Infallible>(charging.await) }
        });
        let mut responding = Box::pin(node.layer.layer(handler).call(request));
        let replying = async move {
            let response = poll_fn(|cx| {
                let polled = catch_unwind(AssertUnwindSafe(|| responding.as_mut().poll(cx)));
                polled.map_or(Poll::Ready(None), |polled| polled.map(Some))
            });
            match response.await {
                Some(Ok(response)) => read(response).await,
                None => Reply {
                    status: 0,
                    outcome: "panicked".to_owned(),
                    body: String::new(),
                },
            }
        };
        let replying = pin!(replying);
        let reply = tokio::select! {
            biased;
            reply = replying => Some(reply),
            () = node.life.ended() => None,
            () = sleep(patience) => None,
        };
        let what = match reply.clone() {
            Some(reply) => What::Answered {
                request: number,
                reply,
            },
            None => What::Left { request: number },
        };
        self.history.note(key, what);
        reply
    }

    /// Nodes die, and others take their places.
    async fn crash_now_and_then(self: Arc<Self>, began: Instant) {
        let mut random = Random::about(self.plan.seed, [5]);
        // One node alone is its own store: when it dies, everything is gone.
        if self.plan.nodes == 1 || self.plan.is_calm {
            return;
        }
        loop {
            sleep(self.plan.lease + random.duration(self.plan.lease * 10)).await;
            let place = random.below(self.plan.nodes as u64) as usize;
            let fresh = self.start_node(place, began);
            let dead = std::mem::replace(&mut locked(&self.nodes)[place], fresh);
            for key in 0..self.plan.keys {
                let node = dead.number;
                self.history.note(key, What::Crashed { node });
            }
            dead.life.end();
        }
    }

    /// No more faults: whatever is on its way arrives, and leases lapse.
    async fn come_to_rest(&self) {
        self.life.heal();
        self.kind.heal();
        sleep(self.plan.latest() + self.plan.lease * 2 + self.plan.skew * 4).await;
        let nodes = locked(&self.nodes).clone();
        for node in nodes {
            let handle = node.layer.handle();
            if timeout(self.plan.lease * 20, handle.idle()).await.is_err() {
                let told = format!("{} runs in flight at {}", handle.in_flight(), node.number);
                self.history.note(0, What::Stuck(told));
            }
        }
    }

    /// Asks for each key what became of it.
    async fn probe(self: &Arc<Self>) {
        for key in 0..self.plan.keys {
            for content in [0, 1] {
                let nodes = locked(&self.nodes).clone();
                for node in nodes {
                    // On real time, a call may fail that nobody made fail.
                    for _ in 0..if self.plan.is_exact { 1 } else { 10 } {
                        let patience = self.plan.lease * 100;
                        let reply = self.ask(&node, key, content, patience, true).await;
                        if reply.is_some_and(|reply| reply.status != 503) {
                            break;
                        }
                        sleep(self.plan.lease).await;
                    }
                }
            }
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number at the end of a text.
fn number_in(text: &str) -> usize {
    let number = text.rsplit('-').next().and_then(|text| text.parse().ok());
    number.expect("it ends with a number")
}

async fn read(response: Response<Body>) -> Reply {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    let outcome = parts.extensions.get::<Outcome>();
    Reply {
        status: parts.status.as_u16(),
        outcome: outcome.map_or_else(String::new, Outcome::to_string),
        body: match parts.status {
            StatusCode::CREATED => String::from_utf8_lossy(&body).into_owned(),
            _ => String::new(),
        },
    }
}

fn created<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::CREATED;
    response
}

fn failed() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
