//! Nodes whose handlers block their threads, over a DynamoDB that is spoken to by HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use tokio::runtime::{Builder, Runtime};
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::DynamoDbStore;
use tower_idempotency::testing::Living;

use crate::node::{Got, Node};
use crate::support::Dynamo;

const LEASE: Duration = Duration::from_millis(300);
const SKEW: Duration = Duration::from_millis(50);
/// Much longer than a lease.
const BLOCKED: Duration = Duration::from_millis(2_500);

/// A DynamoDB on a thread of its own, as it is elsewhere.
struct Elsewhere {
    dynamo: Dynamo,
    runtime: Runtime,
}

impl Elsewhere {
    fn start() -> Self {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let dynamo = runtime.block_on(async {
            let dynamo = Dynamo::in_memory().await;
            dynamo.store().await;
            dynamo
        });
        Self { dynamo, runtime }
    }

    /// The layer of a process of its own.
    fn layer(&self) -> IdempotencyLayer<DynamoDbStore> {
        IdempotencyLayer::new(self.dynamo.elsewhere())
            .lease(LEASE)
            .clock_skew(SKEW)
            .living(Living::of_another_process())
    }

    /// A node in a process of its own.
    fn node(&self, workers: usize, runs: &Arc<AtomicUsize>, waits: Option<Duration>) -> Node {
        Node::start(workers, blocking(self.layer(), runs, waits))
    }
}

/// A route whose handler waits, and then blocks its thread, for keys that begin with `b`. Others it
/// keeps for a moment, so that many at a time need many connections.
fn blocking(
    layer: IdempotencyLayer<DynamoDbStore>,
    runs: &Arc<AtomicUsize>,
    waits: Option<Duration>,
) -> Router {
    let runs = Arc::clone(runs);
    let handler = move |headers: http::HeaderMap| async move {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        if headers["idempotency-key"].as_bytes().starts_with(b"b") {
            if let Some(waits) = waits {
                tokio::time::sleep(waits).await;
            }
            thread::sleep(BLOCKED);
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        format!("run {run}")
    };
    Router::new().route("/charges", post(handler)).layer(layer)
}

#[track_caller]
fn is_in_progress(got: &Got) {
    assert!(got.0 == 409 && got.1.contains("in-progress"), "{got:?}");
}

#[test]
fn a_handler_that_blocks_its_thread_keeps_its_key() {
    for workers in [2, 8] {
        for waits in [None, Some(Duration::from_millis(50))] {
            let elsewhere = Elsewhere::start();
            let runs = Arc::default();
            let here = elsewhere.node(workers, &runs, waits);
            let there = elsewhere.node(workers, &runs, waits);
            // So that both have connections, and the store is warm.
            assert_eq!(here.post("a").0, 200);
            assert_eq!(there.post("c").0, 200);
            let first = here.posting("b");
            thread::sleep(Duration::from_millis(1_500));
            is_in_progress(&there.post("b"));
            let first = first.join().expect("no panic");
            assert_eq!(first, (200, "run 3".to_owned()));
            assert_eq!(there.post("b"), first);
            assert_eq!(runs.load(Ordering::SeqCst), 3);
            drop((here, there));
            drop(elsewhere.runtime);
        }
    }
}

#[test]
fn handlers_that_block_all_threads_keep_their_keys_where_renewals_have_connections_of_their_own() {
    let elsewhere = Elsewhere::start();
    let runs = Arc::default();
    let lease = Duration::from_millis(900);
    let here = elsewhere.layer().lease(lease);
    let here = here.heartbeat_store(elsewhere.dynamo.elsewhere());
    let waits = Some(Duration::from_millis(50));
    let here = Node::start(2, blocking(here, &runs, waits));
    let there = Node::start(2, blocking(elsewhere.layer().lease(lease), &runs, None));
    // So that there are many connections that nobody serves.
    let keys: Vec<String> = (0..32).map(|number| format!("a-{number}")).collect();
    let posting: Vec<_> = keys.iter().map(|key| here.posting(key)).collect();
    for posting in posting {
        assert!(posting.join().is_ok());
    }
    assert_eq!(there.post("c").0, 200);
    let before = runs.load(Ordering::SeqCst);
    let firsts = ["b-1", "b-2"].map(|key| here.posting(key));
    thread::sleep(lease);
    for _ in 0..3 {
        thread::sleep(lease / 3);
        for key in ["b-1", "b-2"] {
            is_in_progress(&there.post(key));
        }
    }
    for first in firsts {
        assert_eq!(first.join().expect("no panic").0, 200);
    }
    assert_eq!(runs.load(Ordering::SeqCst) - before, 2);
    drop((here, there));
    drop(elsewhere.runtime);
}
