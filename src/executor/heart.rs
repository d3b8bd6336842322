//! The heartbeat: renews the leases of all runs, from before their first poll to their end.
//!
//! It is one task for all runs of an executor, on a thread of its own, so that it goes on while a
//! handler blocks its thread, while nobody polls the future that a run sits in, and after the
//! runtime that a run began on. Renewals that the store answers at once cost neither a task nor
//! an allocation.

mod beats;
mod runtimes;

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tracing::{error, warn};

pub(super) use self::beats::{Alive, Beats};
use self::beats::{BEATS_PER_LEASE, Due};
pub(super) use self::runtimes::{check as check_runtime, check_thread, has_timers};
use super::living::{Living, Noted};
use super::store_faults::log_fault;
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::record::{Holder, Lease, Owner, Renewal};
use crate::runtime::{self, Clock, timeout, timeout_at};
use crate::store::{Fenced, SharedStore, Store};

/// A renewal that failed, or that the store does not answer, is tried again after so much of the
/// lease.
const TRIES_PER_LEASE: u32 = 12;
/// So many renewals may wait for the store at a time, and one more for each [`RUNS_PER_RENEWAL`]
/// runs: with a lease of 30 s, the store may take 300 ms for each, and all are in time.
const FEWEST_AT_A_TIME: usize = 64;
const RUNS_PER_RENEWAL: usize = 32;

/// Where a heart beats.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// `None`: on the thread of all hearts.
    pub(super) runtime: Option<Handle>,
    /// `None`: to the store that the records are in.
    pub(super) store: Option<SharedStore>,
}

pub(super) struct Heart<St> {
    store: Arc<St>,
    /// What renewals go to in its place.
    other_store: Option<SharedStore>,
    clock: Arc<dyn Clock>,
    lease: Duration,
    retention: Duration,
    beats: Arc<Beats>,
    runtime: Option<Handle>,
    /// Renewals that wait for the store.
    waiting: AtomicUsize,
    one_less: Notify,
}

impl<St: Store> Heart<St> {
    pub(super) fn new(
        store: Arc<St>,
        clock: Arc<dyn Clock>,
        (lease, retention): (Duration, Duration),
        living: Living,
        Place {
            runtime,
            store: other_store,
        }: Place,
    ) -> Arc<Self> {
        let beats = Arc::new(Beats::new(lease, living));
        living.add(&beats);
        Arc::new(Self {
            store,
            other_store,
            clock,
            lease,
            retention,
            beats,
            runtime,
            waiting: AtomicUsize::new(0),
            one_less: Notify::new(),
        })
    }

    /// What is known of the attempt of `owner`, which it keeps alive.
    pub(super) fn with<T>(&self, owner: Owner, look: impl FnOnce(&mut Noted) -> T) -> Option<T> {
        self.beats.with(owner, look)
    }

    /// Keeps an attempt alive that holds `lease` at `now`: its lease is renewed until the guard is
    /// dropped.
    pub(super) fn keep(self: &Arc<Self>, lease: &Lease, now: Timestamp) -> Alive {
        let alive = self.beats.enter(lease, now);
        if !self.beats.is_awake() {
            self.wake();
        }
        alive
    }

    /// Keeps an attempt alive that holds no lease.
    pub(super) fn keep_without_lease(&self, owner: Owner) -> Alive {
        self.beats.enter_without_lease(owner)
    }

    #[cold]
    fn wake(self: &Arc<Self>) {
        if self.beats.wake() {
            self.start(self.runtime.as_ref());
        }
    }

    fn start(self: &Arc<Self>, runtime: Option<&Handle>) {
        let task = Task {
            heart: Arc::clone(self),
            ended: false,
        };
        let runtime = match runtime {
            Some(runtime) => runtime.clone(),
            None => match runtimes::of_hearts() {
                Ok(runtime) => runtime,
                Err(error) => {
                    error!(%error, "the heartbeat has no thread of its own");
                    match runtime::current() {
                        Ok(runtime) => runtime,
                        Err(_) => return task.does_not_start(),
                    }
                }
            },
        };
        runtime.spawn(task.run());
    }

    async fn renew(self: Arc<Self>, holder: Holder) -> Result<Fenced, StoreError> {
        let renewal = Renewal::new(self.lease, self.retention);
        let now = self.clock.now();
        match &self.other_store {
            None => self.store.renew(&holder, renewal, now).await,
            Some(store) => store.renew(&holder, renewal, now).await,
        }
    }

    /// What came of a renewal.
    fn renewed(&self, due: &Due, renewed: Result<Fenced, StoreError>) {
        let record = due.holder.key;
        match renewed {
            Ok(Fenced::Applied) => {}
            Ok(Fenced::LeaseLost(_)) => {
                // A renewal that comes after the end of its own run finds no lease, either; what
                // became of the lease is for the end to say.
                if self.beats.lost(due) {
                    warn!(%record, "a run lost its lease");
                }
            }
            Err(error) => {
                log_fault(&record, &error, "a lease was not renewed; trying again");
                self.due_in(due, self.lease / TRIES_PER_LEASE);
            }
        }
    }

    fn due_in(&self, due: &Due, after: Duration) {
        self.beats.due_in(due, after, self.clock.now());
    }

    /// Goes on with a renewal that the store did not answer at once.
    ///
    /// If it hangs, another one does not wait for its end.
    fn wait(self: &Arc<Self>, due: Due, renewal: impl Future<Output = Renewed> + Send + 'static) {
        self.due_in(&due, self.lease / TRIES_PER_LEASE);
        let waiting = Waiting::new(self);
        runtime::spawn(async move {
            let heart = &waiting.0;
            match timeout(heart.lease / (BEATS_PER_LEASE * 2), renewal).await {
                Ok(renewed) => {
                    let is_applied = matches!(renewed, Ok(Fenced::Applied));
                    heart.renewed(&due, renewed);
                    if is_applied {
                        heart.due_in(&due, heart.lease / BEATS_PER_LEASE);
                    }
                }
                Err(_) => {
                    let record = due.holder.key;
                    warn!(%record, "the store did not answer a renewal in time");
                }
            }
        });
    }

    /// Waits until fewer renewals wait for the store than may.
    async fn has_room(&self) {
        let most = FEWEST_AT_A_TIME + self.beats.len() / RUNS_PER_RENEWAL;
        while self.waiting.load(Ordering::SeqCst) >= most {
            self.one_less.notified().await;
        }
    }
}

impl<St> fmt::Debug for Heart<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heart").finish_non_exhaustive()
    }
}

type Renewed = Result<Fenced, StoreError>;

/// Counts a renewal that waits for the store.
struct Waiting<St>(Arc<Heart<St>>);

impl<St> Waiting<St> {
    fn new(heart: &Arc<Heart<St>>) -> Self {
        heart.waiting.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(heart))
    }
}

impl<St> Drop for Waiting<St> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        self.0.one_less.notify_one();
    }
}

/// The task of a heart that is awake. When it is dropped with its runtime, another one goes on
/// elsewhere.
struct Task<St: Store> {
    heart: Arc<Heart<St>>,
    ended: bool,
}

impl<St: Store> Task<St> {
    async fn run(mut self) {
        let heart = Arc::clone(&self.heart);
        let beats = &heart.beats;
        let (first, began) = (beats.latest_tick(), runtime::now());
        let mut taken = Vec::new();
        let mut spare = None;
        let mut is_idle = false;
        loop {
            let ticks = began.elapsed().as_micros() / beats.tick().as_micros();
            let target = first + u64::try_from(ticks).unwrap_or(u64::MAX / 2);
            let mut is_first = true;
            for shard in 0..Beats::SHARDS {
                while {
                    let wall = heart.clock.now();
                    let all = beats.take(shard, target, runtime::now(), wall, &mut taken);
                    !all || !taken.is_empty()
                } {
                    if std::mem::take(&mut is_first) {
                        runtimes::nudge();
                    }
                    for due in taken.drain(..) {
                        let mut renewal = spare.take().unwrap_or_else(|| Box::pin(None));
                        renewal.set(Some(Arc::clone(&heart).renew(due.holder)));
                        match first_poll(&mut renewal).await {
                            Poll::Ready(renewed) => {
                                renewal.set(None);
                                spare = Some(renewal);
                                heart.renewed(&due, renewed);
                            }
                            Poll::Pending => heart.wait(due, goes_on(renewal)),
                        }
                    }
                    heart.has_room().await;
                    // Other hearts beat on this thread, too.
                    yield_now().await;
                }
            }
            let next = beats.next();
            if next.is_none() && std::mem::replace(&mut is_idle, next.is_none()) && beats.sleep() {
                break;
            }
            is_idle = next.is_none();
            let next = next.unwrap_or(target + Beats::LONGEST_SLEEP);
            let ticks = u32::try_from(next - first).unwrap_or(u32::MAX);
            let wakes_at = began + beats.tick() * ticks;
            // Whichever comes first: the time, or a lease that is due before it.
            let _ = timeout_at(wakes_at, beats.sooner.notified()).await;
        }
        self.ended = true;
    }

    fn does_not_start(mut self) {
        self.ended = true;
        self.heart.beats.sleep();
    }
}

impl<St: Store> Drop for Task<St> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if thread::panicking() {
            // Not again at once, and so perhaps for ever: the next run wakes it.
            self.heart.beats.sleep();
        } else {
            self.heart.start(None);
        }
    }
}

/// A renewal, in a box that is used again if it ends at once.
type Boxed<F> = Pin<Box<Option<F>>>;

/// Polls it once. A store that panics has failed.
async fn first_poll<F: Future<Output = Renewed>>(renewal: &mut Boxed<F>) -> Poll<Renewed> {
    poll_fn(|cx| {
        let Some(future) = renewal.as_mut().as_pin_mut() else {
            return Poll::Ready(Poll::Pending);
        };
        let polled = catch_unwind(AssertUnwindSafe(|| future.poll(cx)));
        Poll::Ready(polled.unwrap_or_else(|_| {
            let message = "the store panicked";
            Poll::Ready(Err(StoreError::new(StoreErrorKind::Unusable, message)))
        }))
    })
    .await
}

async fn goes_on<F: Future<Output = Renewed>>(mut renewal: Boxed<F>) -> Renewed {
    match renewal.as_mut().as_pin_mut() {
        Some(renewal) => renewal.await,
        None => Ok(Fenced::Applied),
    }
}
