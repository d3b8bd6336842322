//! The application, apart from its process.

mod api;
#[path = "../../embedded/mod.rs"]
pub(crate) mod embedded;
mod flags;
mod ledger;
mod store;
mod stripe;

use std::error::Error;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_idempotency::store::SharedStore;
use tower_idempotency::{IdempotencyLayer, Orphan, Orphaned, Outcome, Reconciled, Recording};
use tracing_subscriber::EnvFilter;

pub(crate) use self::flags::Flags;
use self::flags::{OnOrphan, Record};
use self::ledger::Ledger;
use self::stripe::{Panicked, answer, panicked, refused};

/// Without the embedded DynamoDB's warnings: a write whose condition does not hold is no trouble.
const LOGGED: &str = "info,dynoxide=error";

/// How long to wait at the end for runs whose clients have gone.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// Serves until the process is told to stop. `around` may put layers between the idempotency layer
/// and the handlers.
pub(crate) async fn run(flags: &Flags, around: impl FnOnce(Router) -> Router) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| LOGGED.into()))
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
    match serve(flags, around).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("payments: {error}");
            let mut below = error.source();
            while let Some(cause) = below {
                eprint!(": {cause}");
                below = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

async fn serve(flags: &Flags, around: impl FnOnce(Router) -> Router) -> Result<(), Box<dyn Error>> {
    let ledger = Ledger::open(&flags.ledger, flags.clock_skew)
        .map_err(|error| format!("the ledger: {error}"))?;
    let mut idempotency = idempotency(flags, store::open(flags).await?, &ledger);
    if let Some(store) = store::for_heartbeat(flags).await {
        idempotency = idempotency.heartbeat_store(store);
    }
    let handle = idempotency.handle();
    let listener = TcpListener::bind(flags.listen)
        .await
        .map_err(|error| format!("{} cannot be listened at: {error}", flags.listen))?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, guarded(around(api::routes(ledger)), idempotency))
        .with_graceful_shutdown(told_to_stop())
        .await?;

    // Every connection is closed; a run whose client went away may still be charging a card.
    if timeout(SHUTDOWN, handle.shutdown()).await.is_err() {
        tracing::error!(runs = handle.in_flight(), "stopped before all runs ended");
    }
    Ok(())
}

fn guarded(routes: Router, idempotency: IdempotencyLayer<SharedStore>) -> Router {
    routes.layer(
        // From the outside in.
        ServiceBuilder::new()
            // Sees every answer: the handlers', replays, refusals, and what became of panics.
            .layer(from_fn(log))
            // Outside of the idempotency layer, which has to see a panic for what it is: a run
            // without an outcome. A 500 made further in would hide it.
            .layer(CatchPanicLayer::custom(panicked))
            .layer(idempotency),
    )
}

/// Stripe's behaviour, as far as it is a matter of settings.
///
/// No scope is set, because there are no accounts here to name. A caller is therefore told apart by
/// credentials, and another one with the same key is refused. The host does not count: several of
/// these servers work on one table, each at a port of its own. An API with accounts sets `scope` to
/// the one it has authenticated.
fn idempotency(
    flags: &Flags,
    store: SharedStore,
    ledger: &Ledger,
) -> IdempotencyLayer<SharedStore> {
    IdempotencyLayer::new(store)
        .any_host()
        .report_outcome(true)
        .lease(flags.lease)
        .clock_skew(flags.clock_skew)
        .answer_unrecorded(!flags.withhold)
        .retention(flags.retention)
        .wait_for_in_flight(flags.wait)
        .recording(match flags.record {
            Record::Default => Recording::default(),
            Record::StripeV1 => Recording::stripe_v1(),
            Record::Success => Recording::success(),
        })
        .orphan(match flags.orphan {
            OnOrphan::Retake => Orphan::Retake,
            OnOrphan::Hold => Orphan::Hold,
            OnOrphan::Reconcile => reconcile(ledger.clone()),
        })
        .on_refusal(refused)
}

/// Asks the ledger whether a run that left no outcome has charged.
fn reconcile(ledger: Ledger) -> Orphan<http::Response<Bytes>> {
    Orphan::reconcile(move |orphaned: Orphaned| {
        let ledger = ledger.clone();
        async move {
            let key = *orphaned.key.record_key();
            let settled = ledger.settle(key, orphaned.created_at, orphaned.token);
            match settled.await {
                Ok(Some(charge)) => Reconciled::Completed(answer(StatusCode::OK, &charge)),
                // Nor will it, should it only have been slow: the ledger sees to that.
                Ok(None) => Reconciled::NotExecuted,
                Err(error) => {
                    tracing::error!(%error, "the ledger could not be asked");
                    Reconciled::Unknown
                }
            }
        }
    })
}

/// One line for each request. Never the key: who has it can ask for the answer.
async fn log(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::info!(%method, path, status, outcome = outcome(&response));
    response
}

/// What the layer did, from the extension that it leaves on the response.
fn outcome(response: &Response) -> String {
    let extensions = response.extensions();
    match extensions.get::<Outcome>() {
        Some(outcome) => outcome.to_string(),
        None if extensions.get::<Panicked>().is_some() => "panicked".to_owned(),
        None => "passed through".to_owned(),
    }
}

async fn told_to_stop() {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}
