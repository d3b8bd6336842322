//! A run on a node: the handler, its lease, and its end.

use std::time::Duration;

use tower_idempotency::End;
use tower_idempotency::record::has_lapsed;

use crate::bugs::Bug;
use crate::checked::Checked;
use crate::node::owner_id;
use crate::setting::Policy;
use crate::state::{ATTEMPTS, Attempt, Fate, Holding, Id, Phase, State, Tick, Write, at};
use crate::store::Fenced;
use crate::witness::Seen;

impl Checked {
    /// The handler starts.
    pub(crate) fn start(&self, state: &mut State, id: Id) {
        let starting = *state.attempt(id);
        state.broken.started_after_waiting |= starting.has_waited_in_vain;
        for other in (0..ATTEMPTS as Id).filter(|other| *other != id) {
            let before = *state.attempt(other);
            let may_have_done_it = match before.fate {
                Fate::NotStarted | Fate::Released => false,
                Fate::Started | Fate::Answered | Fate::NoOutcome => before.uses == starting.uses,
            };
            state.broken.started_under_hold |=
                may_have_done_it && self.setting.policy == Policy::Hold;
            let holds_lease = match before.fate {
                Fate::Started => true,
                Fate::Answered => before.uses == starting.uses,
                Fate::NotStarted | Fate::Released | Fate::NoOutcome => false,
            };
            // Its own may have lapsed since it was looked at: no node can look and start at once.
            state.broken.started_beside_a_live_lease |=
                holds_lease && self.is_live(state, &before) && self.is_live(state, &starting);
            match before.fate {
                Fate::Released => self.seen(Seen::ReleasedAndRunAgain),
                Fate::Started if may_have_done_it => self.seen(Seen::TakenOverAndRunAgain),
                _ => {}
            }
        }
        let attempt = state.attempt_mut(id);
        attempt.phase = Phase::Running;
        attempt.fate = Fate::Started;
    }

    /// Whether the lease that an attempt was given is alive, by its own clock.
    pub(crate) fn is_live(&self, state: &State, attempt: &Attempt) -> bool {
        let lease = Holding {
            deadline: attempt.deadline,
            ..Holding::NONE
        };
        let now = self.now(state, attempt.node);
        !has_lapsed(&lease.lease(), at(now), Duration::ZERO)
    }

    /// The handler carries out its work, where the ledger lets it. Only with a ledger.
    pub(crate) fn effect(&self, state: &mut State, id: Id) {
        let token = state.attempt(id).token;
        if token < state.ledger.highest {
            self.seen(Seen::EffectFenced);
            let attempt = state.attempt_mut(id);
            attempt.fate = Fate::NoOutcome;
            attempt.phase = Phase::AskingAfter;
            return;
        }
        state.ledger.highest = token;
        state.ledger.effects |= 1 << id;
    }

    pub(crate) fn finish(&self, state: &mut State, id: Id, end: End) {
        let now = self.now(state, state.attempt(id).node);
        let attempt = state.attempt_mut(id);
        (attempt.fate, attempt.phase) = match (end, self.setting.policy) {
            (End::Final, _) => {
                let write = Write::Complete { answer: id, now };
                (Fate::Answered, Phase::Ending(write))
            }
            (End::NothingDone, _) => (Fate::Released, Phase::Ending(Write::Free)),
            (End::Unknown, Policy::Retake) => (Fate::NoOutcome, Phase::Ending(Write::Free)),
            (End::Unknown, Policy::Hold) => (Fate::NoOutcome, Phase::Ending(Write::Orphan)),
            (End::Unknown, Policy::Reconcile) => (Fate::NoOutcome, Phase::AskingAfter),
        };
        // It is no answer to the key that the client gets.
        attempt.is_left |= end != End::Final;
    }

    /// Asks the ledger. It lets no attempt do anything later that is older than the one that asks.
    pub(crate) fn ask(&self, state: &mut State, id: Id, knows: bool) {
        let asking = *state.attempt(id);
        let now = self.now(state, asking.node);
        if self.setting.bug != Bug::AskDoesNotFence {
            state.ledger.highest = state.ledger.highest.max(asking.token);
        }
        let done = state.ledger.effects;
        let found = (done != 0).then(|| Write::Complete {
            answer: done.trailing_zeros() as Id,
            now,
        });
        if asking.phase == Phase::AskingFirst {
            match found {
                _ if !knows => self.undo(state, id, asking.number),
                Some(write) => state.attempt_mut(id).phase = Phase::Settling(write),
                None => state.attempt_mut(id).phase = Phase::Ready,
            }
            return;
        }
        let attempt = state.attempt_mut(id);
        // Its client gets the panic or error.
        attempt.is_left = true;
        attempt.phase = Phase::Ending(match found {
            _ if !knows => Write::Orphan,
            Some(write) => write,
            None => Write::Free,
        });
    }

    /// The store has answered the end of a run.
    pub(crate) fn ended(&self, state: &mut State, id: Id, write: Write, fenced: Fenced) {
        self.tell(state, id, write, fenced);
        let attempt = state.attempt_mut(id);
        match (write, fenced) {
            (Write::Complete { answer, .. }, Fenced::Applied) => {
                if matches!(attempt.phase, Phase::Settling(_)) {
                    self.seen(Seen::Reconciled);
                }
                answered(attempt, answer);
            }
            (Write::Complete { answer, .. }, Fenced::LeaseLost(_))
                if self.setting.bug == Bug::AnswerAfterLostLease =>
            {
                answered(attempt, answer);
            }
            (Write::Complete { .. }, Fenced::LeaseLost(Some(recorded))) => {
                self.seen(Seen::LateFinisherGotRecordedAnswer);
                answered(attempt, recorded);
            }
            (Write::Complete { .. }, Fenced::LeaseLost(None)) => {
                self.seen(Seen::LateFinisherRefused);
                attempt.is_over();
            }
            (Write::Free | Write::Orphan, _) => attempt.is_over(),
        }
    }

    /// Gives the end of a run to those who wait for it on its node.
    pub(crate) fn tell(&self, state: &mut State, id: Id, write: Write, fenced: Fenced) {
        let was_run = matches!(state.attempt(id).phase, Phase::Ending(_));
        if !was_run || self.setting.bug == Bug::WaitersClaimAgain {
            return;
        }
        let answer = match (write, fenced) {
            (_, Fenced::LeaseLost(None)) => return,
            (_, Fenced::LeaseLost(Some(recorded))) => Some(recorded),
            (Write::Complete { answer, .. }, Fenced::Applied) => Some(answer),
            (Write::Free | Write::Orphan, Fenced::Applied) => None,
        };
        for other in 0..ATTEMPTS as Id {
            if state.attempt(other).waits_for != Some(id) {
                continue;
            }
            let waiting = state.attempt_mut(other);
            match answer {
                Some(answer) => {
                    self.seen(Seen::SharedAnAnswer);
                    answered(waiting, answer);
                }
                None => {
                    self.seen(Seen::SharedAnEndWithoutAnswer);
                    waiting.is_over();
                }
            }
        }
    }

    /// Tries the end of a run again, in the background.
    pub(crate) fn retry(&self, state: &mut State, id: Id, write: Write) {
        let owner = owner_id(state, id);
        let before = state.record;
        if self.end(state, owner, write) == Fenced::Applied
            && matches!(write, Write::Complete { .. })
            && state.record != before
        {
            self.seen(Seen::RecordedInBackground);
        }
        state.attempt_mut(id).is_over();
    }

    /// Renews a lease; `None` when there is nothing to gain.
    pub(crate) fn beat(&self, state: &State, id: Id) -> Option<Tick> {
        let attempt = state.attempt(id);
        let beats = matches!(
            attempt.phase,
            Phase::AskingFirst
                | Phase::Running
                | Phase::AskingAfter
                | Phase::Ending(_)
                | Phase::Retrying(_)
        );
        let deadline = self.now(state, attempt.node) + self.lease_lasts();
        (beats && deadline > attempt.deadline).then_some(deadline)
    }

    pub(crate) fn renewed(&self, state: &mut State, id: Id, deadline: Tick) -> bool {
        let owner = owner_id(state, id);
        if self.renew(state, owner, deadline) != Fenced::Applied {
            return false;
        }
        self.seen(Seen::Renewed);
        state.attempt_mut(id).deadline = deadline;
        true
    }
}

/// The client gets an answer, if it is there still.
pub(crate) fn answered(attempt: &mut Attempt, answer: Id) {
    if !attempt.is_left {
        attempt.got = Some(answer);
    }
    attempt.is_over();
}
