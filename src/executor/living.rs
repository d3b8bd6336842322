//! The attempts that are alive in this process, whatever any clock says of their leases.
//!
//! Owner ids are unique over all stores and layers, so one registry answers for all of them. Who
//! is alive, the hearts know; it knows the hearts.

use std::fmt;
use std::ops::BitOr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::heart::Beats;
use super::wait::{Awaited, SharedEnd};
use crate::protocol::record::{KnowsHolders, Owner};

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
    hearts: Mutex<Vec<Weak<Beats>>>,
}

/// What is known of a living attempt.
#[derive(Debug, Default)]
pub(super) struct Noted {
    flags: Flags,
    /// Made by the first who waits for its end.
    tell: Option<watch::Sender<Option<SharedEnd>>>,
}

impl Noted {
    /// Notes `flags`, and returns whether what the end of the attempt means is still open.
    fn set(&mut self, flags: Flags) -> bool {
        let is_open = !self.flags.contains(Flags::IS_JUDGED);
        if is_open {
            self.flags = self.flags | flags;
        }
        is_open
    }

    /// Returns what the attempt has said of itself, and takes no more from it: what its end means is
    /// decided by that.
    pub(super) fn judge(&mut self) -> Flags {
        let said = self.flags;
        self.flags = said | Flags::IS_JUDGED;
        said
    }

    /// Resolves to the end of the attempt.
    fn ending(&mut self) -> Awaited {
        let tell = self.tell.get_or_insert_with(|| watch::channel(None).0);
        Awaited::new(tell.subscribe())
    }

    /// Whether somebody in this process waits for the end of the attempt.
    pub(super) fn is_awaited(&self) -> bool {
        let tell = self.tell.as_ref();
        tell.is_some_and(|tell| tell.receiver_count() > 0)
    }

    /// The way to those who wait.
    pub(super) const fn take_tell(&mut self) -> Option<watch::Sender<Option<SharedEnd>>> {
        self.tell.take()
    }
}

impl Living {
    /// The attempts of this process.
    pub(crate) const fn of_this_process() -> Self {
        static REGISTRY: Registry = Registry::new();
        Self(&REGISTRY)
    }

    /// Stands for another process: attempts that are alive here are not known to be alive there.
    ///
    /// Each takes some bytes that are never given back.
    #[cfg(feature = "test-util")]
    pub fn of_another_process() -> Self {
        Self(Box::leak(Box::new(Registry::new())))
    }

    /// Counts the attempts that a heart keeps alive among the living.
    pub(super) fn add(self, beats: &Arc<Beats>) {
        let mut hearts = self.hearts();
        // Those that are gone make room before there are more.
        if hearts.len() == hearts.capacity() {
            hearts.retain(|beats| beats.strong_count() > 0);
        }
        hearts.push(Arc::downgrade(beats));
    }

    /// Whether the attempt of `owner` is alive in this process.
    pub(crate) fn contains(self, owner: Owner) -> bool {
        self.find(|beats| beats.contains(owner).then_some(()))
            .is_some()
    }

    /// Notes `flags` for the attempt of `owner`, and returns whether it is alive, and what its
    /// end means is still open.
    pub(crate) fn set(self, owner: Owner, flags: Flags) -> bool {
        self.find(|beats| beats.with(owner, |noted| noted.set(flags)))
            .unwrap_or_default()
    }

    /// Resolves to the end of the attempt of `owner`; `None` when it is not alive in this process.
    pub(super) fn ending_of(self, owner: Owner) -> Option<Awaited> {
        self.find(|beats| beats.with(owner, Noted::ending))
    }

    fn find<T>(self, find: impl Fn(&Beats) -> Option<T>) -> Option<T> {
        let hearts = self.hearts();
        let mut alive = hearts.iter().filter_map(Weak::upgrade);
        alive.find_map(|beats| find(&beats))
    }

    fn hearts(self) -> MutexGuard<'static, Vec<Weak<Beats>>> {
        let hearts = &self.0.hearts;
        hearts.lock().unwrap_or_else(PoisonError::into_inner)
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
    const fn new() -> Self {
        Self {
            hearts: Mutex::new(Vec::new()),
        }
    }
}
