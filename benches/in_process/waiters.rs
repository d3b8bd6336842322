//! Many that wait for one run.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::contestants::{layer, memory};
use crate::harness::load::{Item, Keys, Load, Setup, read};
use crate::harness::rounds::{Batch, now};

/// Crowds that come to a service one after the other, of a first request and of so many that come
/// while its handler waits. Each that waits counts as one call.
pub(crate) struct Waiters<S> {
    runtime: Runtime,
    setup: Arc<Setup>,
    service: S,
    load: Load,
    gate: Arc<watch::Sender<()>>,
    waiters: usize,
    is_guarded: bool,
    /// The number of the next key.
    next: u64,
}

impl Waiters<()> {
    /// Each is in the handler, and waits there.
    pub(crate) fn bare(waiters: usize) -> impl Batch {
        Waiters::new(waiters, false, handler)
    }

    pub(crate) fn ours(waiters: usize) -> impl Batch {
        Waiters::new(waiters, true, |setup, gate| {
            let layer = layer(setup, memory()).wait_for_in_flight(Duration::from_secs(60));
            layer.layer(handler(setup, gate))
        })
    }
}

impl<S> Waiters<S> {
    fn new(
        waiters: usize,
        is_guarded: bool,
        make: impl FnOnce(&Arc<Setup>, &Arc<watch::Sender<()>>) -> S,
    ) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let setup = Arc::new(Setup::new());
        let gate = Arc::new(watch::Sender::new(()));
        Self {
            runtime: runtime.expect("a runtime starts"),
            service: make(&setup, &gate),
            setup,
            load: Load::new(Keys::Fresh),
            gate,
            waiters,
            is_guarded,
            next: 0,
        }
    }

    /// The requests of a crowd, all with one key.
    fn next_crowd(&mut self) -> Vec<Item> {
        self.next += 1;
        (0..=self.waiters)
            .map(|_| self.load.item(self.next))
            .collect()
    }
}

impl<S> Batch for Waiters<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    fn run(&mut self, count: usize) -> Duration {
        let crowds = count.div_ceil(self.waiters);
        let items: Vec<Vec<Item>> = (0..crowds).map(|_| self.next_crowd()).collect();
        let before = self.setup.runs_so_far();
        let (service, load, gate) = (&self.service, &self.load, &self.gate);
        let took = self.runtime.block_on(async {
            let start = now();
            for items in items {
                let call = |item| {
                    let service = service.clone();
                    Box::pin(async move {
                        let Ok(response) = service.oneshot(load.request(item)).await;
                        read(response.into_body()).await;
                    })
                };
                let mut calls: Vec<_> = items.into_iter().map(call).collect();
                let crowd = calls.len();
                let polled = poll_fn(|cx| Poll::Ready(poll_all(&mut calls, cx))).await;
                assert!(
                    polled.is_pending() && calls.len() == crowd,
                    "all of them wait"
                );
                gate.send_replace(());
                poll_fn(|cx| poll_all(&mut calls, cx)).await;
            }
            start.elapsed()
        });
        let runs = self.setup.runs_so_far() - before;
        let expected = if self.is_guarded {
            crowds
        } else {
            crowds * (self.waiters + 1)
        };
        assert_eq!(runs, expected as u64, "how often the handler ran");
        took.mul_f64(count as f64 / (crowds * self.waiters) as f64)
    }
}

/// Polls each once, and removes those that are ready. It is ready when none is left.
fn poll_all<F: Future<Output = ()>>(
    calls: &mut Vec<Pin<Box<F>>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    calls.retain_mut(|call| call.as_mut().poll(cx).is_pending());
    match calls.is_empty() {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }
}

fn handler(
    setup: &Arc<Setup>,
    gate: &Arc<watch::Sender<()>>,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
+ use<> {
    let (setup, gate) = (Arc::clone(setup), Arc::clone(gate));
    service_fn(move |request: Request<Body>| {
        let setup = Arc::clone(&setup);
        let mut opened = gate.subscribe();
        async move {
            opened
                .changed()
                .await
                .expect("the gate is held by the bench");
            Ok(setup.handle(request.into_body()).await)
        }
    })
}
