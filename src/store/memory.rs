//! A store for one process: of record, or, as a near tier, a cache.

mod answers;
#[cfg(feature = "moka")]
mod cached;
#[cfg(not(feature = "moka"))]
#[path = "memory/uncached.rs"]
mod cached;
mod compact;
mod expiry_queue;
mod in_progress;
mod spread;
mod sweeper;
mod table;
mod told;

use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use self::answers::weight_of;
use self::cached::Cached;
#[cfg(feature = "moka")]
use self::cached::cached;
use self::compact::Compact;
use self::sweeper::Sweeper;
use self::table::{Shard, Table};
use self::told::Told;
#[cfg(feature = "moka")]
use super::Tiered;
use super::{Claim, Completion, Fenced, Release, Store};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::RecordKey;
use crate::protocol::record::{
    ClaimRequest, Completed, Decision, Held, Holder, Lease, Record, Renewal, Seen, decide,
    is_owned_by,
};

/// For each thread that can run at once: enough that two of them seldom want the same shard, and
/// few enough that what all requests touch of each stays in the processor's caches.
const SHARDS_PER_THREAD: usize = 8;
/// What a record in progress takes.
const IN_PROGRESS_WEIGHT: u64 = 512;
const NEVER: Timestamp = Timestamp::from_micros(u64::MAX);
/// So many answers that have expired are cleared away at a time, under the lock of one shard.
const CLEARED_AT_ONCE: usize = 16;
/// A claim that finds the store full clears away so many answers in all, at most.
const CLEARED_BY_CLAIM: usize = 64;
/// The sweeper looks for what has expired this often. It may take what time it is to be up to as
/// much earlier than it is, so what expires is gone after twice that, and what clearing it takes.
static SWEEPER: Sweeper = Sweeper::new(Duration::from_secs(15));

/// A store of record for one process. Clones share their records.
///
/// Its records are gone when the process is. It is bounded in bytes, and when it is full it
/// refuses new keys with [`StoreErrorKind::Full`] until records expire: it does not forget what
/// it has promised to remember. Plan its capacity for the rate of new keys times the retention
/// times the size of an answer and its [`OVERHEAD`](Self::OVERHEAD).
///
/// ```
/// use tower_idempotency::store::MemoryStore;
///
/// // 4 KB answers, 50 new keys a second, kept for 1 hour: 4.3 KB * 50 * 3600 = 774 MB.
/// let store = MemoryStore::with_capacity(1 << 30);
/// ```
///
/// # When records expire
///
/// Whatever has expired makes room: answers and orphans alike. Each completion clears away up to two
/// answers that have expired, and a claim that finds the store full some more, from all shards; no
/// call clears away all at once. While nothing is asked of the store, a thread does it, so that no
/// answer is held for more than a minute longer than its retention, by the time that the claims tell
/// and that has passed since. There is one such thread for all stores of a process. It holds no
/// store, starts with the first record and ends after the last store.
///
/// An attempt that was dropped with its runtime is an orphan that nobody has released. Its record,
/// which has no answer, is cleared away by claims alone: they know who is alive.
///
/// # When it is full
///
/// A claim is refused with an error that says when the oldest record expires
/// ([`StoreError::retry_after`]); the layer answers 503 `store-full` with this as `Retry-After`. For
/// metrics there are [`weight`](Self::weight), [`len`](Self::len) and
/// [`oldest_expiry`](Self::oldest_expiry).
///
/// The store knows no tenants, and one that sends many keys fills it for all. To bound one, limit its
/// rate of new keys outside of the layer (at `rate * retention * size`, it never holds more than
/// that), or give each group of tenants a layer with a store of its own.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// Records in progress and, in a store of record, answers.
    shards: Box<[Shard]>,
    /// The answers of a near tier.
    cache: Option<Cached>,
    capacity: u64,
    /// What the records in the shards are weighed at.
    weight: AtomicU64,
    /// Where the next claim that finds no room begins to look for some.
    next_shard: AtomicUsize,
    /// What time it is, by the claims.
    told: Told,
    sweeper: &'static Sweeper,
    sweeping: Once,
}

impl MemoryStore {
    /// What [`new`](Self::new) allows, in bytes: 256 MiB.
    pub const DEFAULT_CAPACITY: u64 = 256 << 20;

    /// What a recorded answer is weighed at beside its payload, in bytes: what this store and the
    /// allocator take to keep it, when there are some thousands.
    pub const OVERHEAD: u64 = 320;

    /// A store that holds up to [`DEFAULT_CAPACITY`](Self::DEFAULT_CAPACITY) bytes.
    pub fn new() -> Self {
        Self::with_capacity(Self::DEFAULT_CAPACITY)
    }

    /// A store that holds up to `bytes`: payloads, and what it takes to keep them. It may be
    /// passed by the answers of runs that were in flight when it was reached.
    pub fn with_capacity(bytes: u64) -> Self {
        Self::build(bytes, None, &SWEEPER)
    }

    /// A near tier, for [`Tiered`]: it holds up to `bytes` of answers, 480 bytes for each beside its
    /// payload, and forgets those first that were asked for longest ago. **No store of record**: used alone, it lets work run
    /// again whose answer it has forgotten.
    #[cfg(feature = "moka")]
    pub fn evicting(bytes: u64) -> Self {
        Self::build(bytes, Some(cached(bytes)), &SWEEPER)
    }

    /// Returns what its records are weighed at, in bytes: those in progress, and the answers with
    /// their [`OVERHEAD`](Self::OVERHEAD). This is what is held against its capacity.
    pub fn weight(&self) -> u64 {
        let cached = self.inner.cache.as_ref().map_or(0, Cached::weighted_size);
        self.inner.weight.load(Ordering::Relaxed) + cached
    }

    /// Returns how many records it holds, in progress and completed. What has expired counts until
    /// it is cleared away; those of a near tier are counted now and then. It locks
    /// each shard in turn, for a moment.
    pub fn len(&self) -> u64 {
        let cached = self.inner.cache.as_ref().map_or(0, Cached::entry_count);
        let shards = self.inner.shards.iter();
        shards.map(|shard| shard.lock().len() as u64).sum::<u64>() + cached
    }

    /// Returns whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns when its oldest record expires, or `None` when it holds none. It locks each shard in
    /// turn, for a moment.
    ///
    /// It may be too early where that record has been renewed or removed, and lies in the past until
    /// what has expired is cleared away. The answers of a near tier do not count.
    pub fn oldest_expiry(&self) -> Option<Timestamp> {
        let shards = self.inner.shards.iter();
        let from = shards.map(|shard| shard.lock().expires_from()).min();
        from.filter(|from| *from != NEVER)
    }

    fn build(capacity: u64, cache: Option<Cached>, sweeper: &'static Sweeper) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let shards = (SHARDS_PER_THREAD * threads).next_power_of_two();
        Self {
            inner: Arc::new(Inner {
                shards: (0..shards).map(|_| Shard::default()).collect(),
                cache,
                capacity,
                weight: AtomicU64::new(0),
                next_shard: AtomicUsize::new(0),
                told: Told::default(),
                sweeper,
                sweeping: Once::new(),
            }),
        }
    }

    /// `far`, with this memory as a near tier over it. As such it need not remember, so it
    /// [evicts](Self::evicting) when it is full; what it held before is not part of that.
    #[cfg(feature = "moka")]
    pub fn over<Far: Store>(self, far: Far) -> Tiered<Self, Far> {
        let near = match self.inner.cache {
            Some(_) => self,
            None => Self::evicting(self.inner.capacity),
        };
        Tiered::new(near, far)
    }

    fn shard(&self, key: &RecordKey) -> &Shard {
        // The last bytes: the tables within the shards hash the first eight.
        let [.., high, low] = *key.as_bytes();
        let number = u16::from_be_bytes([high, low]);
        &self.inner.shards[shard_of(number, self.inner.shards.len())]
    }

    fn claim_now(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let completions = self.shard(request.key).completions();
        match self.cached_answer(request) {
            Some(answer) => Ok(answer),
            None => self.claim_uncached(request, completions, true),
        }
    }

    /// Claims a key that had no answer in the cache when its shard had `completions`. Where there is
    /// no room, it `may_make_room` in other shards.
    fn claim_uncached(
        &self,
        request: &ClaimRequest<'_>,
        completions: u64,
        may_make_room: bool,
    ) -> Result<Claim, StoreError> {
        let shard = self.shard(request.key);
        let mut table = shard.lock();
        let hash = table.hash(request.key);
        if let Some(completed) = table.kept.get(hash, request.key)
            && let Some(answer) = answer(completed, request)
        {
            return Ok(answer);
        }
        if table.in_progress.is_sweep_due() {
            self.inner.clear(shard, &mut table, request);
        }
        if let Some(run) = table.in_progress.find_mut(hash, request.key) {
            let claim = run.claimed_again(request);
            let expires_at = run.lease.expires_at;
            if let Claim::Acquired(_) = &claim {
                table.in_progress.expires_at(hash, expires_at);
                shard.expires_at(expires_at);
            }
            return Ok(claim);
        }
        let was_completed = shard.completions() != completions;
        if was_completed && let Some(answer) = self.cached_answer(request) {
            return Ok(answer);
        }
        if !self.inner.has_room() {
            self.inner.clear(shard, &mut table, request);
            if !self.inner.has_room() {
                drop(table);
                return self.claim_when_full(request, completions, may_make_room);
            }
        }
        let Decision::Acquire {
            token,
            attempt,
            created_at,
        } = decide(None, request)
        else {
            return Err(StoreError::new(
                StoreErrorKind::Unusable,
                "a claim on an absent record was not let through",
            ));
        };
        let lease = request.lease(token, attempt, created_at);
        table.in_progress.insert(hash, lease.clone());
        shard.expires_at(lease.expires_at);
        // Under the lock, so that nobody subtracts it before it is added.
        self.inner.reweigh(IN_PROGRESS_WEIGHT, 0);
        drop(table);
        self.inner.told.tell(request.now);
        self.inner.sweeping.call_once(|| {
            self.inner.sweeper.add(Arc::downgrade(&self.inner));
        });
        Ok(Claim::Acquired(lease.seen_at(request.now)))
    }

    #[cold]
    fn claim_when_full(
        &self,
        request: &ClaimRequest<'_>,
        completions: u64,
        may_make_room: bool,
    ) -> Result<Claim, StoreError> {
        // Others may take the room that was made: then this claim is refused.
        if may_make_room && self.inner.make_room(request) {
            return self.claim_uncached(request, completions, false);
        }
        Err(self.inner.full(request.now))
    }

    fn cached_answer(&self, request: &ClaimRequest<'_>) -> Option<Claim> {
        let completed = self.inner.cache.as_ref()?.get(request.key)?;
        answer(&completed, request)
    }

    /// The answer of a key whose table is at hand.
    fn answer_of(&self, key: &RecordKey, hash: u64, table: &Table) -> Option<Completed> {
        match &self.inner.cache {
            Some(cache) => cache.get(key),
            None => table.kept.get(hash, key).cloned(),
        }
        .map(Completed::from)
    }

    /// Runs `write` on the record if `holder` still owns it, with when its key was first claimed, and
    /// says what became of it if not.
    fn fenced(
        &self,
        holder: &Holder,
        now: Timestamp,
        write: impl FnOnce(&Shard, &mut Table, u64, Timestamp),
    ) -> Fenced {
        let shard = self.shard(&holder.key);
        let mut table = shard.lock();
        let hash = table.hash(&holder.key);
        match table.in_progress.find(hash, &holder.key) {
            Some(run) if is_owned_by(Some(Held::InProgress(&run.lease)), holder) => {
                let created_at = run.lease.created_at;
                write(shard, &mut table, hash, created_at);
                Fenced::Applied
            }
            Some(_) => Fenced::LeaseLost(None),
            None => {
                let completed = self.answer_of(&holder.key, hash, &table);
                let completed = completed.filter(|found| found.identity == holder.identity);
                Fenced::LeaseLost(completed.map(|found| found.seen_at(now)))
            }
        }
    }

    fn complete_now(&self, holder: &Holder, completion: &Completion, now: Timestamp) -> Fenced {
        let fenced = self.fenced(holder, now, |shard, table, hash, created_at| {
            let completed = Compact::from(completion.record(holder.identity, created_at, now));
            let key = holder.key;
            let (added, removed) = match &self.inner.cache {
                // In before the lease is out, so that no claim finds the key without either.
                Some(cache) => {
                    cache.insert(key, completed);
                    shard.completed();
                    (0, 0)
                }
                None => {
                    shard.expires_at(completed.expires_at);
                    keep(table, hash, key, completed, now)
                }
            };
            let removed = removed + end(table, hash, &key);
            self.inner.reweigh(added, removed);
        });
        fenced.or_repeated(completion)
    }
}

/// Keeps an answer, and says what was added to the tables and what was removed from them.
fn keep(
    table: &mut Table,
    hash: u64,
    key: RecordKey,
    completed: Compact,
    now: Timestamp,
) -> (u64, u64) {
    let added = weight_of(&completed);
    let replaced = table.kept.insert(hash, key, completed);
    // Two for one that comes, so that those that have expired become fewer.
    let (_, cleared) = table.kept.forget_expired(now, 2);
    (added, cleared + replaced.as_ref().map_or(0, weight_of))
}

/// Ends what is in progress under a key, and says what was removed.
fn end(table: &mut Table, hash: u64, key: &RecordKey) -> u64 {
    match table.in_progress.remove(hash, key) {
        true => IN_PROGRESS_WEIGHT,
        false => 0,
    }
}

/// Returns the shard for a number that a key has by chance.
///
/// The shards have unequal shares of the keys, from 1 to 2 in even ratios, so that their tables do
/// not all double at the same time: what is held for a record is about the same however many there
/// are. This is `log2(1 + number / 2^16)`, to within a hundredth.
fn shard_of(number: u16, shards: usize) -> usize {
    let number = u64::from(number);
    // At most 2^32 - 1.
    let scaled = number * (88_064 - ((22_528 * number) >> 16));
    ((scaled * shards as u64) >> 32) as usize
}

/// What a completed record gives, unless it does not count any more.
fn answer(kept: &Compact, request: &ClaimRequest<'_>) -> Option<Claim> {
    match decide(Some(kept.into()), request) {
        Decision::Replay => {
            let completed = Completed::from(kept.clone());
            Some(Claim::Completed(completed.seen_at(request.now)))
        }
        Decision::CallerDiffers => Some(Claim::CallerDiffers),
        Decision::Reused => Some(Claim::Reused),
        Decision::SettingsChanged { recorded } => Some(Claim::SettingsChanged { recorded }),
        _ => None,
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            cache,
            capacity,
            weight,
            ..
        } = &*self.inner;
        f.debug_struct("MemoryStore")
            .field("capacity", capacity)
            .field("weight", weight)
            .field("cached_weight", &cache.as_ref().map(Cached::weighted_size))
            .finish()
    }
}

impl Store for MemoryStore {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        Some(self.claim_now(request))
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        self.claim_now(request)
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        Ok(self.fenced(holder, now, |_, table, hash, _| {
            if let Some(run) = table.in_progress.find_mut(hash, &holder.key) {
                run.lease.renew(renewal, now);
            }
        }))
    }

    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        Some(Ok(self.complete_now(holder, completion, now)))
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        Ok(self.complete_now(holder, completion, now))
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        Ok(self.fenced(holder, now, |shard, table, hash, _| {
            let Some(run) = table.in_progress.find_mut(hash, &holder.key) else {
                return;
            };
            match release.leaves(&run.lease, now) {
                None => self.inner.reweigh(0, end(table, hash, &holder.key)),
                Some(orphan) => {
                    let expires_at = orphan.expires_at;
                    run.lease = orphan;
                    run.wake();
                    table.in_progress.expires_at(hash, expires_at);
                    shard.expires_at(expires_at);
                }
            }
        }))
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        let table = self.shard(key).lock();
        let hash = table.hash(key);
        let record = match table.in_progress.find(hash, key) {
            Some(run) => Some(Record::InProgress(run.lease.clone())),
            None => self.answer_of(key, hash, &table).map(Record::Completed),
        };
        Ok(record.and_then(|record| record.seen_at(now)))
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let mut table = self.shard(key).lock();
        let hash = table.hash(key);
        let ended = end(&mut table, hash, key);
        let (was_completed, removed) = match &self.inner.cache {
            Some(cache) => (cache.remove(key).is_some(), 0),
            None => {
                let removed = table.kept.remove(hash, key);
                (removed.is_some(), removed.as_ref().map_or(0, weight_of))
            }
        };
        self.inner.reweigh(0, ended + removed);
        Ok(ended > 0 || was_completed)
    }

    fn may_forget(&self) -> bool {
        self.inner.cache.is_some()
    }
}

impl Inner {
    fn reweigh(&self, added: u64, removed: u64) {
        // What is added and removed in one go may be less than nothing: it wraps, and so does this.
        let change = added.wrapping_sub(removed);
        if change != 0 {
            self.weight.fetch_add(change, Ordering::Relaxed);
        }
    }

    fn has_room(&self) -> bool {
        self.cache.is_some() || self.weight.load(Ordering::Relaxed) < self.capacity
    }

    fn full(&self, now: Timestamp) -> StoreError {
        let shards = self.shards.iter().map(Shard::expires_from);
        let next = shards.min().unwrap_or(now).since(now);
        StoreError::new(
            StoreErrorKind::Full,
            format!(
                "the memory store holds its {} bytes and forgets nothing before it expires",
                self.capacity
            ),
        )
        .with_retry_after(next)
    }

    /// Clears away a bounded part of what has expired in one shard, and says how many answers it
    /// looked at.
    fn clear(&self, shard: &Shard, table: &mut Table, request: &ClaimRequest<'_>) -> usize {
        let ClaimRequest {
            now, clock_skew, ..
        } = *request;
        let has_lapsed = |lease: &Lease| request.liveness.has_lapsed(lease, now, clock_skew);
        let cleared = shard.clear(table, now, CLEARED_AT_ONCE, has_lapsed);
        self.reweigh(0, cleared.weight);
        cleared.answers
    }

    /// Clears away a bounded part of what has expired in other shards, without waiting for any of
    /// them, and says whether there is room now.
    fn make_room(&self, request: &ClaimRequest<'_>) -> bool {
        let first = self.next_shard.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        let (after, before) = self.shards.split_at(first);
        let mut looked_at = 0;
        for shard in before.iter().chain(after) {
            if self.has_room() || looked_at >= CLEARED_BY_CLAIM {
                break;
            }
            if shard.expires_from() <= request.now
                && let Some(mut table) = shard.try_lock()
            {
                looked_at += self.clear(shard, &mut table, request);
            }
        }
        self.has_room()
    }

    /// Clears away a bounded part of what has expired in a shard, and says whether there is more in
    /// the next round.
    fn clear_shard(&self, shard: &Shard, round: usize) -> bool {
        let now = self.told.now();
        if shard.expires_from() > now {
            return false;
        }
        let mut table = shard.lock();
        // Who is alive, only claims know; an attempt that was released as an orphan is not.
        let is_orphan = |lease: &Lease| lease.deadline == Timestamp::EPOCH;
        let cleared = shard.clear(&mut table, now, CLEARED_AT_ONCE, is_orphan);
        self.reweigh(0, cleared.weight);
        cleared.answers == CLEARED_AT_ONCE || round < table.in_progress.parts()
    }

    fn tidy_cache(&self) {
        if let Some(cache) = &self.cache {
            cache.run_pending_tasks();
        }
    }
}

#[cfg(test)]
mod tests;
