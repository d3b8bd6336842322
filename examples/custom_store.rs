//! A store of your own, held to the suite that the crate's own stores have to pass.
//!
//! ```text
//! cargo run --example custom_store
//! ```
//!
//! This one is a map of bytes behind a mutex. One of yours would do the same in a transaction of
//! its database: read the record, ask [`Claim::on`] or [`Fenced`], write the [`Change`] that they
//! say. A server that has a clock of its own decides by that, and not by `now`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::{Router, routing::post};
use tower_idempotency::record::{ClaimRequest, Holder, Record, Renewal, Seen};
use tower_idempotency::store::{Change, Claim, Completion, Fenced, Release, Store};
use tower_idempotency::testing::conformance;
use tower_idempotency::{IdempotencyLayer, RecordKey, StoreError, Timestamp};

#[derive(Clone, Debug, Default)]
struct MapStore(Arc<Mutex<HashMap<RecordKey, Vec<u8>>>>);

type Result<T> = std::result::Result<T, StoreError>;

impl MapStore {
    /// Reads a record, and writes what becomes of it. Under the lock that is one step.
    fn step<T>(
        &self,
        key: &RecordKey,
        decide: impl FnOnce(Option<Record>) -> (T, Change),
    ) -> Result<T> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = rows.get(key).cloned().map(Record::from_bytes).transpose()?;
        let (decided, change) = decide(found);
        match change {
            Change::Keep => {}
            Change::Write(record) => drop(rows.insert(*key, record.to_bytes())),
            Change::Remove => drop(rows.remove(key)),
        }
        Ok(decided)
    }
}

impl Store for MapStore {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim> {
        self.step(request.key, |found| Claim::on(found, request))
    }

    async fn renew(&self, holder: &Holder, renewal: Renewal, now: Timestamp) -> Result<Fenced> {
        self.step(&holder.key, |found| {
            Fenced::renew(found, holder, renewal, now)
        })
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced> {
        self.step(&holder.key, |found| {
            Fenced::complete(found, holder, completion, now)
        })
    }

    async fn release(&self, holder: &Holder, release: Release, now: Timestamp) -> Result<Fenced> {
        self.step(&holder.key, |found| {
            Fenced::release(found, holder, release, now)
        })
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Seen<Record>>> {
        let found = self.step(key, |found| (found, Change::Keep))?;
        Ok(found.and_then(|record| record.seen_at(now)))
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool> {
        self.step(key, |found| (found.is_some(), Change::Remove))
    }
}

#[tokio::main]
async fn main() {
    // Among its tests, `tower_idempotency::conformance!(make_store)` makes one of each behaviour.
    conformance::all(MapStore::default()).await;
    println!("the store conforms");

    // And now it is as good as any other.
    let layer = IdempotencyLayer::new(MapStore::default());
    let _app: Router = Router::new()
        .route("/v1/charges", post(|| async { "charged" }))
        .layer(layer);
}
