//! A near tier over an authority.

mod copy;
mod near;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tracing::debug;

use self::copy::{unwrapped, wrapped};
use self::near::NearTier;
use super::{Claim, Completion, Fenced, Release, Store};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::StoreError;
use crate::protocol::key::RecordKey;
use crate::protocol::record::{
    ClaimRequest, Completed, Decision, Holder, Record, Renewal, Seen, decide,
};
use crate::runtime;

/// Two stores as one: `near`, in this process or close to it, spares calls to `far`, which alone
/// decides.
///
/// * A claim takes the key in the near tier first, so that of many duplicates in one process one
///   asks the far tier, and the others wait for what it hears. Then the far tier says who holds
///   the key.
/// * Only answers that the far tier has recorded are kept near; and, while it cannot be reached,
///   the answer of a run in this process, which its client has already got.
/// * Replays, and duplicates of a run in this process, cost no call to the far tier. A first
///   request costs it two: the claim and the completion.
/// * A near tier that fails, or that is silent for [`near_timeout`](Self::near_timeout), is a miss:
///   the far tier is asked. A key that it still takes for held, because it could not be told that
///   it is not, is one, too.
///
/// Tiers stack: the far tier may be tiered itself.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::store::{MemoryStore, Tiered};
///
/// # let shared = MemoryStore::new();
/// // `shared` would be a store that all processes see.
/// let store = Tiered::new(MemoryStore::evicting(64 << 20), shared)
///     .near_lifetime(Duration::from_secs(60));
/// ```
pub struct Tiered<Near, Far> {
    near: NearTier<Near>,
    far: Far,
    near_lifetime: Duration,
    /// Keys that are held near while the far tier is being asked, and who wants to hear that it
    /// has answered.
    asking: Arc<Asking>,
}

type Asking = Mutex<HashMap<RecordKey, Arc<Notify>>>;

impl<Near: Store, Far: Store> Tiered<Near, Far> {
    /// `near` over `far`.
    ///
    /// A near tier that is full and refuses new keys keeps no more answers, and the far tier is asked
    /// for each. [`MemoryStore::evicting`](super::MemoryStore::evicting) makes room instead;
    /// [`MemoryStore::over`](super::MemoryStore::over) is this with one that does.
    pub fn new(near: Near, far: Far) -> Self {
        Self {
            near: NearTier::new(near),
            far,
            near_lifetime: Duration::from_secs(5 * 60),
            asking: Arc::default(),
        }
    }

    /// How long an answer is served from the near tier before the far tier is asked again: so
    /// soon an operator's deletion is seen. Default: 5 minutes.
    #[must_use]
    pub fn near_lifetime(mut self, near_lifetime: Duration) -> Self {
        self.near_lifetime = near_lifetime;
        self
    }

    /// How long the near tier may take for an answer. One that takes longer is passed over for the
    /// next second. Default: 50 ms. A near tier in memory answers at once; for others, the runtime
    /// needs timers.
    #[must_use]
    pub const fn near_timeout(mut self, near_timeout: Duration) -> Self {
        self.near.timeout = near_timeout;
        self
    }

    /// The near tier.
    pub fn near(&self) -> &Near {
        &self.near.store
    }

    /// The far tier.
    pub const fn far(&self) -> &Far {
        &self.far
    }

    /// Resolves when the far tier has answered what is being asked about a key; `None` when
    /// nothing is.
    fn being_asked(&self, key: &RecordKey) -> Option<OwnedNotified> {
        let asking = locked(&self.asking);
        asking
            .get(key)
            .map(|answered| Arc::clone(answered).notified_owned())
    }

    /// Asks the far tier, holding the key near.
    async fn ask(&self, request: &ClaimRequest<'_>, holder: Holder) -> Result<Claim, StoreError> {
        let mut holding = Holding::new(self, holder, request.now);
        let claim = self.far.claim(request).await;
        match &claim {
            // The key stays held near for as long as it is held.
            Ok(Claim::Acquired(_)) => holding.keep(),
            Ok(Claim::Completed(completed)) => {
                let completed = completed.clone().by_clock(request.now);
                // Boxed, since few claims come here.
                Box::pin(self.cache(&holding.holder, &completed, request.now)).await;
                holding.keep();
            }
            Ok(_) | Err(_) => holding.give_back().await,
        }
        claim
    }

    /// Keeps an answer near in the place of the key that is held there. If it cannot be kept, the
    /// key is let go, and the far tier is asked next time.
    async fn cache(&self, holder: &Holder, completed: &Completed, now: Timestamp) {
        let left = completed.expires_at.since(now);
        let near = Completion::new(wrapped(completed), self.near_lifetime.min(left));
        // The answer keeps the identity that it was recorded with: another recipe's, perhaps.
        let holder = Holder {
            identity: completed.identity,
            ..*holder
        };
        let kept = self.near.ask(self.near().complete(&holder, &near, now));
        if let Err(error) = kept.await {
            debug!(%error, "an answer was not kept in the near tier");
            self.near.let_go(&holder, now).await;
        }
    }

    /// Who the near tier takes for the holder of the key, if it was to hear that nobody holds it.
    async fn untold(&self, request: &ClaimRequest<'_>) -> Result<Option<Holder>, StoreError> {
        let Some(owner) = self.near.untold(request.key) else {
            return Ok(None);
        };
        let get = self.near().get(request.key, request.now);
        let record = self.near.ask(get).await?;
        Ok(match record.map(|record| record.by_clock(request.now)) {
            Some(Record::InProgress(lease)) if lease.owner == owner => Some(lease.holder()),
            _ => {
                self.near.forget_untold(request.key);
                None
            }
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl<Near: Store, Far: Store> Store for Tiered<Near, Far> {
    /// What the near tier says, if it says it at once and the far tier need not be asked.
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        let record = at_once(self.near().get(request.key, request.now))?.ok()??;
        let record = record.by_clock(request.now);
        if matches!(record, Record::InProgress(_)) && self.near.untold(request.key).is_some() {
            return None;
        }
        match (decide(Some((&record).into()), request), record) {
            (Decision::Replay, Record::Completed(near)) => {
                let completed = unwrapped(&near)?;
                Some(Ok(Claim::Completed(completed.seen_at(request.now))))
            }
            (Decision::CallerDiffers, _) if self.being_asked(request.key).is_none() => {
                Some(Ok(Claim::CallerDiffers))
            }
            (Decision::Reused, _) if self.being_asked(request.key).is_none() => {
                Some(Ok(Claim::Reused))
            }
            (Decision::SettingsChanged { recorded }, _)
                if self.being_asked(request.key).is_none() =>
            {
                Some(Ok(Claim::SettingsChanged { recorded }))
            }
            (Decision::InProgress, Record::InProgress(lease))
                if !request.wants_waiter && self.being_asked(request.key).is_none() =>
            {
                Some(Ok(Claim::in_progress(lease.seen_at(request.now), None)))
            }
            _ => None,
        }
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        // Near, a key is only held so that one asks; whether an orphan may be taken over is for
        // the far tier to say.
        let near_request = ClaimRequest {
            take_over: true,
            ..*request
        };
        let mut was_untold = false;
        loop {
            // Listening before looking, so that no answer is missed in between.
            let being_asked = self.being_asked(request.key);
            match self.near.ask(self.near().claim(&near_request)).await {
                Ok(Claim::Acquired(held)) => return self.ask(request, held.holder()).await,
                Ok(Claim::Completed(near)) => match unwrapped(&near.by_clock(request.now)) {
                    Some(completed) => {
                        return Ok(Claim::Completed(completed.seen_at(request.now)));
                    }
                    None => return self.far.claim(request).await,
                },
                Ok(Claim::Orphaned(_)) => return self.far.claim(request).await,
                // Whose the key is, the far tier is just about to say.
                Ok(claim) => match being_asked.or_else(|| self.being_asked(request.key)) {
                    Some(answered) => answered.await,
                    None => match self.untold(request).await {
                        Ok(None) => return Ok(claim),
                        Ok(Some(holder)) if !was_untold => {
                            was_untold = true;
                            self.near.let_go(&holder, request.now).await;
                        }
                        Ok(Some(_)) | Err(_) => return self.far.claim(request).await,
                    },
                },
                Err(error) => {
                    debug!(%error, "the near tier failed; asking the far tier");
                    if error.may_have_been_applied() {
                        self.near.remember_untold(*request.key, request.owner);
                    }
                    return self.far.claim(request).await;
                }
            }
        }
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let fenced = self.far.renew(holder, renewal, now).await?;
        match &fenced {
            Fenced::Applied => {
                let renewed = self.near().renew(holder, renewal, now);
                drop(self.near.ask(renewed).await);
            }
            Fenced::LeaseLost(_) => self.near.let_go(holder, now).await,
        }
        Ok(fenced)
    }

    /// Nothing is recorded before the far tier has it.
    fn try_complete(
        &self,
        _: &Holder,
        _: &Completion,
        _: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        None
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let own = completion.record(holder.identity, now.minus(completion.age), now);
        let fenced = self.far.complete(holder, completion, now).await;
        match &fenced {
            Ok(Fenced::Applied) => self.cache(holder, &own, now).await,
            // The client gets this answer in any case, and so must who asks for it here.
            Err(_) if completion.is_given_unrecorded => self.cache(holder, &own, now).await,
            Err(_) => {}
            // What was kept near while the far tier was out of reach has no claim any more.
            Ok(Fenced::LeaseLost(_)) => {
                if let Err(error) = self.near.tell(self.near().remove(&holder.key)).await {
                    debug!(%error, "the near tier did not forget a key");
                }
            }
        }
        fenced
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let fenced = self.far.release(holder, release, now).await?;
        self.near.let_go(holder, now).await;
        Ok(fenced)
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        self.far.get(key, now).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let was_far = self.far.remove(key).await?;
        if let Err(error) = self.near.tell(self.near().remove(key)).await {
            debug!(%error, "the near tier did not forget a key");
        }
        Ok(was_far)
    }

    fn is_shared(&self) -> bool {
        self.far.is_shared()
    }

    fn may_forget(&self) -> bool {
        self.far.may_forget()
    }
}

impl<Near: fmt::Debug, Far: fmt::Debug> fmt::Debug for Tiered<Near, Far> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiered")
            .field("near", &self.near)
            .field("far", &self.far)
            .field("near_lifetime", &self.near_lifetime)
            .finish_non_exhaustive()
    }
}

/// A key that is held near while the far tier is asked; given back if nobody waits for that any
/// more.
struct Holding<'a, Near: Store, Far> {
    tiers: &'a Tiered<Near, Far>,
    holder: Holder,
    /// When the claimer asked.
    now: Timestamp,
    answered: Arc<Notify>,
    is_kept: bool,
}

impl<'a, Near: Store, Far: Store> Holding<'a, Near, Far> {
    fn new(tiers: &'a Tiered<Near, Far>, holder: Holder, now: Timestamp) -> Self {
        let answered = Arc::<Notify>::default();
        let before = locked(&tiers.asking).insert(holder.key, Arc::clone(&answered));
        if let Some(before) = before {
            // Who held the key before has given it back, and not said so yet.
            before.notify_waiters();
        }
        Self {
            tiers,
            holder,
            now,
            answered,
            is_kept: false,
        }
    }

    fn keep(&mut self) {
        self.is_kept = true;
    }

    async fn give_back(&mut self) {
        self.tiers.near.let_go(&self.holder, self.now).await;
        self.is_kept = true;
    }
}

impl<Near: Store, Far> Drop for Holding<'_, Near, Far> {
    fn drop(&mut self) {
        let (asking, answered) = (Arc::clone(&self.tiers.asking), Arc::clone(&self.answered));
        let key = self.holder.key;
        match runtime::current() {
            Ok(runtime) if !self.is_kept => {
                let (near, holder, now) = (self.tiers.near.clone(), self.holder, self.now);
                runtime.spawn(async move {
                    near.let_go(&holder, now).await;
                    // Not before: who waits would find the key held by nobody who asks.
                    end_asking(&asking, &key, &answered);
                });
            }
            _ => end_asking(&asking, &key, &answered),
        }
    }
}

/// Lets those go on who wait for what the far tier answers.
fn end_asking(asking: &Asking, key: &RecordKey, answered: &Arc<Notify>) {
    let mut asking = locked(asking);
    // Another may be asking by now.
    if asking
        .get(key)
        .is_some_and(|now| Arc::ptr_eq(now, answered))
    {
        asking.remove(key);
    }
    drop(asking);
    answered.notify_waiters();
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of a future that does not have to be waited for.
pub(crate) fn at_once<F: Future>(future: F) -> Option<F::Output> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
