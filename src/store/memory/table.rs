//! One of the tables that the keys of a memory store are spread over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::Notify;

use super::kept::Kept;
use crate::key::RecordKey;
use crate::record::{ClaimRequest, Decision, Held, Lease, decide};
use crate::store::{Claim, Waiter};

/// A table with fewer records in progress than this is not searched for forgotten ones.
const SWEEP_FLOOR: usize = 64;

#[derive(Default)]
pub(super) struct Shard {
    table: Mutex<Table>,
    completions: AtomicU64,
}

pub(super) struct Table {
    pub(super) in_progress: HashMap<RecordKey, InProgress, RandomState>,
    pub(super) kept: Kept,
    sweep_at: usize,
}

pub(super) struct InProgress {
    pub(super) lease: Lease,
    /// Made by the first who waits.
    ended: Option<Arc<Notify>>,
}

impl Shard {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        // No code that can panic runs while a table is changed, so a poisoned one is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many answers of this shard went into the cache: tells a claim whether the one it did
    /// not find there a moment ago may be there by now.
    pub(super) fn completions(&self) -> u64 {
        self.completions.load(Ordering::Acquire)
    }

    pub(super) fn completed(&self) {
        self.completions.fetch_add(1, Ordering::Release);
    }
}

impl Table {
    /// Clears away orphans that nobody asked for again, and says how many. Its cost is spread over
    /// the claims that made the table grow.
    pub(super) fn sweep_if_due(&mut self, request: &ClaimRequest<'_>) -> usize {
        let before = self.in_progress.len();
        if before < self.sweep_at {
            return 0;
        }
        self.in_progress.retain(|_, record| {
            let lapsed =
                request
                    .liveness
                    .has_lapsed(&record.lease, request.now, request.clock_skew);
            let forgotten = lapsed && record.lease.expires_at <= request.now;
            if forgotten {
                record.wake();
            }
            !forgotten
        });
        self.sweep_at = SWEEP_FLOOR.max(self.in_progress.len() * 2);
        before - self.in_progress.len()
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            in_progress: HashMap::default(),
            kept: Kept::default(),
            sweep_at: SWEEP_FLOOR,
        }
    }
}

impl InProgress {
    pub(super) const fn new(lease: Lease) -> Self {
        Self { lease, ended: None }
    }

    pub(super) fn claimed_again(&mut self, request: &ClaimRequest<'_>) -> Claim {
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
            Decision::Orphaned => Claim::orphaned(&self.lease),
            Decision::CallerDiffers => Claim::CallerDiffers,
            Decision::Reused => Claim::Reused,
            Decision::SettingsChanged { recorded } => Claim::SettingsChanged { recorded },
            Decision::InProgress | Decision::Replay => Claim::InProgress {
                lease: self.lease.clone(),
                waiter: request.wants_waiter.then(|| self.waiter()),
            },
        }
    }

    fn waiter(&mut self) -> Waiter {
        let ended = Arc::clone(self.ended.get_or_insert_default());
        // Counts from here on, so an end between now and its first poll is not missed.
        Waiter::new(ended.notified_owned())
    }

    pub(super) fn wake(&self) {
        if let Some(ended) = &self.ended {
            ended.notify_waiters();
        }
    }
}
