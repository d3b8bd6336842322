//! Handlers that go wrong within the layer: they block their thread for longer than their lease, or
//! a timeout answers for them. Each payment is troubled once, whichever process runs it first.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use clap::Args;
use http::StatusCode;
use tokio::time::sleep;
use tower::{ServiceExt, service_fn};
use tower_http::timeout::TimeoutLayer;
use tower_idempotency::Attempt;
use tower_layer::Layer;

use crate::clients::payment_of;
use crate::journal::Journal;

/// How long the timeout within waits for a handler.
const LIMIT: Duration = Duration::from_millis(200);
/// About as long as a charge takes, so that it is cut off in the middle now and then.
const ABOUT_A_CHARGE: Duration = Duration::from_millis(3);

/// How many payments are troubled.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// How many handlers block their thread for longer than their lease, every other one after its
    /// charge.
    #[arg(long, default_value_t = 20)]
    pub(crate) blocked: usize,
    /// How many handlers have a timeout within the layer that answers for them: before their charge,
    /// after it, or in the middle of it.
    #[arg(long, default_value_t = 60)]
    pub(crate) timeouts: usize,
}

/// What a node has to know.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) counts: Counts,
    /// How many payments there are.
    #[arg(long)]
    pub(crate) requests: usize,
    /// How long a handler blocks.
    #[arg(long)]
    pub(crate) block_millis: u64,
    /// Where it is noted which payments were troubled.
    #[arg(long)]
    pub(crate) troubled: PathBuf,
}

/// What happens to a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Blocks { when: When },
    TimesOut { when: When, status: StatusCode },
}

/// Where in the handler it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    BeforeTheCharge,
    AfterTheCharge,
    /// At about the same time.
    Meanwhile,
}

impl Counts {
    /// What happens to the `payment`-th of so many, by an even spread.
    fn trouble(self, payment: usize, requests: usize) -> Option<Trouble> {
        let Self { blocked, timeouts } = self;
        let number = newly_in(payment, blocked + timeouts, requests)?;
        Some(match newly_in(number, blocked, blocked + timeouts) {
            Some(number) => Trouble::Blocks {
                when: [When::BeforeTheCharge, When::AfterTheCharge][number % 2],
            },
            None => Trouble::TimesOut {
                when: [When::BeforeTheCharge, When::AfterTheCharge, When::Meanwhile][number % 3],
                status: match number / 3 % 2 {
                    0 => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::REQUEST_TIMEOUT,
                },
            },
        })
    }
}

/// Which of `count` that are spread evenly over `all` the `place`-th is, if it is one of them.
fn newly_in(place: usize, count: usize, all: usize) -> Option<usize> {
    let before = |place: usize| (place * count).checked_div(all);
    let number = before(place).filter(|number| *number < count)?;
    (before(place + 1)? > number).then_some(number)
}

impl Plan {
    /// Troubles the handlers of `routes` as planned, and notes it in the journal.
    pub(crate) fn around(self, journal: &Journal, routes: Router) -> Router {
        let (plan, journal) = (Arc::new(self), journal.clone());
        routes.layer(from_fn(move |request: Request, next: Next| {
            let (plan, journal) = (Arc::clone(&plan), journal.clone());
            async move { plan.troubled(&journal, request, next).await }
        }))
    }

    async fn troubled(&self, journal: &Journal, request: Request, next: Next) -> Response {
        let attempt = request.extensions().get::<Attempt>().cloned();
        let planned = attempt.and_then(|attempt| {
            let key = attempt.key().as_str();
            let trouble = self.counts.trouble(payment_of(key)?, self.requests)?;
            self.is_first(key).then_some((attempt, trouble))
        });
        match planned {
            None => next.run(request).await,
            Some((attempt, Trouble::Blocks { when })) => {
                let block = || {
                    journal.blocks(&attempt);
                    thread::sleep(Duration::from_millis(self.block_millis));
                };
                if when == When::BeforeTheCharge {
                    block();
                    return next.run(request).await;
                }
                let response = next.run(request).await;
                block();
                response
            }
            Some((_, Trouble::TimesOut { when, status })) => {
                times_out(when, status, request, next).await
            }
        }
    }

    /// Whether nobody has troubled this payment before, in any process.
    fn is_first(&self, key: &str) -> bool {
        let mut options = OpenOptions::new();
        match options
            .write(true)
            .create_new(true)
            .open(self.troubled.join(key))
        {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => panic!("it cannot be noted who was troubled: {error}"),
        }
    }
}

async fn times_out(when: When, status: StatusCode, request: Request, next: Next) -> Response {
    let limit = match when {
        When::Meanwhile => ABOUT_A_CHARGE,
        _ => LIMIT,
    };
    let handler = service_fn(move |request| {
        let next = next.clone();
        async move {
            if when == When::BeforeTheCharge {
                sleep(LIMIT * 2).await;
            }
            let response = next.run(request).await;
            if when == When::AfterTheCharge {
                sleep(LIMIT * 2).await;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let timeout = TimeoutLayer::with_status_code(status, limit);
    let Ok(response) = timeout.layer(handler).oneshot(request).await;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_payments_are_troubled_as_were_asked_for() {
        for (blocked, timeouts, requests) in [(10, 30, 2000), (0, 7, 600), (4, 0, 5), (5, 9, 14)] {
            let counts = Counts { blocked, timeouts };
            let all: Vec<_> = (0..requests + 100)
                .filter_map(|payment| counts.trouble(payment, requests))
                .collect();
            let blocks = |trouble: &&Trouble| matches!(trouble, Trouble::Blocks { .. });
            let after = |trouble: &&Trouble| match trouble {
                Trouble::Blocks { when } | Trouble::TimesOut { when, .. } => {
                    *when == When::AfterTheCharge
                }
            };
            assert_eq!(all.len(), blocked + timeouts);
            assert_eq!(all.iter().filter(blocks).count(), blocked);
            assert!(all.iter().any(|trouble| after(&trouble)));
        }
        let none = Counts {
            blocked: 0,
            timeouts: 0,
        };
        assert_eq!(none.trouble(0, 1), None);
    }
}
