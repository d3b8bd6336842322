//! The records in progress of one shard.

use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio::sync::Notify;

use super::NEVER;
use super::spread::{Keyed, Spread};
use crate::protocol::clock::Timestamp;
use crate::protocol::key::RecordKey;
use crate::protocol::record::{ClaimRequest, Decision, Held, Lease, decide};
use crate::store::{Claim, Waiter};

/// After so many new records, or as many as the part has if these are more, a part is swept.
const SWEEP_FLOOR: usize = 64;

#[derive(Debug)]
pub(super) struct InProgress {
    records: Spread<Run>,
    /// For each part a time before which none of its records expires.
    expires_from: Vec<Timestamp>,
    /// New records until the next sweep.
    unswept: usize,
    /// The part that was swept last.
    swept: usize,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) lease: Lease,
    /// Made by the first who waits.
    ended: Option<Arc<Notify>>,
}

impl Keyed for Run {
    fn key(&self) -> &RecordKey {
        &self.lease.key
    }
}

impl InProgress {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self {
            records: Spread::new(hasher),
            expires_from: vec![NEVER],
            unswept: SWEEP_FLOOR,
            swept: 0,
        }
    }

    pub(super) fn find(&self, hash: u64, key: &RecordKey) -> Option<&Run> {
        self.records.find(hash, key)
    }

    /// Finds a record to change it. One that may expire sooner then has to be
    /// [told of](Self::expires_at).
    pub(super) fn find_mut(&mut self, hash: u64, key: &RecordKey) -> Option<&mut Run> {
        self.records.find_mut(hash, key)
    }

    pub(super) fn insert(&mut self, hash: u64, lease: Lease) {
        let expires_at = lease.expires_at;
        self.records.insert(hash, Run { lease, ended: None });
        if self.expires_from.len() != self.records.parts() {
            let before = self.expires_from[0];
            self.expires_from.resize(self.records.parts(), before);
        }
        self.expires_at(hash, expires_at);
        self.unswept = self.unswept.saturating_sub(1);
    }

    /// Says that a record expires at a time that may be sooner than it was.
    pub(super) fn expires_at(&mut self, hash: u64, expires_at: Timestamp) {
        let from = &mut self.expires_from[self.records.part_of(hash)];
        *from = expires_at.min(*from);
    }

    /// Ends a record, and says whether there was one.
    pub(super) fn remove(&mut self, hash: u64, key: &RecordKey) -> bool {
        let Some(run) = self.records.remove(hash, key) else {
            return false;
        };
        run.wake();
        let part = self.records.part_of(hash);
        if self.records.part_len(part) == 0 {
            self.expires_from[part] = NEVER;
        }
        true
    }

    /// Returns how many sweeps it takes to sweep all of it.
    pub(super) fn parts(&self) -> usize {
        self.records.parts()
    }

    /// Gives room back that a part does not need any more.
    pub(super) fn shrink(&mut self, part: usize) {
        self.records.shrink(part);
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns a time before which no record expires.
    pub(super) fn expires_from(&self) -> Timestamp {
        self.expires_from.iter().copied().min().unwrap_or(NEVER)
    }

    /// Returns whether enough records have come since the last sweep for the next one: its cost is
    /// spread over them.
    pub(super) fn is_sweep_due(&self) -> bool {
        self.unswept == 0
    }

    /// Removes what has expired from the next part that may have such a record, and says how many
    /// have gone.
    pub(super) fn sweep(&mut self, now: Timestamp, has_lapsed: impl Fn(&Lease) -> bool) -> usize {
        self.unswept = SWEEP_FLOOR;
        let parts = self.records.parts();
        let mut in_turn = (1..=parts).map(|step| (self.swept + step) % parts);
        let Some(part) = in_turn.find(|part| self.expires_from[*part] <= now) else {
            return 0;
        };
        self.swept = part;
        let before = self.records.part_len(part);
        let mut expires_from = NEVER;
        self.records.retain_in(part, |run| {
            let stays = run.lease.expires_at > now || !has_lapsed(&run.lease);
            if stays {
                // One that is alive has yet to be renewed.
                expires_from = expires_from.min(run.lease.expires_at);
            } else {
                run.wake();
            }
            stays
        });
        self.expires_from[part] = expires_from;
        let after = self.records.part_len(part);
        self.unswept = after.max(SWEEP_FLOOR);
        before - after
    }
}

impl Run {
    pub(super) fn claimed_again(&mut self, request: &ClaimRequest<'_>) -> Claim {
        let seen = |lease: &Lease| lease.clone().seen_at(request.now);
        match decide(Some(Held::InProgress(&self.lease)), request) {
            Decision::Acquire {
                token,
                attempt,
                created_at,
            } => {
                self.lease = request.lease(token, attempt, created_at);
                Claim::Acquired(seen(&self.lease))
            }
            Decision::Own => Claim::Acquired(seen(&self.lease)),
            Decision::Orphaned => Claim::Orphaned(seen(&self.lease)),
            Decision::CallerDiffers => Claim::CallerDiffers,
            Decision::Reused => Claim::Reused,
            Decision::SettingsChanged { recorded } => Claim::SettingsChanged { recorded },
            Decision::InProgress | Decision::Replay => Claim::in_progress(
                seen(&self.lease),
                request.wants_waiter.then(|| self.waiter()),
            ),
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
