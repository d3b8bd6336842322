//! The time, as claims tell it to a store that has no clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::protocol::clock::Timestamp;
use crate::runtime::{self, Instant};

/// The time that the last claim told, and from when it was first looked at on, as it goes on.
#[derive(Debug)]
pub(super) struct Told {
    /// In microseconds.
    latest: AtomicU64,
    looked_at: Mutex<(Timestamp, Instant)>,
}

impl Told {
    pub(super) fn tell(&self, now: Timestamp) {
        self.latest.store(now.as_micros(), Ordering::Relaxed);
    }

    /// Returns what time it is. It is earlier than that by as long as passed between the last claim
    /// and the first look after it.
    pub(super) fn now(&self) -> Timestamp {
        let latest = Timestamp::from_micros(self.latest.load(Ordering::Relaxed));
        let mut looked_at = self
            .looked_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if looked_at.0 != latest {
            *looked_at = (latest, runtime::now());
        }
        latest.plus(looked_at.1.elapsed())
    }
}

impl Default for Told {
    fn default() -> Self {
        Self {
            latest: AtomicU64::new(0),
            looked_at: Mutex::new((Timestamp::EPOCH, runtime::now())),
        }
    }
}
