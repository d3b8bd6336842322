//! Functions of the application that panic: the request ends, and nothing is left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tower_idempotency::store::MemoryStore;
use tower_idempotency::{CallerSource, FingerprintSource, IdempotencyLayer, KeySource, Orphan};

use crate::support::{Runs, for_each_stack, layer};

type Layer = IdempotencyLayer<MemoryStore>;

/// Panics as long as the switch is on.
#[derive(Clone)]
struct Trap(Arc<AtomicBool>);

impl Trap {
    fn spring(&self) {
        if self.0.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("as planned"));
        }
    }
}

fn layers(trap: &Trap) -> Vec<(&'static str, Layer)> {
    let [filter, scope, target, caller, key, fingerprint] = [(); 6].map(|()| trap.clone());
    vec![
        (
            "filter",
            layer().filter(move |_| {
                filter.spring();
                true
            }),
        ),
        (
            "scope",
            layer().scope(move |_| {
                scope.spring();
                None
            }),
        ),
        (
            "target",
            layer().target(move |_| {
                target.spring();
                "/all".into()
            }),
        ),
        (
            "caller",
            layer().caller(CallerSource::function("f", 1, move |_| {
                caller.spring();
                None
            })),
        ),
        (
            "key",
            layer().key_source(KeySource::function(move |_, _| {
                key.spring();
                Ok(Some("k".to_owned()))
            })),
        ),
        (
            "fingerprint",
            layer().fingerprint(FingerprintSource::function("f", 1, move |_, _| {
                fingerprint.spring();
                None
            })),
        ),
    ]
}

#[tokio::test]
async fn a_request_that_cannot_be_identified_leaves_nothing_behind() {
    for_each_stack(|case| async move {
        let trap = Trap(Arc::default());
        for (name, layer) in layers(&trap) {
            let layer = layer.orphan(Orphan::Hold).max_runs(1);
            let runs = Runs::default();
            let server = case.serve(&layer, runs.numbered()).await;
            let call = || server.post("/a").key("k").body("x");
            trap.0.store(true, Ordering::SeqCst);
            assert!(call().try_send().await.is_err(), "{name}");
            trap.0.store(false, Ordering::SeqCst);
            assert_eq!((runs.count(), layer.handle().in_flight()), (0, 0), "{name}");
            assert_eq!(layer.handle().buffered(), 0, "{name}");
            call().send().await.ran("run 1");
            call().send().await.replayed("run 1");
        }
    })
    .await;
}

#[tokio::test]
async fn a_refusal_that_cannot_be_made_changes_no_key() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer()
            .orphan(Orphan::Hold)
            .on_refusal(|_, _| std::panic::resume_unwind(Box::new("as planned")));
        let server = case.serve(&layer, runs.gated()).await;
        let call = |body: &'static str| server.post("/a").key("k").body(body);
        let first = call("x").spawn();
        runs.gate().arrived().await;
        assert!(call("x").try_send().await.is_err());
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
        assert!(call("y").try_send().await.is_err());
        call("x").send().await.replayed("run 1");
        assert_eq!((runs.count(), layer.handle().in_flight()), (1, 0));
    })
    .await;
}
