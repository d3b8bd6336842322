//! Where time, chance, tasks and threads come from, and the only place that they come from.
//!
//! The executor and the stores work on the Tokio runtime that they are called on. One that has a
//! single thread and paused time, with [`seed_random`], makes whole fleets repeat themselves:
//! `tests/histories/fleet.rs` shows it. `clippy.toml` keeps the rest of the crate from going round
//! this module.
#![allow(clippy::disallowed_methods, reason = "all others come here")]

mod clock;
mod random;

use std::future::Future;
use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Handle, TryCurrentError};
use tokio::task::JoinHandle;
use tokio::time::Timeout;
pub(crate) use tokio::time::{Instant, Sleep};

pub use self::clock::{Clock, SystemClock};
pub(crate) use self::random::random_u64;
#[cfg(feature = "test-util")]
pub use self::random::seed_random;

/// Returns the time of the runtime's clock, which never goes back.
#[inline]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits for so long.
pub(crate) fn sleep(duration: Duration) -> Sleep {
    tokio::time::sleep(duration)
}

/// Waits until then.
pub(crate) fn sleep_until(deadline: Instant) -> Sleep {
    tokio::time::sleep_until(deadline)
}

/// Waits for `future`, but no longer than `duration`.
pub(crate) fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    tokio::time::timeout(duration, future)
}

/// Waits for `future`, but no longer than until `deadline`.
pub(crate) fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    tokio::time::timeout_at(deadline, future)
}

/// Runs `future` as a task of its own.
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Returns the runtime that this is called on.
///
/// # Errors
///
/// When there is none.
pub(crate) fn current() -> Result<Handle, TryCurrentError> {
    Handle::try_current()
}

/// Runs `work` on a thread of its own.
///
/// # Errors
///
/// When the operating system has no thread to give.
pub(crate) fn spawn_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(work)?;
    Ok(())
}

/// Stops the thread for so long.
#[cfg(feature = "memory")]
pub(crate) fn block(duration: Duration) {
    thread::sleep(duration);
}
