//! A run on a node: the handler, its lease, and its end.

use std::time::Duration;

use tower_idempotency::End;
use tower_idempotency::record::has_lapsed;
use tower_idempotency::testing::attempt::{Event, Said, State as At, Write as Writes, Written};

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
        state.attempt_mut(id).fate = Fate::Started;
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
            self.finish(state, id, End::Unknown);
            return;
        }
        state.ledger.highest = token;
        state.ledger.effects |= 1 << id;
    }

    pub(crate) fn finish(&self, state: &mut State, id: Id, end: End) {
        let attempt = state.attempt_mut(id);
        attempt.answer = id;
        attempt.fate = match end {
            End::Final => Fate::Answered,
            End::NothingDone => Fate::Released,
            End::Unknown => Fate::NoOutcome,
        };
        let is_stored = end == End::Final;
        self.tell(state, id, Event::Ended { end, is_stored }, None);
    }

    /// Asks the ledger. It lets no attempt do anything later that is older than the one that asks.
    pub(crate) fn ask(&self, state: &mut State, id: Id, knows: bool) {
        let asking = *state.attempt(id);
        if self.setting.bug != Bug::AskDoesNotFence {
            state.ledger.highest = state.ledger.highest.max(asking.token);
        }
        let done = state.ledger.effects;
        let said = match (knows, done) {
            (false, _) => Said::Unknown,
            (true, 0) => Said::NotExecuted,
            (true, _) => Said::Completed { is_stored: true },
        };
        if done != 0 {
            state.attempt_mut(id).answer = done.trailing_zeros() as Id;
        }
        let held = self.held_until(state, id);
        let event = match asking.phase {
            Phase::At(At::AskingFirst { .. }) => Event::Asked { said, held },
            _ => Event::AskedAfter(said),
        };
        self.tell(state, id, event, None);
    }

    /// The store has answered the write that ends a lease.
    pub(crate) fn ended(&self, state: &mut State, id: Id, write: Write, fenced: Fenced) {
        let was = *state.attempt(id);
        let recorded = match fenced {
            Fenced::Applied => None,
            Fenced::LeaseLost(recorded) => recorded,
        };
        let written = match fenced {
            Fenced::Applied => Written::Applied,
            Fenced::LeaseLost(_) if self.setting.bug == Bug::AnswerAfterLostLease => {
                Written::Applied
            }
            Fenced::LeaseLost(recorded) => Written::LeaseLost {
                is_superseded: recorded.is_some(),
            },
        };
        let is_completion = matches!(write, Write::Complete { .. });
        match (written, was.phase) {
            (Written::Applied, Phase::At(At::Settling)) => self.seen(Seen::Reconciled),
            (Written::LeaseLost { is_superseded }, _) if is_completion => {
                self.seen(match is_superseded {
                    true => Seen::LateFinisherGotRecordedAnswer,
                    false => Seen::LateFinisherRefused,
                });
            }
            _ => {}
        }
        if matches!(was.phase, Phase::At(At::Ending { .. })) {
            self.share(state, id, write, fenced);
        }
        self.tell(state, id, Event::Written(written), recorded);
    }

    /// Gives the end of a run to those who wait for it on its node.
    pub(crate) fn share(&self, state: &mut State, id: Id, write: Write, fenced: Fenced) {
        if self.setting.bug == Bug::WaitersClaimAgain {
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
            self.seen(match answer {
                Some(_) => Seen::SharedAnAnswer,
                None => Seen::SharedAnEndWithoutAnswer,
            });
            self.finds(state, other, answer);
        }
    }

    /// Tries the end of a run again, in the background.
    pub(crate) fn retry(&self, state: &mut State, id: Id, write: Writes) {
        let owner = owner_id(state, id);
        let before = state.record;
        let write = Write::of(write, state.attempt(id));
        if self.end(state, owner, write) == Fenced::Applied
            && matches!(write, Write::Complete { .. })
            && state.record != before
        {
            self.seen(Seen::RecordedInBackground);
        }
        self.tell(state, id, Event::Written(Written::Applied), None);
    }

    /// Renews a lease; `None` when there is nothing to gain.
    pub(crate) fn beat(&self, state: &State, id: Id) -> Option<Tick> {
        let attempt = state.attempt(id);
        let Phase::At(at) = attempt.phase else {
            return None;
        };
        // For the moment before the work begins, and for a write that is not tried again, it makes
        // no difference.
        let matters = match at {
            At::Running => attempt.fate == Fate::Started,
            At::Undoing { .. } | At::Settling | At::Renewing { .. } => false,
            at => at.holds(),
        };
        let deadline = self.now(state, attempt.node) + self.lease_lasts();
        (matters && deadline > attempt.deadline).then_some(deadline)
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
