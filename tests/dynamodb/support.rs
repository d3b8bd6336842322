//! A DynamoDB of its own for each test, and who claims in it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_idempotency::record::{ClaimRequest, Identity, Lease, Owner, Renewal};
use tower_idempotency::store::{Claim, Completion, DynamoDbStore, Fenced, Release, Store};
use tower_idempotency::{Fingerprint, IdempotencyKey, KeyParts, StoreError, Timestamp};

use crate::embedded::{self, Limits};
use crate::wire::Wire;

pub(crate) const TABLE: &str = "idempotency";
pub(crate) const START: Timestamp = Timestamp::from_micros(1_790_000_000_123_456);
pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const SKEW: Duration = Duration::from_secs(2);
pub(crate) const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// Each number once in a run of the tests.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A DynamoDB that ends with its test.
pub(crate) struct Dynamo {
    pub(crate) url: String,
    pub(crate) wire: Wire,
    _ends: oneshot::Sender<()>,
    file: Option<PathBuf>,
}

impl Dynamo {
    pub(crate) async fn in_memory() -> Self {
        let database = dynoxide::Database::memory().expect("SQLite opens");
        Self::serving(database, None, None).await
    }

    /// One that takes what the limits say, which are none at first.
    pub(crate) async fn limited() -> (Self, Limits) {
        let database = dynoxide::Database::memory().expect("SQLite opens");
        let limits = Limits::new(None);
        let dynamo = Self::serving(database, None, Some(limits.clone())).await;
        (dynamo, limits)
    }

    pub(crate) async fn on_disk() -> Self {
        let name = format!("dynamodb-{}-{}.sqlite", std::process::id(), unique());
        let file = std::env::temp_dir().join(name);
        let path = file.to_str().expect("a path of plain characters");
        let database = dynoxide::Database::new(path).expect("SQLite opens");
        Self::serving(database, Some(file), None).await
    }

    async fn serving(
        database: dynoxide::Database,
        file: Option<PathBuf>,
        limits: Option<Limits>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (ends, ended) = oneshot::channel::<()>();
        tokio::spawn(async {
            tokio::select! {
                served = embedded::serve(listener, database, limits) => served.expect("it serves"),
                _ = ended => {}
            }
        });
        Self {
            url: format!("http://{address}"),
            wire: Wire::new(),
            _ends: ends,
            file,
        }
    }

    /// Whose retries and timeouts `settings` may change; without it, there are neither.
    pub(crate) fn client_with(
        &self,
        settings: impl FnOnce(aws_sdk_dynamodb::config::Builder) -> aws_sdk_dynamodb::config::Builder,
    ) -> Client {
        let config = config(&self.url)
            .http_client(self.wire.clone())
            .retry_config(RetryConfig::disabled());
        Client::from_conf(settings(config).build())
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(|config| config)
    }

    /// A store on a table of its own, which does not retry.
    pub(crate) async fn store(&self) -> DynamoDbStore {
        let store = DynamoDbStore::new(self.client(), TABLE);
        store.create_table().await.expect("the table is made");
        self.wire.calls();
        store
    }

    /// A store on the same table whose client makes up to 3 tries.
    pub(crate) fn retrying(&self) -> DynamoDbStore {
        let retries = RetryConfig::standard()
            .with_max_attempts(3)
            .with_initial_backoff(Duration::from_millis(1));
        DynamoDbStore::new(
            self.client_with(|config| config.retry_config(retries)),
            TABLE,
        )
    }

    /// A store on the same table that the faults of the wire do not touch, nor its count.
    pub(crate) fn elsewhere(&self) -> DynamoDbStore {
        DynamoDbStore::new(
            self.client_with(|config| config.http_client(Wire::new())),
            TABLE,
        )
    }

    /// A store on the same table whose client is not patient.
    pub(crate) fn hasty(&self) -> DynamoDbStore {
        let timeouts = TimeoutConfig::builder()
            .operation_timeout(Duration::from_millis(50))
            .build();
        DynamoDbStore::new(
            self.client_with(|config| config.timeout_config(timeouts)),
            TABLE,
        )
    }

    /// All items, chunks included.
    pub(crate) async fn items(&self) -> Vec<Item> {
        scanned(&self.client(), TABLE).await
    }

    /// The only item.
    pub(crate) async fn item(&self) -> Item {
        let items = self.items().await;
        assert_eq!(items.len(), 1, "{items:?}");
        items.into_iter().next().expect("there is one")
    }

    /// The end of the lease of the only item.
    pub(crate) async fn deadline(&self) -> Timestamp {
        let item = self.item().await;
        let deadline = item["deadline"].as_n().expect("a number");
        Timestamp::from_micros(deadline.parse().expect("microseconds"))
    }

    pub(crate) async fn put(&self, item: Item) {
        let put = self
            .client()
            .put_item()
            .table_name(TABLE)
            .set_item(Some(item));
        put.send().await.expect("a put succeeds");
    }
}

impl Drop for Dynamo {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            for suffix in ["", "-shm", "-wal"] {
                let mut name = file.clone().into_os_string();
                name.push(suffix);
                let _ = std::fs::remove_file(name);
            }
        }
    }
}

/// All items of a table.
pub(crate) async fn scanned(client: &Client, table: &str) -> Vec<Item> {
    let scan = client.scan().table_name(table).consistent_read(true);
    let pages = scan.into_paginator().items().send();
    let items: Result<Vec<_>, _> = pages.collect().await;
    items.expect("a scan succeeds")
}

pub(crate) type Item = HashMap<String, AttributeValue>;

pub(crate) fn config(url: &str) -> aws_sdk_dynamodb::config::Builder {
    Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(url)
}

/// Someone who claims.
#[derive(Clone, Debug)]
pub(crate) struct Claimer {
    pub(crate) key: IdempotencyKey,
    pub(crate) identity: Identity,
    pub(crate) owner: Owner,
    pub(crate) now: Timestamp,
    pub(crate) lease: Duration,
    pub(crate) retention: Duration,
    pub(crate) take_over: bool,
}

impl Claimer {
    /// For a key that nobody else claims.
    pub(crate) fn new() -> Self {
        let key = format!("5d0f3b1c-7a52-4f0e-{:016x}", unique());
        Self {
            key: IdempotencyKey::new("/v1/charges", &key).expect("the key is valid"),
            identity: Identity::of_work(Fingerprint::of(["amount=1200"])),
            owner: owner(),
            now: START,
            lease: LEASE,
            retention: RETENTION,
            take_over: true,
        }
    }

    /// Another for the same key.
    pub(crate) fn other(&self) -> Self {
        Self {
            owner: owner(),
            ..self.clone()
        }
    }

    pub(crate) fn after(self, later: Duration) -> Self {
        Self {
            now: self.now.plus(later),
            ..self
        }
    }

    pub(crate) fn for_another_request(self) -> Self {
        Self {
            identity: Identity::of_work(Fingerprint::of(["amount=1300"])),
            ..self
        }
    }

    pub(crate) fn without_taking_over(self) -> Self {
        Self {
            take_over: false,
            ..self
        }
    }

    pub(crate) async fn claims(&self, store: &DynamoDbStore) -> Result<Claim, StoreError> {
        let parts = self.key.parts();
        store.claim(&self.request(&parts)).await
    }

    pub(crate) fn request<'a>(&'a self, parts: &'a KeyParts<'a>) -> ClaimRequest<'a> {
        let key = self.key.record_key();
        let mut request = ClaimRequest::new(key, parts, self.identity, self.owner, self.now);
        request.lease = self.lease;
        request.retention = self.retention;
        request.clock_skew = SKEW;
        request.take_over = self.take_over;
        request
    }

    pub(crate) async fn acquires(&self, store: &DynamoDbStore) -> Lease {
        match self.claims(store).await {
            Ok(Claim::Acquired(lease)) => lease.by_clock(self.now),
            other => panic!("the key was not acquired but {other:?}"),
        }
    }

    pub(crate) async fn is_answered(&self, store: &DynamoDbStore) -> Bytes {
        match self.claims(store).await {
            Ok(Claim::Completed(completed)) => completed.payload().clone(),
            other => panic!("the key was not answered but {other:?}"),
        }
    }
}

pub(crate) fn owner() -> Owner {
    let mut bytes = [0xa5; 16];
    bytes[..8].copy_from_slice(&unique().to_le_bytes());
    Owner::from_bytes(bytes)
}

pub(crate) fn completion(payload: impl Into<Bytes>) -> Completion {
    Completion::new(payload.into(), RETENTION)
}

pub(crate) async fn completes(store: &DynamoDbStore, lease: &Lease, payload: impl Into<Bytes>) {
    let fenced = store
        .complete(&lease.holder(), &completion(payload), START)
        .await;
    assert_eq!(fenced.expect("a completion succeeds"), Fenced::Applied);
}

/// Waits until a condition holds.
pub(crate) async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..3_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition never held");
}

/// Bytes that nothing makes smaller.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A release that leaves an orphan.
pub(crate) fn orphan() -> Release {
    Release::orphan(RETENTION, None)
}

/// A renewal for as long as a lease lasts.
pub(crate) fn renewal() -> Renewal {
    Renewal::new(LEASE, RETENTION)
}
