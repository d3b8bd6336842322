//! A node: what the executor does about a request, step by step. Between any two steps it may be
//! paused for as long as the adversary likes.

use crate::bugs::Bug;
use crate::checked::Checked;
use crate::run::answered;
use crate::setting::Policy;
use crate::state::{ATTEMPTS, Attempt, Call, Fate, Id, Message, Phase, Record, State, Tick, Write};
use crate::store::{Claimed, Fenced};
use crate::witness::Seen;

impl Checked {
    /// A node's own clock.
    pub(crate) fn now(&self, state: &State, node: u8) -> Tick {
        match node {
            1 if state.is_ahead => state.time + self.setting.offset,
            _ => state.time,
        }
    }

    pub(crate) fn send(&self, state: &mut State, id: Id, node: u8) {
        state.attempt_mut(id).node = node;
        self.claim_anew(state, id, false);
    }

    /// The one who waited for another's run claims again, as the same owner.
    pub(crate) fn claim_anew(&self, state: &mut State, id: Id, is_second: bool) {
        let now = self.now(state, state.attempt(id).node);
        let attempt = state.attempt_mut(id);
        if self.setting.bug == Bug::NewOwnerOnRetry {
            attempt.claims += 1;
        }
        attempt.phase = Phase::Claiming { now, is_second };
    }

    /// The store takes the call that the node waits for, and answers.
    pub(crate) fn apply(&self, state: &mut State, id: Id) {
        let owner = owner_id(state, id);
        match state.attempt(id).phase {
            Phase::Claiming { now, .. } if self.setting.bug == Bug::CheckThenInsert => {
                match self.look(state, owner, now, true) {
                    (Claimed::Acquired(holding), true) => {
                        state.attempt_mut(id).phase = Phase::Inserting(holding);
                    }
                    (claimed, _) => self.claimed(state, id, claimed),
                }
            }
            Phase::Claiming { now, .. } => {
                let claimed = self.claim(state, owner, now, false);
                self.claimed(state, id, claimed);
            }
            Phase::Inserting(holding) => {
                self.insert(state, holding, state.time);
                self.claimed(state, id, Claimed::Acquired(holding));
            }
            Phase::Ending(write) | Phase::Settling(write) => {
                let fenced = self.end(state, owner, write);
                self.ended(state, id, write, fenced);
            }
            Phase::Undoing(write) => {
                self.end(state, owner, write);
                state.attempt_mut(id).is_over();
            }
            phase => unreachable!("no call is under way in {phase:?}"),
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
                let will_do_nothing = state.attempt(holder).phase == Phase::Over;
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
        let attempt = state.attempt_mut(id);
        match claimed {
            Claimed::Acquired(holding) => {
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
                answered(attempt, answer);
            }
            Claimed::InProgress if self.setting.waits && !attempt.is_left => {
                attempt.phase = Phase::Waiting;
                attempt.has_waited = true;
                attempt.waits_for = here;
            }
            Claimed::InProgress | Claimed::Orphaned => attempt.is_over(),
        }
    }

    /// The node gives a call up: it may or may not have been applied.
    pub(crate) fn not_answered(&self, state: &mut State, id: Id) {
        let attempt = state.attempt_mut(id);
        match attempt.phase {
            Phase::Claiming {
                is_second: false, ..
            } => self.claim_anew(state, id, true),
            Phase::Claiming { .. } => {
                attempt.phase = Phase::GivingBack;
                attempt.is_left = false;
            }
            // The client gets its answer all the same, or does not; nobody waits after that.
            Phase::Ending(write) => {
                if self.setting.answer_unrecorded || !matches!(write, Write::Complete { .. }) {
                    self.tell(state, id, write, Fenced::Applied);
                }
                let attempt = state.attempt_mut(id);
                let frees = self.setting.bug == Bug::FreeWhenNotRecorded;
                if let Write::Complete { answer, .. } = write {
                    self.give_unrecorded(attempt, answer);
                }
                attempt.phase = Phase::Retrying(if frees { Write::Free } else { write });
                attempt.is_left = false;
            }
            Phase::Settling(Write::Complete { answer, .. }) => {
                self.give_unrecorded(attempt, answer);
                attempt.is_over();
            }
            Phase::Undoing(_) => attempt.is_over(),
            phase => unreachable!("no call is under way in {phase:?}"),
        }
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
            other.phase == Phase::Waiting && other.node == waiting.node && other.waits_for.is_none()
        };
        waits_for.is_some() || !(0..id).any(looks_out)
    }

    fn give_unrecorded(&self, attempt: &mut Attempt, answer: Id) {
        if attempt.is_left {
            return;
        }
        if self.setting.answer_unrecorded {
            self.seen(Seen::AnsweredUnrecorded);
            attempt.got = Some(answer);
        } else {
            self.seen(Seen::Withheld);
        }
    }

    /// The lease has reached the node: is it alive still, and is anybody waiting for it?
    pub(crate) fn receive(&self, state: &mut State, id: Id) {
        let attempt = *state.attempt(id);
        let now = self.now(state, attempt.node);
        let is_lapsed = attempt.deadline <= now;
        if attempt.is_left || is_lapsed {
            if is_lapsed {
                self.seen(Seen::LeaseLapsedBeforeStart);
            }
            self.undo(state, id, attempt.number);
        } else if self.setting.policy == Policy::Reconcile && attempt.number > 1 {
            state.attempt_mut(id).phase = Phase::AskingFirst;
        } else {
            state.attempt_mut(id).phase = Phase::Ready;
        }
    }

    pub(crate) fn undo(&self, state: &mut State, id: Id, number: u8) {
        self.seen(Seen::Undone);
        let attempt = state.attempt_mut(id);
        attempt.is_left = false;
        attempt.phase = Phase::Undoing(match number {
            1 => Write::Free,
            _ if self.setting.bug == Bug::UndoForgetsTheLostRun => Write::Free,
            _ => Write::Orphan,
        });
    }

    /// Looks whether a claim without an answer was granted.
    pub(crate) fn give_back(&self, state: &mut State, id: Id) -> bool {
        match state.record {
            Record::InProgress(holding) if holding.owner == owner_id(state, id) => {
                self.seen(Seen::GaveBack);
                self.undo(state, id, holding.number);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn crash(&self, state: &mut State, node: u8) -> bool {
        let mut has_died = false;
        for id in 0..ATTEMPTS as Id {
            let attempt = *state.attempt(id);
            let lives = !matches!(attempt.phase, Phase::Idle | Phase::Over);
            if !lives || attempt.node != node {
                continue;
            }
            if attempt.phase == Phase::Running {
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
        if attempt.phase == Phase::Running {
            self.seen(Seen::Disconnected);
        }
        if self.setting.bug == Bug::ReleaseOnDisconnect && attempt.phase == Phase::Running {
            attempt.phase = Phase::Ending(Write::Free);
        }
        attempt.is_left = true;
    }
}

/// Whether an attempt holds a lease on `node`, as the node knows without a clock.
pub(crate) fn is_alive_on(attempt: &Attempt, node: u8) -> bool {
    attempt.node == node
        && matches!(
            attempt.phase,
            Phase::Granted
                | Phase::AskingFirst
                | Phase::Ready
                | Phase::Running
                | Phase::AskingAfter
                | Phase::Ending(_)
                | Phase::Retrying(_)
                | Phase::Undoing(_)
                | Phase::Settling(_)
        )
}

/// The owner id that an attempt claims with.
pub(crate) fn owner_id(state: &State, id: Id) -> Id {
    id + ATTEMPTS as Id * state.attempt(id).claims.saturating_sub(1)
}

/// The call that the node waits for.
pub(crate) fn call_of(state: &State, id: Id) -> Option<Message> {
    let call = match state.attempt(id).phase {
        Phase::Claiming { now, .. } => Call::Claim { now },
        Phase::Ending(write) | Phase::Undoing(write) | Phase::Settling(write) => Call::End(write),
        _ => return None,
    };
    let owner = owner_id(state, id);
    Some(Message { owner, call })
}
