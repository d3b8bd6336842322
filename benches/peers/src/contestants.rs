//! Who is timed. Each peer is set up as its documentation has it, with its store in memory, and
//! given what favours it where there is a choice.
//!
//! * `idempotent` runs each request with a key in a task of its own, and its store is another
//!   task. Fingerprint: xxHash3.
//! * `axum-idempotent` keeps answers in the session of a client, and marks nothing as in flight:
//!   of two requests at once both run. By default its key is a BLAKE3 hash of the request, headers
//!   and so the key in them included. Each key has a session of its own here, for each answer that
//!   is stored costs time for each that is in the session already.
//! * The middleware of `rustango` is put onto a router of axum, so its time is to be held against
//!   ours there. It stores JSON with the body in base64. Fingerprint: SHA-256.

use std::sync::Arc;

use ::axum::Router;
use ::axum::routing::post;
use ::idempotent::memory::MemoryStore as IdempotentStore;
use ::rustango::cache::InMemoryCache;
use ::rustango::idempotency::{IdempotencyLayer as RustangoLayer, IdempotencyRouterExt};
use ::tower_idempotency::IdempotencyLayer;
use ::tower_idempotency::store::MemoryStore;
use axum_idempotent::{IdempotentLayer, IdempotentOptions};
use bytes::Bytes;
use ruts::store::moka::MokaStore;
use ruts::{CookieOptions, SessionLayer};
use tower::Layer;
use tower_cookies::CookieManagerLayer;

use crate::harness::floor::FloorLayer;
use crate::harness::load::{Contestant, PATH, Setup, contestant, handler};

pub(crate) fn bare(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(handler(setup))
}

pub(crate) fn floor(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(FloorLayer::new(setup.retention).layer(handler(setup)))
}

pub(crate) fn ours(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(IdempotencyLayer::new(MemoryStore::new()).layer(handler(setup)))
}

pub(crate) fn axum(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(router(setup).with_state(()))
}

pub(crate) fn ours_axum(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    contestant(router(setup).layer(layer).with_state(()))
}

pub(crate) fn idempotent(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let store = IdempotentStore::builder().try_build();
    let store = store.expect("there is a runtime");
    let layer = ::idempotent::middleware::IdempotencyLayer::new(store);
    contestant(layer.layer(handler(setup)))
}

pub(crate) fn axum_idempotent(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let store = Arc::new(MokaStore::builder().max_capacity(10_000_000).build());
    let retention = i64::try_from(setup.retention.as_secs()).expect("it is a day");
    let layer = IdempotentLayer::<MokaStore>::new(IdempotentOptions::new(retention));
    let cookie = CookieOptions::build().name(SESSION);
    let sessions = SessionLayer::new(store).with_cookie_options(cookie);
    let service = sessions.layer(layer.layer(handler(setup)));
    contestant(CookieManagerLayer::new().layer(service))
}

const SESSION: &str = "session";

/// The session that belongs to a key.
pub(crate) fn session(number: u64) -> String {
    // 22 digits of base64, of which the last has four bits that count.
    format!("{SESSION}={number:021x}A")
}

pub(crate) fn rustango(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let cache = InMemoryCache::new().with_max_bytes(0).with_max_entries(0);
    let layer = RustangoLayer::new(Arc::new(cache));
    contestant(router(setup).idempotency(layer).with_state(()))
}

fn router(setup: &Arc<Setup>) -> Router {
    let setup = Arc::clone(setup);
    let handler = move |_: Bytes| {
        let setup = Arc::clone(&setup);
        async move { setup.respond() }
    };
    Router::new().route(PATH, post(handler.clone()).get(handler))
}
