//! A node: it does about a request what the crate's own machine says, step by step. Between any two
//! steps it may be paused for as long as the adversary likes.

use std::time::Duration;

use tower_idempotency::Recorded;
use tower_idempotency::testing::attempt::{
    Action, Event, Fault, Give, Granted, HeldUntil, Look, Orphans, State as At, Terms,
    Write as Writes, Written, is_shared,
};

use crate::bugs::Bug;
use crate::checked::Checked;
use crate::setting::{LEASE, Policy, SKEW};
use crate::state::{
    ATTEMPTS, Attempt, Call, Fate, Id, Message, Phase, Record, State, Tick, Write, at,
};
use crate::store::{Claimed, Fenced, ticks};
use crate::witness::Seen;

impl Checked {
    /// A node's own clock.
    pub(crate) fn now(&self, state: &State, node: u8) -> Tick {
        match node {
            1 if state.is_ahead => state.time + self.setting.offset,
            _ => state.time,
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            orphans: match self.setting.policy {
                Policy::Retake => Orphans::Retake,
                Policy::Hold => Orphans::Hold,
                Policy::Reconcile => Orphans::Reconcile,
            },
            answer_unrecorded: self.setting.answer_unrecorded,
            lease: ticks(LEASE),
            clock_skew: ticks(SKEW),
        }
    }

    pub(crate) fn send(&self, state: &mut State, id: Id, node: u8) {
        state.attempt_mut(id).node = node;
        self.claims(state, id, At::CLAIMING);
    }

    /// A claim goes out.
    fn claims(&self, state: &mut State, id: Id, claiming: At) {
        let now = self.now(state, state.attempt(id).node);
        let attempt = state.attempt_mut(id);
        if self.setting.bug == Bug::NewOwnerOnRetry {
            attempt.claims += 1;
        }
        attempt.called_at = now;
        attempt.phase = Phase::At(claiming);
    }

    /// Tells the machine of an attempt what happened, and does what it says. `recorded` is the answer
    /// that was found, if one was.
    pub(crate) fn tell(
        &self,
        state: &mut State,
        id: Id,
        event: Event,
        recorded: Option<Id>,
    ) -> Action {
        let now = self.now(state, state.attempt(id).node);
        let Phase::At(mut at) = state.attempt(id).phase else {
            unreachable!("{event:?} in {:?}", state.attempt(id).phase);
        };
        let step = at.on(event, &self.terms());
        let attempt = state.attempt_mut(id);
        attempt.phase = Phase::At(at);
        if let Some(give) = step.give {
            self.give(attempt, give, recorded);
        }
        match (step.then, at) {
            (Action::Claim, _) => self.claims(state, id, at),
            (Action::Write(_), At::Undoing { write, give }) => {
                self.seen(Seen::Undone);
                attempt.called_at = now;
                if write == Writes::Orphan && self.setting.bug == Bug::UndoForgetsTheLostRun {
                    let write = Writes::Free;
                    attempt.phase = Phase::At(At::Undoing { write, give });
                }
            }
            (Action::Write(_), _) => attempt.called_at = now,
            (Action::Retry { .. }, _) if self.setting.bug == Bug::FreeWhenNotRecorded => {
                attempt.phase = Phase::At(At::Retrying {
                    write: Writes::Free,
                    tries: 1,
                    passes: true,
                });
            }
            // How often it has looked makes no difference.
            (Action::Look { .. }, _) => attempt.phase = Phase::At(At::Looking { looks: 0 }),
            (Action::Nothing | Action::Abandon, _) => attempt.is_over(),
            _ => {}
        }
        step.then
    }

    /// The client gets what the machine says, if it is there still. Only answers to the key are
    /// noted.
    fn give(&self, attempt: &mut Attempt, give: Give, recorded: Option<Id>) {
        let own = attempt.answer;
        let is_answer = attempt.fate == Fate::Answered;
        let answer = match give {
            Give::Own(Recorded::Pending) if is_answer => {
                self.seen(Seen::AnsweredUnrecorded);
                Some(own)
            }
            Give::Own(_) if is_answer => Some(own),
            Give::Reconciled => Some(own),
            Give::Superseding | Give::Found => recorded,
            Give::Own(_) | Give::Refusal(_) => None,
            Give::Withheld(..) => {
                self.seen(Seen::Withheld);
                None
            }
        };
        if !attempt.is_left {
            attempt.got = answer;
        }
        // Nobody waits for more.
        attempt.is_left = false;
    }

    /// The store takes the call that the node waits for, and answers.
    pub(crate) fn apply(&self, state: &mut State, id: Id) {
        let owner = owner_id(state, id);
        let attempt = *state.attempt(id);
        match attempt.phase {
            Phase::At(At::Claiming { .. }) if self.setting.bug == Bug::CheckThenInsert => {
                match self.look(state, owner, attempt.called_at, true) {
                    (Claimed::Acquired(holding), true) => {
                        state.attempt_mut(id).phase = Phase::Inserting(holding);
                    }
                    (claimed, _) => self.claimed(state, id, claimed),
                }
            }
            Phase::At(At::Claiming { .. }) => {
                let claimed = self.claim(state, owner, attempt.called_at, false);
                self.claimed(state, id, claimed);
            }
            Phase::Inserting(holding) => {
                self.insert(state, holding, state.time);
                self.claimed(state, id, Claimed::Acquired(holding));
            }
            Phase::At(At::Renewing { .. }) => {
                let deadline = self.now(state, attempt.node) + self.lease_lasts();
                let is_renewed = self.renew(state, owner, deadline) == Fenced::Applied;
                if is_renewed {
                    state.attempt_mut(id).deadline = deadline;
                }
                let event = match is_renewed {
                    true => Event::Renewed(self.held_until(state, id)),
                    false => Event::NotRenewed,
                };
                self.tell(state, id, event, None);
            }
            Phase::Releasing => {
                let write = Write::of(Writes::undoing(attempt.number.into()), &attempt);
                self.end(state, owner, write);
                state.attempt_mut(id).is_over();
            }
            phase => {
                let write = write_of(&attempt).unwrap_or_else(|| {
                    unreachable!("no call is under way in {phase:?}");
                });
                let fenced = self.end(state, owner, write);
                self.ended(state, id, write, fenced);
            }
        }
    }

    fn claimed(&self, state: &mut State, id: Id, claimed: Claimed) {
        let uses = state.uses;
        if matches!(claimed, Claimed::InProgress | Claimed::Orphaned)
            && let Record::InProgress(holding) = state.record
        {
            // Its owner ids are those with its number as their rest.
            let holder = holding.owner % ATTEMPTS as Id;
            state.broken.kept_out_by_itself |= holder == id;
            if matches!(claimed, Claimed::Orphaned) {
                self.seen(Seen::OrphanHeld);
                let did_nothing =
                    |it: &Attempt| matches!(it.fate, Fate::NotStarted | Fate::Released);
                let will_do_nothing = state.attempt(holder).has_ended();
                if will_do_nothing && state.attempts.iter().all(did_nothing) {
                    self.seen(Seen::OrphanHeldThoughNothingWasDone);
                }
            }
        }
        let here = match state.record {
            Record::InProgress(holding) => {
                let holder = holding.owner % ATTEMPTS as Id;
                let node = state.attempt(id).node;
                is_alive_on(state.attempt(holder), node).then_some(holder)
            }
            _ => None,
        };
        match claimed {
            Claimed::Acquired(holding) => {
                let attempt = state.attempt_mut(id);
                if self.setting.waits && attempt.has_waited {
                    self.seen(Seen::WaitedAndGotIn);
                }
                attempt.phase = Phase::Granted;
                attempt.number = holding.number;
                attempt.token = holding.token;
                attempt.deadline = holding.deadline;
                attempt.uses = uses;
                attempt.has_waited = false;
            }
            Claimed::Completed(answer) => {
                self.seen(Seen::Replayed);
                self.finds(state, id, Some(answer));
            }
            Claimed::InProgress => {
                let event = Event::InProgress {
                    waits: self.setting.waits,
                    is_left: state.attempt(id).is_left,
                };
                if self.tell(state, id, event, None) == Action::Wait {
                    let attempt = state.attempt_mut(id);
                    attempt.has_waited = true;
                    attempt.waits_for = here;
                }
            }
            Claimed::Orphaned => self.finds(state, id, None),
        }
    }

    /// A claim or a wait has found an answer, or a reason to refuse.
    pub(crate) fn finds(&self, state: &mut State, id: Id, answer: Option<Id>) {
        self.tell(state, id, Event::Found, answer);
    }

    /// The node gives a call up: it may or may not have been applied.
    pub(crate) fn not_answered(&self, state: &mut State, id: Id) {
        let attempt = *state.attempt(id);
        let event = match attempt.phase {
            Phase::At(At::Claiming { .. }) => Event::ClaimFailed {
                maybe_applied: true,
            },
            Phase::At(At::Renewing { .. }) => Event::NotRenewed,
            // It looks again.
            Phase::Releasing => {
                state.attempt_mut(id).phase = Phase::At(At::Looking { looks: 0 });
                Event::Looked {
                    found: Look::NoAnswer,
                    looked_for: Duration::ZERO,
                }
            }
            _ => Event::Written(Written::Failed(Fault {
                is_too_large: false,
                passes: true,
                tried_for: Duration::ZERO,
                retention: Duration::MAX,
            })),
        };
        if let Phase::At(At::Ending { write, .. }) = attempt.phase
            && is_shared(write, Recorded::Pending, &self.terms())
        {
            let write = Write::of(write, &attempt);
            self.share(state, id, write, Fenced::Applied);
        }
        self.tell(state, id, event, None);
    }

    /// Whether one who waits has nobody on its node who would give it an end: the run is elsewhere,
    /// or was dropped, and nobody else looks out for it.
    pub(crate) fn may_claim_again(&self, state: &State, id: Id) -> bool {
        let waiting = state.attempt(id);
        let waits_for = waiting.waits_for.map(|holder| state.attempt(holder));
        if waits_for.is_some_and(|holder| is_alive_on(holder, waiting.node)) {
            return self.setting.bug == Bug::WaitersClaimAgain;
        }
        let looks_out = |other: Id| {
            let other = state.attempt(other);
            other.phase == Phase::At(At::Waiting)
                && other.node == waiting.node
                && other.waits_for.is_none()
        };
        waits_for.is_some() || !(0..id).any(looks_out)
    }

    /// The lease has reached the node.
    pub(crate) fn receive(&self, state: &mut State, id: Id) {
        let attempt = *state.attempt(id);
        let held = self.held_until(state, id);
        if held.has_lapsed() {
            self.seen(Seen::LeaseLapsedBeforeStart);
        }
        state.attempt_mut(id).phase = Phase::At(At::CLAIMING);
        let granted = Event::Granted(Granted {
            number: attempt.number.into(),
            held,
            has_earlier: false,
        });
        self.tell(state, id, granted, None);
    }

    pub(crate) fn held_until(&self, state: &State, id: Id) -> HeldUntil {
        let attempt = state.attempt(id);
        HeldUntil {
            deadline: at(attempt.deadline),
            now: at(self.now(state, attempt.node)),
            is_left: attempt.is_left,
        }
    }

    /// Looks whether a claim without an answer was granted.
    pub(crate) fn look_back(&self, state: &mut State, id: Id) -> bool {
        match state.record {
            Record::InProgress(holding) if holding.owner == owner_id(state, id) => {
                self.seen(Seen::GaveBack);
                let attempt = state.attempt_mut(id);
                attempt.number = holding.number;
                attempt.phase = Phase::Releasing;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn crash(&self, state: &mut State, node: u8) -> bool {
        let mut has_died = false;
        for id in 0..ATTEMPTS as Id {
            let attempt = *state.attempt(id);
            let lives = attempt.phase != Phase::Idle && !attempt.has_ended();
            if !lives || attempt.node != node {
                continue;
            }
            if attempt.phase == Phase::At(At::Running) && attempt.fate == Fate::Started {
                self.seen(Seen::CrashedWhileRunning);
            }
            if let Some(message) = call_of(state, id) {
                state.set_adrift(message);
            }
            state.attempt_mut(id).is_over();
            has_died = true;
        }
        has_died
    }

    /// The client hangs up.
    pub(crate) fn hang_up(&self, state: &mut State, id: Id) {
        let attempt = state.attempt_mut(id);
        let is_running = attempt.phase == Phase::At(At::Running) && attempt.fate == Fate::Started;
        if is_running {
            self.seen(Seen::Disconnected);
        }
        if self.setting.bug == Bug::ReleaseOnDisconnect && is_running {
            attempt.phase = Phase::At(At::Ending {
                write: Writes::Free,
                is_answer: false,
            });
        }
        attempt.is_left = true;
    }
}

/// Whether an attempt holds a lease on `node`, as the node knows without a clock.
pub(crate) fn is_alive_on(attempt: &Attempt, node: u8) -> bool {
    attempt.node == node && attempt.holds()
}

/// The owner id that an attempt claims with.
pub(crate) fn owner_id(state: &State, id: Id) -> Id {
    id + ATTEMPTS as Id * state.attempt(id).claims.saturating_sub(1)
}

/// The write that ends a lease and that the node waits for.
pub(crate) fn write_of(attempt: &Attempt) -> Option<Write> {
    let write = match attempt.phase {
        Phase::At(At::Ending { write, .. } | At::Undoing { write, .. }) => write,
        Phase::At(At::Settling) => Writes::Complete { is_stored: true },
        Phase::Releasing => Writes::undoing(attempt.number.into()),
        _ => return None,
    };
    Some(Write::of(write, attempt))
}

/// The call that the node waits for.
pub(crate) fn call_of(state: &State, id: Id) -> Option<Message> {
    let attempt = state.attempt(id);
    let call = match attempt.phase {
        Phase::At(At::Claiming { .. }) => Call::Claim {
            now: attempt.called_at,
        },
        Phase::At(At::Renewing { .. }) => Call::Renew {
            deadline: attempt.called_at + LEASE,
        },
        _ => Call::End(write_of(attempt)?),
    };
    let owner = owner_id(state, id);
    Some(Message { owner, call })
}
