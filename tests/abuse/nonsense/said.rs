//! One piece of nonsense at a time.

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::time::Instant;
use tower_idempotency::record::{
    ClaimRequest, Completed, FencingToken, Holder, Identity, Lease, Owner, Record, Renewal, Seen,
};
use tower_idempotency::store::{Claim, Completion, Fenced, Release, Store, Waiter};
use tower_idempotency::testing::TokioClock;
use tower_idempotency::{
    Answer, Fingerprint, IdempotencyLayer, Orphan, Reconciled, RecordKey, StoreError,
    StoredResponse, Timestamp,
};

use crate::support::{Runs, ask, request};

const ANOTHER: [u8; 32] = [7; 32];

/// Says this to every claim, and to every completion.
struct Says {
    to_claims: Box<dyn Fn(&ClaimRequest<'_>) -> Claim + Send + Sync>,
    to_completions: Box<dyn Fn(Timestamp) -> Fenced + Send + Sync>,
}

impl Says {
    fn to_claims(claim: impl Fn(&ClaimRequest<'_>) -> Claim + Send + Sync + 'static) -> Self {
        Self {
            to_claims: Box::new(claim),
            to_completions: Box::new(|_| Fenced::Applied),
        }
    }
}

impl fmt::Debug for Says {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Says")
    }
}

impl Store for Says {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        Ok((self.to_claims)(request))
    }

    async fn renew(&self, _: &Holder, _: Renewal, _: Timestamp) -> Result<Fenced, StoreError> {
        Ok(Fenced::Applied)
    }

    async fn complete(
        &self,
        _: &Holder,
        _: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        Ok((self.to_completions)(now))
    }

    async fn release(&self, _: &Holder, _: Release, _: Timestamp) -> Result<Fenced, StoreError> {
        Ok(Fenced::Applied)
    }

    async fn get(&self, _: &RecordKey, _: Timestamp) -> Result<Option<Seen<Record>>, StoreError> {
        Ok(None)
    }

    async fn remove(&self, _: &RecordKey) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// The lease that is asked for.
fn granted(request: &ClaimRequest<'_>) -> Lease {
    request.lease(FencingToken::from_u64(1), 1, request.now)
}

fn answer(body: &'static str) -> Response<Bytes> {
    Response::new(Bytes::from_static(body.as_bytes()))
}

fn of_another(now: Timestamp) -> Seen<Completed> {
    let response = StoredResponse::from(answer("of another"));
    let identity = Identity::of_work(Fingerprint::from_bytes(ANOTHER));
    let payload = Answer::Response(response).encode();
    Completed::new(identity, payload, now, now.plus(Duration::from_secs(60))).seen_at(now)
}

#[tokio::test]
async fn an_answer_to_another_request_is_not_replayed() {
    let store = Says::to_claims(|request| Claim::Completed(of_another(request.now)));
    let runs = Runs::default();
    let app = runs.behind(IdempotencyLayer::new(store));
    ask(&app, request("k", "body"))
        .await
        .refused(422, "caller-differs");
    assert_eq!(runs.count(), 0);
}

#[tokio::test]
async fn a_lease_of_another_is_not_run_under() {
    let of_others: [fn(&mut Lease); 3] = [
        |lease| lease.key = RecordKey::from_bytes(ANOTHER),
        |lease| lease.owner = Owner::from_bytes([7; 16]),
        |lease| lease.identity.request = Fingerprint::from_bytes(ANOTHER),
    ];
    for make_it_so in of_others {
        let store = Says::to_claims(move |request| {
            let mut lease = granted(request);
            make_it_so(&mut lease);
            Claim::Acquired(lease.seen_at(request.now))
        });
        let runs = Runs::default();
        // Something is wrong with the record, so it does not run without one, either.
        let app = runs.behind(IdempotencyLayer::new(store).fail_open(true));
        let refused = ask(&app, request("k", "body")).await;
        refused.refused(500, "store-broken");
        assert_eq!(runs.count(), 0);
    }
}

#[tokio::test]
async fn an_answer_to_another_request_is_not_given_for_a_lost_lease() {
    let lost = |now: Timestamp| Fenced::LeaseLost(Some(of_another(now)));
    let store = Says {
        to_completions: Box::new(lost),
        ..Says::to_claims(|request| Claim::Acquired(granted(request).seen_at(request.now)))
    };
    let app = Runs::default().behind(IdempotencyLayer::new(store));
    ask(&app, request("k", "body"))
        .await
        .refused(409, "lease-lost");

    let store = Says {
        to_completions: Box::new(lost),
        ..Says::to_claims(|request| {
            let mut lease = granted(request);
            lease.attempt = 2;
            Claim::Acquired(lease.seen_at(request.now))
        })
    };
    let found = Orphan::reconcile(async |_| Reconciled::Completed(answer("found")));
    let app = Runs::default().behind(IdempotencyLayer::new(store).orphan(found));
    ask(&app, request("k", "body"))
        .await
        .refused(409, "lease-lost");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ends_again_and_again_is_waited_for_no_longer_than_the_settings_say() {
    let claims = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&claims);
    let store = Says::to_claims(move |request| {
        // A wait that lets no time pass would never end.
        let claims = counted.fetch_add(1, Ordering::SeqCst);
        assert!(claims < 10_000, "asked again and again without a pause");
        let waiter = Waiter::new(ready(()));
        Claim::in_progress(granted(request).seen_at(request.now), Some(waiter))
    });
    let wait = Duration::from_secs(3);
    let layer = IdempotencyLayer::new(store)
        .clock(TokioClock::new())
        .wait_for_in_flight(wait);
    let asked_at = Instant::now();
    let refused = ask(&Runs::default().behind(layer), request("k", "body")).await;
    refused.refused(409, "in-progress");
    assert_eq!(asked_at.elapsed().as_secs(), wait.as_secs());
}
