//! Where records are kept.
//!
//! A [`Store`] holds one record for each key. It decides claims with [`decide`], atomically, and
//! lets only the owner of a lease change the record after that.
//!
//! Times go in and out as durations: how long a lease is to last, how old a record is. A store that
//! has a clock of its own, as a database server has, decides by that alone, and no process's clock
//! is ever compared with it. Whoever calls says what its own clock shows, for the stores that have
//! none.
//!
//! | store | survives the process | shared by processes |
//! |---|---|---|
//! | [`MemoryStore`] (feature `memory`; as a near tier, `moka`) | no | no |
//! | [`DynamoDbStore`] (feature `dynamodb`) | yes | yes |
//! | [`Tiered`], one store over another | as its far tier | as its far tier |
//!
//! [`SharedStore`] stands for any of them when the choice is made at run time. To write one of
//! your own, see `examples/custom_store.rs`, and hold it to the suite in `testing::conformance`
//! (feature `test-util`): the macro `conformance!` makes a test of each behaviour that a store has
//! to have.

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
use std::time::Duration;

use bytes::Bytes;

use crate::protocol::clock::Timestamp;
use crate::protocol::error::StoreError;
use crate::protocol::key::RecordKey;
use crate::protocol::record::{
    ClaimRequest, Completed, Decision, Held, Holder, Identity, Lease, RecipeId, Record, Renewal,
    Seen, decide,
};

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
///   [`decide`] would have let through first gets the lease, and each other sees it.
/// * **Fenced writes.** [`renew`](Self::renew), [`complete`](Self::complete) and
///   [`release`](Self::release) change a record only if it is in progress and
///   [`Holder::owner`] still owns it. [`Lease::deadline`] is not looked at: a lease that has
///   lapsed and that nobody took over can still be renewed or completed.
/// * **Nothing held is forgotten.** Neither a record in progress nor, unless the store is only a
///   cache, a completed one goes before its expiry. A store without room refuses new keys with
///   [`StoreErrorKind::Full`](crate::StoreErrorKind::Full).
/// * **Repeats are harmless.** A claim that is repeated with the same owner gets the same lease;
///   a completion or release that is repeated changes nothing more.
/// * **Late copies take nothing over.** Where a network may deliver a claim twice, the takeover of a
///   lapsed lease is a write under a condition on the record that was seen. The copy does not know
///   who is alive in the process of the claimer.
/// * **Errors are honest.** A write that failed says whether it
///   [may have been applied](StoreError::may_have_been_applied).
///
/// # Time
///
/// `now` is what the clock of the caller shows, and each call has it. A store without a clock of its
/// own counts from that; all who share its records then need clocks that differ by no more than
/// [`ClaimRequest::clock_skew`]. A store with a clock of its own ignores it: it decides a claim by
/// [`ClaimRequest::at`] its own time, and counts leases and retentions from that. What it gives back
/// is [`Seen`] at the time of the clock that it decided by.
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
    /// nothing from the lease; see [`Lease::renew`].
    ///
    /// One thread of a process renews the leases of all its executors. A future that blocks its
    /// thread, instead of waiting, holds up the renewals of all of them: a client that blocks
    /// belongs into [`tokio::task::spawn_blocking`].
    fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send;

    /// Records the answer of an attempt, for [`Completion::retention`] from now.
    fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send;

    /// Records an answer at once, without waiting, or says with `None` that
    /// [`complete`](Self::complete) has to be asked.
    ///
    /// Like [`try_claim`](Self::try_claim), for stores in the process's own memory.
    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        let _ = (holder, completion, now);
        None
    }

    /// Ends an attempt without an answer.
    fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> impl Future<Output = Result<Fenced, StoreError>> + Send;

    /// The record of a key, or `None` when there is none or it has expired; see
    /// [`Record::seen_at`].
    fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Seen<Record>>, StoreError>> + Send;

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
}

/// What a claim gives.
#[derive(Debug)]
#[non_exhaustive]
pub enum Claim {
    /// The claimer holds the key now.
    Acquired(Seen<Lease>),
    /// The key has its answer.
    Completed(Seen<Completed>),
    /// Another attempt holds the key. Made by [`Claim::in_progress`].
    #[non_exhaustive]
    InProgress {
        /// The lease of that attempt.
        lease: Seen<Lease>,
        /// Resolves when the attempt ends, if it runs in this process and the claimer
        /// [wants to wait](ClaimRequest::wants_waiter).
        waiter: Option<Waiter>,
    },
    /// An attempt lost its lease, its outcome is not known, and the claimer may not
    /// [take over](ClaimRequest::take_over).
    Orphaned(Seen<Lease>),
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
    /// Another attempt holds the key by `lease`; with what resolves when it ends, if the store can
    /// tell.
    pub const fn in_progress(lease: Seen<Lease>, waiter: Option<Waiter>) -> Self {
        Self::InProgress { lease, waiter }
    }

    /// Decides a claim by the record that was `found`, as [`decide`] says, and returns what becomes
    /// of the record.
    ///
    /// For stores that read, decide and write as one step. `request.now` is the time of the clock
    /// that the store decides by.
    pub fn on(found: Option<Record>, request: &ClaimRequest<'_>) -> (Self, Change) {
        let now = request.now;
        let claim = match (decide(found.as_ref().map(Held::from), request), found) {
            (
                Decision::Acquire {
                    token,
                    attempt,
                    created_at,
                },
                _,
            ) => return Self::acquired(request.lease(token, attempt, created_at), now),
            (_, None) => return Self::acquired(request.first_lease(), now),
            (Decision::CallerDiffers, _) => Self::CallerDiffers,
            (Decision::Reused, _) => Self::Reused,
            (Decision::SettingsChanged { recorded }, _) => Self::SettingsChanged { recorded },
            (_, Some(Record::Completed(completed))) => Self::Completed(completed.seen_at(now)),
            (Decision::Own, Some(Record::InProgress(lease))) => Self::Acquired(lease.seen_at(now)),
            (Decision::Orphaned, Some(Record::InProgress(lease))) => {
                Self::Orphaned(lease.seen_at(now))
            }
            (Decision::InProgress | Decision::Replay, Some(Record::InProgress(lease))) => {
                Self::in_progress(lease.seen_at(now), None)
            }
        };
        (claim, Change::Keep)
    }

    fn acquired(lease: Lease, now: Timestamp) -> (Self, Change) {
        let acquired = Self::Acquired(lease.clone().seen_at(now));
        (acquired, Change::Write(Record::InProgress(lease)))
    }
}

/// What becomes of a record, in the same step in which it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stays as it is, or absent.
    Keep,
    /// This takes its place.
    Write(Record),
    /// It goes.
    Remove,
}

/// Whether a fenced write was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// It was, by this call or by an earlier one that this call repeats.
    Applied,
    /// It was not: the attempt no longer owns the record. With the answer that was recorded in
    /// its place, if there is one.
    LeaseLost(Option<Seen<Completed>>),
}

impl Fenced {
    /// Renews the lease in the record that was `found` if `holder` still owns it, and returns what
    /// becomes of the record. `now` is the time of the clock that the store decides by, here and
    /// below.
    pub fn renew(
        found: Option<Record>,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> (Self, Change) {
        Self::write(found, holder, now, |mut lease| {
            lease.renew(renewal, now);
            Change::Write(Record::InProgress(lease))
        })
    }

    /// Completes the record that was `found` if `holder` still owns it, and returns what becomes of
    /// the record. A repetition is [`Fenced::Applied`].
    pub fn complete(
        found: Option<Record>,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> (Self, Change) {
        let (fenced, change) = Self::write(found, holder, now, |lease| {
            let completed = completion.record(holder.identity, lease.created_at, now);
            Change::Write(Record::Completed(Completed {
                extras: lease.extras,
                ..completed
            }))
        });
        (fenced.or_repeated(completion), change)
    }

    /// Releases the lease in the record that was `found` if `holder` still owns it, and returns
    /// what becomes of the record.
    pub fn release(
        found: Option<Record>,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> (Self, Change) {
        Self::write(found, holder, now, |lease| {
            match release.leaves(&lease, now) {
                Some(orphan) => Change::Write(Record::InProgress(orphan)),
                None => Change::Remove,
            }
        })
    }

    fn write(
        found: Option<Record>,
        holder: &Holder,
        now: Timestamp,
        change: impl FnOnce(Lease) -> Change,
    ) -> (Self, Change) {
        match Self::check(found, holder, now) {
            Ok(lease) => (Self::Applied, change(lease)),
            Err(lost) => (lost, Change::Keep),
        }
    }

    /// Returns the lease in the record that was `found` if `holder` still owns it.
    ///
    /// # Errors
    ///
    /// When it does not: what its write gives at `now`, by the clock that the store decides by.
    pub fn check(found: Option<Record>, holder: &Holder, now: Timestamp) -> Result<Lease, Self> {
        match found {
            Some(Record::InProgress(lease)) if lease.owner == holder.owner => Ok(lease),
            Some(Record::Completed(completed)) => {
                Err(Self::LeaseLost(Some(completed.seen_at(now))))
            }
            Some(Record::InProgress(_)) | None => Err(Self::LeaseLost(None)),
        }
    }

    /// Returns [`Fenced::Applied`] if the record has the very answer of `completion` already: the
    /// call that gave this repeats one that was applied.
    #[must_use]
    pub fn or_repeated(self, completion: &Completion) -> Self {
        match self {
            Self::LeaseLost(Some(recorded)) if *recorded.payload() == completion.payload => {
                Self::Applied
            }
            fenced => fenced,
        }
    }
}

/// The answer of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// The answer, in a form that the store does not look into.
    pub payload: Bytes,
    /// How long the record is kept from now.
    pub retention: Duration,
    /// How long ago the key was first claimed. A store has that in its own record; a tier above it
    /// may not.
    pub age: Duration,
    /// Whether the client gets the answer even if the store does not take it. Then a near tier
    /// serves it, too.
    pub is_given_unrecorded: bool,
}

impl Completion {
    /// The answer `payload`, kept for `retention`, of a key that was first claimed just now. The
    /// client gets it in any case.
    pub const fn new(payload: Bytes, retention: Duration) -> Self {
        Self {
            payload,
            retention,
            age: Duration::ZERO,
            is_given_unrecorded: true,
        }
    }

    /// Returns the record that takes the place of a lease when it is completed at `now`.
    pub fn record(&self, identity: Identity, created_at: Timestamp, now: Timestamp) -> Completed {
        let expires_at = now.plus(self.retention);
        Completed::new(identity, self.payload.clone(), created_at, expires_at)
    }
}

/// How an attempt ends that has no answer to record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The work was not carried out: the record goes, and the next request runs.
    Free,
    /// Nobody knows whether the work was carried out: the record stays until it expires, as an
    /// orphan with the deadline [`Timestamp::EPOCH`]. Made by [`Release::orphan`].
    #[non_exhaustive]
    Orphan {
        /// How long the orphan is kept from now.
        retention: Duration,
        /// The HTTP status that the attempt ended with, if it ended with one; see
        /// [`Lease::first_status`].
        first_status: Option<u16>,
    },
}

impl Release {
    /// Leaves an orphan that is kept for `retention`, of an attempt that ended with `first_status`
    /// if it ended with a status.
    pub const fn orphan(retention: Duration, first_status: Option<u16>) -> Self {
        Self::Orphan {
            retention,
            first_status,
        }
    }

    /// Returns what is left of a lease that is released at `now`: nothing, or an orphan.
    pub fn leaves(self, lease: &Lease, now: Timestamp) -> Option<Lease> {
        match self {
            Self::Free => None,
            Self::Orphan {
                retention,
                first_status,
            } => Some(Lease {
                deadline: Timestamp::EPOCH,
                expires_at: now.plus(retention),
                first_status,
                ..lease.clone()
            }),
        }
    }
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

#[cfg(test)]
mod tests;
