//! A server to be loaded by `benches/sockets/run`: axum alone, or with the layer or the floor over it.

#[path = "../harness/mod.rs"]
#[expect(dead_code, reason = "only the floor is of use here")]
mod harness;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::{MemoryStore, Store, Tiered};

use self::harness::floor::FloorLayer;

#[derive(Parser)]
struct Flags {
    stack: Stack,
    /// Threads of the runtime. Without it there are as many as cores, as `#[tokio::main]` has it.
    #[arg(long)]
    workers: Option<NonZeroUsize>,
    /// The memory that the store may take, in bytes.
    #[arg(long, default_value_t = 4 << 30)]
    capacity: u64,
    /// How long an answer is remembered, in seconds.
    #[arg(long, default_value_t = 24 * 60 * 60)]
    retention: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stack {
    Bare,
    /// The least that could be correct; see `benches/harness/floor.rs`.
    Floor,
    Memory,
    /// A memory that forgets what was asked for longest ago. For what it holds; it is no store of
    /// record.
    Evicting,
    Tiered,
}

/// How often the handler ran.
type Runs = Arc<AtomicU64>;

fn main() -> std::io::Result<()> {
    let flags = Flags::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = flags.workers {
        runtime.worker_threads(workers.get());
    }
    runtime.enable_all().build()?.block_on(serve(&flags))
}

async fn serve(flags: &Flags) -> std::io::Result<()> {
    let charges = Router::new().route("/v1/charges", post(charge));
    let evicting = || MemoryStore::evicting(flags.capacity);
    let memory = || MemoryStore::with_capacity(flags.capacity);
    let charges = match flags.stack {
        Stack::Bare => charges,
        Stack::Floor => charges.layer(FloorLayer::new(retention(flags))),
        Stack::Memory => charges.layer(layer(memory(), flags)),
        Stack::Evicting => charges.layer(layer(evicting(), flags)),
        Stack::Tiered => charges.layer(layer(Tiered::new(evicting(), memory()), flags)),
    };
    let app = charges
        .route("/runs", get(runs))
        .with_state(Runs::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    // An answer that waits for the client's acknowledgement would be all that is measured.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("{error}");
        }
    });
    axum::serve(listener, app).await
}

fn layer<St: Store>(store: St, flags: &Flags) -> IdempotencyLayer<St> {
    IdempotencyLayer::new(store).retention(retention(flags))
}

const fn retention(flags: &Flags) -> Duration {
    Duration::from_secs(flags.retention)
}

async fn charge(State(runs): State<Runs>, body: Bytes) -> Response {
    runs.fetch_add(1, Ordering::Relaxed);
    drop(body);
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/json"),
        (header::CACHE_CONTROL.as_str(), "no-store"),
        ("request-id", "req_0123456789abcdefghi"),
        (header::LOCATION.as_str(), "/v1/charges/ch_0123456789abcdef"),
        ("stripe-version", "2026-01-01"),
    ];
    const ANSWER: &[u8] = &[b'a'; 200];
    (headers, ANSWER).into_response()
}

async fn runs(State(runs): State<Runs>) -> String {
    runs.load(Ordering::Relaxed).to_string()
}
