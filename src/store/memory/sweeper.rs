//! Clears away what has expired while nobody asks for anything.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tracing::warn;

use super::Inner;
use super::table::Shard;
use crate::runtime;

/// A thread for all stores of the process, while there is one. It holds none of them.
pub(super) struct Sweeper {
    every: Duration,
    /// Empty: there is no thread.
    stores: Mutex<Vec<Weak<Inner>>>,
}

impl Sweeper {
    pub(super) const fn new(every: Duration) -> Self {
        Self {
            every,
            stores: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn add(&'static self, store: Weak<Inner>) {
        let mut stores = self.stores();
        if stores.is_empty()
            && let Err(error) = self.start()
        {
            warn!(%error, "no thread clears a memory store; it is cleared by its requests alone");
            return;
        }
        stores.push(store);
    }

    fn start(&'static self) -> io::Result<()> {
        runtime::spawn_thread("idempotency-sweep", || self.run())
    }

    pub(super) fn run(&self) {
        loop {
            runtime::block(self.every);
            let mut stores = self.stores();
            stores.retain(|store| store.strong_count() > 0);
            if stores.is_empty() {
                // Under the lock, so that the next store starts another thread.
                return;
            }
            let swept = stores.clone();
            drop(stores);
            for store in &swept {
                sweep(store);
            }
        }
    }

    fn stores(&self) -> MutexGuard<'_, Vec<Weak<Inner>>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clears away all that has expired in a store, and gives back the room that a rush took, both in
/// steps.
pub(super) fn sweep(store: &Weak<Inner>) {
    in_rounds(store, Inner::clear_shard);
    in_rounds(store, |_, shard, round| {
        let mut table = shard.lock();
        table.shrink(round);
        round < table.parts()
    });
    if let Some(store) = store.upgrade() {
        store.tidy_cache();
    }
}

/// Takes one `step` after the other in the shards of a store, while one of them says that there is
/// more to do.
///
/// Each shard has one in a round: whoever waits for its lock gets it before the next one. The store
/// is let go of after each step: it may be dropped meanwhile.
fn in_rounds(store: &Weak<Inner>, step: fn(&Inner, &Shard, usize) -> bool) {
    let mut is_more = true;
    let mut rounds = 0..;
    while is_more && let Some(round) = rounds.next() {
        is_more = false;
        for number in 0.. {
            let Some(store) = store.upgrade() else {
                return;
            };
            let Some(shard) = store.shards.get(number) else {
                break;
            };
            is_more |= step(&store, shard, round);
        }
    }
}
