//! What the layers outside keep around a future, and what becomes of it when a client goes.

use std::future::{pending, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::Request;
use tokio::task_local;
use tower::{Service, ServiceBuilder};
use tower_idempotency::store::Store;
use tower_idempotency::{IdempotencyLayer, RunFuture};

use crate::support::{
    Body, Direct, Fault, FaultyStore, Runs, answer, direct, eventually, layer, service, spawn,
    text, whole,
};

task_local! {
    static TENANT: &'static str;
}

/// Puts the tenant that a header names around the service within, as middleware does it.
#[derive(Clone)]
struct Tenants<S>(S);

impl<S> Service<Request<Body>> for Tenants<S>
where
    S: Service<Request<Body>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let tenant = match request.headers().contains_key("x-b") {
            true => "B",
            false => "A",
        };
        let call = TENANT.sync_scope(tenant, || self.0.call(request));
        Box::pin(TENANT.scope(tenant, call))
    }
}

/// A handler that waits, and then tells its tenant.
fn stack<St: Store>(layer: IdempotencyLayer<St>, runs: &Runs) -> Direct {
    let gate = runs.gate().clone();
    let handler = runs.running(move |_, _| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(TENANT.try_with(|tenant| *tenant).unwrap_or("nobody"))
        }
    });
    let service = ServiceBuilder::new()
        .layer_fn(Tenants)
        .layer(layer)
        .service(service(handler));
    direct(service)
}

fn request(key: &str, is_of_b: bool) -> Request<Body> {
    let mut request = Request::post("/a").header("idempotency-key", key);
    if is_of_b {
        request = request.header("x-b", "1");
    }
    request.body(whole("it")).expect("it is valid")
}

/// The tenant that a run finds whose client has gone while it ran.
async fn tenant_of_a_detached_run<St: Store>(layer: IdempotencyLayer<St>, is_of_b: bool) -> String {
    let runs = Runs::default();
    let handle = layer.handle();
    let stack = stack(layer, &runs);
    let gone = spawn(&stack, request("k", is_of_b));
    runs.gate().arrived().await;
    gone.abort();
    eventually(async || handle.stats().detached == 1).await;
    runs.gate().open_for_good();
    handle.idle().await;
    let replayed = answer(&stack, request("k", is_of_b)).await;
    assert_eq!(runs.count(), 1);
    let tenant = replayed.strip_prefix("replayed: ");
    tenant.expect("it is replayed").to_owned()
}

fn carries(run: RunFuture) -> RunFuture {
    match TENANT.try_with(|tenant| *tenant) {
        Ok(tenant) => Box::pin(TENANT.scope(tenant, run)),
        Err(_) => run,
    }
}

#[tokio::test]
async fn a_run_whose_client_has_gone_has_the_context_that_was_carried() {
    assert_eq!(tenant_of_a_detached_run(layer(), false).await, "nobody");
    for is_of_b in [false, true] {
        let expected = if is_of_b { "B" } else { "A" };
        let near = layer().carry_context(carries);
        assert_eq!(tenant_of_a_detached_run(near, is_of_b).await, expected);
        let remote = IdempotencyLayer::new(FaultyStore::new()).carry_context(carries);
        assert_eq!(tenant_of_a_detached_run(remote, is_of_b).await, expected);
    }
}

#[tokio::test]
async fn context_is_carried_once_for_each_run_and_never_for_a_replay() {
    let carried = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&carried);
    let layer = layer().carry_context(move |run| {
        counted.fetch_add(1, Ordering::SeqCst);
        carries(run)
    });
    let runs = Runs::default();
    runs.gate().open_for_good();
    let stack = stack(layer, &runs);
    for key in ["1", "1", "2", "two words"] {
        answer(&stack, request(key, false)).await;
    }
    assert_eq!((carried.load(Ordering::SeqCst), runs.count()), (2, 2));
}

#[tokio::test]
async fn a_hook_that_panics_or_loses_the_run_costs_the_context_alone() {
    let hooks: [fn(RunFuture) -> RunFuture; 3] = [
        |_| panic!("the hook panics"),
        |_| Box::pin(ready(())),
        |run| {
            drop(run);
            Box::pin(ready(()))
        },
    ];
    for hook in hooks {
        let runs = Runs::default();
        runs.gate().open_for_good();
        let stack = stack(layer().carry_context(hook), &runs);
        assert_eq!(answer(&stack, request("k", false)).await, "A");
        let detached = tenant_of_a_detached_run(layer().carry_context(hook), false).await;
        assert_eq!(detached, "nobody");
    }
    // It is the hook's own doing if it never goes on.
    let stuck = stack(
        layer().carry_context(|_| Box::pin(pending())),
        &Runs::default(),
    );
    let call = spawn(&stuck, request("k", false));
    tokio::task::yield_now().await;
    call.abort();
}

#[tokio::test]
async fn a_run_without_a_store_has_its_context_too() {
    let store = FaultyStore::new();
    store.fail_claims(Fault::Unreachable);
    let layer = IdempotencyLayer::new(store)
        .fail_open(true)
        .carry_context(carries);
    let handle = layer.handle();
    let runs = Runs::default();
    let tenant = Arc::new(std::sync::Mutex::new(None));
    let handler = {
        let (gate, tenant) = (runs.gate().clone(), Arc::clone(&tenant));
        runs.running(move |_, _| {
            let (gate, tenant) = (gate.clone(), Arc::clone(&tenant));
            async move {
                gate.pass().await;
                *tenant.lock().expect("not poisoned") = TENANT.try_with(|tenant| *tenant).ok();
                text("done")
            }
        })
    };
    let service = ServiceBuilder::new()
        .layer_fn(Tenants)
        .layer(layer)
        .service(service(handler));
    let gone = spawn(&direct(service), request("k", true));
    runs.gate().arrived().await;
    gone.abort();
    eventually(async || handle.stats().detached == 1).await;
    runs.gate().open_for_good();
    handle.idle().await;
    assert_eq!(*tenant.lock().expect("not poisoned"), Some("B"));
}
