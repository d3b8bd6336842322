//! Work under a key, on nodes with memory of their own over one table.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tower_idempotency::store::{DynamoDbStore, MemoryStore, Tiered};
use tower_idempotency::testing::Living;
use tower_idempotency::{Executor, Fingerprint, IdempotencyKey, Ran, RunError};

use crate::support::eventually;

pub(crate) type Node = Executor<Tiered<MemoryStore, DynamoDbStore>>;
pub(crate) type Result = std::result::Result<Ran<u32>, RunError<Infallible>>;

/// A process with memory of its own over the table that all of them share.
pub(crate) fn node(store: &DynamoDbStore) -> Node {
    Executor::new(MemoryStore::new().over(store.clone())).living(Living::of_another_process())
}

pub(crate) fn key() -> IdempotencyKey {
    IdempotencyKey::new("charge", "key-1").expect("the key is valid")
}

/// Work that counts its runs, and ends when it may.
#[derive(Clone, Default)]
pub(crate) struct Work {
    runs: Arc<AtomicUsize>,
    may_end: Option<Arc<Notify>>,
}

impl Work {
    /// Ends when [`end`](Self::end) says so.
    pub(crate) fn slow() -> Self {
        Self {
            may_end: Some(Arc::default()),
            ..Self::default()
        }
    }

    pub(crate) fn end(&self) {
        let may_end = self.may_end.as_ref().expect("it is slow");
        may_end.notify_one();
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    pub(crate) async fn under(&self, node: &Node, amount: &str) -> Result {
        let work = self.clone();
        let run = move || async move {
            work.runs.fetch_add(1, Ordering::SeqCst);
            if let Some(may_end) = &work.may_end {
                may_end.notified().await;
            }
            Ok(17)
        };
        node.run(&key(), Fingerprint::of([amount]), run).await
    }

    /// Runs it in a task of its own, and waits until it has begun.
    pub(crate) async fn spawned(&self, node: &Node, amount: &'static str) -> JoinHandle<Result> {
        let (work, node, before) = (self.clone(), node.clone(), self.runs());
        let task = tokio::spawn(async move { work.under(&node, amount).await });
        eventually(async || self.runs() > before).await;
        task
    }
}

#[track_caller]
pub(crate) fn is_executed(result: &Result) {
    assert!(matches!(result, Ok(Ran::Executed(17))), "{result:?}");
}

#[track_caller]
pub(crate) fn is_replayed(result: &Result) {
    assert!(matches!(result, Ok(Ran::Replayed(17))), "{result:?}");
}

#[track_caller]
pub(crate) fn is_in_progress(result: &Result) {
    let is_in_progress = matches!(result, Err(RunError::InProgress { .. }));
    assert!(is_in_progress, "{result:?}");
}
