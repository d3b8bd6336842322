//! Waiting for a run in flight, and sharing the end that it came to.
//!
//! Whoever waits gets the end of the run that it waited for, whatever that end says. So any number
//! of duplicates makes one run: none of them claims the key when the run has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::begin::{Begun, Claimant, Held, InFlight, jittered};
use super::orphan::Orphan;
use super::store_faults::log_fault;
use super::{Conflict, Executor, after};
use crate::protocol::clock::Timestamp;
use crate::protocol::end::End;
use crate::protocol::key::RecordKey;
use crate::protocol::record::{Completed, Identity, Lease, Record};
use crate::runtime::{Instant, sleep, timeout_at};
use crate::store::Store;

/// The first pause between two looks at a run on another node.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The end of a run, for those who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct SharedEnd {
    pub(crate) identity: Identity,
    /// When the key was first claimed.
    pub(crate) first_seen: Timestamp,
    pub(crate) what: What,
}

impl SharedEnd {
    pub(super) fn of(lease: &Lease, what: What) -> Self {
        Self {
            identity: lease.identity,
            first_seen: lease.created_at,
            what,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The answer that is recorded, or that the first client got although it is not recorded yet.
    Recorded(Completed),
    /// A response that is not recorded, in its recorded form.
    Response(Bytes),
    /// There is nothing that could be shared: the run panicked, failed, or its response was not
    /// read to its end.
    Nothing {
        /// [`End::NothingDone`] or [`End::Unknown`].
        class: End,
    },
}

/// Resolves to the end of one run in this process.
#[derive(Clone, Debug)]
pub(super) struct Awaited(watch::Receiver<Option<SharedEnd>>);

impl Awaited {
    pub(super) const fn new(told: watch::Receiver<Option<SharedEnd>>) -> Self {
        Self(told)
    }

    /// `None` when the run was dropped before it told its end.
    async fn ended(mut self) -> Option<SharedEnd> {
        let told = self.0.wait_for(Option::is_some).await;
        told.ok().and_then(|end| end.clone())
    }
}

/// Of those who wait in this process for a run elsewhere, one looks for all: the lookout. It alone
/// claims when that run has ended, and the others get what comes of it.
#[derive(Debug, Default)]
pub(super) struct Lookouts(Mutex<HashMap<RecordKey, watch::Receiver<News>>>);

/// What a lookout tells the others.
#[derive(Clone, Debug)]
enum News {
    /// The run elsewhere goes on.
    None,
    /// The lookout runs itself.
    Runs(Awaited),
    /// The key has an answer.
    Found(SharedEnd),
}

/// The part that one who waits has.
enum Part {
    Lookout(Lookout),
    Other(watch::Receiver<News>),
}

/// Looks for all. When it is dropped without news, another takes its place.
#[derive(Debug)]
pub(super) struct Lookout {
    lookouts: Arc<Lookouts>,
    key: RecordKey,
    news: watch::Sender<News>,
}

impl Lookouts {
    fn join(self: &Arc<Self>, key: &RecordKey) -> Part {
        let mut lookouts = self.lock();
        // One whose sender is gone is about to be removed.
        if let Some(news) = lookouts.get(key).filter(|news| news.has_changed().is_ok()) {
            return Part::Other(news.clone());
        }
        let (tell, told) = watch::channel(News::None);
        lookouts.insert(*key, told);
        Part::Lookout(Lookout {
            lookouts: Arc::clone(self),
            key: *key,
            news: tell,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RecordKey, watch::Receiver<News>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookout {
    fn tell(&self, news: News) {
        self.news.send_replace(news);
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        let mut lookouts = self.lookouts.lock();
        let own = self.news.subscribe();
        if lookouts
            .get(&self.key)
            .is_some_and(|news| news.same_channel(&own))
        {
            lookouts.remove(&self.key);
        }
    }
}

/// `None` when the lookout has gone without news.
async fn next_news(mut news: watch::Receiver<News>) -> Option<News> {
    let told = news.wait_for(|news| !matches!(news, News::None)).await;
    told.ok().map(|news| News::clone(&news))
}

impl<St: Store> Executor<St> {
    /// Waits until the run in flight has ended, its lease has lapsed, or `patience` is over.
    /// Returns what the claimant gets by that; `None` when it has to claim again.
    ///
    /// `lookout` is the claimant's part of the waiting for a run elsewhere; it keeps it while it
    /// claims.
    pub(super) async fn wait_for(
        &self,
        mut in_flight: InFlight,
        claimant: &Claimant,
        lookout: &mut Option<Lookout>,
        patience: Instant,
    ) -> Option<Begun> {
        if let Some(ending) = self.shared.living.ending_of(in_flight.lease.owner) {
            if let Some(lookout) = lookout.take() {
                lookout.tell(News::Runs(ending.clone()));
            }
            return self.wait_here(ending, claimant, patience).await;
        }
        while lookout.is_none() {
            match self.shared.lookouts.join(claimant.key.record_key()) {
                Part::Lookout(part) => *lookout = Some(part),
                Part::Other(news) => {
                    let news = timeout_at(patience, next_news(news)).await.ok()?;
                    match news {
                        Some(News::Runs(ending)) => {
                            return self.wait_here(ending, claimant, patience).await;
                        }
                        Some(News::Found(end)) => return self.shared_with(claimant, end),
                        // The lookout has gone without news.
                        Some(News::None) | None => {}
                    }
                }
            }
        }
        self.look_out(&mut in_flight, claimant, patience).await;
        None
    }

    /// Tells those who wait with the lookout what it got. A key that it holds is run next.
    pub(super) fn tell_others(&self, lookout: Option<Lookout>, claimant: &Claimant, got: &Begun) {
        let Some(lookout) = lookout else {
            return;
        };
        let news = match got {
            Begun::Held(Held { lease, .. }) => {
                self.shared.living.ending_of(lease.owner).map(News::Runs)
            }
            Begun::Completed(completed) => Some(News::Found(SharedEnd {
                identity: claimant.identity,
                first_seen: completed.created_at,
                what: What::Recorded(completed.clone()),
            })),
            Begun::Shared(end) => Some(News::Found(end.clone())),
            Begun::Refused(_) | Begun::Within => None,
        };
        if let Some(news) = news {
            lookout.tell(news);
        }
    }

    async fn wait_here(
        &self,
        ending: Awaited,
        claimant: &Claimant,
        patience: Instant,
    ) -> Option<Begun> {
        let end = timeout_at(patience, ending.ended()).await.ok()??;
        self.shared_with(claimant, end)
    }

    /// What a claimant gets by an end that it waited for; `None` when the store has to tell.
    fn shared_with(&self, claimant: &Claimant, end: SharedEnd) -> Option<Begun> {
        if !claimant.is_for(&end.identity) {
            return None;
        }
        let first_seen = end.first_seen;
        let class = match end.what {
            What::Recorded(completed) => return Some(Begun::Completed(completed)),
            What::Response(_) => return Some(Begun::Shared(end)),
            What::Nothing { class } => class,
        };
        let conflict = match (&self.shared.settings.orphan, class) {
            // The record says for how long it is held.
            (Orphan::Hold, End::Unknown) => return None,
            (Orphan::Reconcile(_), End::Unknown) => Conflict::OutcomeUnknownYet { first_seen },
            (_, class) => Conflict::Ended { class, first_seen },
        };
        Some(Begun::Refused(conflict))
    }

    /// Looks until a run elsewhere has ended, its lease has lapsed, or `patience` is over.
    async fn look_out(&self, in_flight: &mut InFlight, claimant: &Claimant, patience: Instant) {
        let lapses_at = in_flight
            .lease
            .deadline
            .plus(self.shared.settings.clock_skew);
        let left_of_lease = lapses_at.since(self.now());
        let until = patience.min(after(left_of_lease + Duration::from_millis(1)));
        // Whether it ended or the time is over: the next claim tells.
        match in_flight.waiter.take() {
            Some(waiter) => drop(timeout_at(until, waiter).await),
            None => drop(timeout_at(until, self.poll_until_ended(claimant)).await),
        }
    }

    /// Looks at a run on another node until it has ended: more and more rarely, and not in step
    /// with others who do the same.
    async fn poll_until_ended(&self, claimant: &Claimant) {
        let mut pause = FIRST_PAUSE;
        loop {
            sleep(jittered(pause)).await;
            pause = LONGEST_PAUSE.min(pause * 3 / 2);
            let now = self.now();
            let key = claimant.key.record_key();
            match self.bounded(self.shared.store.get(key, now)).await {
                Ok(found) => match found.map(|record| record.by_clock(now)) {
                    Some(Record::InProgress(lease)) if !self.has_lapsed(&lease, now) => {}
                    _ => return,
                },
                Err(error) => {
                    let what = "the store did not say whether a run has ended; asking again";
                    log_fault(key, &error, what);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: RecordKey = RecordKey::from_bytes([1; 32]);

    #[test]
    fn one_looks_out_for_all_until_it_goes() {
        let lookouts = Arc::<Lookouts>::default();
        let Part::Lookout(first) = lookouts.join(&KEY) else {
            panic!("nobody looked out before");
        };
        let Part::Other(mut news) = lookouts.join(&KEY) else {
            panic!("one is enough");
        };
        drop(first);
        assert!(news.has_changed().is_err());
        let Part::Lookout(second) = lookouts.join(&KEY) else {
            panic!("the first has gone");
        };
        drop(second);
        assert!(lookouts.lock().is_empty());
        assert!(matches!(*news.borrow_and_update(), News::None));
    }
}
