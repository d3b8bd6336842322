//! What every store has to do, as a list of named behaviours.
//!
//! The macro [`conformance!`](crate::conformance) makes a test of each, so that the name of a test
//! that fails is the name of the promise that is broken:
//!
//! ```
//! # #[cfg(feature = "memory")]
//! mod my_store {
//!     use tower_idempotency::store::MemoryStore;
//!     use tower_idempotency::testing::conformance::{self, Capabilities};
//!
//!     async fn make_store() -> MemoryStore {
//!         MemoryStore::new()
//!     }
//!
//!     // Its records live and die with it, so no other handle sees them.
//!     tower_idempotency::conformance!(
//!         make_store,
//!         Capabilities::all().shares(false).persists(false)
//!     );
//! }
//! ```
//!
//! ```text
//! test my_store::of_many_claims_one_gets_the_lease ... ok
//! test my_store::a_completion_after_a_takeover_is_refused ... FAILED
//! ```
//!
//! A test that fails says which promise is broken, what was expected and what the store gave.
//! [`Capabilities`] says what a store cannot do; the behaviours that need more are skipped, and their
//! tests print why (`--nocapture` shows it).
//!
//! [`all`] runs the suite without the macro, and [`Suite::run`] one behaviour of [`behaviours()`].
//!
//! Each behaviour uses keys of its own, so the store may hold others. Nothing here waits: what a
//! caller's clock shows is handed in with each call. A store that has a clock of its own is held to
//! the suite by [`Suite::clock_is_set_by`], which moves that clock.

pub mod behaviours;
mod key;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use self::key::TestKey;
use crate::protocol::clock::Timestamp;
use crate::store::Store;

/// How long a behaviour may take before the store counts as one that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the whole suite on one handle of a store.
///
/// Nothing that needs a second handle is run; for that, see [`Suite::made_by`].
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use tower_idempotency::{store::MemoryStore, testing::conformance};
///
/// conformance::all(MemoryStore::new()).await;
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
///
/// # Panics
///
/// When a behaviour is not as [`Store`] promises, after all have run. The message lists every
/// broken one.
pub async fn all<St: Store>(store: St) {
    Suite::of(store).all().await;
}

/// What a store can do that not every store can. The behaviours that need what it cannot do are
/// skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    persists: bool,
    shares: bool,
    largest_answer: usize,
}

impl Capabilities {
    /// Everything.
    pub const fn all() -> Self {
        Self {
            persists: true,
            shares: true,
            largest_answer: usize::MAX,
        }
    }

    /// Sets whether its records survive it: a store that is made after all handles to it are gone
    /// has them. Default: `true`.
    #[must_use]
    pub const fn persists(self, persists: bool) -> Self {
        Self { persists, ..self }
    }

    /// Sets whether two stores that are made one after the other share their records, as those of
    /// two processes do. Default: `true`.
    #[must_use]
    pub const fn shares(self, shares: bool) -> Self {
        Self { shares, ..self }
    }

    /// Sets the size of the largest answer that it keeps, in bytes. It has to refuse a larger one
    /// with an error. Default: no limit.
    #[must_use]
    pub const fn largest_answer(self, bytes: usize) -> Self {
        Self {
            largest_answer: bytes,
            ..self
        }
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::all()
    }
}

/// Why a behaviour was not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// The store breaks a promise.
    Broken {
        /// Which one.
        promise: String,
        /// What it has to give.
        expected: String,
        /// What it gave.
        got: String,
    },
    /// The store cannot do what this is about, as its [`Capabilities`] say.
    Skipped {
        /// What it would have to be able to do.
        needs: &'static str,
    },
}

impl NotKept {
    fn broken(promise: &str, expected: &str, got: &dyn fmt::Debug) -> Self {
        const LONGEST: usize = 600;
        let mut got = format!("{got:?}");
        if let Some((end, _)) = got.char_indices().nth(LONGEST) {
            got.truncate(end);
            got.push('…');
        }
        Self::Broken {
            promise: promise.to_owned(),
            expected: expected.to_owned(),
            got,
        }
    }
}

impl fmt::Display for NotKept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken {
                promise,
                expected,
                got,
            } => write!(f, "{promise}: expected {expected}, got {got}"),
            Self::Skipped { needs } => write!(f, "skipped: it needs {needs}"),
        }
    }
}

impl std::error::Error for NotKept {}

type Checking = Pin<Box<dyn Future<Output = Result<(), NotKept>> + Send>>;

/// One thing that every store has to do. Its name says what.
pub struct Behaviour<St> {
    name: &'static str,
    check: fn(TestKey<St>) -> Checking,
}

impl<St> Behaviour<St> {
    /// Returns the name of its function in [`behaviours`](mod@behaviours).
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<St> fmt::Debug for Behaviour<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Behaviour").field(&self.name).finish()
    }
}

type MakeStore<St> = dyn Fn() -> Pin<Box<dyn Future<Output = Arc<St>> + Send>> + Send + Sync;
type SetClock = dyn Fn(Timestamp) + Send + Sync;

/// The behaviours, and a store that is held to them.
pub struct Suite<St> {
    make_store: Arc<MakeStore<St>>,
    capabilities: Capabilities,
    set_clock: Option<Arc<SetClock>>,
}

impl<St: Store> Suite<St> {
    /// Holds one handle of a store to the behaviours. It can make no other, so those that are about
    /// two are skipped.
    pub fn of(store: St) -> Self {
        let store = Arc::new(store);
        let make_store = move || {
            let store = Arc::clone(&store);
            Box::pin(async move { store }) as _
        };
        Self {
            make_store: Arc::new(make_store),
            capabilities: Capabilities::all().persists(false).shares(false),
            set_clock: None,
        }
    }

    /// Holds the stores that `make_store` makes to the behaviours. Each behaviour makes one; if the
    /// store can share or persist its records, every one that is made here has the same.
    pub fn made_by<Made>(
        make_store: impl Fn() -> Made + Send + Sync + 'static,
        capabilities: Capabilities,
    ) -> Self
    where
        Made: Future<Output = St> + Send + 'static,
    {
        let make_store = move || {
            let made = make_store();
            Box::pin(async move { Arc::new(made.await) }) as _
        };
        Self {
            make_store: Arc::new(make_store),
            capabilities,
            set_clock: None,
        }
    }

    /// Says what the store can do.
    #[must_use]
    pub fn capabilities(self, capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            ..self
        }
    }

    /// Says that the store decides by a clock of its own, which `set_clock` sets. Before each call it
    /// is told the time that it is to be; by how much the store's clock differs from that makes no
    /// difference, as long as it is always the same.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::time::Duration;
    /// use tower_idempotency::store::MemoryStore;
    /// use tower_idempotency::testing::conformance::Suite;
    /// use tower_idempotency::testing::{ClockedStore, ManualClock};
    ///
    /// let clock = ManualClock::new();
    /// let store = ClockedStore::new(MemoryStore::new(), clock.clone());
    /// let an_hour_ahead = Duration::from_secs(60 * 60);
    /// Suite::of(store)
    ///     .clock_is_set_by(move |now| clock.set(now.plus(an_hour_ahead)))
    ///     .all()
    ///     .await;
    /// # }
    /// # #[cfg(not(feature = "memory"))]
    /// # fn main() {}
    /// ```
    #[must_use]
    pub fn clock_is_set_by(self, set_clock: impl Fn(Timestamp) + Send + Sync + 'static) -> Self {
        Self {
            set_clock: Some(Arc::new(set_clock)),
            ..self
        }
    }

    /// Runs one behaviour.
    ///
    /// # Errors
    ///
    /// When the store breaks it, or hangs, or cannot do what it is about.
    pub async fn run(&self, behaviour: &Behaviour<St>) -> Result<(), NotKept> {
        let key = TestKey::new(self).await;
        match tokio::time::timeout(PATIENCE, (behaviour.check)(key)).await {
            Ok(checked) => checked,
            Err(elapsed) => Err(NotKept::broken("every call ends", "an end", &elapsed)),
        }
    }

    /// Runs all behaviours, one after the other.
    ///
    /// # Panics
    ///
    /// As [`all`].
    pub async fn all(&self) {
        let mut broken = Vec::new();
        for behaviour in behaviours() {
            if let Some(broke) = self.broken(&behaviour).await {
                broken.push(broke);
            }
        }
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    /// Runs the behaviour `name`. The tests of [`conformance!`](crate::conformance) call it.
    ///
    /// # Panics
    ///
    /// When the store breaks it, and when there is none of that name.
    pub async fn keeps(&self, name: &str) {
        let behaviour = behaviours().into_iter().find(|of| of.name == name);
        let behaviour = behaviour.unwrap_or_else(|| panic!("there is no behaviour {name}"));
        if let Some(broken) = self.broken(&behaviour).await {
            panic!("{broken}");
        }
    }

    async fn broken(&self, behaviour: &Behaviour<St>) -> Option<String> {
        let name = behaviour.name;
        match self.run(behaviour).await {
            Ok(()) => None,
            Err(skipped @ NotKept::Skipped { .. }) => {
                println!("{name} is {skipped}");
                None
            }
            Err(broken) => Some(format!("{name} is broken: {broken}")),
        }
    }

    async fn open(&self) -> Arc<St> {
        (self.make_store)().await
    }
}

impl<St> Suite<St> {
    fn set_clock_to(&self, now: Timestamp) {
        if let Some(set_clock) = &self.set_clock {
            set_clock(now);
        }
    }

    const fn needs_sharing(&self) -> Result<(), NotKept> {
        match self.capabilities.shares {
            true => Ok(()),
            false => Err(NotKept::Skipped {
                needs: "two handles that share their records",
            }),
        }
    }

    const fn needs_persistence(&self) -> Result<(), NotKept> {
        match self.capabilities.persists {
            true => Ok(()),
            false => Err(NotKept::Skipped {
                needs: "records that survive their store",
            }),
        }
    }

    const fn needs_a_clock(&self) -> Result<(), NotKept> {
        match self.set_clock {
            Some(_) => Ok(()),
            None => Err(NotKept::Skipped {
                needs: "a clock of the store's own, and a way to set it",
            }),
        }
    }
}

impl<St> Clone for Suite<St> {
    fn clone(&self) -> Self {
        Self {
            make_store: Arc::clone(&self.make_store),
            capabilities: self.capabilities,
            set_clock: self.set_clock.clone(),
        }
    }
}

impl<St> fmt::Debug for Suite<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}

macro_rules! list {
    ([] $($name:ident)*) => {
        /// Returns all behaviours, each with the name of its function.
        pub fn behaviours<St: Store>() -> Vec<Behaviour<St>> {
            vec![$(Behaviour {
                name: stringify!($name),
                check: |key| Box::pin(behaviours::$name(key)),
            }),*]
        }
    };
}

crate::__conformance_behaviours!([list] []);

/// Makes a `#[tokio::test]` of each behaviour of the [conformance suite](crate::testing::conformance),
/// under its name, in the module where it stands.
///
/// * `conformance!(make_store)`, `conformance!(make_store, capabilities)`: `make_store` is a function
///   or closure that returns a future of the store, as an `async fn` does. Each test calls it; see
///   [`Suite::made_by`](crate::testing::conformance::Suite::made_by).
/// * `conformance!(suite: suite)`: an expression of the type
///   [`Suite`](crate::testing::conformance::Suite), which each test evaluates.
///
/// The crate that uses it needs `tokio` with the features `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! conformance {
    (suite: $suite:expr $(,)?) => {
        $crate::__conformance_behaviours!([$crate::__conformance_tests] [$suite]);
    };
    ($make_store:expr $(,)?) => {
        $crate::conformance!($make_store, $crate::testing::conformance::Capabilities::all());
    };
    ($make_store:expr, $capabilities:expr $(,)?) => {
        $crate::conformance!(
            suite: $crate::testing::conformance::Suite::made_by($make_store, $capabilities)
        );
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ([$suite:expr] $($name:ident)*) => {
        $(
            #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $suite.keeps(stringify!($name)).await;
            }
        )*
    };
}

/// The one list of the behaviours: calls a macro with its arguments and their names.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_behaviours {
    ([$($then:tt)*] $arguments:tt) => {
        $($then)*! {
            $arguments
            a_claim_gets_the_lease_it_asked_for
            a_claim_repeated_by_its_owner_gets_the_same_lease
            a_key_that_is_held_is_in_progress_for_others
            another_request_with_the_key_is_refused
            another_caller_with_the_key_is_refused
            callers_are_compared_before_requests
            a_record_of_an_unknown_recipe_is_in_progress_or_not_compared
            a_record_is_compared_by_a_recipe_that_is_accepted
            a_released_key_can_be_claimed
            tokens_grow_over_the_lives_of_a_record
            a_lapsed_lease_is_taken_over
            a_takeover_is_the_next_attempt
            a_takeover_gets_a_higher_token
            a_takeover_keeps_the_age_of_the_key
            a_lease_lapses_only_after_the_clock_skew
            an_orphan_is_held_for_those_who_may_not_take_over
            a_renewed_lease_lives_longer
            a_renewal_never_moves_a_deadline_back
            a_renewal_moves_the_expiry_of_the_record
            a_lapsed_lease_that_nobody_took_can_be_renewed
            a_renewal_after_a_takeover_is_refused
            a_live_lease_outlives_its_records_expiry
            a_lease_of_a_living_holder_does_not_lapse
            a_completion_repeated_by_its_owner_is_applied
            an_owner_completes_once
            a_release_after_completion_removes_nothing
            a_renewal_after_completion_does_not_reopen_the_key
            a_lapsed_lease_that_nobody_took_can_be_completed
            only_the_owner_completes
            only_the_owner_releases
            only_the_owner_renews
            a_completion_after_a_takeover_is_refused
            a_release_after_a_takeover_is_refused
            a_completion_after_a_release_is_refused
            a_repeated_release_changes_nothing
            a_completion_after_a_removal_is_refused
            an_orphaning_release_leaves_an_orphan_at_once
            an_orphan_keeps_the_status_it_ended_with
            a_repeated_orphaning_release_is_applied
            a_renewal_after_an_orphaning_release_frees_nothing
            an_orphan_is_forgotten_when_its_retention_ends
            an_orphans_retention_counts_from_its_end
            a_completed_key_gives_its_answer
            an_answer_of_any_size_and_bytes_comes_back
            an_answer_of_a_mebibyte_comes_back
            an_answer_that_is_too_large_is_refused_and_changes_nothing
            an_answer_is_forgotten_when_it_expires
            of_many_claims_one_gets_the_lease
            of_many_claims_one_takes_an_orphan_over
            of_many_claims_one_gets_a_key_that_expires
            of_completion_and_takeover_one_wins
            of_completion_and_claim_at_expiry_one_wins
            of_renewal_and_takeover_one_wins
            a_release_never_frees_a_successors_lease
            of_many_completions_by_one_owner_one_is_recorded
            an_answer_once_given_is_given_to_all
            time_that_runs_back_within_the_skew_changes_nothing
            tokens_grow_when_time_runs_back
            a_clock_of_its_own_is_all_it_goes_by
            get_shows_what_is_there
            get_hides_what_has_expired
            remove_forgets_a_key
            remove_says_whether_there_was_a_record
            a_waiter_if_there_is_one_sees_the_end
            a_claim_that_was_dropped_half_way_can_be_made_again
            a_completion_that_was_dropped_half_way_can_be_made_again
            another_handle_sees_the_same_records
            of_many_claims_through_two_handles_one_gets_the_lease
            records_survive_their_store
        }
    };
}
