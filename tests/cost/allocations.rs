//! Allocations by path, on the thread of the call.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::Request as AxumRequest;
use axum::response::Response as AxumResponse;
use axum::routing::get;
use http::{Method, Request, Response, StatusCode};
use tower::layer::util::Identity;
use tower::{Layer, Service, service_fn};
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::{MemoryStore, Tiered};

use crate::support::{BoxBody, KEY, Probe, TARGET, TestBody, charge, request};

/// What happens to a request: the service without the layer, one that is not guarded, a first run,
/// a replay, and two that are refused.
const PATHS: [&str; 6] = ["bare", "passing", "first", "replay", "in flight", "reused"];

/// No path may cost more than this, from the call of a service to its response. What costs less
/// than it did is written down here.
const SERVICE_FN: [u64; 6] = [10, 10, 19, 3, 3, 4];
const NEAR_TIER: [u64; 6] = [10, 10, 24, 3, 3, 4];
const TIERED: [u64; 6] = [10, 10, 30, 3, 3, 4];
const ROUTER: [u64; 6] = [21, 21, 29, 14, 12, 13];

#[test]
fn a_service_costs_these_allocations() {
    let bare = service_fn(charge::<BoxBody>);
    let layered = IdempotencyLayer::new(MemoryStore::new()).layer(bare);
    assert_within("service_fn", count(bare, layered), SERVICE_FN);
}

#[test]
fn a_service_with_a_store_of_two_tiers_costs_these_allocations() {
    let store = Tiered::new(MemoryStore::evicting(64 << 20), MemoryStore::new());
    let bare = service_fn(charge::<BoxBody>);
    let layered = IdempotencyLayer::new(store).layer(bare);
    assert_within("tiered", count(bare, layered), TIERED);
}

/// moka makes five of them.
#[test]
fn a_service_with_a_near_tier_alone_costs_these_allocations() {
    let bare = service_fn(charge::<BoxBody>);
    let layered = IdempotencyLayer::new(MemoryStore::evicting(64 << 20)).layer(bare);
    assert_within("near tier", count(bare, layered), NEAR_TIER);
}

#[test]
fn a_router_costs_these_allocations() {
    async fn handler(request: AxumRequest) -> AxumResponse {
        match charge::<Body>(request).await {
            Ok(response) => response,
        }
    }
    let router = || Router::new().route(TARGET, get(handler).post(handler));
    // Any layer costs a router some; and one without its state, which a server gives it, more.
    let bare = router().layer(Identity::new()).with_state(());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let layered = router().layer(layer).with_state(());
    assert_within("router", count(bare, layered), ROUTER);
}

fn count<S, L, B>(bare: S, layered: L) -> [u64; 6]
where
    S: Service<Request<B>, Response = Response<B>, Error = Infallible> + Clone,
    L: Service<Request<B>, Response = Response<B>, Error = Infallible> + Clone,
    B: TestBody,
{
    let bare = Probe::new(bare);
    let layered = Probe::new(layered);
    let post = |key: &str| request::<B>(Method::POST, Some(key));
    let other = |key: &str| {
        let mut other = post(key);
        *other.body_mut() = B::of("other");
        other
    };
    // Tables that grow with their first entries, and the thread's random bytes, are no cost of one
    // request.
    for number in 0..200 {
        layered.allocations(post(&format!("warm-up-{number}")), StatusCode::OK);
    }
    let mut counted = [const { Vec::new() }; 6];
    for number in 0..51 {
        let key = format!("{}{number:02}", &KEY[..KEY.len() - 2]);
        for (method, key) in [
            (Method::POST, None),
            (Method::GET, None),
            (Method::GET, Some(KEY)),
        ] {
            let request = || request(method.clone(), key);
            counted[0].push(bare.allocations(request(), StatusCode::OK));
            counted[1].push(layered.allocations(request(), StatusCode::OK));
        }
        counted[2].push(layered.allocations(post(&key), StatusCode::OK));
        counted[3].push(layered.allocations(post(&key), StatusCode::OK));
        let running = format!("running-{number}");
        let in_flight = layered.in_flight(post(&running));
        counted[4].push(layered.allocations(post(&running), StatusCode::CONFLICT));
        drop(in_flight);
        counted[5].push(layered.allocations(other(&key), StatusCode::UNPROCESSABLE_ENTITY));
    }
    // A table that grows now and then, or is tidied up, is not the cost of the request in which it
    // happens to be.
    counted.map(|mut counted| {
        counted.sort_unstable();
        counted[counted.len() / 2]
    })
}

fn assert_within(name: &str, counted: [u64; 6], most: [u64; 6]) {
    println!(
        "allocations, {name}: {:?}",
        PATHS.iter().zip(counted).collect::<Vec<_>>()
    );
    for (path, (counted, most)) in PATHS.iter().zip(counted.into_iter().zip(most)) {
        assert!(counted <= most, "{path}: {counted} and not {most}");
    }
    let [bare, passing, ..] = counted;
    assert_eq!(passing, bare, "passing through is free");
}
