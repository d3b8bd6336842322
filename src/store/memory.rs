//! A store for one process: of record, or, as a near tier, a cache.

mod cached;
mod expiring;
mod kept;
mod table;

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use self::cached::{Cached, cached};
use self::kept::weight_of;
use self::table::{InProgress, Shard, Table};
use super::{Claim, Completion, Fenced, Release, Store, Tiered};
use crate::clock::Timestamp;
use crate::error::{StoreError, StoreErrorKind};
use crate::key::RecordKey;
use crate::record::{
    ClaimRequest, Completed, Decision, Held, Lease, Record, Renewal, decide, has_lapsed,
    is_owned_by, renewed,
};

/// For each thread that can run at once: enough that two of them seldom want the same shard, and
/// few enough that what all requests touch of each stays in the processor's caches.
const SHARDS_PER_THREAD: usize = 8;
/// What a record in progress takes.
const IN_PROGRESS_WEIGHT: u64 = 512;

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
/// // 4 KB answers, 50 new keys a second, kept for 1 hour: 4.4 KB * 50 * 3600 = 792 MB.
/// let store = MemoryStore::with_capacity(1 << 30);
/// ```
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
}

impl MemoryStore {
    /// What [`new`](Self::new) allows, in bytes: 256 MiB.
    pub const DEFAULT_CAPACITY: u64 = 256 << 20;

    /// What a recorded answer is weighed at beside its payload, in bytes: what this store and the
    /// allocator take to keep it, when the tables have just grown.
    pub const OVERHEAD: u64 = 400;

    /// A store that holds up to [`DEFAULT_CAPACITY`](Self::DEFAULT_CAPACITY) bytes.
    pub fn new() -> Self {
        Self::with_capacity(Self::DEFAULT_CAPACITY)
    }

    /// A store that holds up to `bytes`: payloads, and what it takes to keep them. It may be
    /// passed by the answers of runs that were in flight when it was reached.
    pub fn with_capacity(bytes: u64) -> Self {
        Self::build(bytes, None)
    }

    /// A near tier, for [`Tiered`]: it holds up to `bytes` of answers, 480 bytes for each beside its
    /// payload, and forgets those first that were asked for longest ago. **No store of record**: used alone, it lets work run
    /// again whose answer it has forgotten.
    pub fn evicting(bytes: u64) -> Self {
        Self::build(bytes, Some(cached(bytes)))
    }

    fn build(capacity: u64, cache: Option<Cached>) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let shards = (SHARDS_PER_THREAD * threads).next_power_of_two();
        Self {
            inner: Arc::new(Inner {
                shards: (0..shards).map(|_| Shard::default()).collect(),
                cache,
                capacity,
                weight: AtomicU64::new(0),
            }),
        }
    }

    fn shard(&self, key: &RecordKey) -> &Shard {
        // The last bytes: the tables within the shards hash the first eight.
        let [.., high, low] = *key.as_bytes();
        let number = usize::from(u16::from_be_bytes([high, low]));
        &self.inner.shards[number % self.inner.shards.len()]
    }

    fn claim_now(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let completions = self.shard(request.key).completions();
        match self.cached_answer(request) {
            Some(answer) => Ok(answer),
            None => self.claim_uncached(request, completions),
        }
    }

    /// Claims a key that had no answer in the cache when its shard had `completions`.
    fn claim_uncached(
        &self,
        request: &ClaimRequest<'_>,
        completions: u64,
    ) -> Result<Claim, StoreError> {
        match self.claim_in_table(request, completions) {
            Err(error) if error.kind() == StoreErrorKind::Full => {
                // Expired answers count until they are cleared away.
                self.inner.forget_expired(request.now);
                self.claim_in_table(request, completions)
            }
            claim => claim,
        }
    }

    fn claim_in_table(
        &self,
        request: &ClaimRequest<'_>,
        completions: u64,
    ) -> Result<Claim, StoreError> {
        let shard = self.shard(request.key);
        let mut table = shard.lock();
        if let Some(completed) = table.kept.get(request.key)
            && let Some(answer) = answer(completed, request)
        {
            return Ok(answer);
        }
        let forgotten = table.sweep_if_due(request);
        self.inner.reweigh(0, forgotten as u64 * IN_PROGRESS_WEIGHT);
        if let Some(record) = table.in_progress.get_mut(request.key) {
            return Ok(record.claimed_again(request));
        }
        let was_completed = shard.completions() != completions;
        if was_completed && let Some(answer) = self.cached_answer(request) {
            return Ok(answer);
        }
        self.inner.check_room()?;
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
        let record = InProgress::new(lease.clone());
        table.in_progress.insert(*request.key, record);
        self.inner.reweigh(IN_PROGRESS_WEIGHT, 0);
        Ok(Claim::Acquired(lease))
    }

    fn cached_answer(&self, request: &ClaimRequest<'_>) -> Option<Claim> {
        let completed = self.inner.cache.as_ref()?.get(request.key)?;
        answer(&completed, request)
    }

    /// The answer of a key whose table is at hand.
    fn answer_of(&self, key: &RecordKey, table: &Table) -> Option<Completed> {
        match &self.inner.cache {
            Some(cache) => cache.get(key),
            None => table.kept.get(key).cloned(),
        }
    }

    /// Runs `write` on the record if `lease` still owns it, and says what became of it if not.
    fn fenced(&self, lease: &Lease, write: impl FnOnce(&mut Table)) -> Fenced {
        let mut table = self.shard(&lease.key).lock();
        match table.in_progress.get(&lease.key) {
            Some(record) if is_owned_by(Some(Held::InProgress(&record.lease)), lease) => {
                write(&mut table);
                Fenced::Applied
            }
            Some(_) => Fenced::LeaseLost(None),
            None => {
                let completed = self.answer_of(&lease.key, &table);
                Fenced::LeaseLost(
                    completed.filter(|completed| completed.identity == lease.identity),
                )
            }
        }
    }

    fn complete_now(&self, lease: &Lease, completion: &Completion) -> Fenced {
        let fenced = self.fenced(lease, |table| {
            let completed = Completed {
                identity: lease.identity,
                payload: completion.payload.clone(),
                created_at: lease.created_at,
                expires_at: completion.expires_at,
            };
            let (added, removed) = self.record(table, lease.key, completed, completion.now);
            let removed = removed + end(table, &lease.key);
            self.inner.reweigh(added, removed);
        });
        match fenced {
            // The very answer is there already: this call repeats one that was applied.
            Fenced::LeaseLost(Some(completed)) if completed.payload == completion.payload => {
                Fenced::Applied
            }
            fenced => fenced,
        }
    }

    /// Keeps an answer, and says what was added to the tables and what was removed from them.
    fn record(
        &self,
        table: &mut Table,
        key: RecordKey,
        completed: Completed,
        now: Timestamp,
    ) -> (u64, u64) {
        match &self.inner.cache {
            // In before the lease is out, so that no claim finds the key without either.
            Some(cache) => {
                cache.insert(key, completed);
                self.shard(&key).completed();
                (0, 0)
            }
            None => {
                let added = weight_of(&completed);
                let replaced = table.kept.insert(key, completed);
                // Two for one that comes, so that those that have expired become fewer.
                let forgotten = table.kept.forget_expired(now, 2);
                (added, forgotten + replaced.as_ref().map_or(0, weight_of))
            }
        }
    }
}

/// Ends what is in progress under a key, and says what was removed.
fn end(table: &mut Table, key: &RecordKey) -> u64 {
    match table.in_progress.remove(key) {
        Some(record) => {
            record.wake();
            IN_PROGRESS_WEIGHT
        }
        None => 0,
    }
}

/// What a completed record gives, unless it does not count any more.
fn answer(completed: &Completed, request: &ClaimRequest<'_>) -> Option<Claim> {
    match decide(Some(completed.into()), request) {
        Decision::Replay => Some(Claim::Completed(completed.clone())),
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

    async fn renew(&self, lease: &Lease, renewal: Renewal) -> Result<Fenced, StoreError> {
        Ok(self.fenced(lease, |table| {
            if let Some(record) = table.in_progress.get_mut(&lease.key) {
                let Renewal {
                    deadline,
                    expires_at,
                } = renewed(&record.lease, renewal);
                record.lease.deadline = deadline;
                record.lease.expires_at = expires_at;
            }
        }))
    }

    fn try_complete(
        &self,
        lease: &Lease,
        completion: &Completion,
    ) -> Option<Result<Fenced, StoreError>> {
        Some(Ok(self.complete_now(lease, completion)))
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<Fenced, StoreError> {
        Ok(self.complete_now(lease, completion))
    }

    async fn release(&self, lease: &Lease, release: Release) -> Result<Fenced, StoreError> {
        Ok(self.fenced(lease, |table| match release {
            Release::Free => self.inner.reweigh(0, end(table, &lease.key)),
            Release::Orphan {
                expires_at,
                first_status,
            } => {
                if let Some(record) = table.in_progress.get_mut(&lease.key) {
                    record.lease.deadline = Timestamp::EPOCH;
                    record.lease.expires_at = expires_at;
                    record.lease.first_status = first_status;
                    record.wake();
                }
            }
        }))
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
        let table = self.shard(key).lock();
        Ok(match table.in_progress.get(key) {
            Some(record) => {
                let forgotten = has_lapsed(&record.lease, now, Duration::ZERO)
                    && record.lease.expires_at <= now;
                (!forgotten).then(|| Record::InProgress(record.lease.clone()))
            }
            None => self
                .answer_of(key, &table)
                .filter(|completed| completed.expires_at > now)
                .map(Record::Completed),
        })
    }

    /// `far`, with this memory over it. As a near tier it need not remember, so it
    /// [evicts](Self::evicting) when it is full; what it held before is not part of that.
    fn over<Far: Store>(self, far: Far) -> Tiered<Self, Far> {
        let near = match self.inner.cache {
            Some(_) => self,
            None => Self::evicting(self.inner.capacity),
        };
        Tiered::new(near, far)
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let mut table = self.shard(key).lock();
        let ended = end(&mut table, key);
        let (was_completed, removed) = match &self.inner.cache {
            Some(cache) => (cache.remove(key).is_some(), 0),
            None => {
                let removed = table.kept.remove(key);
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

    fn check_room(&self) -> Result<(), StoreError> {
        if self.cache.is_some() || self.weight.load(Ordering::Relaxed) < self.capacity {
            return Ok(());
        }
        Err(StoreError::new(
            StoreErrorKind::Full,
            format!(
                "the memory store holds its {} bytes and forgets nothing before it expires",
                self.capacity
            ),
        ))
    }

    fn forget_expired(&self, now: Timestamp) {
        for shard in &self.shards {
            let freed = shard.lock().kept.forget_expired(now, usize::MAX);
            self.reweigh(0, freed);
        }
    }
}

#[cfg(test)]
mod tests;
