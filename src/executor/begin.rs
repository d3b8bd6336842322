//! From a key to a lease, an answer, or a reason why there is neither.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{Instrument, Span, warn};

use super::detach::Stage;
use super::living::{Alive, Living};
use super::runs::{Entered, Permit};
use super::{Attempt, Conflict, Executor, after};
use crate::clock::Timestamp;
use crate::error::{StoreError, StoreErrorKind};
use crate::key::{IdempotencyKey, KeyParts, RecordKey};
use crate::policy::{Orphan, Orphaned, Reconcile, Reconciled};
use crate::record::{
    ClaimRequest, Completed, Decision, Identity, Lease, Liveness, Owner, Record, decide,
    has_lapsed, random_u64,
};
use crate::response::Answer;
use crate::store::{Claim, Completion, Fenced, Store, Waiter};

/// The first pause between two looks at a run on another node.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The least pause between two waits for a run.
const BREATH: Duration = Duration::from_millis(1);

/// Who wants to run.
pub(crate) struct Claimant {
    pub(crate) key: IdempotencyKey,
    identity: Identity,
    accepted: Vec<Identity>,
    pub(super) owner: Owner,
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
            owner: Owner::new(now)?,
        })
    }
}

/// What a claimer got.
pub(crate) enum Begun {
    Held(Held),
    Completed(Completed),
    Refused(Conflict),
}

/// The right to run, counted.
pub(crate) struct Held {
    pub(super) lease: Lease,
    pub(super) permit: Permit,
    /// Until the lease was ended, nobody in this process takes it over.
    pub(super) alive: Alive,
}

impl Held {
    pub(crate) fn attempt(&self, key: IdempotencyKey) -> Attempt {
        Attempt::new(key, &self.lease, self.alive.living())
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
struct InFlight {
    lease: Lease,
    waiter: Option<Waiter>,
}

impl InFlight {
    /// As long again as the run has taken so far, at least 1 s, at most what is left of the
    /// lease.
    fn conflict(&self, now: Timestamp) -> Conflict {
        let so_far = now.since(self.lease.started_at);
        let left = self.lease.deadline.since(now);
        Conflict::InProgress {
            retry_after: so_far.min(left).max(Duration::from_secs(1)),
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
        match classify(claim, &request, entered, self.living_here()) {
            Claimed::Begun(begun) => Some(begun),
            Claimed::InProgress(_) if !self.shared.settings.wait.is_zero() => None,
            Claimed::InProgress(in_flight) => Some(Begun::Refused(in_flight.conflict(now))),
        }
    }

    /// Begins, waiting for the store and, if so set, for a run in flight. Tells `stage` when the
    /// key may be held.
    ///
    /// What rarely happens is boxed, so that the rest is small.
    pub(crate) async fn begin(&self, claimant: &Claimant, stage: &Stage) -> Begun {
        let wait = self.shared.settings.wait;
        let patience = (!wait.is_zero()).then(|| after(wait));
        let mut has_waited = false;
        loop {
            stage.may_hold();
            let claimed = match self.enter() {
                Ok(entered) => self.claim(claimant, entered, patience.is_some()).await,
                Err(conflict) => self.look(claimant, conflict).await,
            };
            let in_flight = match claimed {
                Claimed::Begun(Begun::Held(held)) if stage.is_left() => {
                    Box::pin(self.undo(held)).await;
                    return Begun::Refused(Conflict::Left);
                }
                // Stopped for longer than its lease, before its work began: another may have begun.
                Claimed::Begun(Begun::Held(held)) if held.lease.deadline <= self.now() => {
                    Box::pin(self.undo(held)).await;
                    return Begun::Refused(Conflict::InProgress {
                        retry_after: Duration::from_secs(1),
                    });
                }
                Claimed::Begun(Begun::Held(held)) if self.reconciles(&held) => {
                    return Box::pin(self.reconcile(held, &claimant.key)).await;
                }
                Claimed::Begun(begun) => return begun,
                Claimed::InProgress(in_flight) => in_flight,
            };
            stage.holds_nothing();
            if stage.is_left() {
                // Nobody waits for the run in flight any more.
                return Begun::Refused(Conflict::Left);
            }
            match patience {
                Some(patience) if Instant::now() < patience => {
                    // A store that says by turns that a run has ended and goes on would keep
                    // this thread busy.
                    if std::mem::replace(&mut has_waited, true) {
                        sleep(BREATH).await;
                    }
                    self.wait_for(in_flight, claimant, patience).await;
                }
                _ => return Begun::Refused(in_flight.conflict(self.now())),
            }
        }
    }

    /// Whether the business system is asked before work begins under this lease: an attempt before
    /// it left no outcome, and the policy is to ask.
    pub(crate) fn reconciles(&self, held: &Held) -> bool {
        held.lease.attempt > 1 && matches!(self.shared.settings.orphan, Orphan::Reconcile(_))
    }

    /// Asks the business system what the attempts before `held` have done.
    pub(crate) async fn reconcile(&self, held: Held, key: &IdempotencyKey) -> Begun {
        let settings = &self.shared.settings;
        let Orphan::Reconcile(reconcile) = &settings.orphan else {
            return Begun::Held(held);
        };
        match self.ask(reconcile, key, &held.lease).await {
            Reconciled::NotExecuted => Begun::Held(held),
            Reconciled::Unknown => {
                let first_seen = held.lease.created_at;
                self.undo(held).await;
                Begun::Refused(Conflict::OutcomeUnknownYet { first_seen })
            }
            Reconciled::Completed(answer) => {
                let completion = self.completion(answer.encode(), None);
                let completed = Completed {
                    identity: held.lease.identity,
                    payload: completion.payload.clone(),
                    created_at: held.lease.created_at,
                    expires_at: completion.expires_at,
                };
                match self
                    .bounded(self.shared.store.complete(&held.lease, &completion))
                    .await
                {
                    Ok(Fenced::Applied) => Begun::Completed(completed),
                    Ok(Fenced::LeaseLost(Some(recorded)))
                        if recorded.identity == held.lease.identity =>
                    {
                        Begun::Completed(recorded)
                    }
                    Ok(Fenced::LeaseLost(_)) => Begun::Refused(Conflict::LeaseLost),
                    Err(error) => {
                        // The next request asks again.
                        warn!(record = %held.lease.key, %error, "a reconciled answer was not recorded");
                        match settings.answer_unrecorded {
                            true => Begun::Completed(completed),
                            false => Begun::Refused(Conflict::NotRecorded),
                        }
                    }
                }
            }
        }
    }

    /// Asks what became of a lost attempt, under the lease. No answer in time, and a panic, count
    /// as not knowing.
    pub(super) async fn ask(
        &self,
        reconcile: &Reconcile<Answer>,
        key: &IdempotencyKey,
        lease: &Lease,
    ) -> Reconciled<Answer> {
        let settings = &self.shared.settings;
        let _beating = self.shared.heart.keep(lease, settings.lease, None);
        let orphaned = Orphaned {
            key: key.clone(),
            fingerprint: lease.identity.request,
            token: lease.token,
            created_at: lease.created_at,
        };
        // In a task of its own, which keeps its panic to itself.
        let reconcile = reconcile.clone();
        let asking = async move { reconcile.ask(orphaned).await };
        let asked = tokio::spawn(asking.instrument(Span::current()));
        let abort = asked.abort_handle();
        match timeout(settings.reconcile_timeout, asked).await {
            Ok(Ok(Reconciled::Completed(answer))) => {
                Reconciled::Completed(settings.sieve.sift(answer))
            }
            Ok(Ok(reconciled)) => reconciled,
            Ok(Err(_)) => {
                warn!(record = %lease.key, "asking for the outcome of a run panicked");
                Reconciled::Unknown
            }
            Err(_) => {
                abort.abort();
                warn!(record = %lease.key, "nobody said in time what became of a run");
                Reconciled::Unknown
            }
        }
    }

    pub(super) fn completion(
        &self,
        payload: bytes::Bytes,
        retention: Option<Duration>,
    ) -> Completion {
        let now = self.now();
        let retention = retention.unwrap_or(self.shared.settings.retention);
        Completion {
            payload,
            now,
            expires_at: now.plus(retention),
            is_given_unrecorded: self.shared.settings.answer_unrecorded,
        }
    }

    fn enter(&self) -> Result<Entered<'_>, Conflict> {
        self.shared.runs.enter(self.shared.settings.max_runs)
    }

    /// The claim of nobody in particular: whoever makes it puts its owner in.
    fn request<'a>(
        &self,
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
            take_over: !matches!(settings.orphan, Orphan::Hold),
            wants_waiter: false,
            liveness: Liveness::UNKNOWN,
        }
    }

    fn request_of<'a>(
        &self,
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
    fn has_lapsed(&self, lease: &Lease, now: Timestamp) -> bool {
        has_lapsed(lease, now, self.shared.settings.clock_skew)
            && !self.living_here().contains(lease.owner)
    }

    async fn claim(
        &self,
        claimant: &Claimant,
        entered: Entered<'_>,
        wants_waiter: bool,
    ) -> Claimed {
        let parts = claimant.key.parts();
        let request = || ClaimRequest {
            wants_waiter,
            ..self.request_of(claimant, &parts, self.now())
        };
        let store = &self.shared.store;
        let first = request();
        let mut claim = self.bounded(store.claim(&first)).await;
        let mut ambiguous = claim.as_ref().is_err_and(StoreError::may_have_been_applied);
        if ambiguous {
            // The owner tells: if the first try was applied, this one gets its lease.
            claim = self.bounded(store.claim(&request())).await;
            ambiguous = claim.is_err();
        }
        if ambiguous {
            self.give_back_in_background(claimant);
        }
        classify(claim, &first, entered, self.living_here())
    }

    /// What there is for someone who may not run: an answer, another's run, or `conflict`.
    async fn look(&self, claimant: &Claimant, conflict: Conflict) -> Claimed {
        let now = self.now();
        let key = claimant.key.record_key();
        let record = match self.bounded(self.shared.store.get(key, now)).await {
            Ok(Some(record)) => record,
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
            (Decision::CallerDiffers, _) => Begun::Refused(Conflict::CallerDiffers),
            (Decision::Reused, _) => Begun::Refused(Conflict::Reused),
            (Decision::SettingsChanged { .. }, _) => Begun::Refused(Conflict::SettingsChanged),
            _ => Begun::Refused(conflict),
        };
        Claimed::Begun(begun)
    }

    /// Waits until the run in flight has ended, its lease has lapsed, or `patience` is over.
    async fn wait_for(&self, in_flight: InFlight, claimant: &Claimant, patience: Instant) {
        let lapses_at = in_flight
            .lease
            .deadline
            .plus(self.shared.settings.clock_skew);
        let left_of_lease = lapses_at.since(self.now());
        let until = patience.min(after(left_of_lease + Duration::from_millis(1)));
        match in_flight.waiter {
            Some(waiter) => {
                // Whether it ended or the time is over: the next claim tells.
                let _ = timeout_at(until, waiter).await;
            }
            None => {
                let _ = timeout_at(until, self.poll_until_ended(claimant)).await;
            }
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
                Ok(Some(Record::InProgress(lease))) if !self.has_lapsed(&lease, now) => {}
                Ok(_) => return,
                Err(error) => {
                    warn!(%error, "the store did not say whether a run has ended; asking again");
                }
            }
        }
    }
}

/// What a claim gives. A store that answers it with what belongs to another is not believed.
fn classify(
    claim: Result<Claim, StoreError>,
    request: &ClaimRequest<'_>,
    entered: Entered<'_>,
    living: Living,
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
        Ok(Claim::Acquired(lease)) => Begun::Held(Held {
            alive: living.enter(lease.owner),
            lease,
            permit: entered.hold(),
        }),
        Ok(Claim::Completed(completed)) if !request.is_for(&completed.identity) => {
            Begun::Refused(Conflict::CallerDiffers)
        }
        Ok(Claim::Completed(completed)) => Begun::Completed(completed),
        Ok(Claim::InProgress { lease, waiter }) => {
            return Claimed::InProgress(InFlight { lease, waiter });
        }
        Ok(Claim::Orphaned {
            created_at,
            first_status,
        }) => Begun::Refused(Conflict::OutcomeUnknown {
            first_seen: created_at,
            first_status,
        }),
        Ok(Claim::CallerDiffers) => Begun::Refused(Conflict::CallerDiffers),
        Ok(Claim::Reused) => Begun::Refused(Conflict::Reused),
        Ok(Claim::SettingsChanged { recorded }) => {
            warn!(
                record = %request.key, %recorded, own = %request.identity.recipe,
                "a record was made by a recipe that is not known here"
            );
            Begun::Refused(Conflict::SettingsChanged)
        }
        Err(error) => {
            warn!(%error, kind = ?error.kind(), "the store did not take a claim");
            Begun::Refused(Conflict::Store(error))
        }
    };
    Claimed::Begun(begun)
}

fn is_for(lease: &Lease, request: &ClaimRequest<'_>) -> bool {
    lease.key == *request.key && lease.owner == request.owner && lease.identity == request.identity
}

/// `pause`, half of it left to chance.
pub(super) fn jittered(pause: Duration) -> Duration {
    let chance = random_u64().unwrap_or(u64::MAX / 2) as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + chance)
}
