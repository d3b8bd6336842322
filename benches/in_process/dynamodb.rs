//! The layer on DynamoDB: a real client, over loopback, to one on SQLite in this process.
//!
//! What it takes there says what the layer waits for and how often, and little about AWS; the calls
//! and the units of each path are counted in `tests/dynamodb/calls.rs`, and what the store itself
//! takes of the processor in `benches/store_calls`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tower::Layer;
use tower_idempotency::store::{DynamoDbStore, MemoryStore};

use crate::contestants::layer;
use crate::harness::load::{Contestant, Setup, contestant, handler};

pub(crate) fn ours_dynamodb(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    contestant(layer(setup, EMULATOR.store()).layer(handler(setup)))
}

pub(crate) fn ours_memory_over_dynamodb(setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let store = MemoryStore::new().over(EMULATOR.store());
    contestant(layer(setup, store).layer(handler(setup)))
}

static EMULATOR: LazyLock<Emulator> = LazyLock::new(Emulator::start);

struct Emulator {
    runtime: Runtime,
    url: String,
    tables: AtomicU64,
}

impl Emulator {
    fn start() -> Self {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all();
        let runtime = runtime.build().expect("a runtime starts");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let database = dynoxide::Database::memory().expect("SQLite opens");
        runtime.spawn(dynoxide::server::serve_on(listener, database));
        Self {
            runtime,
            url,
            tables: AtomicU64::new(0),
        }
    }

    /// A store with a table of its own.
    fn store(&self) -> DynamoDbStore {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .endpoint_url(&self.url)
            .region(Region::new("local"))
            .credentials_provider(Credentials::new("local", "local", None, None, "emulator"))
            .timeout_config(DynamoDbStore::timeouts())
            .build();
        let number = self.tables.fetch_add(1, Ordering::Relaxed);
        let table = format!("idempotency-{number}");
        // One client makes the table and another uses it: connections belong to a runtime.
        let maker = DynamoDbStore::new(Client::from_conf(config.clone()), &table);
        self.runtime
            .block_on(maker.create_table())
            .expect("the table is made");
        DynamoDbStore::new(Client::from_conf(config), &table)
    }
}
