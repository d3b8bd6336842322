//! How fast a process writes while DynamoDB throttles it.
//!
//! Claims and ends of runs are small, and somebody waits for them; chunks are large. So a small
//! write that was throttled is soon tried again, and no chunk is written meanwhile. Chunks share a
//! number of places: one more for each that was written, half as many after a throttle.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use tokio::sync::Notify;

use super::error::is_of_throttling;
use crate::runtime::{self, Instant, random_u64, sleep, sleep_until};

/// How many chunks are on their way at a time, at first and at most.
const FIRST_WIDTH: usize = 4;
const MOST_WIDTH: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long a small write is tried while it is throttled: less than the layer waits for a store.
const PATIENCE: Duration = Duration::from_secs(3);
const LONGEST_PAUSE_OF_SMALL: Duration = Duration::from_millis(100);

/// The pace of all clones of a store.
#[derive(Debug)]
pub(super) struct Pace {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    width: usize,
    on_their_way: usize,
    /// Small writes that were throttled and are to be tried again.
    urgent: usize,
    pause: Duration,
    not_before: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                width: FIRST_WIDTH,
                on_their_way: 0,
                urgent: 0,
                pause: FIRST_PAUSE,
                not_before: None,
            }),
            changed: Notify::new(),
        }
    }
}

impl Pace {
    /// Sends a small write until it is not throttled, or has been for too long. A throttled write
    /// was not applied.
    pub(super) async fn small<T, E, F>(&self, send: impl Fn() -> F) -> Result<T, SdkError<E>>
    where
        E: ProvideErrorMetadata,
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let began = runtime::now();
        let mut pause = LONGEST_PAUSE_OF_SMALL / 4;
        let mut urgent = None;
        loop {
            // The SDK's futures are large, and would be copied with each future around them.
            let sent = Box::pin(send()).await;
            match &sent {
                Err(error) if is_throttled(error) && began.elapsed() < PATIENCE => {}
                _ => return sent,
            }
            self.throttled();
            urgent.get_or_insert_with(|| Urgent::new(self));
            sleep(jittered(pause)).await;
            pause = LONGEST_PAUSE_OF_SMALL.min(pause * 2);
        }
    }

    /// Waits for the turn of a chunk.
    pub(super) async fn turn(&self) -> Turn<'_> {
        loop {
            let changed = self.changed.notified();
            let until = {
                let mut state = self.state();
                let is_free = state.urgent == 0 && state.on_their_way < state.width;
                let pauses = state.not_before.filter(|until| *until > runtime::now());
                if is_free && pauses.is_none() {
                    state.on_their_way += 1;
                    return Turn(self);
                }
                pauses.filter(|_| is_free)
            };
            match until {
                Some(until) => sleep_until(until).await,
                None => changed.await,
            }
        }
    }

    /// Those that were sent at the same time count once.
    fn throttled(&self) {
        let mut state = self.state();
        let now = runtime::now();
        if state.not_before.is_none_or(|until| until <= now) {
            state.width = (state.width / 2).max(1);
            state.not_before = Some(now + jittered(state.pause));
            state.pause = LONGEST_PAUSE.min(state.pause * 2);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a chunk that is on its way.
pub(super) struct Turn<'a>(&'a Pace);

impl Turn<'_> {
    pub(super) fn succeeded(self) {
        let mut state = self.0.state();
        state.width = MOST_WIDTH.min(state.width + 1);
        state.pause = FIRST_PAUSE;
    }

    pub(super) fn throttled(self) {
        self.0.throttled();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().on_their_way -= 1;
        self.0.changed.notify_waiters();
    }
}

/// While it lives, no chunk has its turn.
struct Urgent<'a>(&'a Pace);

impl<'a> Urgent<'a> {
    fn new(pace: &'a Pace) -> Self {
        pace.state().urgent += 1;
        Self(pace)
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.state().urgent -= 1;
        self.0.changed.notify_waiters();
    }
}

pub(super) fn is_throttled<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let code = error.as_service_error().and_then(|error| error.code());
    code.is_some_and(is_of_throttling)
}

/// Between half of it and the whole, so that those who paused together do not go on together.
pub(super) fn jittered(pause: Duration) -> Duration {
    let random = random_u64().unwrap_or(u64::MAX) >> 32;
    pause / 2 + pause / 2 * u32::try_from(random >> 22).unwrap_or(0) / 1_023
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    async fn has_turn(pace: &Pace) -> bool {
        timeout(Duration::from_millis(1), pace.turn()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_width_halves_on_a_throttle_and_grows_with_each_chunk() {
        let pace = Pace::default();
        pace.turn().await.succeeded();
        assert_eq!(pace.state().width, 5);
        let (first, second) = (pace.turn().await, pace.turn().await);
        first.throttled();
        second.throttled();
        assert_eq!(pace.state().width, 2, "the two were sent at once");
        assert!(!has_turn(&pace).await, "it pauses");
        sleep(FIRST_PAUSE).await;
        let _held = (pace.turn().await, pace.turn().await);
        assert!(!has_turn(&pace).await, "there are two places");
    }

    #[tokio::test(start_paused = true)]
    async fn no_chunk_has_its_turn_while_a_small_write_is_throttled() {
        let pace = Pace::default();
        let urgent = Urgent::new(&pace);
        sleep(LONGEST_PAUSE).await;
        assert!(!has_turn(&pace).await);
        drop(urgent);
        assert!(has_turn(&pace).await);
    }
}
