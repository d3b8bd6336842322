//! Runs whose handlers block their threads, on real servers: they keep their keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::{MemoryStore, Store};

use crate::support::{Got, Node, elsewhere};

const LEASE: Duration = Duration::from_millis(300);
const SKEW: Duration = Duration::from_millis(50);
/// Much longer than a lease.
const BLOCKED: Duration = Duration::from_millis(2_500);

/// A route whose handler waits, and then blocks its thread.
fn blocking<St: Store>(
    layer: &IdempotencyLayer<St>,
    runs: &Arc<AtomicUsize>,
    waits: Option<Duration>,
    blocks: Duration,
) -> Router {
    let runs = Arc::clone(runs);
    let handler = move || async move {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(waits) = waits {
            tokio::time::sleep(waits).await;
        }
        thread::sleep(blocks);
        format!("run {run}")
    };
    Router::new()
        .route("/charges", post(handler))
        .layer(layer.clone())
}

#[track_caller]
fn is_in_progress(got: &Got) {
    assert!(got.0 == 409 && got.1.contains("in-progress"), "{got:?}");
}

fn ran_once(got: &Got) {
    assert_eq!(*got, (200, "run 1".to_owned()));
}

fn layer<St: Store>(store: St) -> IdempotencyLayer<St> {
    IdempotencyLayer::new(store).lease(LEASE).clock_skew(SKEW)
}

#[test]
fn a_handler_that_blocks_its_thread_keeps_its_key() {
    for workers in [2, 8] {
        for waits in [None, Some(Duration::from_millis(50))] {
            let here = layer(MemoryStore::new());
            let there = elsewhere(&here);
            let runs = Arc::default();
            let here = Node::start(workers, blocking(&here, &runs, waits, BLOCKED));
            let there = Node::start(workers, blocking(&there, &runs, waits, BLOCKED));
            let first = here.posting("k");
            thread::sleep(Duration::from_millis(700));
            is_in_progress(&here.post("k"));
            thread::sleep(Duration::from_millis(800));
            is_in_progress(&there.post("k"));
            ran_once(&first.join().expect("no panic"));
            ran_once(&there.post("k"));
            assert_eq!(runs.load(Ordering::SeqCst), 1);
        }
    }
}

#[test]
fn handlers_that_block_all_threads_keep_their_keys() {
    let here = layer(MemoryStore::new());
    let there = elsewhere(&here);
    let runs = Arc::default();
    let waits = Some(Duration::from_millis(20));
    let here = Node::start(2, blocking(&here, &runs, waits, BLOCKED));
    let there = Node::start(2, blocking(&there, &runs, None, Duration::ZERO));
    let firsts: Vec<_> = ["k", "l"].map(|key| here.posting(key)).into();
    thread::sleep(Duration::from_millis(1_500));
    for key in ["k", "l"] {
        is_in_progress(&there.post(key));
    }
    for first in firsts {
        assert_eq!(first.join().expect("no panic").0, 200);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}
