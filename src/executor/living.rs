//! The attempts that are alive in this process, whatever any clock says of their leases.
//!
//! Owner ids are unique over all stores and layers, so one registry answers for all of them.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::BitOr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::wait::{Awaited, SharedEnd};
use crate::record::{KnowsHolders, Owner};

/// Enough that two threads seldom want the same one.
const SHARDS: usize = 64;

/// The attempts that are alive in one process.
///
/// An attempt is alive from the moment that its claim was granted until its lease was ended, or
/// until it was dropped, as it is with its runtime. The lease of a living attempt is never taken
/// over within its process.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(feature = "test-util"),
    expect(unreachable_pub, reason = "only tests have several")
)]
pub struct Living(&'static Registry);

/// What an attempt has said of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    /// It announced that it would say when its effects begin.
    pub(crate) const ANNOUNCES_EFFECTS: Self = Self(1);
    /// Its effects have begun.
    pub(crate) const HAS_BEGUN_EFFECTS: Self = Self(2);
    /// It was told by what it has said so far what its end means.
    const IS_JUDGED: Self = Self(4);

    pub(crate) const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

struct Registry {
    shards: Box<[Shard]>,
}

/// On a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Shard(Mutex<Table>);

type Table = HashMap<u128, Noted, BuildHasherDefault<OfOwner>>;

/// What is known of a living attempt.
#[derive(Default)]
struct Noted {
    flags: Flags,
    /// Made by the first who waits for its end.
    tell: Option<watch::Sender<Option<SharedEnd>>>,
}

/// The number of an owner is as good as random, and so its own hash.
#[derive(Default)]
struct OfOwner(u64);

impl Hasher for OfOwner {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is the random one"
    )]
    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Living {
    /// The attempts of this process.
    pub(crate) fn of_this_process() -> Self {
        static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);
        Self(&REGISTRY)
    }

    /// Stands for another process: attempts that are alive here are not known to be alive there.
    ///
    /// Each takes some kilobytes that are never given back.
    #[cfg(feature = "test-util")]
    pub fn of_another_process() -> Self {
        Self(Box::leak(Box::new(Registry::new())))
    }

    /// Counts the attempt of `owner` among the living for as long as the guard is there.
    pub(crate) fn enter(self, owner: Owner) -> Alive {
        self.shard(owner).insert(number(owner), Noted::default());
        Alive {
            living: self,
            owner,
            has_left: false,
        }
    }

    /// Whether the attempt of `owner` is alive in this process.
    pub(crate) fn contains(self, owner: Owner) -> bool {
        self.shard(owner).contains_key(&number(owner))
    }

    /// Notes `flags` for the attempt of `owner`, and returns whether it is alive, and what its
    /// end means is still open.
    pub(crate) fn set(self, owner: Owner, flags: Flags) -> bool {
        match self.shard(owner).get_mut(&number(owner)) {
            Some(noted) if !noted.flags.contains(Flags::IS_JUDGED) => {
                noted.flags = noted.flags | flags;
                true
            }
            _ => false,
        }
    }

    /// Returns what the attempt of `owner` has said of itself, and takes no more from it: what its
    /// end means is decided by that.
    pub(crate) fn judge(self, owner: Owner) -> Flags {
        match self.shard(owner).get_mut(&number(owner)) {
            Some(noted) => {
                let said = noted.flags;
                noted.flags = said | Flags::IS_JUDGED;
                said
            }
            None => Flags::default(),
        }
    }

    /// Resolves to the end of the attempt of `owner`; `None` when it is not alive in this process.
    pub(super) fn ending_of(self, owner: Owner) -> Option<Awaited> {
        let mut table = self.shard(owner);
        let noted = table.get_mut(&number(owner))?;
        let tell = noted.tell.get_or_insert_with(|| watch::channel(None).0);
        Some(Awaited::new(tell.subscribe()))
    }

    /// Whether somebody in this process waits for the end of the attempt of `owner`.
    pub(super) fn is_awaited(self, owner: Owner) -> bool {
        let table = self.shard(owner);
        let tell = table
            .get(&number(owner))
            .and_then(|noted| noted.tell.as_ref());
        tell.is_some_and(|tell| tell.receiver_count() > 0)
    }

    fn shard(self, owner: Owner) -> MutexGuard<'static, Table> {
        // A byte that the tables within the shards use last.
        let byte = usize::from(owner.as_bytes()[6]);
        // No code that can panic runs while a table is changed, so a poisoned one is whole.
        self.0.shards[byte % SHARDS]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnowsHolders for Living {
    fn is_alive(&self, owner: Owner) -> bool {
        self.contains(owner)
    }
}

impl fmt::Debug for Living {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Living").finish_non_exhaustive()
    }
}

impl Registry {
    fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
        }
    }
}

fn number(owner: Owner) -> u128 {
    u128::from_le_bytes(*owner.as_bytes())
}

/// An attempt that is alive. It is no longer when this is dropped.
#[derive(Debug)]
pub(crate) struct Alive {
    living: Living,
    owner: Owner,
    has_left: bool,
}

impl Alive {
    /// Where it is known to be alive.
    pub(crate) const fn living(&self) -> Living {
        self.living
    }

    /// Ends it. Those who wait for its end get `end`; without one they have to ask the store.
    pub(super) fn leave(mut self, end: impl FnOnce() -> Option<SharedEnd>) {
        self.has_left = true;
        if let Some(tell) = self.remove().and_then(|noted| noted.tell)
            && let Some(end) = end()
        {
            tell.send_replace(Some(end));
        }
    }

    /// Gives `end` to those who wait, although the attempt goes on: its record is missing yet.
    pub(super) fn tell(&self, end: impl FnOnce() -> SharedEnd) {
        let tell = self
            .living
            .shard(self.owner)
            .get_mut(&number(self.owner))
            .and_then(|noted| noted.tell.take());
        if let Some(tell) = tell {
            tell.send_replace(Some(end()));
        }
    }

    fn remove(&self) -> Option<Noted> {
        self.living.shard(self.owner).remove(&number(self.owner))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if !self.has_left {
            self.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn owners(count: usize) -> Vec<Owner> {
        let new = |_| Owner::new(Timestamp::EPOCH).expect("the system gives random bytes");
        (0..count).map(new).collect()
    }

    #[test]
    fn an_attempt_is_alive_until_its_guard_is_dropped() {
        let living = Living::of_this_process();
        let owners = owners(1_000);
        let alive: Vec<Alive> = owners.iter().map(|&owner| living.enter(owner)).collect();
        assert!(owners.iter().all(|&owner| living.contains(owner)));
        drop(alive);
        assert!(!owners.iter().any(|&owner| living.contains(owner)));
    }

    #[test]
    fn an_attempt_is_alive_in_its_own_process_only() {
        let (here, there) = (Living::of_this_process(), Living::of_another_process());
        let owner = owners(1)[0];
        let _alive = there.enter(owner);
        assert!(there.contains(owner));
        assert!(!here.contains(owner));
    }

    #[test]
    fn what_an_attempt_says_of_itself_is_told_at_its_end() {
        let living = Living::of_this_process();
        let owners = owners(2);
        let alive = living.enter(owners[0]);
        let _other = living.enter(owners[1]);
        assert!(living.set(owners[0], Flags::ANNOUNCES_EFFECTS));
        assert!(living.set(owners[0], Flags::HAS_BEGUN_EFFECTS));
        let both = Flags::ANNOUNCES_EFFECTS | Flags::HAS_BEGUN_EFFECTS;
        assert_eq!(living.judge(owners[0]), both);
        assert!(!living.set(owners[0], Flags::HAS_BEGUN_EFFECTS));
        drop(alive);
        assert!(!living.contains(owners[0]));
        assert!(!living.set(owners[0], Flags::HAS_BEGUN_EFFECTS));
        assert!(!both.contains(Flags::IS_JUDGED));
    }
}
