//! Running something once under a key: claim, heartbeat, complete or release. Knows no HTTP.

mod begin;
mod buffer_budget;
mod detach;
mod end;
mod error_classes;
mod handle;
mod heart;
mod json_work;
mod living;
pub(crate) mod orphan;
mod outcome;
mod prepare;
mod previous;
mod reconcile;
mod run;
mod store_faults;
mod unanswered;
mod wait;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::error;

use self::begin::new_owner;
pub(crate) use self::begin::{Begun, Claimant, Held};
pub(crate) use self::buffer_budget::{Room, Taken};
pub(crate) use self::detach::{BoxFuture, Detached, Stage, is_detached};
pub(crate) use self::end::{Ending, Finished, Recordable, Settled};
use self::error_classes::ErrorClasses;
pub(crate) use self::error_classes::asked;
pub use self::handle::{Handle, Stats};
use self::handle::{Permit, Runs};
use self::heart::{Alive, Heart, Place, has_timers};
use self::json_work::{PlainWork, replayed};
#[cfg_attr(
    not(feature = "test-util"),
    expect(unreachable_pub, reason = "only tests have several")
)]
pub use self::living::Living;
use self::orphan::Orphan;
pub(crate) use self::outcome::Conflict;
pub use self::outcome::{Attempt, AttemptEnded, Ran, RunError};
pub(crate) use self::previous::Earlier;
pub(crate) use self::run::{Run, Work};
use self::wait::Lookouts;
pub(crate) use self::wait::{SharedEnd, What};
use crate::format::answer::{Answer, Sieve};
use crate::protocol::clock::Timestamp;
use crate::protocol::end::End;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::IdempotencyKey;
use crate::protocol::record::Identity;
use crate::runtime::{self, Clock, Instant, SystemClock, timeout};
use crate::store::{SharedStore, Store};

/// Runs work once under a key, as far as the [orphan policy](Orphan) allows, and gives its recorded
/// result to everyone who comes with that key again.
///
/// [`IdempotencyLayer`](crate::IdempotencyLayer) is the HTTP front end for this. Work that is not an
/// HTTP request, such as a message from a queue, uses it directly. Clones share the store, the
/// count of runs and the [`handle`](Self::handle); each has settings of its own, which it copies
/// when it is made.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::convert::Infallible;
/// use tower_idempotency::{Executor, Fingerprint, IdempotencyKey, Ran, store::MemoryStore};
///
/// let executor = Executor::new(MemoryStore::new());
/// let key = IdempotencyKey::new("settle-invoice", "message-77")?;
/// let fingerprint = Fingerprint::of(["invoice-1432", "1200"]);
///
/// let settle = || async { Ok::<_, Infallible>("settled".to_owned()) };
/// let first = executor.run(&key, fingerprint, settle).await?;
/// assert_eq!(first, Ran::Executed("settled".to_owned()));
/// let again = executor.run(&key, fingerprint, settle).await?;
/// assert_eq!(again, Ran::Replayed("settled".to_owned()));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
pub struct Executor<St> {
    shared: Arc<Shared<St>>,
}

struct Shared<St> {
    store: Arc<St>,
    clock: Arc<dyn Clock>,
    /// Made by the first run.
    heart: OnceLock<Arc<Heart<St>>>,
    heartbeat: Place,
    living: Living,
    lookouts: Arc<Lookouts>,
    runs: Arc<Runs>,
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    lease: Duration,
    retention: Duration,
    clock_skew: Duration,
    max_execution: Option<Duration>,
    max_runs: usize,
    wait: Duration,
    store_timeout: Duration,
    reconcile_timeout: Duration,
    answer_unrecorded: bool,
    orphan: Orphan<Answer>,
    error_classes: ErrorClasses,
    announces_effects: bool,
    sieve: Sieve,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            retention: Duration::from_secs(24 * 60 * 60),
            clock_skew: Duration::from_secs(2),
            max_execution: None,
            max_runs: 10_000,
            wait: Duration::ZERO,
            store_timeout: Duration::from_secs(5),
            reconcile_timeout: Duration::from_secs(30),
            answer_unrecorded: true,
            orphan: Orphan::Retake,
            error_classes: ErrorClasses::default(),
            announces_effects: false,
            sieve: Sieve::default(),
        }
    }
}

impl<St: Store> Executor<St> {
    /// An executor that keeps its records in `store`.
    pub fn new(store: St) -> Self {
        Self {
            shared: Arc::new(Shared {
                heart: OnceLock::new(),
                heartbeat: Place::default(),
                store: Arc::new(store),
                clock: Arc::new(SystemClock),
                living: Living::of_this_process(),
                lookouts: Arc::default(),
                runs: Arc::default(),
                settings: Settings::default(),
            }),
        }
    }

    /// How long a run may be silent before its key counts as orphaned. Default: 30 s; at least
    /// 10 ms.
    ///
    /// A run renews its lease each third of this, so it may take much longer: the lease is how
    /// soon a crash is noticed, not how long work may last. Within its process a run never loses its
    /// lease at all, whatever clocks say, unless it has had its
    /// [`max_execution`](Self::max_execution).
    ///
    /// The heartbeat has a thread of its own, so a handler that blocks its thread costs no lease.
    /// But the connections of a store belong to the runtime on which they were opened. While
    /// handlers block *all* worker threads of that runtime, nobody serves its connections; each
    /// renewal that hangs on one is tried again on another after a twelfth of the lease, until one
    /// opens a new connection, on the thread of the heartbeat. So a run finds its way past about 7
    /// idle connections before its lease lapses, and past more it does not: give renewals a
    /// [store of their own](Self::heartbeat_store) where that can happen. A process that is stopped
    /// as a whole for longer than this and the [`clock_skew`](Self::clock_skew), or cut off from
    /// its store for so long, loses its leases to other processes.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        const LEAST: Duration = Duration::from_millis(10);
        if lease < LEAST {
            tracing::warn!(?lease, least = ?LEAST, "`lease` is too short; the least is taken");
        }
        self.set(|settings| settings.lease = lease.max(LEAST))
    }

    /// How long an answer is remembered, counted from its completion. Default: 24 h, as Stripe
    /// does it.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        self.set(|settings| settings.retention = retention)
    }

    /// How far the clocks of two processes on one store may be apart. A lease counts as lapsed
    /// only so long after its deadline. Default: 2 s.
    #[must_use]
    pub fn clock_skew(self, clock_skew: Duration) -> Self {
        self.set(|settings| settings.clock_skew = clock_skew)
    }

    /// How long a run may take before its lease is no longer renewed. It is not stopped, but
    /// another may take its key over after the lease. Default: `None`, as long as it needs.
    #[must_use]
    pub fn max_execution(self, max_execution: impl Into<Option<Duration>>) -> Self {
        let max_execution = max_execution.into();
        self.set(|settings| settings.max_execution = max_execution)
    }

    /// How many runs may be in flight, detached ones included; more are refused with 503
    /// `too-many-runs`. Default: 10,000.
    ///
    /// A limit on concurrency outside this crate does not see a run that went on after its
    /// request was dropped. This one does.
    #[must_use]
    pub fn max_runs(self, max_runs: usize) -> Self {
        self.set(|settings| settings.max_runs = max_runs)
    }

    /// How long a duplicate waits for the run in flight before it is refused with 409
    /// `in-progress`. Default: zero, it is refused at once.
    #[must_use]
    pub fn wait_for_in_flight(self, max: Duration) -> Self {
        self.set(|settings| settings.wait = max)
    }

    /// How long the store may take for one call before it counts as unreachable. Default: 5 s;
    /// at most half of the lease.
    #[must_use]
    pub fn store_timeout(self, store_timeout: Duration) -> Self {
        self.set(|settings| settings.store_timeout = store_timeout)
    }

    /// What becomes of a key whose run has an unknown outcome. Default: [`Orphan::Retake`].
    #[must_use]
    pub fn orphan(self, orphan: Orphan<Answer>) -> Self {
        self.set(|settings| settings.orphan = orphan)
    }

    /// Says what it means that work ended with an error of type `E`. Default: its outcome is
    /// [unknown](End::Unknown).
    ///
    /// Several functions may be added, each for one type of errors; the first whose type fits
    /// decides. One that panics is logged, and the outcome counts as unknown. Work that
    /// [announces its effects](Self::announces_effects) has done nothing before they begin, also
    /// when the function says *unknown* of its error. An error that is called *final* completes the
    /// key; it is not stored, and later calls get [`RunError::NotStored`].
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use tower_idempotency::{End, Executor, store::MemoryStore};
    ///
    /// enum PayError {
    ///     /// The transaction was rolled back.
    ///     Deadlock,
    ///     /// The provider did not answer.
    ///     NoAnswer,
    /// }
    ///
    /// let executor = Executor::new(MemoryStore::new()).classify_error(|error: &PayError| match error {
    ///     PayError::Deadlock => End::NothingDone,
    ///     PayError::NoAnswer => End::Unknown,
    /// });
    /// # }
    /// ```
    #[must_use]
    pub fn classify_error<E: 'static>(
        self,
        classify: impl Fn(&E) -> End + Send + Sync + 'static,
    ) -> Self {
        self.set(|settings| settings.error_classes.add(classify))
    }

    /// Whether all work announces when its effects begin, by [`Attempt::begin_effects`]. Default:
    /// `false`; work that does so alone says [`Attempt::announce_effects`].
    ///
    /// Then an error or a panic before that moment counts as [nothing done](End::NothingDone).
    #[must_use]
    pub fn announces_effects(self, announces: bool) -> Self {
        self.set(|settings| settings.announces_effects = announces)
    }

    /// Whether the result of work is given although the store did not take its record yet, and
    /// is tried again in the background. Default: `true`.
    ///
    /// A result that is given before it is recorded can be followed by another one for the same
    /// key, if the process dies, or is stopped past its lease, before the store takes it and the
    /// work is [run again](Orphan::Retake). `false` rules that out: the one who waits gets [`RunError::NotRecorded`], and the result when it
    /// asks again after the store has taken it.
    #[must_use]
    pub fn answer_unrecorded(self, answer_unrecorded: bool) -> Self {
        self.set(|settings| settings.answer_unrecorded = answer_unrecorded)
    }

    /// How long [`Orphan::Reconcile`] may take to find the outcome of a lost run. After that it
    /// counts as [`Reconciled::Unknown`](crate::Reconciled::Unknown). Default: 30 s.
    #[must_use]
    pub fn reconcile_timeout(self, reconcile_timeout: Duration) -> Self {
        self.set(|settings| settings.reconcile_timeout = reconcile_timeout)
    }

    /// Where wall time comes from. Default: [`SystemClock`].
    #[must_use]
    pub fn clock(self, clock: impl Clock) -> Self {
        self.with(|shared| shared.clock = Arc::new(clock))
    }

    /// Where the heartbeat is, which renews the leases of runs. Default: a thread of its own, one
    /// for all executors of the process, which goes on while handlers block all other threads, and
    /// after a runtime that runs began on.
    ///
    /// A runtime that ends, or whose workers are all blocked, renews nothing. When it is shut down,
    /// the heartbeat goes on where it is by default; so it does at once, with an error in the log,
    /// when the runtime has no timers. In a test with paused time, take the runtime of the test.
    #[must_use]
    pub fn heartbeat_on(self, runtime: tokio::runtime::Handle) -> Self {
        if !has_timers(&runtime) {
            error!("the runtime for the heartbeat has no timers: build it with `enable_time`");
            return self;
        }
        self.with(|shared| shared.heartbeat.runtime = Some(runtime))
    }

    /// What renewals go to. Default: the store that the records are in.
    ///
    /// It has to hold the same records: a [`DynamoDbStore`] on the same table, say, over a client
    /// that has an HTTP client of its own and that nothing else uses. Then its connections are
    /// opened, and served, by the [thread of the heartbeat](Self::heartbeat_on), and leases are
    /// renewed even while handlers block all worker threads; see [`lease`](Self::lease).
    ///
    /// [`DynamoDbStore`]: https://docs.rs/tower-idempotency/latest/tower_idempotency/store/struct.DynamoDbStore.html
    #[must_use]
    pub fn heartbeat_store(self, store: impl Store) -> Self {
        self.with(|shared| shared.heartbeat.store = Some(SharedStore::new(store)))
    }

    /// Makes it one of another process, so that a test can have several in one. Default: all
    /// executors are of this process.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn living(self, living: Living) -> Self {
        self.with(|shared| shared.living = living)
    }

    /// Stops new runs and waits for those in flight.
    pub fn handle(&self) -> Handle {
        Handle {
            runs: Arc::clone(&self.shared.runs),
        }
    }

    /// The store that the records are kept in.
    pub fn store(&self) -> &St {
        &self.shared.store
    }

    /// Runs `work` under `key`, or gives the result that was recorded for it.
    ///
    /// The result of work that ends with `Ok` is recorded as JSON, so `T` must come back from
    /// JSON as it went in. When `work` fails or panics, its outcome counts as unknown, unless the
    /// error is [classified](Self::classify_error), and the [orphan policy](Self::orphan) decides
    /// what becomes of the key. An outcome that shall be recorded although it is a failure is best
    /// put into `T`: `Ok(Err("declined"))`.
    ///
    /// Dropping the future does not stop work that has begun: it is finished, and recorded, on
    /// the runtime.
    ///
    /// # Errors
    ///
    /// See [`RunError`].
    ///
    /// # Panics
    ///
    /// When `work` panics, and when called outside of a Tokio runtime with time enabled.
    pub async fn run<T, E, F, Fut>(
        &self,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
        work: F,
    ) -> Result<Ran<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.run_attempt(key, fingerprint, |_| work()).await
    }

    /// [`run`](Self::run), for work that wants to know its key and fencing token.
    ///
    /// # Errors
    ///
    /// See [`RunError`].
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub async fn run_attempt<T, E, F, Fut>(
        &self,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
        work: F,
    ) -> Result<Ran<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let claimant = Claimant::new(
            key.clone(),
            Identity::of_work(fingerprint),
            Vec::new(),
            self.now(),
        )
        .map_err(RunError::Store)?;
        let stage = Arc::new(Stage::default());
        let executor = self.clone();
        let told = Arc::clone(&stage);
        let run = async move {
            match executor.begin(&claimant, &stage).await {
                Begun::Held(held) => {
                    let attempt = executor.attempt(&held, claimant.key.clone());
                    let owner = held.owner();
                    let work = async move { work(attempt).await };
                    let work = PlainWork::new(executor, owner, work);
                    Run::new(held, claimant.key, work).await
                }
                Begun::Completed(completed) => replayed(&completed.payload),
                // Results that are not recorded are not shared.
                Begun::Shared(end) => Err(Conflict::Ended {
                    class: End::Unknown,
                    first_seen: end.first_seen,
                }
                .into()),
                Begun::Refused(conflict) => Err(conflict.into()),
                // It names no attempt that it runs under.
                Begun::Within => Err(Conflict::Left.into()),
            }
        };
        Detached::new(self.runs(), Some(told), Box::pin(run)).await
    }

    /// How long answers are remembered, and how long they should be at the least: one that is
    /// forgotten before a lease has lapsed may be asked for by a retry that is still on its way.
    pub(crate) fn retention_and_least(&self) -> (Duration, Duration) {
        let settings = &self.shared.settings;
        let least = settings.lease.saturating_add(settings.clock_skew);
        (settings.retention, least)
    }

    /// Counts work that runs without a lease, because the store cannot be reached.
    pub(crate) fn enter_unprotected(
        &self,
        key: IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Unprotected, Conflict> {
        let entered = self.shared.runs.enter(self.shared.settings.max_runs)?;
        let now = self.now();
        let owner = new_owner(now).map_err(Conflict::Store)?;
        Ok(Unprotected {
            attempt: Attempt::unprotected(key, fingerprint, now, owner, self.living_here()),
            counted: Counted {
                _alive: self.heart().keep_without_lease(owner),
                _permit: entered.hold(),
            },
        })
    }

    /// Where its runs are counted.
    pub(crate) fn runs(&self) -> Arc<Runs> {
        Arc::clone(&self.shared.runs)
    }

    /// The room that there is for bytes which are buffered for runs, if `max` of them may be.
    pub(crate) fn room(&self, max: usize) -> Room<'_> {
        Room::new(&self.shared.runs, max)
    }

    /// What of a response is not stored.
    pub(crate) fn sieve(&self) -> &Sieve {
        &self.shared.settings.sieve
    }

    /// The same executor, with another sieve.
    pub(crate) fn sieved(self, change: impl FnOnce(Sieve) -> Sieve) -> Self {
        self.set(|settings| settings.sieve = change(std::mem::take(&mut settings.sieve)))
    }

    /// Whether the business system is asked what became of a run.
    fn reconciles_orphans(&self) -> bool {
        matches!(self.shared.settings.orphan, Orphan::Reconcile(_))
    }

    /// The attempts that are alive in this process.
    pub(crate) fn living_here(&self) -> Living {
        self.shared.living
    }

    fn heart(&self) -> &Arc<Heart<St>> {
        let shared = &*self.shared;
        shared.heart.get_or_init(|| {
            Heart::new(
                Arc::clone(&shared.store),
                Arc::clone(&shared.clock),
                (shared.settings.lease, shared.settings.retention),
                shared.living,
                shared.heartbeat.clone(),
            )
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    fn set(self, change: impl FnOnce(&mut Settings)) -> Self {
        self.with(|shared| change(&mut shared.settings))
    }

    fn with(mut self, change: impl FnOnce(&mut Shared<St>)) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        change(shared);
        // The one before goes on for the runs that it has.
        shared.heart = OnceLock::new();
        self
    }

    /// A call to the store, for as long as one may take. A call that ends at once costs no timer.
    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let settings = &self.shared.settings;
        // What comes after it, renewals in the background, must not come too late.
        let limit = settings.store_timeout.min(settings.lease / 2);
        let mut call = std::pin::pin!(call);
        let at_once = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match call.as_mut().poll(cx) {
                std::task::Poll::Ready(result) => Some(result),
                std::task::Poll::Pending => None,
            })
        });
        if let Some(result) = at_once.await {
            return result;
        }
        timeout(limit, call).await.unwrap_or_else(|_| {
            let message = format!("the store did not answer within {limit:?}");
            Err(StoreError::new(StoreErrorKind::Unavailable, message).maybe_applied())
        })
    }
}

/// Work that runs without a lease, counted.
pub(crate) struct Unprotected {
    pub(crate) attempt: Attempt,
    /// To be kept as long as it runs.
    pub(crate) counted: Counted,
}

/// Counts work among the runs and its attempt among the living.
pub(crate) struct Counted {
    _alive: Alive,
    _permit: Permit,
}

/// The moment `duration` from now; a time that no clock will see when that is past what a clock
/// can say.
pub(crate) fn after(duration: Duration) -> Instant {
    const YEARS: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    let now = runtime::now();
    now.checked_add(duration).unwrap_or_else(|| now + YEARS)
}

impl<St> Clone for Executor<St> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<St> Clone for Shared<St> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            heart: self.heart.clone(),
            heartbeat: self.heartbeat.clone(),
            living: self.living,
            lookouts: Arc::clone(&self.lookouts),
            runs: Arc::clone(&self.runs),
            settings: self.settings.clone(),
        }
    }
}

impl<St: fmt::Debug> fmt::Debug for Executor<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("store", &self.shared.store)
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}
