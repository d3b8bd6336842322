//! Where records are kept.
//!
//! A [`Store`] holds one record for each key. It decides claims with
//! [`decide`](crate::record::decide), atomically, and lets only the owner of a lease change the
//! record after that. It never reads a clock: whoever calls it says what time it is.
//!
//! | store | survives the process | shared by processes |
//! |---|---|---|
//! | [`MemoryStore`] (feature `memory`) | no | no |
//! | [`DynamoDbStore`] (feature `dynamodb`) | yes | yes |
//! | [`Tiered`], one store over another | as its far tier | as its far tier |
//!
//! [`SharedStore`] stands for any of them when the choice is made at run time. To write one of
//! your own, see `examples/custom_store.rs`, and hold it to the suite in
//! `testing::conformance` (feature `test-util`).

#[cfg(feature = "dynamodb")]
mod dynamodb;
#[cfg(feature = "memory")]
mod memory;
mod shared;
mod tiered;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::key::RecordKey;
use crate::record::{ClaimRequest, Completed, Lease, RecipeId, Record, Renewal};

#[cfg(feature = "dynamodb")]
pub use self::dynamodb::{Attribute, DynamoDbStore, TableError};
#[cfg(feature = "memory")]
pub use self::memory::MemoryStore;
pub use self::shared::SharedStore;
pub use self::tiered::Tiered;
pub(crate) use self::tiered::at_once;

/// Keeps the records.
///
/// # What every store promises
///
/// * **Atomic claims.** Of any number of claims on one key at the same time, the one that
///   [`decide`](crate::record::decide) would have let through first gets the lease, and each
///   other sees it.
/// * **Fenced writes.** [`renew`](Self::renew), [`complete`](Self::complete) and
///   [`release`](Self::release) change a record only if it is in progress and
///   [`Lease::owner`] still owns it. [`Lease::deadline`] is not looked at: a lease that has
///   lapsed and that nobody took over can still be renewed or completed.
/// * **Nothing held is forgotten.** Neither a record in progress nor, unless the store is only a
///   cache, a completed one goes before its expiry. A store without room refuses new keys with
///   [`StoreErrorKind::Full`](crate::StoreErrorKind::Full).
/// * **Repeats are harmless.** A claim that is repeated with the same owner gets the same lease;
///   a completion or release that is repeated changes nothing more.
/// * **Errors are honest.** A write that failed says whether it
///   [may have been applied](StoreError::may_have_been_applied).
///
/// An implementation can write its methods as `async fn`.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Answers a claim at once, without waiting, or says with `None` that
    /// [`claim`](Self::claim) has to be asked.
    ///
    /// Stores in the process's own memory answer here, and spare the caller a boxed future.
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        let _ = request;
        None
    }

    /// Claims a key: gives the lease, the recorded answer, or the reason why there is neither.
    fn claim(
        &self,
        request: &ClaimRequest<'_>,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Moves the deadline of a lease and the expiry of its record, and never back: a renewal that
    /// is overtaken by a later one on its way, or delivered twice, is [`Fenced::Applied`] and takes
    /// nothing from the lease.
    ///
    /// One thread of a process renews the leases of all its executors. A future that blocks its
    /// thread, instead of waiting, holds up the renewals of all of them: a client that blocks
    /// belongs into [`tokio::task::spawn_blocking`].
    fn renew(
        &self,
        lease: &Lease,
        renewal: Renewal,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send;

    /// Records the answer of an attempt, until `completion.expires_at`.
    fn complete(
        &self,
        lease: &Lease,
        completion: &Completion,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send;

    /// Records an answer at once, without waiting, or says with `None` that
    /// [`complete`](Self::complete) has to be asked.
    ///
    /// Like [`try_claim`](Self::try_claim), for stores in the process's own memory.
    fn try_complete(
        &self,
        lease: &Lease,
        completion: &Completion,
    ) -> Option<Result<Fenced, StoreError>> {
        let _ = (lease, completion);
        None
    }

    /// Ends an attempt without an answer.
    fn release(
        &self,
        lease: &Lease,
        release: Release,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send;

    /// The record of a key, or `None` when there is none or it expired before `now`. A record
    /// in progress has not expired as long as its lease has not.
    fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Forgets a key, whoever holds it, and says whether there was a record. For operators: the
    /// next request with the key runs.
    fn remove(&self, key: &RecordKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Whether other processes share its records. Then each service that uses it needs a
    /// [`namespace`](crate::IdempotencyLayer::namespace) of its own. Default: `false`.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether it may forget a record before it expires, as a cache does. Such a store is none for
    /// a layer to rely on alone. Default: `false`.
    fn may_forget(&self) -> bool {
        false
    }

    /// `far`, with this store as a near tier over it: `memory.over(dynamodb)`.
    fn over<Far: Store>(self, far: Far) -> Tiered<Self, Far>
    where
        Self: Sized,
    {
        Tiered::new(self, far)
    }
}

/// What a claim gives.
#[derive(Debug)]
pub enum Claim {
    /// The claimer holds the key now.
    Acquired(Lease),
    /// The key has its answer.
    Completed(Completed),
    /// Another attempt holds the key.
    InProgress {
        /// The lease of that attempt.
        lease: Lease,
        /// Resolves when the attempt ends, if it runs in this process and the claimer
        /// [wants to wait](ClaimRequest::wants_waiter).
        waiter: Option<Waiter>,
    },
    /// An attempt lost its lease, its outcome is not known, and the claimer may not
    /// [take over](ClaimRequest::take_over).
    Orphaned {
        /// When the key was first claimed.
        created_at: Timestamp,
        /// See [`Lease::first_status`].
        first_status: Option<u16>,
    },
    /// The key belongs to another caller.
    CallerDiffers,
    /// The key belongs to another request of the same caller.
    Reused,
    /// The record was made by a recipe that the claimer does not know.
    SettingsChanged {
        /// The record's recipe.
        recorded: RecipeId,
    },
}

impl Claim {
    /// Returns what a claim that met an orphan gives.
    pub fn orphaned(lease: &Lease) -> Self {
        Self::Orphaned {
            created_at: lease.created_at,
            first_status: lease.first_status,
        }
    }
}

/// Whether a fenced write was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// It was, by this call or by an earlier one that this call repeats.
    Applied,
    /// It was not: the attempt no longer owns the record. With the answer that was recorded in
    /// its place, if there is one.
    LeaseLost(Option<Completed>),
}

/// The answer of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The answer, in a form that the store does not look into.
    pub payload: Bytes,
    /// The completer's wall time.
    pub now: Timestamp,
    /// When the record may be forgotten.
    pub expires_at: Timestamp,
    /// Whether the client gets the answer even if the store does not take it. Then a near tier
    /// serves it, too.
    pub is_given_unrecorded: bool,
}

/// How an attempt ends that has no answer to record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The work was not carried out: the record goes, and the next request runs.
    Free,
    /// Nobody knows whether the work was carried out: the record stays until it expires, as an
    /// orphan with the deadline [`Timestamp::EPOCH`].
    Orphan {
        /// When the record may be forgotten.
        expires_at: Timestamp,
        /// The HTTP status that the attempt ended with, if it ended with one; see
        /// [`Lease::first_status`].
        first_status: Option<u16>,
    },
}

/// Resolves when an attempt in this process has ended, one way or another.
#[must_use = "futures do nothing unless polled"]
pub struct Waiter(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Waiter {
    /// A waiter that resolves with `ended`.
    pub fn new(ended: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(ended))
    }
}

impl Future for Waiter {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").finish_non_exhaustive()
    }
}
