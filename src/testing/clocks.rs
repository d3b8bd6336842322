//! Clocks that do as they are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::clock::Timestamp;
use crate::runtime::{Clock, SystemClock};

/// Wall time that moves only when a test moves it. Clones show the same time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    micros: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock that starts at the present.
    pub fn new() -> Self {
        Self::starting_at(SystemClock.now())
    }

    /// A clock that starts at `start`.
    pub fn starting_at(start: Timestamp) -> Self {
        Self {
            micros: Arc::new(AtomicU64::new(start.as_micros())),
        }
    }

    /// Moves the clock forward.
    pub fn advance(&self, duration: Duration) {
        self.set(self.now().plus(duration));
    }

    /// Sets the clock, forward or back.
    pub fn set(&self, now: Timestamp) {
        self.micros.store(now.as_micros(), Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.micros.load(Ordering::SeqCst))
    }
}

/// Wall time that goes with Tokio's: in a test with paused time, both move together.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    start: Timestamp,
    started: Instant,
}

impl TokioClock {
    /// A clock that shows the present now.
    pub fn new() -> Self {
        Self::starting_at(SystemClock.now())
    }

    /// A clock that shows `start` now.
    pub fn starting_at(start: Timestamp) -> Self {
        Self {
            start,
            started: Instant::now(),
        }
    }

    /// The same clock, `ahead` of this one.
    #[must_use]
    pub fn ahead_by(self, ahead: Duration) -> Self {
        Self {
            start: self.start.plus(ahead),
            ..self
        }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        self.start.plus(self.started.elapsed())
    }
}
