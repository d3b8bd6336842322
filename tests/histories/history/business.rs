//! What the nodes do for their clients: work that must not be done twice.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::sleep;
use tower::{ServiceExt, service_fn};
use tower_http::timeout::TimeoutLayer;
use tower_idempotency::{Attempt, Orphaned, Reconciled, Timestamp};
use tower_layer::Layer;

use super::event::{End, What, body_of_run, moment};
use super::plan::Policy;
use super::random::Random;
use super::watched::Life;
use super::world::{World, locked, number_in};

/// What the business system knows of a key.
#[derive(Default)]
pub(super) struct Business {
    starts: u64,
    highest_token: u64,
    answer: Option<String>,
}

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    GoesWell,
    /// Before the effect.
    Fails(End),
    /// After it.
    FailsLate(End),
    /// A timeout within the layer answers with `status` after so many thousandths of a lease,
    /// before the effect or after it.
    TimesOut {
        status: u16,
        after: u64,
    },
    /// It blocks its thread for longer than its lease, before the effect.
    Blocks,
    /// After it.
    BlocksLate,
}

impl Fate {
    fn by(random: &mut Random) -> Self {
        match random.below(24) {
            0 => Self::Fails(End::Panics),
            1 => Self::Fails(End::Answers(500)),
            2 => Self::Fails(End::Answers(400)),
            3 => Self::FailsLate(End::Panics),
            4 => Self::FailsLate(End::Answers(408)),
            5 => Self::FailsLate(End::Answers(500)),
            kind @ 6..=8 => Self::TimesOut {
                status: if kind == 8 { 408 } else { 504 },
                after: random.below(1_000),
            },
            9 => Self::Blocks,
            10 => Self::BlocksLate,
            _ => Self::GoesWell,
        }
    }
}

/// One run of the handler.
struct Run {
    world: Arc<World>,
    life: Life,
    key: usize,
    content: u64,
    token: u64,
    number: usize,
    fate: Fate,
    random: Random,
    has_ended: AtomicBool,
}

impl World {
    /// Finds an effect, or sees to it that there will be none of an older attempt.
    pub(super) async fn reconcile(
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
            Some(answer) => Reconciled::Completed(response(201, Bytes::from(answer.clone()))),
            None => Reconciled::NotExecuted,
        }
    }

    /// The handler, and a timeout around it that is within the layer.
    pub(super) async fn charge(
        self: Arc<Self>,
        life: Life,
        request: Request<Body>,
    ) -> Response<Body> {
        let run = self.begin(life, request).await;
        let Fate::TimesOut { status, after } = run.fate else {
            return run.work().await;
        };
        let limit = run.world.plan.lease.mul_f64(after as f64 / 1_000.0);
        let run = Arc::new(run);
        let running = Arc::clone(&run);
        let handler = service_fn(move |_: Request<Body>| {
            let run = Arc::clone(&running);
            async move { Ok::<_, Infallible>(run.work().await) }
        });
        let status_code = StatusCode::from_u16(status).expect("a status");
        let timeout = TimeoutLayer::with_status_code(status_code, limit);
        let answered = timeout.layer(handler).oneshot(Request::default()).await;
        match answered {
            Ok(answer) if run.has_ended.load(Ordering::SeqCst) => answer,
            _ => run.answers(status),
        }
    }

    async fn begin(self: Arc<Self>, life: Life, request: Request<Body>) -> Run {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let content = number_in(&String::from_utf8_lossy(&body)) as u64;
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
            true => Fate::GoesWell,
            false => Fate::by(&mut random),
        };
        Run {
            world: self,
            life,
            key,
            content,
            token,
            number: run,
            fate,
            random,
            has_ended: AtomicBool::new(false),
        }
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
}

impl Run {
    async fn work(&self) -> Response<Body> {
        let Self { world, life, .. } = self;
        let lease = world.plan.lease;
        let mut random = self.random.clone();
        // Now and then longer than a lease that is not renewed.
        let at_least = match random.happens(25) && !life.is_healed() {
            true => lease,
            false => Duration::ZERO,
        };
        sleep(at_least + random.duration(lease * 2)).await;
        life.goes_on().await;
        match self.fate {
            Fate::Fails(how) => return self.fails(how),
            Fate::Blocks => self.block(&mut random).await,
            _ => {}
        }
        let answer = body_of_run(self.key, self.number, 201, self.content);
        let is_refused = world.has_effect(self.key, self.token, &answer);
        let run = self.number;
        let effect = What::Effect { run, is_refused };
        world.history.note(self.key, effect);
        if is_refused {
            return self.answers(400);
        }
        sleep(random.duration(lease / 2)).await;
        life.goes_on().await;
        match self.fate {
            // What goes wrong after the effect.
            Fate::FailsLate(how) => return self.fails(how),
            Fate::BlocksLate => self.block(&mut random).await,
            _ => {}
        }
        self.answers(201)
    }

    /// Keeps the thread to itself for longer than its lease lasts without a heartbeat.
    async fn block(&self, random: &mut Random) {
        let plan = &self.world.plan;
        let blocked = plan.past_a_lease() + random.duration(plan.lease);
        match plan.blocks_threads {
            true => thread::sleep(blocked),
            false => {
                self.life.stall(blocked);
                sleep(blocked).await;
            }
        }
        self.life.goes_on().await;
    }

    fn fails(&self, how: End) -> Response<Body> {
        match how {
            End::Answers(status) => self.answers(status),
            End::Panics => {
                self.ended(how);
                resume_unwind(Box::new("as planned"));
            }
        }
    }

    fn answers(&self, status: u16) -> Response<Body> {
        self.ended(End::Answers(status));
        let body = body_of_run(self.key, self.number, status, self.content);
        response(status, Body::from(body))
    }

    fn ended(&self, how: End) {
        self.has_ended.store(true, Ordering::SeqCst);
        let run = self.number;
        self.world.history.note(self.key, What::Ended { run, how });
    }
}

fn response<B>(status: u16, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}
