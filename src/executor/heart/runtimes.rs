//! The runtimes that runs and hearts are on.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::panic::catch_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Id, RuntimeFlavor};
use tokio::task::JoinHandle;
use tracing::error;

use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::runtime::{self, sleep, spawn_thread};
use crate::store::at_once;

thread_local! {
    /// The runtime that this thread was on when it was checked.
    static CHECKED: Cell<Option<Id>> = const { Cell::new(None) };
}

/// As [`check`], but for a thread that has had a runtime with timers, it takes for granted that it
/// has it still. For those whose store answers at once.
pub(in crate::executor) fn check_thread() -> Result<(), StoreError> {
    match CHECKED.get() {
        Some(_) => Ok(()),
        None => check(),
    }
}

/// Says why nothing can run here, if that is so: a run needs a runtime that it can be finished on,
/// and timers, without which its store would be waited for for ever.
pub(in crate::executor) fn check() -> Result<(), StoreError> {
    let Ok(runtime) = runtime::current() else {
        return Err(unusable("there is no Tokio runtime to run on"));
    };
    let id = Some(runtime.id());
    if CHECKED.get() != id {
        if !has_timers(&runtime) {
            return Err(unusable(
                "the Tokio runtime has no timers: build it with `enable_time` or `enable_all`",
            ));
        }
        remember(&runtime);
        CHECKED.set(id);
    }
    Ok(())
}

fn unusable(message: &'static str) -> StoreError {
    error!("nothing can run under a key: {message}");
    StoreError::new(StoreErrorKind::Unusable, message)
}

/// Tokio tells it only by a panic.
pub(in crate::executor) fn has_timers(runtime: &Handle) -> bool {
    let _on = runtime.enter();
    catch_unwind(|| drop(sleep(Duration::ZERO))).is_ok()
}

/// A runtime with several workers, on which runs have begun.
struct Crew {
    runtime: Handle,
    nudged: Option<JoinHandle<()>>,
}

static CREWS: Mutex<Vec<Crew>> = Mutex::new(Vec::new());

fn crews() -> MutexGuard<'static, Vec<Crew>> {
    CREWS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember(runtime: &Handle) {
    // One that has a single worker, which a handler blocks, cannot be helped.
    if runtime.runtime_flavor() != RuntimeFlavor::MultiThread {
        return;
    }
    let mut crews = crews();
    if crews.iter().all(|crew| crew.runtime.id() != runtime.id()) {
        crews.push(Crew {
            runtime: runtime.clone(),
            nudged: None,
        });
    }
}

/// Wakes a worker of each runtime that runs are on.
///
/// Where a handler blocks the worker that was the last to wait for the network, nobody waits for
/// it any more, and the connections that the store has there stand still. A worker that wakes for
/// an empty task takes that over when it has nothing more to do.
pub(super) fn nudge() {
    crews().retain_mut(|crew| {
        if let Some(nudged) = &mut crew.nudged {
            match at_once(nudged) {
                // All of its workers are busy. As soon as one is not, it sees the first nudge.
                None => return true,
                // It was shut down.
                Some(Err(error)) if error.is_cancelled() => return false,
                Some(_) => {}
            }
        }
        crew.nudged = Some(crew.runtime.spawn(async {}));
        true
    });
}

/// The runtime of the thread that all hearts of this process beat on, unless they are told to beat
/// elsewhere: no handler ever blocks it, and it never ends.
pub(super) fn of_hearts() -> io::Result<Handle> {
    static HEARTS: Mutex<Option<Handle>> = Mutex::new(None);
    let mut hearts = HEARTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*hearts {
        return Ok(runtime.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    spawn_thread("idempotency-heartbeat", move || {
        runtime.block_on(pending::<()>());
    })?;
    Ok(hearts.insert(handle).clone())
}
