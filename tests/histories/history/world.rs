//! Nodes, their business, and clients that do as clients do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower::{Service, service_fn};
use tower_idempotency::store::SharedStore;
use tower_idempotency::testing::Living;
use tower_idempotency::{Clock, IdempotencyLayer, Orphan, Outcome, Timestamp};
use tower_layer::Layer;

use super::business::Business;
use super::event::{EPOCH, History, Reply, What};
use super::plan::{Plan, Policy};
use super::random::Random;
use super::stores::Kind;
use super::watched::{Keys, Life};

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) history: History,
    pub(crate) keys: Keys,
    kind: Kind,
    nodes: Mutex<Vec<Arc<Node>>>,
    /// Shared by all nodes.
    life: Life,
    pub(super) business: Mutex<HashMap<usize, Business>>,
    requests: AtomicUsize,
    pub(super) runs: AtomicUsize,
    incarnations: AtomicUsize,
    /// How far all clocks have jumped ahead, in seconds.
    jumped: Arc<AtomicU64>,
}

struct Node {
    number: usize,
    layer: IdempotencyLayer<SharedStore>,
    life: Life,
    waits: bool,
}

/// Wall time that begins at the same moment in each history, and differs from node to node.
#[derive(Clone, Debug)]
struct NodeClock {
    began: Instant,
    ahead: Duration,
    jumped: Arc<AtomicU64>,
}

impl Clock for NodeClock {
    fn now(&self) -> Timestamp {
        let jumped = Duration::from_secs(self.jumped.load(Ordering::SeqCst));
        EPOCH.plus(self.began.elapsed() + self.ahead + jumped)
    }
}

/// How far a clock that jumps is ahead at most, in seconds. No answer expires by that.
const FARTHEST_JUMP: u64 = 8 * 60 * 60;

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
            jumped: Arc::default(),
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
        let jumps = tokio::spawn(Arc::clone(&world).jump_now_and_then());
        clients.join_all().await;
        crashes.abort();
        jumps.abort();
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
            .report_outcome(true)
            .clock(NodeClock {
                began,
                ahead: plan.skew * u32::try_from(place).expect("few nodes") / 4,
                jumped: Arc::clone(&self.jumped),
            })
            .living(Living::of_another_process())
            .namespace(format!("history {}", plan.seed))
            .lease(plan.lease)
            .clock_skew(plan.skew)
            .store_timeout(plan.lease / 4)
            .wait_for_in_flight(wait)
            .answer_unrecorded(plan.answer_unrecorded)
            .orphan(self.policy(&life));
        let layer = match plan.blocks_threads {
            true => layer,
            false => layer.heartbeat_on(Handle::current()),
        };
        Arc::new(Node {
            number,
            layer,
            life,
            waits: !wait.is_zero(),
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
            waits: node.waits,
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
        let life = node.life.clone();
        let replying = async move {
            let mut waking = None;
            let response = poll_fn(|cx| {
                ready!(life.poll_stalled(&mut waking, cx));
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

    /// The clocks go ahead and back, by hours.
    async fn jump_now_and_then(self: Arc<Self>) {
        if !self.plan.clocks_jump {
            return;
        }
        let mut random = Random::about(self.plan.seed, [7]);
        loop {
            sleep(self.plan.lease / 10 + random.duration(self.plan.lease * 3)).await;
            self.jumped
                .store(random.below(FARTHEST_JUMP), Ordering::SeqCst);
        }
    }

    /// No more faults: whatever is on its way arrives, and leases lapse.
    async fn come_to_rest(&self) {
        self.life.heal();
        self.kind.heal();
        if self.plan.clocks_jump {
            // Past every deadline.
            self.jumped.store(FARTHEST_JUMP, Ordering::SeqCst);
        }
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
                        if reply.is_some_and(|reply| !reply.is_for_now()) {
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

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number at the end of a text.
pub(super) fn number_in(text: &str) -> usize {
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
        body: match body.starts_with(b"order ") {
            true => String::from_utf8_lossy(&body).into_owned(),
            // A refusal's sentence is the layer's.
            false => String::new(),
        },
    }
}
