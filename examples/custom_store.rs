//! A store of your own, held to the suite that the crate's own stores have to pass.
//!
//! ```text
//! cargo run --example custom_store
//! ```
//!
//! This one is a map behind a mutex. One of yours would make the same decisions in a
//! transaction of its database: read the record, ask [`decide`], write what it says; and it would
//! make each fenced write conditional on what [`is_owned_by`] says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{Router, routing::post};
use tower_idempotency::record::{
    ClaimRequest, Completed, Decision, Held, Lease, Record, Renewal, decide, is_owned_by, renewed,
};
use tower_idempotency::store::{Claim, Completion, Fenced, Release, Store};
use tower_idempotency::testing::conformance;
use tower_idempotency::{IdempotencyLayer, RecordKey, StoreError, StoreErrorKind, Timestamp};

#[derive(Clone, Debug, Default)]
struct MapStore {
    records: Arc<Mutex<HashMap<RecordKey, Record>>>,
}

impl MapStore {
    fn records(&self) -> MutexGuard<'_, HashMap<RecordKey, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a record in progress, if `lease` still owns it.
    fn fenced(&self, lease: &Lease, write: impl FnOnce(Lease) -> Option<Record>) -> Fenced {
        let mut records = self.records();
        let existing = records.get(&lease.key);
        let is_owned = is_owned_by(existing.map(Held::from), lease);
        let held = match existing {
            Some(Record::InProgress(held)) if is_owned => held.clone(),
            Some(Record::Completed(completed)) => {
                return Fenced::LeaseLost(Some(completed.clone()));
            }
            _ => return Fenced::LeaseLost(None),
        };
        match write(held) {
            Some(record) => records.insert(lease.key, record),
            None => records.remove(&lease.key),
        };
        Fenced::Applied
    }
}

impl Store for MapStore {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        // Reading, deciding and writing are one step, under the lock.
        let mut records = self.records();
        let existing = records.get(request.key);
        let decision = decide(existing.map(Held::from), request);
        Ok(match (decision, existing) {
            (
                Decision::Acquire {
                    token,
                    attempt,
                    created_at,
                },
                _,
            ) => {
                let lease = request.lease(token, attempt, created_at);
                records.insert(lease.key, Record::InProgress(lease.clone()));
                Claim::Acquired(lease)
            }
            (Decision::Own, Some(Record::InProgress(lease))) => Claim::Acquired(lease.clone()),
            (Decision::Replay, Some(Record::Completed(completed))) => {
                Claim::Completed(completed.clone())
            }
            (Decision::InProgress, Some(Record::InProgress(lease))) => Claim::InProgress {
                lease: lease.clone(),
                // Nobody hears a run end here: those who wait look again now and then.
                waiter: None,
            },
            (Decision::Orphaned, Some(Record::InProgress(lease))) => Claim::orphaned(lease),
            (Decision::CallerDiffers, _) => Claim::CallerDiffers,
            (Decision::Reused, _) => Claim::Reused,
            (Decision::SettingsChanged { recorded }, _) => Claim::SettingsChanged { recorded },
            (decision, _) => {
                return Err(StoreError::new(
                    StoreErrorKind::Damaged,
                    format!("{decision:?} does not fit the record that is there"),
                ));
            }
        })
    }

    async fn renew(&self, lease: &Lease, renewal: Renewal) -> Result<Fenced, StoreError> {
        Ok(self.fenced(lease, |held| {
            let Renewal {
                deadline,
                expires_at,
            } = renewed(&held, renewal);
            Some(Record::InProgress(Lease {
                deadline,
                expires_at,
                ..held
            }))
        }))
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<Fenced, StoreError> {
        let fenced = self.fenced(lease, |held| {
            Some(Record::Completed(Completed {
                identity: held.identity,
                payload: completion.payload.clone(),
                created_at: held.created_at,
                expires_at: completion.expires_at,
            }))
        });
        Ok(match fenced {
            // The very answer is there: this call repeats one that was applied.
            Fenced::LeaseLost(Some(completed)) if completed.payload == completion.payload => {
                Fenced::Applied
            }
            fenced => fenced,
        })
    }

    async fn release(&self, lease: &Lease, release: Release) -> Result<Fenced, StoreError> {
        Ok(self.fenced(lease, |held| match release {
            Release::Free => None,
            Release::Orphan {
                expires_at,
                first_status,
            } => Some(Record::InProgress(Lease {
                deadline: Timestamp::EPOCH,
                expires_at,
                first_status,
                ..held
            })),
        }))
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
        Ok(self
            .records()
            .get(key)
            .cloned()
            .filter(|record| match record {
                Record::Completed(completed) => completed.expires_at > now,
                Record::InProgress(lease) => lease.deadline >= now || lease.expires_at > now,
            }))
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        Ok(self.records().remove(key).is_some())
    }
}

#[tokio::main]
async fn main() {
    conformance::all(MapStore::default()).await;
    println!("the store conforms");

    // And now it is as good as any other.
    let layer = IdempotencyLayer::new(MapStore::default());
    let _app: Router = Router::new()
        .route("/v1/charges", post(|| async { "charged" }))
        .layer(layer);
}
