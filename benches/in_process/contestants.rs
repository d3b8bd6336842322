//! Who is timed.

use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use tower::Layer;
use tower::layer::util::Identity;
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::{MemoryStore, SharedStore, Store};

use crate::harness::floor::FloorLayer;
use crate::harness::load::{Contestant, PATH, Setup, contestant, handler};

pub(crate) fn bare(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(handler(setup))
}

pub(crate) fn floor(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(FloorLayer::new(setup.retention).layer(handler(setup)))
}

pub(crate) fn ours(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(layer(setup, memory()).layer(handler(setup)))
}

/// The answers in moka, which may forget them: what a near tier costs.
pub(crate) fn ours_near(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let near = MemoryStore::evicting(CAPACITY);
    contestant(layer(setup, near).layer(handler(setup)))
}

/// A near tier over a store that is no further away: what the tiers themselves cost.
pub(crate) fn ours_tiered(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let tiered = MemoryStore::evicting(CAPACITY).over(memory());
    contestant(layer(setup, tiered).layer(handler(setup)))
}

pub(crate) fn ours_shared(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(layer(setup, SharedStore::new(memory())).layer(handler(setup)))
}

pub(crate) fn axum(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(routed(router(setup)))
}

/// What axum itself takes for a layer, whatever it does.
pub(crate) fn axum_layered(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(routed(router(setup).layer(Identity::new())))
}

pub(crate) fn floor_axum(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(routed(
        router(setup).layer(FloorLayer::new(setup.retention)),
    ))
}

pub(crate) fn ours_axum(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(routed(router(setup).layer(layer(setup, memory()))))
}

fn router(setup: &Arc<Setup>) -> Router {
    let setup = Arc::clone(setup);
    let handler = move |_: Bytes| {
        let setup = Arc::clone(&setup);
        async move { setup.respond() }
    };
    Router::new().route(PATH, post(handler.clone()).get(handler))
}

/// As `axum::serve` has it: without a state, a router would apply its layers at each request.
fn routed(router: Router) -> Router {
    router.with_state(())
}

pub(crate) fn layer<St: Store>(setup: &Setup, store: St) -> IdempotencyLayer<St> {
    IdempotencyLayer::new(store)
        .retention(setup.retention)
        .max_response_body(16 << 20)
        .max_runs(usize::MAX)
}

const CAPACITY: u64 = 1 << 30;

pub(crate) fn memory() -> MemoryStore {
    // Room for ten million records.
    MemoryStore::with_capacity(16 << 30)
}
