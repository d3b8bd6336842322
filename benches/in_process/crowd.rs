//! 64 tasks at once on two threads, whose handler waits four times.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, yield_now};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::store::MemoryStore;

use crate::contestants::{layer, memory};
use crate::harness::floor::FloorLayer;
use crate::harness::load::{self, Item, Load, Setup, read};
use crate::harness::rounds::{Batch, now};

const TASKS: usize = 64;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Keys {
    One,
    Distinct,
}

/// Crowds that come to a service one after the other; each request counts as one call.
pub(crate) struct Crowd<S> {
    runtime: Runtime,
    setup: Arc<Setup>,
    service: S,
    load: Load,
    keys: Keys,
    is_guarded: bool,
    next: u64,
}

impl Crowd<()> {
    pub(crate) fn bare(keys: Keys) -> impl Batch {
        Crowd::new(keys, false, waiting_handler)
    }

    pub(crate) fn floor(keys: Keys) -> impl Batch {
        Crowd::new(keys, true, |setup| {
            FloorLayer::new(setup.retention).layer(waiting_handler(setup))
        })
    }

    /// A duplicate is refused at once.
    pub(crate) fn ours(keys: Keys) -> impl Batch {
        Crowd::new(keys, true, |setup| {
            layer(setup, memory()).layer(waiting_handler(setup))
        })
    }

    /// A duplicate waits for the answer of the first.
    pub(crate) fn ours_waiting(keys: Keys) -> impl Batch {
        Crowd::new(keys, true, |setup| {
            let layer = layer(setup, memory()).wait_for_in_flight(Duration::from_secs(5));
            layer.layer(waiting_handler(setup))
        })
    }

    pub(crate) fn ours_tiered(keys: Keys) -> impl Batch {
        Crowd::new(keys, true, |setup| {
            let tiered = MemoryStore::evicting(1 << 30).over(memory());
            layer(setup, tiered).layer(waiting_handler(setup))
        })
    }
}

impl<S> Crowd<S> {
    fn new(keys: Keys, is_guarded: bool, make: impl FnOnce(&Arc<Setup>) -> S) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let setup = Arc::new(Setup::new());
        Self {
            runtime: runtime.expect("a runtime starts"),
            service: make(&setup),
            setup,
            load: Load::new(load::Keys::Fresh),
            keys,
            is_guarded,
            next: 0,
        }
    }

    fn next_crowd(&mut self) -> Vec<Item> {
        let mut items = Vec::with_capacity(TASKS);
        for task in 0..TASKS {
            if task == 0 || self.keys == Keys::Distinct {
                self.next += 1;
            }
            items.push(self.load.item(self.next));
        }
        items
    }
}

impl<S> Batch for Crowd<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    fn run(&mut self, count: usize) -> Duration {
        let crowds = count.div_ceil(TASKS);
        let items: Vec<Vec<Item>> = (0..crowds).map(|_| self.next_crowd()).collect();
        let before = self.setup.runs_so_far();
        let service = self.service.clone();
        let load = self.load.clone();
        // Spawned, so that it is a thread of the pool that spawns the tasks.
        let took = self.runtime.spawn(async move {
            let start = now();
            for items in items {
                let mut tasks = JoinSet::new();
                for item in items {
                    let (service, load) = (service.clone(), load.clone());
                    tasks.spawn(async move {
                        let Ok(response) = service.oneshot(load.request(item)).await;
                        read(response.into_body()).await
                    });
                }
                tasks.join_all().await;
            }
            start.elapsed()
        });
        let took = self.runtime.block_on(took).expect("no task panics");
        let runs = self.setup.runs_so_far() - before;
        let expected = match self.keys {
            Keys::One if self.is_guarded => crowds,
            _ => crowds * TASKS,
        };
        assert_eq!(runs, expected as u64, "how often the handler ran");
        took.mul_f64(count as f64 / (crowds * TASKS) as f64)
    }
}

fn waiting_handler(
    setup: &Arc<Setup>,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
+ use<> {
    let setup = Arc::clone(setup);
    service_fn(move |request: Request<Body>| {
        let setup = Arc::clone(&setup);
        async move {
            for _ in 0..4 {
                yield_now().await;
            }
            Ok(setup.handle(request.into_body()).await)
        }
    })
}
