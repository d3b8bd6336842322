//! Settings that leave something unguarded are told of.

use std::time::Duration;

use tower::Layer;
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::{MemoryStore, SharedStore, Store, Tiered};

use crate::support::{Log, Runs, layer, service};

/// How often a warning is told when services are made of a layer, of its clones, and of these.
fn told<St: Store>(layer: &IdempotencyLayer<St>, text: &str) -> usize {
    let log = Log::of_this_thread();
    let runs = Runs::default();
    for _ in 0..3 {
        drop(layer.layer(service(runs.numbered())));
        drop(layer.clone().layer(service(runs.numbered())));
    }
    log.count("WARN", text)
}

#[test]
fn a_layer_as_it_comes_has_nothing_to_tell() {
    assert_eq!(told(&layer(), ""), 0);
}

#[test]
fn a_layer_that_guards_no_method_is_told_of_once() {
    assert_eq!(told(&layer().methods([]), "`methods` is empty"), 1);
    let none: [&str; 0] = [];
    assert_eq!(
        told(&layer().grpc_methods(none), "`grpc_methods` is empty"),
        1
    );
    let named = layer().grpc_methods(["shop.Till/Charge", "shop.Till"]);
    assert_eq!(told(&named, "no `package.Service/Method`"), 1);
}

#[test]
fn a_retention_that_is_shorter_than_a_lease_is_told_of_once() {
    let short = "`retention` is shorter";
    for retention in [Duration::ZERO, Duration::from_millis(31_999)] {
        assert_eq!(told(&layer().retention(retention), short), 1);
    }
    assert_eq!(told(&layer().retention(Duration::from_secs(32)), short), 0);
}

#[test]
fn a_lease_that_is_too_short_is_told_of() {
    let log = Log::of_this_thread();
    drop(layer().lease(Duration::ZERO));
    assert_eq!(log.count("WARN", "`lease` is too short"), 1);
    drop(layer().lease(Duration::from_millis(10)));
    assert_eq!(log.count("WARN", "`lease` is too short"), 1);
}

#[test]
fn a_cache_as_the_only_store_is_told_of_once() {
    let forgets = "may forget a key";
    let cache = || MemoryStore::evicting(1 << 20);
    assert_eq!(told(&IdempotencyLayer::new(cache()), forgets), 1);
    let hidden = IdempotencyLayer::new(SharedStore::new(cache()));
    assert_eq!(told(&hidden, forgets), 1);
    let shared = IdempotencyLayer::new(std::sync::Arc::new(cache()));
    assert_eq!(told(&shared, forgets), 1);
    let authority = IdempotencyLayer::new(Tiered::new(MemoryStore::new(), cache()));
    assert_eq!(told(&authority, forgets), 1);
    let near = IdempotencyLayer::new(Tiered::new(cache(), MemoryStore::new()));
    assert_eq!(told(&near, forgets), 0);
}
