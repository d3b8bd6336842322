//! The store: one record, and writes that [`decide`] and [`is_owned_by`] let through.

use std::time::Duration;

use tower_idempotency::KeyParts;
use tower_idempotency::record::{
    ClaimRequest, Decision, Holder, Liveness, Owner, Renewal, decide, has_lapsed, is_owned_by,
};

use crate::bugs::Bug;
use crate::checked::Checked;
use crate::node::is_alive_on;
use crate::setting::{LEASE, Policy, SKEW};
use crate::state::{
    ATTEMPTS, Call, EPOCH, Holding, IDENTITY, Id, KEY, Message, Record, State, Tick, Write, at,
    owner, tick,
};
use crate::witness::Seen;

/// What a claim gave.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claimed {
    Acquired(Holding),
    Completed(Id),
    InProgress,
    Orphaned,
}

/// What became of a fenced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fenced {
    Applied,
    LeaseLost(Option<Id>),
}

impl Checked {
    /// A claim, in one atomic step. Of a late one nobody can say any more which attempts are
    /// alive on the node that sent it.
    pub(crate) fn claim(
        &self,
        state: &mut State,
        claimer: Id,
        now: Tick,
        is_late: bool,
    ) -> Claimed {
        let knows = !is_late && self.setting.bug != Bug::ForgetsTheLiving;
        let before = state.record;
        let (claimed, writes) = self.look(state, claimer, now, knows);
        if let Claimed::Acquired(holding) = claimed
            && writes
        {
            if let Record::InProgress(before) = before {
                state.broken.taken_from_the_living |=
                    !is_late && lives_with(state, before.owner, claimer);
            }
            self.insert(state, holding, now);
        }
        claimed
    }

    /// What a claim would give, and whether it would write.
    pub(crate) fn look(
        &self,
        state: &State,
        claimer: Id,
        now: Tick,
        knows_the_living: bool,
    ) -> (Claimed, bool) {
        let lives = |holder: Owner| {
            let lives = lives_with(state, holder.as_bytes()[0], claimer);
            if lives {
                self.seen(Seen::LivingHolderKeptItsLease);
            }
            lives
        };
        let mut request = self.request(claimer, now);
        if knows_the_living {
            request.liveness = Liveness::new(&lives);
        }
        let lease = state.record.lease();
        let decision = decide(state.record.held(lease.as_ref()), &request);
        let claimed = match (decision, state.record) {
            (
                Decision::Acquire {
                    token,
                    attempt,
                    created_at,
                },
                _,
            ) => {
                let lease = request.lease(token, attempt, created_at);
                let holding = Holding {
                    owner: claimer,
                    token: Tick::try_from(token.as_u64()).expect("tokens are bounded"),
                    number: u8::try_from(attempt).expect("attempts are bounded"),
                    deadline: tick(lease.deadline),
                    expires: tick(lease.expires_at),
                };
                return (Claimed::Acquired(holding), true);
            }
            (Decision::Own, Record::InProgress(holding)) => {
                self.seen(Seen::ClaimCameBack);
                Claimed::Acquired(holding)
            }
            (Decision::Replay, Record::Completed { answer, .. }) => Claimed::Completed(answer),
            (Decision::InProgress, _) => Claimed::InProgress,
            (Decision::Orphaned, _) => Claimed::Orphaned,
            (decision, record) => unreachable!("{decision:?} of {record:?}"),
        };
        (claimed, false)
    }

    pub(crate) fn insert(&self, state: &mut State, holding: Holding, now: Tick) {
        match state.record {
            Record::Absent => {}
            Record::Completed { promised, .. } => {
                self.forgets_completed(state, promised);
                state.uses += 1;
                self.seen(Seen::ExpiredKeyWasUsedAgain);
            }
            Record::InProgress(before) if before.expires <= now && holding.number == 1 => {
                state.uses += 1;
                self.seen(Seen::ExpiredOrphanWasUsedAgain);
            }
            Record::InProgress(_) => {
                self.seen(Seen::TakenOver);
                if holding.number > 2 {
                    self.seen(Seen::TakenOverTwice);
                }
            }
        }
        state.record = Record::InProgress(holding);
    }

    pub(crate) fn renew(&self, state: &mut State, owner: Id, deadline: Tick) -> Fenced {
        let fenced = self.fence(state, owner, false);
        if let (Fenced::Applied, Record::InProgress(holding)) = (fenced, &mut state.record) {
            holding.deadline = match self.setting.bug {
                Bug::RenewalGoesBack => deadline,
                _ => {
                    let mut lease = holding.lease();
                    lease.renew(Renewal::new(ticks(deadline), Duration::ZERO), at(EPOCH));
                    tick(lease.deadline)
                }
            };
        }
        fenced
    }

    pub(crate) fn end(&self, state: &mut State, owner: Id, write: Write) -> Fenced {
        let fenced = self.fence(state, owner, matches!(write, Write::Free | Write::Orphan));
        match (write, fenced, state.record) {
            (Write::Complete { answer, now }, _, record)
                if fenced == Fenced::Applied || self.setting.bug == Bug::LateFinisherOverwrites =>
            {
                if let Record::Completed {
                    answer: before,
                    promised,
                    ..
                } = record
                    && before != answer
                {
                    self.forgets_completed(state, promised);
                }
                state.record = Record::Completed {
                    answer,
                    expires: now + self.record_lasts(),
                    promised: now + self.setting.retention,
                };
                Fenced::Applied
            }
            // The very answer is there: this call repeats one that was applied.
            (Write::Complete { answer, .. }, Fenced::LeaseLost(Some(recorded)), _)
                if recorded == answer =>
            {
                Fenced::Applied
            }
            (Write::Free, Fenced::Applied, _) => {
                state.record = Record::Absent;
                fenced
            }
            (Write::Orphan, Fenced::Applied, Record::InProgress(holding)) => {
                state.record = Record::InProgress(Holding {
                    deadline: EPOCH,
                    ..holding
                });
                fenced
            }
            _ => fenced,
        }
    }

    /// Whether a write of `owner` may be applied, and what is there if not.
    fn fence(&self, state: &mut State, id: Id, is_release: bool) -> Fenced {
        let held = state.record.lease();
        let is_owned = is_owned_by(state.record.held(held.as_ref()), &holder_of(id));
        let is_in_progress = held.is_some();
        let is_let_through = match self.setting.bug {
            Bug::NoFence => is_in_progress,
            Bug::ReleaseWithoutOwnership => is_owned || is_release && is_in_progress,
            _ => is_owned,
        };
        if is_let_through {
            state.broken.written_by_stranger |=
                !matches!(state.record, Record::InProgress(holding) if holding.owner == id);
            return Fenced::Applied;
        }
        Fenced::LeaseLost(match state.record {
            Record::Completed { answer, .. } => Some(answer),
            _ => None,
        })
    }

    /// Applies a message whose sender does not wait for it any more.
    pub(crate) fn apply_late(&self, state: &mut State, message: Message) {
        let before = state.record;
        let Message { owner, call } = message;
        match call {
            Call::Claim { now } => {
                self.claim(state, owner, now, true);
            }
            Call::Renew { deadline } => drop(self.renew(state, owner, deadline)),
            Call::End(write) => drop(self.end(state, owner, write)),
        }
        if state.record != before {
            self.seen(match call {
                Call::Claim { .. } => Seen::LateClaimApplied,
                Call::Renew { .. } => Seen::LateRenewalApplied,
                Call::End(Write::Complete { .. }) => Seen::LateCompletionApplied,
                Call::End(_) => Seen::LateReleaseApplied,
            });
        } else if matches!(call, Call::End(_)) {
            self.seen(Seen::LateEndRefused);
        }
    }

    /// Clears the record away if it has expired, as a table's expiry or a sweep does it at any
    /// time.
    pub(crate) fn sweep(&self, state: &mut State) -> bool {
        // By the fastest of the clocks.
        let now = state.time + self.setting.offset;
        let is_over = match (state.record, state.record.lease()) {
            (
                Record::Completed {
                    expires, promised, ..
                },
                _,
            ) if expires <= now => {
                self.forgets_completed(state, promised);
                true
            }
            (Record::InProgress(holding), Some(lease)) => {
                holding.expires <= now && has_lapsed(&lease, at(now), skew(self.setting.bug))
            }
            _ => false,
        };
        if is_over {
            state.record = Record::Absent;
            state.uses += 1;
            self.seen(Seen::Swept);
        }
        is_over
    }

    /// Whether a claim by somebody new would be let through at `now`, or be answered.
    pub(crate) fn would_serve(&self, state: &State, now: Tick) -> Decision {
        let lease = state.record.lease();
        decide(
            state.record.held(lease.as_ref()),
            &self.request(Holding::NONE.owner, now),
        )
    }

    fn forgets_completed(&self, state: &mut State, promised: Tick) {
        // Whoever says that it has expired may have the fastest clock.
        state.broken.completed_changed |= promised > state.time + self.setting.offset.min(SKEW);
    }

    fn request(&self, claimer: Id, now: Tick) -> ClaimRequest<'static> {
        const PARTS: &KeyParts<'_> = &KeyParts {
            namespace: "",
            scope: None,
            method: "POST",
            target: "/",
            key: "k",
        };
        let mut request = ClaimRequest::new(&KEY, PARTS, IDENTITY, owner(claimer), at(now));
        request.lease = ticks(self.lease_lasts());
        request.retention = ticks(self.record_lasts());
        request.clock_skew = skew(self.setting.bug);
        request.take_over = self.setting.policy != Policy::Hold;
        request
    }

    pub(crate) fn lease_lasts(&self) -> Tick {
        match self.setting.bug {
            Bug::LeaseAsLongAsRecord => self.setting.retention,
            _ => LEASE,
        }
    }

    fn record_lasts(&self) -> Tick {
        match self.setting.bug {
            Bug::RecordAsShortAsLease => LEASE,
            _ => self.setting.retention,
        }
    }
}

/// Whether the attempt that claimed as `holder` is alive on the node of the one that claims as
/// `claimer`.
fn lives_with(state: &State, holder: Id, claimer: Id) -> bool {
    let attempt = |owner: Id| state.attempt(owner % ATTEMPTS as Id);
    is_alive_on(attempt(holder), attempt(claimer).node)
}

/// Who writes: the fence knows it by its owner.
fn holder_of(id: Id) -> Holder {
    Holder::new(KEY, owner(id), IDENTITY)
}

fn skew(bug: Bug) -> Duration {
    match bug {
        Bug::IgnoreSkew => Duration::ZERO,
        _ => ticks(SKEW),
    }
}

pub(crate) fn ticks(count: Tick) -> Duration {
    Duration::from_micros(count.into())
}
