//! The near tier, which may fail or be silent at any time.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tracing::{debug, warn};

use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::RecordKey;
use crate::protocol::record::{Holder, Owner};
use crate::runtime::{self, Instant, sleep};
use crate::store::{Release, Store};

/// How long a near tier that was silent is asked for nothing but what it must forget.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// So many keys of which the near tier may have heard something else are remembered.
const MOST_UNTOLD: usize = 10_000;

pub(super) struct NearTier<St> {
    pub(super) store: Arc<St>,
    pub(super) timeout: Duration,
    failures: Arc<Failures>,
}

#[derive(Default)]
struct Failures {
    /// Until the first one, nobody needs the lock.
    are_there: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    left_alone_until: Option<Instant>,
    /// Keys that it may take for held by these attempts, because it could not be told that they
    /// are not.
    untold: HashMap<RecordKey, Owner>,
}

impl<St> NearTier<St> {
    pub(super) fn new(store: St) -> Self {
        Self {
            store: Arc::new(store),
            timeout: Duration::from_millis(50),
            failures: Arc::default(),
        }
    }

    /// Waits for a call that can be left out. It is not made while the near tier is left alone.
    pub(super) async fn ask<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match self.is_left_alone() {
            true => Err(silent("it was silent a moment ago")),
            false => self.tell(call).await,
        }
    }

    /// Waits for a call that has to be tried whenever it is due, but for no longer than the
    /// timeout.
    pub(super) async fn tell<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut call = pin!(call);
        // Memory answers at once, and needs no timer.
        let mut timer = pin!(None);
        let answer = poll_fn(|cx| {
            if let Poll::Ready(answer) = call.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            if timer.is_none() {
                timer.set(Some(sleep(self.timeout)));
            }
            let timer = timer.as_mut().as_pin_mut();
            timer.map_or(Poll::Pending, |timer| timer.poll(cx).map(|()| None))
        });
        answer.await.unwrap_or_else(|| {
            warn!(
                timeout = ?self.timeout,
                "the near tier is silent, and is passed over for {LEFT_ALONE:?}"
            );
            self.failed().left_alone_until = Some(runtime::now() + LEFT_ALONE);
            Err(silent("it did not answer in time").maybe_applied())
        })
    }

    fn is_left_alone(&self) -> bool {
        let known = self.failures();
        let until = known.and_then(|known| known.left_alone_until);
        until.is_some_and(|until| runtime::now() < until)
    }

    /// Lets the far tier be asked next time.
    pub(super) async fn let_go(&self, holder: &Holder, now: Timestamp)
    where
        St: Store,
    {
        match self
            .tell(self.store.release(holder, Release::Free, now))
            .await
        {
            Ok(_) => self.forget_untold(&holder.key),
            Err(error) => {
                debug!(%error, "the near tier did not let a key go");
                self.remember_untold(holder.key, holder.owner);
            }
        }
    }

    /// Remembers that the near tier may take a key for held by `owner`, who does not hold it.
    pub(super) fn remember_untold(&self, key: RecordKey, owner: Owner) {
        let untold = &mut self.failed().untold;
        // Those that are forgotten lapse in the near tier.
        if untold.len() >= MOST_UNTOLD {
            untold.clear();
        }
        untold.insert(key, owner);
    }

    pub(super) fn forget_untold(&self, key: &RecordKey) {
        if let Some(mut known) = self.failures() {
            known.untold.remove(key);
        }
    }

    /// The attempt that the near tier may wrongly take for the holder of a key.
    pub(super) fn untold(&self, key: &RecordKey) -> Option<Owner> {
        self.failures()?.untold.get(key).copied()
    }

    /// What is known of failures, if there were any.
    fn failures(&self) -> Option<MutexGuard<'_, Known>> {
        let are_there = self.failures.are_there.load(Ordering::Acquire);
        are_there.then(|| self.failures.known())
    }

    fn failed(&self) -> MutexGuard<'_, Known> {
        self.failures.are_there.store(true, Ordering::Release);
        self.failures.known()
    }
}

impl Failures {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silent(why: &'static str) -> StoreError {
    StoreError::new(
        StoreErrorKind::Unavailable,
        format!("the near tier was not asked to the end: {why}"),
    )
}

impl<St> Clone for NearTier<St> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            timeout: self.timeout,
            failures: Arc::clone(&self.failures),
        }
    }
}

impl<St: fmt::Debug> fmt::Debug for NearTier<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}
