//! Answers that the store does not take, for a while or for ever.

use std::time::Duration;

use http::Response;
use tower_idempotency::record::{ClaimRequest, Holder, Record, Renewal, Seen};
use tower_idempotency::store::{Claim, Completion, Fenced, MemoryStore, Release, Store};
use tower_idempotency::{
    IdempotencyLayer, RecordKey, RecordingOverride, StoreError, StoreErrorKind, Timestamp,
};

use crate::support::{Body, Fault, FaultyStore, Runs, eventually, for_each_stack, text};

/// A store that takes no completion of more than `most` bytes, and says that it is `kind`.
#[derive(Clone, Debug)]
struct Picky {
    inner: MemoryStore,
    most: usize,
    kind: StoreErrorKind,
}

impl Picky {
    fn new(most: usize, kind: StoreErrorKind) -> Self {
        Self {
            inner: MemoryStore::new(),
            most,
            kind,
        }
    }
}

impl Store for Picky {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        self.inner.claim(request).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.inner.renew(holder, renewal, now).await
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        if completion.payload.len() > self.most {
            return Err(StoreError::new(self.kind, "it is not taken"));
        }
        self.inner.complete(holder, completion, now).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.inner.release(holder, release, now).await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        self.inner.get(key, now).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.inner.remove(key).await
    }
}

fn long_text(number: usize) -> Response<Body> {
    text(format!("run {number} {}", "x".repeat(1_000)))
}

#[tokio::test]
async fn an_answer_that_is_too_large_for_the_store_completes_as_not_stored() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(Picky::new(100, StoreErrorKind::TooLarge));
        let server = case
            .serve(&layer, runs.answering(|_, number| long_text(number)))
            .await;
        let first = server.post("/a").key("k").send().await;
        assert!(first.body.starts_with(b"run 1 "), "{first:?}");
        for _ in 0..2 {
            let retry = server.post("/a").key("k").send().await;
            retry.refused(409, "response-not-stored");
        }
        assert_eq!((runs.count(), layer.handle().in_flight()), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn a_fault_of_the_store_that_does_not_pass_is_not_tried_for_a_day() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let lease = Duration::from_millis(200);
        let layer = IdempotencyLayer::new(Picky::new(100, StoreErrorKind::Unusable))
            .lease(lease)
            .clock_skew(Duration::ZERO);
        let server = case
            .serve(&layer, runs.answering(|_, number| long_text(number)))
            .await;
        let first = server.post("/a").key("k").send().await;
        assert!(first.body.starts_with(b"run 1 "), "{first:?}");
        let handle = layer.handle();
        assert_eq!(handle.in_flight(), 1, "it is tried for a lease");
        eventually(async || handle.in_flight() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_is_tried_to_be_recorded_until_it_expires_itself() {
    for_each_stack(|case| async move {
        let (store, runs) = (FaultyStore::new(), Runs::default());
        let layer = IdempotencyLayer::new(store.clone())
            .retention(Duration::from_millis(100))
            .lease(Duration::from_millis(50))
            .clock_skew(Duration::ZERO);
        let hour = Duration::from_secs(60 * 60);
        let handler = runs.answering(move |_, number| {
            let mut response = text(format!("run {number}"));
            let kept = RecordingOverride::FinalFor(hour);
            response.extensions_mut().insert(kept);
            response
        });
        let server = case.serve(&layer, handler).await;
        store.fail_ends(Fault::Unreachable);
        server.post("/a").key("k").send().await.ran("run 1");
        // Long after the retention that others have.
        tokio::time::sleep(Duration::from_millis(400)).await;
        store.fail_ends(Fault::None);
        eventually(async || layer.handle().in_flight() == 0).await;
        server.post("/a").key("k").send().await.replayed("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}
