//! What the nodes do for their clients: work that must not be done twice.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::sleep;
use tower_idempotency::{Attempt, Orphaned, Reconciled, Timestamp};

use super::event::{End, What, moment};
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
            Some(answer) => Reconciled::Completed(created(Bytes::from(answer.clone()))),
            None => Reconciled::NotExecuted,
        }
    }

    /// The handler.
    pub(super) async fn charge(
        self: Arc<Self>,
        life: Life,
        request: Request<Body>,
    ) -> Response<Body> {
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
                return failed(500);
            }
            2 => {
                ended(End::Answers(400));
                return failed(400);
            }
            _ => {}
        }
        let answer = format!("order {key} run {run} content {content}");
        let is_refused = self.has_effect(key, token, &answer);
        self.history.note(key, What::Effect { run, is_refused });
        if is_refused {
            ended(End::Answers(400));
            return failed(400);
        }
        sleep(random.duration(self.plan.lease / 2)).await;
        life.goes_on().await;
        match fate {
            3 => {
                ended(End::Panics);
                resume_unwind(Box::new("as planned"));
            }
            // What a timeout within makes of it, and what goes wrong after the effect.
            4 => {
                ended(End::Answers(408));
                return failed(408);
            }
            5 => {
                ended(End::Answers(500));
                return failed(500);
            }
            _ => {}
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
}

fn created<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::CREATED;
    response
}

fn failed(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}
