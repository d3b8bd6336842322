//! How many runs are in flight, and the handle that waits for them.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::Conflict;

#[derive(Debug, Default)]
pub(crate) struct Runs {
    in_flight: AtomicUsize,
    closed: AtomicBool,
    idle: Notify,
    /// How many wait for `idle`: to notify nobody has its price, too.
    waiting: AtomicUsize,
    /// Bytes that are buffered for work which has not begun.
    pub(super) buffered: AtomicUsize,
    detached: AtomicU64,
    leases_lost: AtomicU64,
    completions_retried: AtomicU64,
}

impl Runs {
    /// Counts one more run, unless there are `max` already or the executor is shut down.
    pub(super) fn enter(self: &Arc<Self>, max: usize) -> Result<Entered<'_>, Conflict> {
        let entered = Entered(self);
        let before = self.in_flight.fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            Err(Conflict::ShuttingDown)
        } else if before >= max {
            Err(Conflict::TooManyRuns)
        } else {
            Ok(entered)
        }
    }

    fn leave(&self) {
        let was_last = self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.waiting.load(Ordering::SeqCst) > 0 {
            self.idle.notify_waiters();
        }
    }

    pub(super) fn detached(&self) {
        self.detached.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lease_lost(&self) {
        self.leases_lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn completion_retried(&self) {
        self.completions_retried.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts one who may come to run.
#[derive(Debug)]
pub(super) struct Entered<'a>(&'a Arc<Runs>);

impl Entered<'_> {
    /// Goes on counting one who runs.
    pub(super) fn hold(self) -> Permit {
        let permit = Permit(Arc::clone(self.0));
        mem::forget(self);
        permit
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Counts one run as long as it lives.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Runs>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Counts one who waits as long as it lives.
struct Waiting<'a>(&'a Runs);

impl<'a> Waiting<'a> {
    fn on(runs: &'a Runs) -> Self {
        runs.waiting.fetch_add(1, Ordering::SeqCst);
        Self(runs)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Stops new runs and waits for those in flight, also for those whose request is gone.
///
/// A server's own graceful shutdown waits for its connections, some of them for as long as their
/// clients like, so bound it; a run that was detached from its connection is waited for here:
///
/// ```
/// # async fn serve() {}
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # #[cfg(feature = "memory")] {
/// use std::time::Duration;
/// use tower_idempotency::{IdempotencyLayer, store::MemoryStore};
///
/// let layer = IdempotencyLayer::new(MemoryStore::new());
/// let handle = layer.handle();
/// serve(/* a router with the layer, until it is told to stop */).await;
/// if tokio::time::timeout(Duration::from_secs(30), handle.shutdown()).await.is_err() {
///     eprintln!("{} runs did not finish in time", handle.in_flight());
/// }
/// # }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) runs: Arc<Runs>,
}

impl Handle {
    /// Refuses new runs from now on, with 503 `shutting-down`. Replays are still served.
    pub fn close(&self) {
        self.runs.closed.store(true, Ordering::SeqCst);
    }

    /// How many runs are in flight: attached to their requests, detached, or still recording
    /// their answers.
    pub fn in_flight(&self) -> usize {
        self.runs.in_flight.load(Ordering::SeqCst)
    }

    /// How many bytes of request bodies the layer has buffered; see
    /// [`IdempotencyLayer::max_buffered`](crate::IdempotencyLayer::max_buffered).
    pub fn buffered(&self) -> usize {
        self.runs.buffered.load(Ordering::Relaxed)
    }

    /// Waits until no run is in flight. It does not end while the store that a run has to
    /// record its answer in is out of reach, so bound it with a timeout.
    pub async fn idle(&self) {
        // Before the first look, so that a run which ends after it knows that it is waited for.
        let _waiting = Waiting::on(&self.runs);
        loop {
            let idle = self.runs.idle.notified();
            let mut idle = std::pin::pin!(idle);
            // Listening before looking, so that the last run cannot end unheard in between.
            idle.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// [`close`](Self::close), then [`idle`](Self::idle).
    pub async fn shutdown(&self) {
        self.close();
        self.idle().await;
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        Stats {
            detached: self.runs.detached.load(Ordering::Relaxed),
            leases_lost: self.runs.leases_lost.load(Ordering::Relaxed),
            completions_retried: self.runs.completions_retried.load(Ordering::Relaxed),
        }
    }
}

/// Counts of events that are rare and worth an operator's eye.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Runs that went on after their request was dropped.
    pub detached: u64,
    /// Runs that found at their end that the lease was no longer theirs.
    pub leases_lost: u64,
    /// Runs whose end the store did not take at the first try, and that tried on in the
    /// background.
    pub completions_retried: u64,
}
