//! The heartbeat: one task that renews the leases of all runs that take longer than a poll.
//!
//! A task apart from the runs goes on renewing while a handler blocks its thread, or while
//! nobody polls the future that a run sits in; and one timer for all is cheaper than one each.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use super::after;
use crate::clock::Clock;
use crate::record::{Lease, Owner, Renewal};
use crate::store::{Fenced, Store};

/// A lease is renewed when a third of it has passed, so that two renewals may fail.
const BEATS_PER_LEASE: u32 = 3;

pub(super) struct Heart<St> {
    store: Arc<St>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    earlier: Notify,
}

#[derive(Default)]
struct State {
    beats: HashMap<Owner, Beat, BuildHasherDefault<OfOwner>>,
    /// When the task wakes next; `None` when there is no task.
    wakes_at: Option<Instant>,
}

/// An owner is a number like any other, made here, and so its own hash.
#[derive(Default)]
struct OfOwner(u64);

impl Hasher for OfOwner {
    fn write(&mut self, bytes: &[u8]) {
        for eight in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..eight.len()].copy_from_slice(eight);
            self.0 ^= u64::from_le_bytes(number);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Beat {
    lease: Lease,
    duration: Duration,
    due: Instant,
    /// When the run has had its time, and its lease may lapse.
    ends_at: Option<Instant>,
    /// Whether the end of the run is under way to the store.
    is_ending: bool,
}

impl<St: Store> Heart<St> {
    pub(super) fn new(store: Arc<St>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            state: Mutex::default(),
            earlier: Notify::new(),
        })
    }

    /// Renews `lease` until the guard is dropped, or until `max_execution` after the run began.
    pub(super) fn keep(
        self: &Arc<Self>,
        lease: &Lease,
        duration: Duration,
        max_execution: Option<Duration>,
    ) -> Beating<St> {
        let due = after(duration / BEATS_PER_LEASE);
        let beat = Beat {
            lease: lease.clone(),
            duration,
            due,
            ends_at: max_execution.map(after),
            is_ending: false,
        };
        let mut state = self.lock();
        state.beats.insert(lease.owner, beat);
        match state.wakes_at {
            Some(wakes_at) if wakes_at <= due => {}
            Some(_) => {
                state.wakes_at = Some(due);
                self.earlier.notify_one();
            }
            None => {
                state.wakes_at = Some(due);
                let task = Task {
                    heart: Arc::clone(self),
                    ended: false,
                };
                tokio::spawn(task.run());
            }
        }
        drop(state);
        Beating {
            heart: Arc::clone(self),
            owner: lease.owner,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is due, and says when to look again; `None` when nothing beats any more.
    fn due(&self, due: &mut Vec<(Lease, Duration)>) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        state
            .beats
            .retain(|_, beat| beat.ends_at.is_none_or(|ends_at| now < ends_at));
        for beat in state.beats.values_mut() {
            if beat.due <= now {
                due.push((beat.lease.clone(), beat.duration));
                beat.due = after(beat.duration / BEATS_PER_LEASE);
            }
        }
        state.wakes_at = state.beats.values().map(|beat| beat.due).min();
        state.wakes_at
    }

    async fn renew(self: Arc<Self>, lease: Lease, duration: Duration) {
        let deadline = self.clock.now().plus(duration);
        let renewal = Renewal {
            deadline,
            // As long after the deadline as it was at first.
            expires_at: deadline.plus(lease.expires_at.since(lease.deadline)),
        };
        let renewed = timeout(
            duration / BEATS_PER_LEASE,
            self.store.renew(&lease, renewal),
        );
        match renewed.await {
            Ok(Ok(Fenced::Applied)) => {}
            Ok(Ok(Fenced::LeaseLost(_))) => {
                let beat = self.lock().beats.remove(&lease.owner);
                // A renewal that comes after the end of its own run finds no lease, either; what
                // became of the lease is for the end to say.
                if beat.is_some_and(|beat| !beat.is_ending) {
                    warn!(record = %lease.key, "a run lost its lease");
                }
            }
            Ok(Err(error)) => {
                warn!(record = %lease.key, %error, "a lease was not renewed; trying again");
                self.try_again_soon(&lease, duration);
            }
            Err(_) => warn!(record = %lease.key, "the store did not answer a renewal in time"),
        }
    }

    fn try_again_soon(&self, lease: &Lease, duration: Duration) {
        let due = after(duration / (BEATS_PER_LEASE * 4));
        let mut state = self.lock();
        if let Some(beat) = state.beats.get_mut(&lease.owner) {
            beat.due = beat.due.min(due);
            if state.wakes_at.is_some_and(|wakes_at| due < wakes_at) {
                state.wakes_at = Some(due);
                self.earlier.notify_one();
            }
        }
    }
}

/// The task of a heart. When it is dropped with its runtime, the heart learns that it needs
/// another.
struct Task<St: Store> {
    heart: Arc<Heart<St>>,
    ended: bool,
}

impl<St: Store> Task<St> {
    async fn run(mut self) {
        let mut due = Vec::new();
        while let Some(wakes_at) = self.heart.due(&mut due) {
            for (lease, duration) in due.drain(..) {
                // Each on its own: one slow renewal must not cost another run its lease.
                tokio::spawn(Arc::clone(&self.heart).renew(lease, duration));
            }
            // Whichever comes first: the time, or a lease that is due before it.
            let _ = timeout_at(wakes_at, self.heart.earlier.notified()).await;
        }
        self.ended = true;
    }
}

impl<St: Store> Drop for Task<St> {
    fn drop(&mut self) {
        // A task that ended has said so already, and may have a successor by now.
        if !self.ended {
            self.heart.lock().wakes_at = None;
        }
    }
}

/// Keeps a lease alive until it is dropped.
pub(super) struct Beating<St: Store> {
    heart: Arc<Heart<St>>,
    owner: Owner,
}

impl<St: Store> Beating<St> {
    /// From here on, the end of the run is under way to the store.
    pub(super) fn end_is_under_way(&self) {
        if let Some(beat) = self.heart.lock().beats.get_mut(&self.owner) {
            beat.is_ending = true;
        }
    }
}

impl<St: Store> Drop for Beating<St> {
    fn drop(&mut self) {
        self.heart.lock().beats.remove(&self.owner);
    }
}
