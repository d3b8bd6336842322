//! A store of your own, held to the suite that the crate's own stores have to pass.
//!
//! ```text
//! cargo run --example custom_store
//! ```
//!
//! This one is a map of bytes behind a mutex. One of yours would do the same in a transaction of
//! its database: read the record, ask [`Claim::on`] or [`Fenced::check`], write what that says. A
//! server that has a clock of its own decides by that, and not by `now`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{Router, routing::post};
use tower_idempotency::record::{ClaimRequest, Holder, Lease, Record, Renewal, Seen};
use tower_idempotency::store::{Claim, Completion, Fenced, Release, Store};
use tower_idempotency::testing::conformance;
use tower_idempotency::{IdempotencyLayer, RecordKey, StoreError, Timestamp};

#[derive(Clone, Debug, Default)]
struct MapStore(Arc<Mutex<HashMap<RecordKey, Vec<u8>>>>);

type Result<T> = std::result::Result<T, StoreError>;
type Rows<'a> = MutexGuard<'a, HashMap<RecordKey, Vec<u8>>>;

fn read(rows: &Rows<'_>, key: &RecordKey) -> Result<Option<Record>> {
    rows.get(key).cloned().map(Record::from_bytes).transpose()
}

impl MapStore {
    /// What is done under the lock is one step.
    fn rows(&self) -> Rows<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what becomes of the lease, if `holder` still owns the record.
    fn fenced(
        &self,
        holder: &Holder,
        now: Timestamp,
        write: impl FnOnce(Lease) -> Option<Vec<u8>>,
    ) -> Result<Fenced> {
        let mut rows = self.rows();
        let lease = match Fenced::check(read(&rows, &holder.key)?, holder, now) {
            Ok(lease) => lease,
            Err(lost) => return Ok(lost),
        };
        match write(lease) {
            Some(row) => rows.insert(holder.key, row),
            None => rows.remove(&holder.key),
        };
        Ok(Fenced::Applied)
    }
}

impl Store for MapStore {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim> {
        let mut rows = self.rows();
        let (claim, lease) = Claim::on(read(&rows, request.key)?, request);
        if let Some(lease) = lease {
            rows.insert(*request.key, lease.to_bytes());
        }
        Ok(claim)
    }

    async fn renew(&self, holder: &Holder, renewal: Renewal, now: Timestamp) -> Result<Fenced> {
        self.fenced(holder, now, |mut lease| {
            lease.renew(renewal, now);
            Some(lease.to_bytes())
        })
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced> {
        let fenced = self.fenced(holder, now, |lease| {
            let completed = completion.record(holder.identity, lease.created_at, now);
            Some(completed.to_bytes())
        })?;
        Ok(fenced.or_repeated(completion))
    }

    async fn release(&self, holder: &Holder, release: Release, now: Timestamp) -> Result<Fenced> {
        self.fenced(holder, now, |lease| {
            let orphan = release.leaves(&lease, now)?;
            Some(orphan.to_bytes())
        })
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Seen<Record>>> {
        let record = read(&self.rows(), key)?;
        Ok(record.and_then(|record| record.seen_at(now)))
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool> {
        Ok(self.rows().remove(key).is_some())
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
