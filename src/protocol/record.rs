//! Records, leases, and the one function that decides what a claim gets.

mod encoding;
mod seen;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

pub use self::seen::Seen;
pub use crate::format::extras::Extras;
use crate::format::version;
use crate::protocol::clock::Timestamp;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::{KeyParts, RecordKey};

/// A random id that one attempt carries, and by which a store tells its writes from those of
/// every other attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner([u8; 16]);

impl Owner {
    /// A new id for an attempt that claims at `now`.
    ///
    /// Eight random bytes, and the time: two copies of one virtual machine, which share the
    /// random bytes that were drawn before they were copied, do not claim in one microsecond.
    pub(crate) fn new(random: u64, now: Timestamp) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random.to_le_bytes());
        bytes[8..].copy_from_slice(&now.as_micros().to_le_bytes());
        Self(bytes)
    }

    /// An owner that was read back from a store.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({})", crate::format::digest::hex(&self.0))
    }
}

/// A number that grows with each attempt at a key. A system that the handler writes to can keep
/// the highest token it has seen and refuse lower ones, so that an attempt which lost its lease
/// does no harm there either.
///
/// While a record is there, each attempt at it gets a higher token than the one before, whatever
/// the clocks say. Tokens start at the time of the claim, in microseconds since the Unix epoch, so
/// that they go on growing after a record was forgotten, unless the claimers' clocks went back in
/// between, or both claims fell into one microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// A token that was read back from a store.
    pub const fn from_u64(token: u64) -> Self {
        Self(token)
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Says which settings made the digests of an [`Identity`]: digests of two recipes cannot be
/// compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecipeId([u8; 8]);

impl RecipeId {
    /// Reads a recipe's id back from a store.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Returns the id.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for RecipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::format::digest::hex(&self.0))
    }
}

impl fmt::Debug for RecipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecipeId({self})")
    }
}

/// Tells one caller of a key from another: the first half of SHA-256 over the record key and the
/// caller's credentials together, so that the same credentials give another digest in each record.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerDigest([u8; 16]);

impl CallerDigest {
    /// The caller of work that is not an HTTP request: there is only one.
    pub const NOBODY: Self = Self([0; 16]);

    /// Reads a caller's digest back from a store.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the digest.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for CallerDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallerDigest({})", crate::format::digest::hex(&self.0))
    }
}

/// Tells the request that a key belongs to from every other request: who sent it, what it asks
/// for, and the recipe of the two digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who sent it.
    pub caller: CallerDigest,
    /// What it asks for.
    pub request: Fingerprint,
    /// The settings that made the two digests.
    pub recipe: RecipeId,
}

impl Identity {
    /// The length of the byte form.
    pub const LENGTH: usize = 56;

    /// The recipe of work that is not an HTTP request.
    pub const WORK: RecipeId = {
        let version = b'0' + version::INPUTS;
        RecipeId([b'w', b'o', b'r', b'k', b' ', b' ', b' ', version])
    };

    /// Returns the identity of work that is not an HTTP request.
    pub const fn of_work(fingerprint: Fingerprint) -> Self {
        Self {
            caller: CallerDigest::NOBODY,
            request: fingerprint,
            recipe: Self::WORK,
        }
    }

    /// Returns the byte form: caller, request and recipe, one after the other.
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..16].copy_from_slice(&self.caller.0);
        bytes[16..48].copy_from_slice(self.request.as_bytes());
        bytes[48..].copy_from_slice(&self.recipe.0);
        bytes
    }

    /// Reads the byte form back. Returns `None` when it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (caller, rest) = bytes.split_first_chunk()?;
        let (request, rest) = rest.split_first_chunk()?;
        let recipe = rest.try_into().ok()?;
        Some(Self {
            caller: CallerDigest(*caller),
            request: Fingerprint::from_bytes(*request),
            recipe: RecipeId(recipe),
        })
    }
}

/// The right of one attempt to run under a key, until its deadline.
///
/// All its times are of one clock: in a store, of the clock that the store decides by. Between a
/// store and its caller they go as durations, in a [`Seen`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The record it holds.
    pub key: RecordKey,
    /// The identity of the request that runs.
    pub identity: Identity,
    /// Who holds it.
    pub owner: Owner,
    /// The attempt's fencing token.
    pub token: FencingToken,
    /// Which attempt at the record this is, counted from 1. More than 1: the attempts before it
    /// lost their leases without an outcome.
    pub attempt: u32,
    /// When the key was first claimed.
    pub created_at: Timestamp,
    /// When this attempt claimed it.
    pub started_at: Timestamp,
    /// When the lease lapses if it is not renewed. [`Timestamp::EPOCH`] for an attempt that
    /// ended without an outcome.
    pub deadline: Timestamp,
    /// When the record may be forgotten, unless its lease is alive then.
    pub expires_at: Timestamp,
    /// The HTTP status that the attempt ended with, if it ended with one that leaves its outcome
    /// unknown.
    pub first_status: Option<u16>,
    /// What else is known of the attempt.
    pub extras: Extras,
}

impl Lease {
    /// Returns the lease of a first attempt, with all times at the epoch. A store sets them to what it
    /// has read. Claims get theirs from [`ClaimRequest::lease`].
    pub const fn new(holder: &Holder, token: FencingToken) -> Self {
        Self {
            key: holder.key,
            identity: holder.identity,
            owner: holder.owner,
            token,
            attempt: 1,
            created_at: Timestamp::EPOCH,
            started_at: Timestamp::EPOCH,
            deadline: Timestamp::EPOCH,
            expires_at: Timestamp::EPOCH,
            first_status: None,
            extras: Extras::NONE,
        }
    }

    /// Returns who holds it.
    pub const fn holder(&self) -> Holder {
        Holder::new(self.key, self.owner, self.identity)
    }

    /// Renews it at `now`. A renewal that was delayed on its way, or delivered twice, takes
    /// nothing back that a later one was granted.
    pub fn renew(&mut self, renewal: Renewal, now: Timestamp) {
        self.deadline = self.deadline.max(renewal.deadline(now));
        self.expires_at = self.expires_at.max(renewal.expires_at(now));
    }
}

/// Names the attempt that writes to a record: a fenced write changes the record only while this
/// attempt holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The record.
    pub key: RecordKey,
    /// The attempt.
    pub owner: Owner,
    /// The identity of the request that it runs for. What it completes is recorded under this.
    pub identity: Identity,
}

impl Holder {
    /// The attempt of `owner` at the record `key`.
    pub const fn new(key: RecordKey, owner: Owner, identity: Identity) -> Self {
        Self {
            key,
            owner,
            identity,
        }
    }
}

/// How much longer a lease is to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renewal {
    /// How long the lease lasts from now, if it is not renewed again.
    pub lease: Duration,
    /// How long the record is kept after that, if its holder is not heard of again: so long an
    /// orphan is kept.
    pub retention: Duration,
}

impl Renewal {
    /// A renewal for `lease`, of a record that is kept for `retention` after it.
    pub const fn new(lease: Duration, retention: Duration) -> Self {
        Self { lease, retention }
    }

    /// When the lease lapses if it is renewed at `now`.
    pub fn deadline(&self, now: Timestamp) -> Timestamp {
        now.plus(self.lease)
    }

    /// When the record may be forgotten if the lease is renewed at `now`.
    pub fn expires_at(&self, now: Timestamp) -> Timestamp {
        self.deadline(now).plus(self.retention)
    }
}

/// Knows which attempts are alive in this process. Its answer needs no clock, so a lease whose
/// holder it knows has not lapsed, whatever its deadline says.
#[derive(Clone, Copy)]
pub struct Liveness<'a>(Option<&'a dyn KnowsHolders>);

/// Knows which attempts are alive.
pub trait KnowsHolders: Send + Sync {
    /// Says whether `owner` is known to be alive.
    fn is_alive(&self, owner: Owner) -> bool;
}

impl<F: Fn(Owner) -> bool + Send + Sync> KnowsHolders for F {
    fn is_alive(&self, owner: Owner) -> bool {
        self(owner)
    }
}

impl<'a> Liveness<'a> {
    /// Knows of nobody.
    pub const UNKNOWN: Self = Self(None);

    /// Asks `holders`.
    pub const fn new(holders: &'a dyn KnowsHolders) -> Self {
        Self(Some(holders))
    }

    /// Says whether `owner` is known to be alive.
    pub fn is_alive(self, owner: Owner) -> bool {
        self.0.is_some_and(|holders| holders.is_alive(owner))
    }

    /// Says whether a lease has lapsed at `now`, for someone whose clock may be `clock_skew`
    /// ahead of its holder's, and who knows of the holders in this process.
    pub fn has_lapsed(self, lease: &Lease, now: Timestamp, clock_skew: Duration) -> bool {
        has_lapsed(lease, now, clock_skew) && !self.is_alive(lease.owner)
    }
}

impl fmt::Debug for Liveness<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Liveness").finish_non_exhaustive()
    }
}

/// What a store is asked to claim.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ClaimRequest<'a> {
    /// The record to claim: the digest of `parts`.
    pub key: &'a RecordKey,
    /// The readable parts of the key, for a store that keeps them for operators.
    pub parts: &'a KeyParts<'a>,
    /// The identity of the request.
    pub identity: Identity,
    /// The same request by earlier recipes that are accepted, too.
    pub accepted: &'a [Identity],
    /// Who claims. A claim that is made again with the same owner gets the same lease.
    pub owner: Owner,
    /// What the claimer's clock says. A store that has a clock of its own puts the time of that in
    /// its place, by [`at`](Self::at).
    pub now: Timestamp,
    /// How long the lease lasts from `now`.
    pub lease: Duration,
    /// How long the record lasts from `now`.
    pub retention: Duration,
    /// How far the clocks of two claimers may be apart: a lease counts as lapsed only so long
    /// after its deadline.
    pub clock_skew: Duration,
    /// Whether an orphan, that is a record whose lease has lapsed, may be taken over.
    pub take_over: bool,
    /// Whether the claimer wants to wait for a run in flight: [`Claim::InProgress`] then brings
    /// a waiter if the store has one.
    ///
    /// [`Claim::InProgress`]: crate::store::Claim::InProgress
    pub wants_waiter: bool,
    /// Which attempts are alive in the claimer's process.
    pub liveness: Liveness<'a>,
}

impl<'a> ClaimRequest<'a> {
    /// A claim on the record of `parts`, `key`, by `owner` at `now`: for a lease of 30 s and a
    /// retention of 24 h, with a margin of 2 s between clocks. It takes orphans over, does not wait,
    /// accepts no earlier recipe, and knows of no attempts that are alive.
    pub const fn new(
        key: &'a RecordKey,
        parts: &'a KeyParts<'a>,
        identity: Identity,
        owner: Owner,
        now: Timestamp,
    ) -> Self {
        Self {
            key,
            parts,
            identity,
            accepted: &[],
            owner,
            now,
            lease: Duration::from_secs(30),
            retention: Duration::from_secs(24 * 60 * 60),
            clock_skew: Duration::from_secs(2),
            take_over: true,
            wants_waiter: false,
            liveness: Liveness::UNKNOWN,
        }
    }

    /// Returns the same claim at another time: a store that has a clock of its own decides by what
    /// that shows.
    #[must_use]
    pub const fn at(self, now: Timestamp) -> Self {
        Self { now, ..self }
    }

    /// The lease that this claim gets when `decision` lets it have one.
    pub fn lease(&self, token: FencingToken, attempt: u32, created_at: Timestamp) -> Lease {
        Lease {
            key: *self.key,
            identity: self.identity,
            owner: self.owner,
            token,
            attempt,
            created_at,
            started_at: self.now,
            deadline: self.now.plus(self.lease),
            expires_at: self.now.plus(self.retention),
            first_status: None,
            extras: Extras::NONE,
        }
    }

    /// The lease that this claim gets on a key without a record.
    pub(crate) fn first_lease(&self) -> Lease {
        self.lease(FencingToken(self.now.as_micros()), 1, self.now)
    }

    /// Compares the identity that a record has with the claimer's.
    #[inline]
    fn compare(&self, recorded: &Identity) -> Comparison {
        let of_recipe = |identity: &&Identity| identity.recipe == recorded.recipe;
        let own = match of_recipe(&&self.identity) {
            true => Some(&self.identity),
            false => self.accepted.iter().find(of_recipe),
        };
        match own {
            None => Comparison::UnknownRecipe,
            Some(own) if own.caller != recorded.caller => Comparison::OtherCaller,
            Some(own) if own.request != recorded.request => Comparison::OtherRequest,
            Some(_) => Comparison::Same,
        }
    }

    /// Says whether a record belongs to the claimer's request, by a recipe that the claimer knows.
    pub fn is_for(&self, recorded: &Identity) -> bool {
        matches!(self.compare(recorded), Comparison::Same)
    }
}

/// How the identity of a record and that of a claimer compare.
enum Comparison {
    Same,
    OtherCaller,
    OtherRequest,
    UnknownRecipe,
}

/// A record as a store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An attempt holds the key, or held it and left no outcome.
    InProgress(Lease),
    /// The key has its answer.
    Completed(Completed),
}

/// A completed record. Its times are of one clock, as those of a [`Lease`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completed {
    /// The identity of the request that was answered.
    pub identity: Identity,
    /// The answer, in a form that the store does not look into.
    pub payload: Bytes,
    /// When the key was first claimed.
    pub created_at: Timestamp,
    /// When the record may be forgotten.
    pub expires_at: Timestamp,
    /// What else is known of the attempt that was answered.
    pub extras: Extras,
}

impl Completed {
    /// The answer to the request of `identity`, on a key that was first claimed at `created_at`, to
    /// be kept until `expires_at`.
    pub const fn new(
        identity: Identity,
        payload: Bytes,
        created_at: Timestamp,
        expires_at: Timestamp,
    ) -> Self {
        Self {
            identity,
            payload,
            created_at,
            expires_at,
            extras: Extras::NONE,
        }
    }
}

/// The part of a record that [`decide`] needs.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// See [`Record::InProgress`].
    InProgress(&'a Lease),
    /// See [`Record::Completed`].
    Completed {
        /// The identity of the request that was answered.
        identity: Identity,
        /// When the record may be forgotten.
        expires_at: Timestamp,
    },
}

impl<'a> From<&'a Record> for Held<'a> {
    fn from(record: &'a Record) -> Self {
        match record {
            Record::InProgress(lease) => Self::InProgress(lease),
            Record::Completed(completed) => completed.into(),
        }
    }
}

impl From<&Completed> for Held<'_> {
    fn from(completed: &Completed) -> Self {
        Self::Completed {
            identity: completed.identity,
            expires_at: completed.expires_at,
        }
    }
}

/// What a claim against a record gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The claimer gets the lease.
    Acquire {
        /// Its fencing token.
        token: FencingToken,
        /// Which attempt at the record it is.
        attempt: u32,
        /// When the key was first claimed.
        created_at: Timestamp,
    },
    /// The claimer has the lease already: its claim was applied before.
    Own,
    /// The record has an answer for the claimer.
    Replay,
    /// Another attempt holds the lease.
    InProgress,
    /// The lease lapsed without an outcome, and the claimer may not take it over.
    Orphaned,
    /// The key belongs to another caller.
    CallerDiffers,
    /// The key belongs to another request of the same caller.
    Reused,
    /// The record's identity was made by a recipe that the claimer does not know, so nobody can
    /// say whether it is the same request.
    SettingsChanged {
        /// The record's recipe.
        recorded: RecipeId,
    },
}

/// Decides what a claim gets, given the record that is there. Every store gives what this
/// function says; the conformance suite holds it to that.
///
/// * Nothing there, or a record past its expiry: the claimer gets the lease. A record in
///   progress is past its expiry only when its lease has lapsed too.
/// * Its own lease: it keeps it.
/// * Another caller: [`Decision::CallerDiffers`], whatever else is true of the record.
/// * Another request: [`Decision::Reused`], whatever the record's state.
/// * A recipe that the claimer does not know: a lease that is alive is in progress; otherwise
///   [`Decision::SettingsChanged`].
/// * Completed: the claimer gets the answer.
/// * In progress: the lease is another's, or it has lapsed and is taken over where the claimer
///   may. A lease whose holder is alive in the claimer's process has not lapsed, whatever the
///   clocks say.
pub fn decide(held: Option<Held<'_>>, request: &ClaimRequest<'_>) -> Decision {
    match held {
        None => acquire_fresh(request),
        Some(Held::Completed {
            identity,
            expires_at,
        }) => decide_completed(&identity, expires_at, request),
        Some(Held::InProgress(lease)) => decide_in_progress(lease, request),
    }
}

fn acquire_fresh(request: &ClaimRequest<'_>) -> Decision {
    Decision::Acquire {
        token: FencingToken(request.now.as_micros()),
        attempt: 1,
        created_at: request.now,
    }
}

fn decide_completed(
    identity: &Identity,
    expires_at: Timestamp,
    request: &ClaimRequest<'_>,
) -> Decision {
    if expires_at <= request.now {
        return acquire_fresh(request);
    }
    match request.compare(identity) {
        Comparison::OtherCaller => Decision::CallerDiffers,
        Comparison::OtherRequest => Decision::Reused,
        Comparison::UnknownRecipe => Decision::SettingsChanged {
            recorded: identity.recipe,
        },
        Comparison::Same => Decision::Replay,
    }
}

fn decide_in_progress(lease: &Lease, request: &ClaimRequest<'_>) -> Decision {
    if lease.owner == request.owner {
        return Decision::Own;
    }
    let lapsed = request
        .liveness
        .has_lapsed(lease, request.now, request.clock_skew);
    if lapsed && lease.expires_at <= request.now {
        return Decision::Acquire {
            token: next_token(lease, request.now),
            attempt: 1,
            created_at: request.now,
        };
    }
    match request.compare(&lease.identity) {
        Comparison::OtherCaller => Decision::CallerDiffers,
        Comparison::OtherRequest => Decision::Reused,
        Comparison::Same | Comparison::UnknownRecipe if !lapsed => Decision::InProgress,
        Comparison::UnknownRecipe => Decision::SettingsChanged {
            recorded: lease.identity.recipe,
        },
        Comparison::Same if request.take_over => Decision::Acquire {
            token: next_token(lease, request.now),
            attempt: lease.attempt.saturating_add(1),
            created_at: lease.created_at,
        },
        Comparison::Same => Decision::Orphaned,
    }
}

/// Whether `holder` still owns the record that is there: the condition of every write but a claim.
/// Every store holds its writes to it, atomically. The deadline is not looked at: a lease that
/// has lapsed and that nobody took over is as good as ever.
pub fn is_owned_by(held: Option<Held<'_>>, holder: &Holder) -> bool {
    matches!(held, Some(Held::InProgress(held)) if held.owner == holder.owner)
}

/// Whether a lease counts as lapsed at `now`, for someone whose clock may be `clock_skew` ahead
/// of its holder's.
pub fn has_lapsed(lease: &Lease, now: Timestamp, clock_skew: Duration) -> bool {
    lease.deadline.plus(clock_skew) < now
}

fn next_token(lease: &Lease, now: Timestamp) -> FencingToken {
    FencingToken(lease.token.0.saturating_add(1).max(now.as_micros()))
}

#[cfg(test)]
mod tests;
