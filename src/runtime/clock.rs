//! Wall time.

use std::fmt;
use std::time::SystemTime;

use crate::protocol::clock::Timestamp;

/// Where wall time comes from. Tests put a clock of their own in
/// [`SystemClock`]'s place.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The current wall time.
    fn now(&self) -> Timestamp;
}

/// The operating system's wall clock: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads wall time"
    )]
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}
