//! From a key to a lease, an answer, or a reason why there is neither.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::detach::Stage;
use super::faults::log_fault;
use super::heart::{Alive, Heart, check_runtime, check_thread};
use super::previous::Earlier;
use super::runs::{Entered, Permit};
use super::wait::SharedEnd;
use super::{Attempt, Conflict, Executor, after};
use crate::clock::Timestamp;
use crate::error::{StoreError, StoreErrorKind};
use crate::fingerprint::Fingerprint;
use crate::key::{IdempotencyKey, KeyParts, RecordKey};
use crate::policy::Orphan;
use crate::record::{
    ClaimRequest, Completed, Decision, Identity, Lease, Liveness, Owner, Record, Renewal, Seen,
    decide, random_u64,
};
use crate::store::{Claim, Completion, Fenced, Store, Waiter, at_once};

/// The least pause between two waits for a run.
const BREATH: Duration = Duration::from_millis(1);

/// Who wants to run.
pub(crate) struct Claimant {
    pub(crate) key: IdempotencyKey,
    pub(super) identity: Identity,
    accepted: Vec<Identity>,
    earlier: Option<Box<Earlier>>,
    pub(super) owner: Owner,
    /// The attempt that its request runs under already.
    within: Option<Owner>,
}

impl Claimant {
    pub(crate) fn new(
        key: IdempotencyKey,
        identity: Identity,
        accepted: Vec<Identity>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            key,
            identity,
            accepted,
            earlier: None,
            owner: Owner::new(now)?,
            within: None,
        })
    }

    /// Looks for a record under the earlier name, too.
    pub(crate) fn known_earlier_as(mut self, earlier: Earlier) -> Self {
        self.earlier = Some(Box::new(earlier));
        self
    }

    /// The same, of a request that runs under an attempt already.
    pub(crate) fn within(mut self, attempt: Option<Owner>) -> Self {
        self.within = attempt;
        self
    }

    /// Whether it is for work that is not an HTTP request.
    fn is_work(&self) -> bool {
        self.identity.recipe == Identity::WORK
    }

    /// Whether a record, or a run, belongs to the same request.
    pub(super) fn is_for(&self, recorded: &Identity) -> bool {
        self.identity == *recorded || self.accepted.contains(recorded)
    }

    pub(crate) const fn fingerprint(&self) -> Fingerprint {
        self.identity.request
    }
}

/// What a claimer got.
pub(crate) enum Begun {
    Held(Held),
    Completed(Completed),
    /// The end of the run that it waited for, which is not recorded.
    Shared(SharedEnd),
    Refused(Conflict),
    /// The key is held by the attempt that the request runs under already.
    Within,
}

/// The right to run, counted.
pub(crate) struct Held {
    /// By the clock of this process, as of when it was asked for.
    pub(super) lease: Lease,
    /// Counts the run until this is dropped.
    _permit: Permit,
    /// Until the lease was ended, nobody in this process takes it over.
    pub(super) alive: Alive,
}

impl Held {
    pub(crate) const fn fingerprint(&self) -> Fingerprint {
        self.lease.identity.request
    }

    pub(crate) const fn owner(&self) -> Owner {
        self.lease.owner
    }
}

/// What one claim gave.
enum Claimed {
    Begun(Begun),
    InProgress(InFlight),
}

/// Another attempt at the key.
pub(super) struct InFlight {
    /// By the clock of this process.
    pub(super) lease: Lease,
    pub(super) waiter: Option<Waiter>,
}

impl InFlight {
    /// As long again as the run has taken so far, at least 1 s, at most what is left of the
    /// lease.
    pub(super) fn conflict(&self, now: Timestamp) -> Conflict {
        let so_far = now.since(self.lease.started_at);
        let left = self.lease.deadline.since(now);
        Conflict::InProgress {
            retry_after: so_far.min(left).max(Duration::from_secs(1)),
            owner: Some(self.lease.owner),
        }
    }
}

impl<St: Store> Executor<St> {
    /// Begins at once if the store can say at once what the claim gives, and if there is nothing
    /// to wait for.
    pub(crate) fn begin_now(
        &self,
        parts: &KeyParts<'_>,
        key: &RecordKey,
        identity: Identity,
        accepted: &[Identity],
        within: Option<Owner>,
    ) -> Option<Begun> {
        let now = self.now();
        let entered = self.enter().ok()?;
        let owner = match Owner::new(now) {
            Ok(owner) => owner,
            Err(error) => return Some(Begun::Refused(Conflict::Store(error))),
        };
        let request = ClaimRequest {
            owner,
            ..self.request(parts, key, identity, accepted, now)
        };
        let claim = self.shared.store.try_claim(&request)?;
        if let Ok(Claim::Acquired(lease)) = &claim
            && let Err(error) = check_thread()
            && is_for(lease, &request)
        {
            // A store that granted the lease at once takes it back at once, or lets it lapse.
            let lease = lease.clone().by_clock(now);
            let release = self.undoing(&lease);
            at_once(self.shared.store.release(&lease.holder(), release, now));
            return Some(Begun::Refused(Conflict::Store(error)));
        }
        match classify(claim, &request, entered, self.heart(), now) {
            Claimed::Begun(begun) => Some(begun),
            Claimed::InProgress(in_flight) if self.is_within(&in_flight, within) => {
                Some(Begun::Within)
            }
            Claimed::InProgress(_) if !self.shared.settings.wait.is_zero() => None,
            Claimed::InProgress(in_flight) => Some(Begun::Refused(in_flight.conflict(now))),
        }
    }

    /// Begins, waiting for the store and, if so set, for a run in flight. Tells `stage` when the
    /// key may be held.
    pub(crate) async fn begin(&self, claimant: &Claimant, stage: &Stage) -> Begun {
        if let Err(error) = check_runtime() {
            return Begun::Refused(Conflict::Store(error));
        }
        let wait = self.shared.settings.wait;
        let patience = (!wait.is_zero()).then(|| after(wait));
        let mut lookout = None;
        loop {
            stage.may_hold();
            let claimed = match self.enter() {
                Ok(entered) => self.claim(claimant, entered, patience.is_some()).await,
                Err(conflict) => self.look(claimant, conflict).await,
            };
            let in_flight = match claimed {
                Claimed::Begun(begun) => {
                    self.tell_others(lookout, claimant, &begun);
                    return self.checked(begun, claimant, stage).await;
                }
                Claimed::InProgress(in_flight) => in_flight,
            };
            stage.holds_nothing();
            if claimant.is_work() && in_flight.lease.identity.recipe != Identity::WORK {
                return Begun::Refused(Conflict::KeyOfRequest);
            }
            if self.is_within(&in_flight, claimant.within) {
                return Begun::Within;
            }
            if stage.is_left() {
                // Nobody waits for the run in flight any more.
                return Begun::Refused(Conflict::Left);
            }
            let Some(patience) = patience.filter(|patience| Instant::now() < *patience) else {
                return Begun::Refused(in_flight.conflict(self.now()));
            };
            let waiting = self.wait_for(in_flight, claimant, &mut lookout, patience);
            if let Some(begun) = waiting.await {
                return begun;
            }
            // A store that says by turns that a run has ended and goes on would keep this thread
            // busy.
            sleep(BREATH).await;
        }
    }

    /// Whether the attempt in flight is the one that the request runs under already.
    fn is_within(&self, in_flight: &InFlight, within: Option<Owner>) -> bool {
        within.is_some_and(|owner| {
            owner == in_flight.lease.owner && self.living_here().contains(owner)
        })
    }

    /// What the handler of an attempt sees of it.
    pub(crate) fn attempt(&self, held: &Held, key: IdempotencyKey) -> Attempt {
        Attempt::new(key, &held.lease, held.alive.living(), self.store_address())
    }

    /// The owner of the attempt at `key` that a request runs under, if there is one, and whether
    /// it holds it here.
    pub(crate) fn held_by(&self, attempt: &Attempt, key: &RecordKey) -> Option<(Owner, bool)> {
        let attempt = attempt.at(key)?;
        let is_here = attempt.store() == Some(self.store_address())
            && self.living_here().contains(attempt.owner());
        Some((attempt.owner(), is_here))
    }

    /// Tells the store from every other that is there.
    fn store_address(&self) -> usize {
        Arc::as_ptr(&self.shared.store).cast::<()>().addr()
    }

    /// Looks whether work may begin under a lease that was granted.
    ///
    /// What rarely happens is boxed, so that the rest is small.
    async fn checked(&self, begun: Begun, claimant: &Claimant, stage: &Stage) -> Begun {
        let earlier = claimant.earlier.as_deref();
        let held = match (begun, earlier) {
            (Begun::Held(held), _) => held,
            (refused @ Begun::Refused(Conflict::OutcomeUnknown { .. }), Some(earlier)) => {
                let recorded = Box::pin(self.recorded_earlier(claimant, earlier)).await;
                return recorded.map_or(refused, Begun::Completed);
            }
            (begun, _) => return begun,
        };
        if stage.is_left() {
            Box::pin(self.undo(held)).await;
            return Begun::Refused(Conflict::Left);
        }
        // Stopped for longer than its lease, before its work began: another may have begun.
        if held.lease.deadline <= self.now() {
            Box::pin(self.undo(held)).await;
            return Begun::Refused(Conflict::InProgress {
                retry_after: Duration::from_secs(1),
                owner: None,
            });
        }
        if self.reconciles(&held) {
            return Box::pin(self.reconcile(held, &claimant.key, stage)).await;
        }
        // Also where an attempt was lost before: it may have died before it looked.
        let Some(earlier) = earlier else {
            return Begun::Held(held);
        };
        match Box::pin(self.look_at_earlier(held, claimant, earlier)).await {
            Begun::Held(held) if stage.is_left() => {
                Box::pin(self.undo(held)).await;
                Begun::Refused(Conflict::Left)
            }
            begun => begun,
        }
    }

    /// Returns why work must not begin under `lease`, if that was granted so long ago that only the
    /// store can tell whether the heartbeat has kept it.
    pub(crate) async fn still_holds(&self, lease: Option<&Lease>) -> Result<(), Conflict> {
        let Some(lease) = lease else {
            return Err(Conflict::LeaseLost);
        };
        let settings = &self.shared.settings;
        let renewal = Renewal::new(settings.lease, settings.retention);
        let holder = lease.holder();
        let mut deadline = lease.deadline;
        while deadline <= self.now() {
            let now = self.now();
            deadline = renewal.deadline(now);
            let renewing = self.shared.store.renew(&holder, renewal, now);
            let renewed = self.bounded(renewing).await;
            match renewed.map_err(Conflict::Store)? {
                Fenced::Applied => {}
                Fenced::LeaseLost(_) => {
                    return Err(Conflict::InProgress {
                        retry_after: Duration::from_secs(1),
                        owner: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// The completion of `lease` at `now`.
    pub(super) fn completion(
        &self,
        lease: &Lease,
        payload: bytes::Bytes,
        retention: Option<Duration>,
        now: Timestamp,
    ) -> Completion {
        Completion {
            payload,
            retention: retention.unwrap_or(self.shared.settings.retention),
            age: now.since(lease.created_at),
            is_given_unrecorded: self.shared.settings.answer_unrecorded,
        }
    }

    fn enter(&self) -> Result<Entered<'_>, Conflict> {
        self.shared.runs.enter(self.shared.settings.max_runs)
    }

    /// The claim of nobody in particular: whoever makes it puts its owner in.
    pub(super) fn request<'a>(
        &'a self,
        parts: &'a KeyParts<'a>,
        key: &'a RecordKey,
        identity: Identity,
        accepted: &'a [Identity],
        now: Timestamp,
    ) -> ClaimRequest<'a> {
        let settings = &self.shared.settings;
        ClaimRequest {
            key,
            parts,
            identity,
            accepted,
            owner: Owner::from_bytes([0; 16]),
            now,
            lease: settings.lease,
            retention: settings.retention,
            clock_skew: settings.clock_skew,
            take_over: !self.holds_orphans(),
            wants_waiter: false,
            liveness: Liveness::new(&self.shared.living),
        }
    }

    fn holds_orphans(&self) -> bool {
        matches!(self.shared.settings.orphan, Orphan::Hold)
    }

    fn request_of<'a>(
        &'a self,
        claimant: &'a Claimant,
        parts: &'a KeyParts<'a>,
        now: Timestamp,
    ) -> ClaimRequest<'a> {
        let key = claimant.key.record_key();
        ClaimRequest {
            owner: claimant.owner,
            ..self.request(parts, key, claimant.identity, &claimant.accepted, now)
        }
    }

    /// Whether a lease has lapsed. That of an attempt which is alive in this process has not,
    /// whatever the clock says.
    pub(super) fn has_lapsed(&self, lease: &Lease, now: Timestamp) -> bool {
        let liveness = Liveness::new(&self.shared.living);
        liveness.has_lapsed(lease, now, self.shared.settings.clock_skew)
    }

    async fn claim(
        &self,
        claimant: &Claimant,
        entered: Entered<'_>,
        wants_waiter: bool,
    ) -> Claimed {
        let parts = claimant.key.parts();
        let store = &self.shared.store;
        let mut request = ClaimRequest {
            wants_waiter,
            ..self.request_of(claimant, &parts, self.now())
        };
        let mut claim = self.bounded(store.claim(&request)).await;
        if claim.as_ref().is_err_and(StoreError::may_have_been_applied) {
            // The owner tells: if the first try was applied, this one gets its lease.
            request.now = self.now();
            claim = self.bounded(store.claim(&request)).await;
            if let Err(error) = claim {
                // It counts among the runs until it is known that nothing is left of it.
                self.give_back_in_background(claimant, entered.hold());
                return Claimed::Begun(store_failed(request.key, error));
            }
        }
        classify(claim, &request, entered, self.heart(), self.now())
    }

    /// What there is for someone who may not run: an answer, another's run, or `conflict`.
    async fn look(&self, claimant: &Claimant, conflict: Conflict) -> Claimed {
        let now = self.now();
        let key = claimant.key.record_key();
        let record = match self.bounded(self.shared.store.get(key, now)).await {
            Ok(Some(record)) => record.by_clock(now),
            Ok(None) => return Claimed::Begun(Begun::Refused(conflict)),
            Err(error) => return Claimed::Begun(Begun::Refused(Conflict::Store(error))),
        };
        let parts = claimant.key.parts();
        let request = ClaimRequest {
            take_over: false,
            ..self.request_of(claimant, &parts, now)
        };
        let begun = match (decide(Some((&record).into()), &request), record) {
            (Decision::Replay, Record::Completed(completed)) => Begun::Completed(completed),
            (Decision::InProgress | Decision::Own, Record::InProgress(lease)) => {
                return Claimed::InProgress(InFlight {
                    lease,
                    waiter: None,
                });
            }
            // That there is no room, or no time, for a run makes no difference to it.
            (Decision::Orphaned, Record::InProgress(lease)) if self.holds_orphans() => {
                Begun::Refused(Conflict::OutcomeUnknown {
                    first_seen: lease.created_at,
                    first_status: lease.first_status,
                })
            }
            (Decision::CallerDiffers, _) => Begun::Refused(Conflict::CallerDiffers),
            (Decision::Reused, _) => Begun::Refused(Conflict::Reused),
            (Decision::SettingsChanged { .. }, _) => Begun::Refused(Conflict::SettingsChanged),
            _ => Begun::Refused(conflict),
        };
        Claimed::Begun(begun)
    }
}

/// What a claim gives, by the clock of this process: times count from when `request` was sent, so
/// that nobody believes in a lease for longer than the store does. A store that answers a claim with
/// what belongs to another is not believed.
#[inline]
fn classify<St: Store>(
    claim: Result<Claim, StoreError>,
    request: &ClaimRequest<'_>,
    entered: Entered<'_>,
    heart: &Arc<Heart<St>>,
    now: Timestamp,
) -> Claimed {
    let begun = match claim {
        Ok(Claim::Acquired(lease)) if !is_for(&lease, request) => {
            let message = "the store gave a lease to one who had not claimed it";
            warn!(record = %request.key, message);
            Begun::Refused(Conflict::Store(StoreError::new(
                StoreErrorKind::Damaged,
                message,
            )))
        }
        Ok(Claim::Acquired(lease)) => {
            let lease = lease.by_clock(request.now);
            Begun::Held(Held {
                alive: heart.keep(&lease, now),
                lease,
                _permit: entered.hold(),
            })
        }
        Ok(Claim::Completed(completed)) if !request.is_for(completed.identity()) => {
            Begun::Refused(Conflict::CallerDiffers)
        }
        Ok(Claim::Completed(completed)) => Begun::Completed(completed.by_clock(request.now)),
        Ok(Claim::InProgress { lease, waiter }) => {
            let lease = lease.by_clock(request.now);
            return Claimed::InProgress(InFlight { lease, waiter });
        }
        Ok(Claim::Orphaned(lease)) => {
            let lease = lease.by_clock(request.now);
            Begun::Refused(Conflict::OutcomeUnknown {
                first_seen: lease.created_at,
                first_status: lease.first_status,
            })
        }
        Ok(Claim::CallerDiffers) => Begun::Refused(Conflict::CallerDiffers),
        Ok(Claim::Reused) => Begun::Refused(Conflict::Reused),
        Ok(Claim::SettingsChanged { recorded }) => {
            warn!(
                record = %request.key, %recorded, own = %request.identity.recipe,
                "a record was made by a recipe that is not known here"
            );
            Begun::Refused(Conflict::SettingsChanged)
        }
        Err(error) => store_failed(request.key, error),
    };
    Claimed::Begun(begun)
}

fn store_failed(record: &RecordKey, error: StoreError) -> Begun {
    log_fault(record, &error, "the store did not take a claim");
    Begun::Refused(Conflict::Store(error))
}

fn is_for(lease: &Seen<Lease>, request: &ClaimRequest<'_>) -> bool {
    lease.is_held_by(request.key, request.owner, &request.identity)
}

/// `pause`, half of it left to chance.
pub(super) fn jittered(pause: Duration) -> Duration {
    let chance = random_u64().unwrap_or(u64::MAX / 2) as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + chance)
}
