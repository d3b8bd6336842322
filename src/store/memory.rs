//! A store of record for one process: leases in a table of our own, answers in moka.
//!
//! moka may drop an entry when its policy says so, and it asks nobody. Nothing that is in
//! progress is therefore kept in it, and in a store of record it is given no capacity: the bound
//! on bytes is enforced where a key is claimed, by refusing, and entries leave it only when they
//! expire.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Notify;

use super::{Claim, Completion, Fenced, Release, Store, Tiered, Waiter};
use crate::clock::Timestamp;
use crate::error::{StoreError, StoreErrorKind};
use crate::key::RecordKey;
use crate::record::{
    ClaimRequest, Completed, Decision, Held, Lease, Record, decide, has_lapsed, is_owned_by,
    renewed,
};

const SHARDS: usize = 64;
/// What a record in progress takes.
const IN_PROGRESS_WEIGHT: u64 = 512;
/// A shard with fewer records in progress than this is not searched for forgotten ones.
const SWEEP_FLOOR: usize = 64;

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
/// // 4 KB answers, 50 new keys a second, kept for 1 hour: 4.5 KB * 50 * 3600 = 810 MB.
/// let store = MemoryStore::with_capacity(1 << 30);
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    shards: [Shard; SHARDS],
    completed: Cache<RecordKey, Completed, RandomState>,
    capacity: u64,
    /// Whether answers make room for newer ones.
    evicts: bool,
    in_progress: AtomicU64,
}

#[derive(Default)]
struct Shard {
    table: Mutex<Table>,
    /// How many records of this shard were completed: tells a claim whether the one it did not
    /// find a moment ago may be there by now.
    completions: AtomicU64,
}

struct Table {
    records: HashMap<RecordKey, InProgress, RandomState>,
    sweep_at: usize,
}

struct InProgress {
    lease: Lease,
    /// Made by the first who waits.
    ended: Option<Arc<Notify>>,
}

impl MemoryStore {
    /// What [`new`](Self::new) allows, in bytes: 256 MiB.
    pub const DEFAULT_CAPACITY: u64 = 256 << 20;

    /// What a recorded answer is weighed at beside its payload, in bytes: what this store, moka
    /// and the allocator take to keep it.
    pub const OVERHEAD: u64 = 480;

    /// A store that holds up to [`DEFAULT_CAPACITY`](Self::DEFAULT_CAPACITY) bytes.
    pub fn new() -> Self {
        Self::with_capacity(Self::DEFAULT_CAPACITY)
    }

    /// A store that holds up to `bytes`: payloads, and what it takes to keep them. It may be
    /// passed by the answers of runs that were in flight when it was reached.
    pub fn with_capacity(bytes: u64) -> Self {
        Self::build(bytes, false)
    }

    /// A near tier, for [`Tiered`]: it holds up to `bytes` of answers, and forgets those first
    /// that were asked for longest ago. **No store of record**: used alone, it lets work run
    /// again whose answer it has forgotten.
    pub fn evicting(bytes: u64) -> Self {
        Self::build(bytes, true)
    }

    fn build(capacity: u64, evicts: bool) -> Self {
        let mut completed = Cache::builder()
            .weigher(|_, completed| u32::try_from(weight_of(completed)).unwrap_or(u32::MAX))
            .expire_after(AtExpiry);
        if evicts {
            completed = completed
                .max_capacity(capacity)
                .eviction_policy(EvictionPolicy::lru());
        }
        Self {
            inner: Arc::new(Inner {
                shards: std::array::from_fn(|_| Shard::default()),
                completed: completed.build_with_hasher(RandomState::default()),
                capacity,
                evicts,
                in_progress: AtomicU64::new(0),
            }),
        }
    }

    fn shard(&self, key: &RecordKey) -> &Shard {
        // The last byte: the tables within the shards hash the first eight.
        let byte = key.as_bytes()[31];
        &self.inner.shards[usize::from(byte) % SHARDS]
    }

    fn claim_now(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let completions = self.shard(request.key).completions.load(Ordering::Acquire);
        // Answers are looked for without the lock, so that replays of one key do not queue.
        match self.answered(request) {
            Some(answer) => Ok(answer),
            None => self.claim_unanswered(request, completions),
        }
    }

    /// Claims a key that had no answer when its shard had `completions`.
    fn claim_unanswered(
        &self,
        request: &ClaimRequest<'_>,
        completions: u64,
    ) -> Result<Claim, StoreError> {
        let shard = self.shard(request.key);
        let mut table = shard.lock();
        table.sweep_if_due(&self.inner.in_progress, request);
        let entry = match table.records.entry(*request.key) {
            Entry::Occupied(mut entry) => return Ok(entry.get_mut().claimed_again(request)),
            Entry::Vacant(entry) => entry,
        };
        let was_completed = shard.completions.load(Ordering::Acquire) != completions;
        if was_completed && let Some(answer) = self.answered(request) {
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
        entry.insert(InProgress {
            lease: lease.clone(),
            ended: None,
        });
        self.inner.in_progress.fetch_add(1, Ordering::Relaxed);
        Ok(Claim::Acquired(lease))
    }

    /// What a completed record gives, unless there is none that counts.
    fn answered(&self, request: &ClaimRequest<'_>) -> Option<Claim> {
        let completed = self.inner.completed.get(request.key)?;
        match decide(Some((&completed).into()), request) {
            Decision::Replay => Some(Claim::Completed(completed)),
            Decision::Reused => Some(Claim::Reused),
            _ => None,
        }
    }

    /// Runs `write` on the record if `lease` still owns it, and says what became of it if not.
    fn fenced(&self, lease: &Lease, write: impl FnOnce(&mut Table, &Shard)) -> Fenced {
        let shard = self.shard(&lease.key);
        let mut table = shard.lock();
        match table.records.get(&lease.key) {
            Some(record) if is_owned_by(Some(Held::InProgress(&record.lease)), lease) => {
                write(&mut table, shard);
                Fenced::Applied
            }
            Some(_) => Fenced::LeaseLost(None),
            None => {
                let completed = self.inner.completed.get(&lease.key);
                Fenced::LeaseLost(
                    completed.filter(|completed| completed.fingerprint == lease.fingerprint),
                )
            }
        }
    }

    fn end(&self, table: &mut Table, key: &RecordKey) -> bool {
        let Some(record) = table.records.remove(key) else {
            return false;
        };
        self.inner.in_progress.fetch_sub(1, Ordering::Relaxed);
        record.wake();
        true
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("capacity", &self.inner.capacity)
            .field(
                "in_progress",
                &self.inner.in_progress.load(Ordering::Relaxed),
            )
            .field("completed_weight", &self.inner.completed.weighted_size())
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

    async fn renew(&self, lease: &Lease, deadline: Timestamp) -> Result<Fenced, StoreError> {
        Ok(self.fenced(lease, |table, _| {
            if let Some(record) = table.records.get_mut(&lease.key) {
                record.lease.deadline = renewed(&record.lease, deadline);
            }
        }))
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<Fenced, StoreError> {
        let fenced = self.fenced(lease, |table, shard| {
            let completed = Completed {
                fingerprint: lease.fingerprint,
                payload: completion.payload.clone(),
                created_at: lease.created_at,
                expires_at: completion.expires_at,
            };
            // In before the lease is out, so that no claim finds the key without either.
            self.inner.completed.insert(lease.key, completed);
            shard.completions.fetch_add(1, Ordering::Release);
            self.end(table, &lease.key);
        });
        Ok(match fenced {
            // The very answer is there already: this call repeats one that was applied.
            Fenced::LeaseLost(Some(completed)) if completed.payload == completion.payload => {
                Fenced::Applied
            }
            fenced => fenced,
        })
    }

    async fn release(&self, lease: &Lease, release: Release) -> Result<Fenced, StoreError> {
        Ok(self.fenced(lease, |table, _| match release {
            Release::Free => {
                self.end(table, &lease.key);
            }
            Release::Orphan => {
                if let Some(record) = table.records.get_mut(&lease.key) {
                    record.lease.deadline = Timestamp::EPOCH;
                    record.wake();
                }
            }
        }))
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
        let table = self.shard(key).lock();
        Ok(match table.records.get(key) {
            Some(record) => {
                let forgotten = has_lapsed(&record.lease, now, Duration::ZERO)
                    && record.lease.expires_at <= now;
                (!forgotten).then(|| Record::InProgress(record.lease.clone()))
            }
            None => self
                .inner
                .completed
                .get(key)
                .filter(|completed| completed.expires_at > now)
                .map(Record::Completed),
        })
    }

    /// `far`, with this memory over it. As a near tier it need not remember, so it
    /// [evicts](Self::evicting) when it is full; what it held before is not part of that.
    fn over<Far: Store>(self, far: Far) -> Tiered<Self, Far> {
        let near = match self.inner.evicts {
            true => self,
            false => Self::evicting(self.inner.capacity),
        };
        Tiered::new(near, far)
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let mut table = self.shard(key).lock();
        let was_in_progress = self.end(&mut table, key);
        let was_completed = self.inner.completed.remove(key).is_some();
        Ok(was_in_progress || was_completed)
    }
}

impl Inner {
    fn check_room(&self) -> Result<(), StoreError> {
        if self.evicts || self.used() < self.capacity {
            return Ok(());
        }
        // Expired records count until moka has cleared them away.
        self.completed.run_pending_tasks();
        if self.used() < self.capacity {
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

    fn used(&self) -> u64 {
        let in_progress = self.in_progress.load(Ordering::Relaxed);
        self.completed.weighted_size() + in_progress * IN_PROGRESS_WEIGHT
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code that can panic runs while a table is changed, so a poisoned one is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Clears away orphans that nobody asked for again. Its cost is spread over the claims that
    /// made the table grow.
    fn sweep_if_due(&mut self, in_progress: &AtomicU64, request: &ClaimRequest<'_>) {
        if self.records.len() < self.sweep_at {
            return;
        }
        let before = self.records.len();
        self.records.retain(|_, record| {
            let forgotten = has_lapsed(&record.lease, request.now, request.clock_skew)
                && record.lease.expires_at <= request.now;
            if forgotten {
                record.wake();
            }
            !forgotten
        });
        let swept = before - self.records.len();
        in_progress.fetch_sub(swept as u64, Ordering::Relaxed);
        self.sweep_at = SWEEP_FLOOR.max(self.records.len() * 2);
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            records: HashMap::default(),
            sweep_at: SWEEP_FLOOR,
        }
    }
}

impl InProgress {
    fn claimed_again(&mut self, request: &ClaimRequest<'_>) -> Claim {
        match decide(Some(Held::InProgress(&self.lease)), request) {
            Decision::Acquire {
                token,
                attempt,
                created_at,
            } => {
                self.lease = request.lease(token, attempt, created_at);
                Claim::Acquired(self.lease.clone())
            }
            Decision::Own => Claim::Acquired(self.lease.clone()),
            Decision::Orphaned => Claim::Orphaned,
            Decision::Reused => Claim::Reused,
            Decision::InProgress | Decision::Replay => Claim::InProgress {
                started_at: self.lease.started_at,
                deadline: self.lease.deadline,
                waiter: request.wants_waiter.then(|| self.waiter()),
            },
        }
    }

    fn waiter(&mut self) -> Waiter {
        let ended = Arc::clone(self.ended.get_or_insert_default());
        // Counts from here on, so an end between now and its first poll is not missed.
        Waiter::new(ended.notified_owned())
    }

    fn wake(&self) {
        if let Some(ended) = &self.ended {
            ended.notify_waiters();
        }
    }
}

fn weight_of(completed: &Completed) -> u64 {
    completed.payload.len() as u64 + MemoryStore::OVERHEAD
}

/// Lets moka drop an answer once its retention is over. The claim decides by the record's own
/// expiry; this only frees the memory.
struct AtExpiry;

impl AtExpiry {
    fn lifetime(completed: &Completed) -> Option<Duration> {
        Some(completed.expires_at.since(completed.created_at))
    }
}

impl Expiry<RecordKey, Completed> for AtExpiry {
    fn expire_after_create(
        &self,
        _: &RecordKey,
        completed: &Completed,
        _: std::time::Instant,
    ) -> Option<Duration> {
        Self::lifetime(completed)
    }

    fn expire_after_update(
        &self,
        _: &RecordKey,
        completed: &Completed,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Self::lifetime(completed)
    }
}

#[cfg(test)]
mod tests;
