//! The answers of a near tier, in moka.
//!
//! moka may drop an entry when its policy says so, and it asks nobody: it is for those alone who
//! can do without an answer. Nothing that is in progress is kept in it.

use std::time::Duration;

use foldhash::fast::RandomState;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::compact::Compact;
use crate::protocol::key::RecordKey;

/// What moka and the allocator take for an answer beside its payload, in bytes.
const OVERHEAD: usize = 480;

/// Up to so many bytes of answers; those go first that were asked for longest ago.
pub(super) type Cached = Cache<RecordKey, Compact, RandomState>;

pub(super) fn cached(capacity: u64) -> Cached {
    Cache::builder()
        .weigher(|_, completed| weight_of(completed))
        .expire_after(AtExpiry)
        .max_capacity(capacity)
        .eviction_policy(EvictionPolicy::lru())
        .build_with_hasher(RandomState::default())
}

fn weight_of(completed: &Compact) -> u32 {
    let weight = completed.payload.len().saturating_add(OVERHEAD);
    u32::try_from(weight).unwrap_or(u32::MAX)
}

/// Lets moka drop an answer once its retention is over. The claim decides by the record's own
/// expiry; this only frees the memory.
struct AtExpiry;

impl AtExpiry {
    fn lifetime(completed: &Compact) -> Option<Duration> {
        Some(completed.expires_at.since(completed.created_at))
    }
}

impl Expiry<RecordKey, Compact> for AtExpiry {
    fn expire_after_create(
        &self,
        _: &RecordKey,
        completed: &Compact,
        _: std::time::Instant,
    ) -> Option<Duration> {
        Self::lifetime(completed)
    }

    fn expire_after_update(
        &self,
        _: &RecordKey,
        completed: &Compact,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Self::lifetime(completed)
    }
}
