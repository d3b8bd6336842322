//! An executor on paused time, and work that can be watched.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tower_idempotency::store::{MemoryStore, Store};
use tower_idempotency::testing::{FaultStore, Living, TokioClock};
use tower_idempotency::{Executor, Fingerprint, IdempotencyKey, Ran, RunError};

pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const SKEW: Duration = Duration::from_secs(2);
pub(crate) const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) type Result<T = u32, E = &'static str> = std::result::Result<Ran<T>, RunError<E>>;

/// An executor over a memory store whose calls can be made to fail.
pub(crate) fn faulty() -> Executor<FaultStore<MemoryStore>> {
    on(FaultStore::new(MemoryStore::new()))
}

pub(crate) fn in_memory() -> Executor<MemoryStore> {
    on(MemoryStore::new())
}

pub(crate) fn on<St: Store>(store: St) -> Executor<St> {
    Executor::new(store)
        .clock(TokioClock::new())
        .heartbeat_on(Handle::current())
}

/// The same executor in another process.
pub(crate) fn elsewhere<St: Store>(executor: &Executor<St>) -> Executor<St> {
    executor.clone().living(Living::of_another_process())
}

pub(crate) fn key() -> IdempotencyKey {
    IdempotencyKey::new("charge", "key-1").expect("the key is valid")
}

pub(crate) fn fingerprint() -> Fingerprint {
    Fingerprint::of(["amount=1200"])
}

/// Work that counts how often it was begun, and ends when it is told to.
#[derive(Clone)]
pub(crate) struct Work {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    may_end: Arc<Semaphore>,
}

impl Work {
    /// Ends at once.
    pub(crate) fn quick() -> Self {
        let work = Self::slow();
        work.may_end.add_permits(Semaphore::MAX_PERMITS / 2);
        work
    }

    /// Ends when [`end_one`](Self::end_one) says so.
    pub(crate) fn slow() -> Self {
        Self {
            begun: Arc::default(),
            ended: Arc::default(),
            may_end: Arc::new(Semaphore::new(0)),
        }
    }

    pub(crate) fn end_one(&self) {
        self.may_end.add_permits(1);
    }

    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub(crate) fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    /// The number of this run, counted from 1.
    pub(crate) async fn run(self) -> std::result::Result<u32, &'static str> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let permit = self.may_end.acquire().await;
        permit.expect("the semaphore stays open").forget();
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(u32::try_from(number).expect("few runs"))
    }

    /// Runs it under the key of [`key`].
    pub(crate) async fn under<St: Store>(&self, executor: &Executor<St>) -> Result {
        let work = self.clone();
        executor
            .run(&key(), fingerprint(), move || work.run())
            .await
    }

    /// Runs it in a task of its own, and waits until it has begun.
    pub(crate) async fn spawned<St: Store>(
        &self,
        executor: &Executor<St>,
    ) -> tokio::task::JoinHandle<Result> {
        let (work, executor, before) = (self.clone(), executor.clone(), self.begun());
        let task = tokio::spawn(async move { work.under(&executor).await });
        eventually(|| self.begun() > before).await;
        task
    }
}

/// Waits, on paused time, until a condition holds.
pub(crate) async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the condition never held");
}

/// Lets everything that does not wait for time come to rest.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
