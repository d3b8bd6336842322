//! From a key to a lease, an answer, or a reason why there is neither.

use std::sync::Arc;
use std::time::Duration;

use tracing::{Level, enabled, trace, warn};

use super::detach::Stage;
use super::handle::{Entered, Permit};
use super::heart::{Alive, Heart, check_runtime, check_thread};
use super::orphan::Orphan;
use super::previous::Earlier;
use super::store_faults::log_fault;
use super::wait::SharedEnd;
use super::{Attempt, Conflict, Executor, after};
use crate::protocol::attempt::{
    Action, Event, Give, Granted, HeldUntil, Orphans, Refusal, State, Step, Terms,
};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::{IdempotencyKey, KeyParts, RecordKey};
use crate::protocol::record::{
    ClaimRequest, Completed, Decision, Identity, Lease, Liveness, Owner, Record, Seen, decide,
};
use crate::runtime::{self, random_u64, sleep};
use crate::store::{Claim, Store, Waiter, at_once};

/// The least pause between two waits for a run.
const BREATH: Duration = Duration::from_millis(1);

/// Who wants to run.
pub(crate) struct Claimant {
    pub(crate) key: IdempotencyKey,
    pub(super) identity: Identity,
    accepted: Vec<Identity>,
    pub(super) earlier: Option<Box<Earlier>>,
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
            owner: new_owner(now)?,
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

impl Begun {
    pub(super) const fn in_progress() -> Self {
        Self::Refused(Conflict::in_progress())
    }
}

/// The right to run, counted.
pub(crate) struct Held {
    /// By the clock of this process, as of when it was asked for.
    pub(super) lease: Lease,
    /// Counts the run until this is dropped.
    _permit: Permit,
    /// Until the lease was ended, nobody in this process takes it over.
    pub(super) alive: Alive,
    /// Whether the business system is asked before the work.
    asks_first: bool,
}

impl Held {
    pub(crate) const fn fingerprint(&self) -> Fingerprint {
        self.lease.identity.request
    }

    pub(crate) const fn owner(&self) -> Owner {
        self.lease.owner
    }

    /// Whether the business system is asked before work begins: an attempt before it left no
    /// outcome, and the policy is to ask.
    pub(crate) const fn asks_first(&self) -> bool {
        self.asks_first
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
        let owner = match new_owner(now) {
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
            Claimed::Begun(Begun::Held(mut held)) => {
                let event = Event::Granted(Granted {
                    number: held.lease.attempt,
                    held: HeldUntil {
                        deadline: held.lease.deadline,
                        now,
                        is_left: false,
                    },
                    has_earlier: false,
                });
                let step = self.step(&mut { State::CLAIMING }, event, key);
                held.asks_first = step.then == Action::Ask;
                Some(Begun::Held(held))
            }
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
        let mut state = State::CLAIMING;
        loop {
            stage.may_hold();
            let claimed = match self.enter() {
                Ok(entered) => {
                    self.claim(claimant, &mut state, entered, patience.is_some())
                        .await
                }
                Err(conflict) => self.look(claimant, conflict).await,
            };
            let in_flight = match claimed {
                Claimed::Begun(begun) => {
                    self.tell_others(lookout, claimant, &begun);
                    return self.begun(begun, claimant, state, stage).await;
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
            let patience = patience.filter(|patience| runtime::now() < *patience);
            let event = Event::InProgress {
                waits: patience.is_some(),
                is_left: stage.is_left(),
            };
            let step = self.step(&mut state, event, claimant.key.record_key());
            let Some(patience) = patience.filter(|_| step.then == Action::Wait) else {
                return Begun::Refused(match step.give {
                    Some(Give::Refusal(Refusal::Left)) => Conflict::Left,
                    _ => in_flight.conflict(self.now()),
                });
            };
            let waiting = self.wait_for(in_flight, claimant, &mut lookout, patience);
            let found = waiting.await;
            let event = match found {
                Some(_) => Event::Found,
                None => Event::WaitOver,
            };
            if let (Some(Give::Found), Some(begun)) = (
                self.step(&mut state, event, claimant.key.record_key()).give,
                found,
            ) {
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

    /// Tells the machine of an attempt what happened, and returns what it says.
    #[inline(always)]
    pub(super) fn step(&self, state: &mut State, event: Event, record: &RecordKey) -> Step {
        let step = state.on(event, &self.terms());
        if enabled!(Level::TRACE) {
            traced(record, event, step);
        }
        step
    }

    /// What attempts are decided by.
    #[inline]
    pub(super) fn terms(&self) -> Terms {
        let settings = &self.shared.settings;
        Terms {
            orphans: match settings.orphan {
                Orphan::Retake => Orphans::Retake,
                Orphan::Hold => Orphans::Hold,
                Orphan::Reconcile(_) => Orphans::Reconcile,
            },
            answer_unrecorded: settings.answer_unrecorded,
            lease: settings.lease,
            clock_skew: settings.clock_skew,
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
        state: &mut State,
        entered: Entered<'_>,
        wants_waiter: bool,
    ) -> Claimed {
        let parts = claimant.key.parts();
        let store = &self.shared.store;
        let mut request = ClaimRequest {
            wants_waiter,
            ..self.request_of(claimant, &parts, self.now())
        };
        loop {
            let error = match self.bounded(store.claim(&request)).await {
                Err(error) => error,
                claim => return classify(claim, &request, entered, self.heart(), self.now()),
            };
            let maybe_applied = error.may_have_been_applied();
            let event = Event::ClaimFailed { maybe_applied };
            let step = self.step(state, event, request.key);
            match step.then {
                Action::Claim => request.now = self.now(),
                Action::Look { .. } => {
                    // It counts among the runs until it is known that nothing is left of it.
                    self.look_in_background(claimant, step, *state, entered.hold());
                    return Claimed::Begun(store_failed(request.key, error));
                }
                _ => return Claimed::Begun(store_failed(request.key, error)),
            }
        }
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
                asks_first: false,
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

/// Apart, and with copies, so that nothing is put together for it where nobody listens.
#[cold]
#[inline(never)]
fn traced(record: &RecordKey, event: Event, step: Step) {
    trace!(%record, ?event, ?step);
}

/// Returns a new owner id.
///
/// # Errors
///
/// When the operating system has no randomness to give.
pub(super) fn new_owner(now: Timestamp) -> Result<Owner, StoreError> {
    let random = random_u64().map_err(|error| {
        StoreError::new(
            StoreErrorKind::Unavailable,
            "the operating system gave no random bytes for an owner id",
        )
        .with_source(error)
    })?;
    Ok(Owner::new(random, now))
}

/// `pause`, half of it left to chance.
pub(super) fn jittered(pause: Duration) -> Duration {
    let chance = random_u64().unwrap_or(u64::MAX / 2) as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + chance)
}
