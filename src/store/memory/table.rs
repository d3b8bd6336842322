//! One of the tables that the keys of a memory store are spread over.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use foldhash::fast::RandomState;

use super::answers::Kept;
use super::in_progress::InProgress;
use super::{IN_PROGRESS_WEIGHT, NEVER};
use crate::protocol::clock::Timestamp;
use crate::protocol::key::RecordKey;
use crate::protocol::record::Lease;

pub(super) struct Shard {
    table: Mutex<Table>,
    completions: AtomicU64,
    /// In microseconds, the time before which none of its records expires. Changed under the lock.
    expires_from: AtomicU64,
}

pub(super) struct Table {
    hasher: RandomState,
    pub(super) in_progress: InProgress,
    pub(super) kept: Kept,
}

/// What was cleared away.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cleared {
    /// How many answers were looked at.
    pub(super) answers: usize,
    pub(super) weight: u64,
}

impl Shard {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        // No code that can panic runs while a table is changed, so a poisoned one is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Table>> {
        match self.table.try_lock() {
            Ok(table) => Some(table),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// How many answers of this shard went into the cache: tells a claim whether the one it did
    /// not find there a moment ago may be there by now.
    pub(super) fn completions(&self) -> u64 {
        self.completions.load(Ordering::Acquire)
    }

    pub(super) fn completed(&self) {
        self.completions.fetch_add(1, Ordering::Release);
    }

    /// Returns a time before which none of its records expires.
    pub(super) fn expires_from(&self) -> Timestamp {
        Timestamp::from_micros(self.expires_from.load(Ordering::Relaxed))
    }

    /// Says that a record expires at a time that may be sooner than all others'.
    pub(super) fn expires_at(&self, expires_at: Timestamp) {
        if expires_at < self.expires_from() {
            let micros = expires_at.as_micros();
            self.expires_from.store(micros, Ordering::Relaxed);
        }
    }

    /// Clears away up to `most` answers that have expired, and what has expired in one part of the
    /// records in progress.
    pub(super) fn clear(
        &self,
        table: &mut Table,
        now: Timestamp,
        most: usize,
        has_lapsed: impl Fn(&Lease) -> bool,
    ) -> Cleared {
        let (answers, freed) = table.kept.forget_expired(now, most);
        let ended = table.in_progress.sweep(now, has_lapsed) as u64;
        self.expires_from
            .store(table.expires_from().as_micros(), Ordering::Relaxed);
        Cleared {
            answers,
            weight: freed + ended * IN_PROGRESS_WEIGHT,
        }
    }
}

impl Table {
    /// The hash that its records are found by.
    pub(super) fn hash(&self, key: &RecordKey) -> u64 {
        self.hasher.hash_one(key.prefix())
    }

    /// In so many steps its tables [shrink](Self::shrink).
    pub(super) fn parts(&self) -> usize {
        self.in_progress.parts().max(self.kept.parts())
    }

    /// Gives room back that a part of its tables does not need any more.
    pub(super) fn shrink(&mut self, part: usize) {
        self.in_progress.shrink(part);
        self.kept.shrink(part);
    }

    pub(super) fn len(&self) -> usize {
        self.in_progress.len() + self.kept.len()
    }

    /// Returns a time before which none of its records expires.
    pub(super) fn expires_from(&self) -> Timestamp {
        self.in_progress
            .expires_from()
            .min(self.kept.expires_from())
    }
}

impl Default for Shard {
    fn default() -> Self {
        let hasher = RandomState::default();
        Self {
            table: Mutex::new(Table {
                in_progress: InProgress::new(hasher.clone()),
                kept: Kept::new(hasher.clone()),
                hasher,
            }),
            completions: AtomicU64::new(0),
            expires_from: AtomicU64::new(NEVER.as_micros()),
        }
    }
}
