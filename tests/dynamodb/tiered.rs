//! Memory stacked over DynamoDB: what each event costs, end to end.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tower_idempotency::store::{DynamoDbStore, MemoryStore, Store, Tiered};
use tower_idempotency::testing::conformance;
use tower_idempotency::{Executor, Fingerprint, IdempotencyKey, Ran, RunError};

use crate::support::Dynamo;

type Node = Executor<Tiered<MemoryStore, DynamoDbStore>>;
type Result = std::result::Result<Ran<u32>, RunError<Infallible>>;

/// A process with memory of its own over the table that all of them share.
fn node(store: &DynamoDbStore) -> Node {
    Executor::new(MemoryStore::new().over(store.clone()))
}

/// Work that counts its runs, and ends when it may.
#[derive(Clone, Default)]
struct Work {
    runs: Arc<AtomicUsize>,
    may_end: Option<Arc<Notify>>,
}

impl Work {
    async fn under(&self, node: &Node, amount: &str) -> Result {
        let key = IdempotencyKey::new("charge", "key-1").expect("the key is valid");
        let work = self.clone();
        let run = move || async move {
            work.runs.fetch_add(1, Ordering::SeqCst);
            if let Some(may_end) = &work.may_end {
                may_end.notified().await;
            }
            Ok(17)
        };
        node.run(&key, Fingerprint::of([amount]), run).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_over_dynamodb_conform() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    conformance::all(MemoryStore::new().over(store.clone())).await;
    let tiered = MemoryStore::new().over(store);
    conformance::all(MemoryStore::new().over(tiered)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_cost_two_calls_then_none_here_and_one_elsewhere() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let (here, there, work) = (node(&store), node(&store), Work::default());
    dynamo.wire.calls();
    assert!(matches!(
        work.under(&here, "1").await,
        Ok(Ran::Executed(17))
    ));
    assert_eq!(dynamo.wire.calls(), ["PutItem", "UpdateItem"]);

    assert!(matches!(
        work.under(&here, "1").await,
        Ok(Ran::Replayed(17))
    ));
    assert!(matches!(
        work.under(&here, "2").await,
        Err(RunError::KeyReused)
    ));
    assert_eq!(dynamo.wire.calls(), [""; 0]);

    assert!(matches!(
        work.under(&there, "2").await,
        Err(RunError::KeyReused)
    ));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    assert!(matches!(
        work.under(&there, "1").await,
        Ok(Ran::Replayed(17))
    ));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    assert!(matches!(
        work.under(&there, "1").await,
        Ok(Ran::Replayed(17))
    ));
    assert_eq!(dynamo.wire.calls(), [""; 0]);
    assert_eq!(work.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_in_flight_costs_no_call_here_and_one_elsewhere() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let (here, there) = (node(&store), node(&store));
    let may_end = Arc::new(Notify::new());
    let work = Work {
        may_end: Some(Arc::clone(&may_end)),
        ..Work::default()
    };
    let first = tokio::spawn({
        let (work, here) = (work.clone(), here.clone());
        async move { work.under(&here, "1").await }
    });
    while work.runs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    dynamo.wire.calls();
    for (node, calls) in [(&here, 0), (&there, 1)] {
        let duplicate = work.under(node, "1").await;
        assert!(matches!(duplicate, Err(RunError::InProgress { .. })));
        assert_eq!(dynamo.wire.calls(), vec!["PutItem"; calls]);
    }
    may_end.notify_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(17)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_duplicates_at_once_cost_what_one_request_costs() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let here = node(&store).wait_for_in_flight(Duration::from_secs(60));
    let work = Work::default();
    dynamo.wire.calls();
    let mut all = JoinSet::new();
    for _ in 0..64 {
        let (work, here) = (work.clone(), here.clone());
        all.spawn(async move { work.under(&here, "1").await });
    }
    for result in all.join_all().await {
        assert!(
            matches!(result, Ok(Ran::Executed(17) | Ran::Replayed(17))),
            "{result:?}"
        );
    }
    assert_eq!(work.runs.load(Ordering::SeqCst), 1);
    assert_eq!(dynamo.wire.calls(), ["PutItem", "UpdateItem"]);
}
