//! Another run while many are in flight.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::contestants::{layer, memory};
use crate::harness::floor::FloorLayer;
use crate::harness::load::{Keys, Load, Setup, read};
use crate::harness::rounds::{Batch, now};

pub(crate) fn floor(runs: u64) -> impl Batch {
    InFlight::new(runs, |setup, is_endless| {
        FloorLayer::new(setup.retention).layer(handler(setup, is_endless))
    })
}

pub(crate) fn ours(runs: u64) -> impl Batch {
    InFlight::new(runs, |setup, is_endless| {
        layer(setup, memory()).layer(handler(setup, is_endless))
    })
}

/// A service under which so many handlers never return.
struct InFlight<S: Service<Request<Body>>> {
    // First, so that the runs cannot be handed over to it when they are dropped.
    runtime: Runtime,
    setup: Arc<Setup>,
    service: S,
    load: Load,
    /// The number of the next key.
    next: u64,
    runs: Vec<Pin<Box<S::Future>>>,
}

impl<S> InFlight<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    fn new(runs: u64, make: impl FnOnce(&Arc<Setup>, &Arc<AtomicBool>) -> S) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let setup = Arc::new(Setup::new());
        let is_endless = Arc::new(AtomicBool::new(true));
        let mut new = Self {
            service: make(&setup, &is_endless),
            runtime,
            setup,
            load: Load::new(Keys::Fresh),
            next: 0,
            runs: Vec::new(),
        };
        for _ in 0..runs {
            new.begin();
        }
        assert_eq!(new.setup.runs_so_far(), runs, "each is in its handler");
        is_endless.store(false, Ordering::Relaxed);
        new
    }

    /// Begins a run, which is in flight from then on.
    fn begin(&mut self) {
        let request = self.load.request(self.load.item(self.next));
        self.next += 1;
        let (service, runs) = (&mut self.service, &mut self.runs);
        self.runtime.block_on(async {
            let Ok(service) = service.ready().await;
            let mut run = Box::pin(service.call(request));
            let polled = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "its handler does not return");
            runs.push(run);
        });
    }
}

impl<S> Batch for InFlight<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    fn run(&mut self, count: usize) -> Duration {
        let first = self.next;
        self.next += count as u64;
        let items: Vec<_> = (first..self.next).map(|n| self.load.item(n)).collect();
        let before = self.setup.runs_so_far();
        let (service, load) = (&mut self.service, &self.load);
        let took = self.runtime.block_on(async {
            let start = now();
            for item in items {
                let Ok(service) = service.ready().await;
                let Ok(response) = service.call(load.request(item)).await;
                read(response.into_body()).await;
            }
            start.elapsed()
        });
        let runs = self.setup.runs_so_far() - before;
        assert_eq!(runs, count as u64, "each key is new");
        took
    }
}

fn handler(
    setup: &Arc<Setup>,
    is_endless: &Arc<AtomicBool>,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
+ use<> {
    let (setup, is_endless) = (Arc::clone(setup), Arc::clone(is_endless));
    service_fn(move |request: Request<Body>| {
        let setup = Arc::clone(&setup);
        let is_endless = is_endless.load(Ordering::Relaxed);
        async move {
            let response = setup.handle(request.into_body()).await;
            if is_endless {
                pending::<()>().await;
            }
            Ok(response)
        }
    })
}
