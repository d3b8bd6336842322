//! Who decides what happens next: the adversary, within its budget.

use tower_idempotency::End;
use tower_idempotency::testing::attempt::{Event, State as At};

use crate::bugs::Bug;
use crate::checked::Checked;
use crate::node::{call_of, is_alive_on, owner_id};
use crate::setting::Policy;
use crate::state::{ATTEMPTS, Call, EPOCH, Fate, Id, Message, Phase, Record, START, State};
use crate::witness::Seen;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Time goes on.
    Tick,
    /// The second node's clock goes back, or ahead again.
    Jump,
    /// A client sends a request to a node, which claims the key.
    Send {
        id: Id,
        node: u8,
    },
    /// The store takes the call that the node waits for, and its answer arrives; for a lease,
    /// only as far as [`Action::Receive`].
    Apply(Id),
    /// As `Apply`, and a copy of the call stays adrift.
    ApplyTwice(Id),
    /// The node gives a call up, and the call stays adrift.
    GiveUp(Id),
    /// The store takes a message whose sender does not wait for it.
    ApplyLate(Message),
    /// The lease arrives at the node.
    Receive(Id),
    /// One who waits for another's run claims again.
    ClaimAgain(Id),
    /// One whose claims were not answered looks for its lease.
    LookBack(Id),
    Start(Id),
    /// The handler carries out its work in the ledger.
    Effect(Id),
    Finish(Id, End),
    /// The ledger is asked, and knows, or does not.
    Ask {
        id: Id,
        knows: bool,
    },
    /// A lease is renewed.
    Renew(Id),
    /// A renewal is sent, and stays adrift.
    RenewLate(Id),
    /// The end of a run is tried again.
    Retry(Id),
    Crash {
        node: u8,
    },
    HangUp(Id),
    /// An expired record is cleared away.
    Sweep,
    /// A store that forgets what it holds.
    Evict,
}

impl Checked {
    /// All that can happen next. What changes nothing may be among it.
    pub(crate) fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        let left = state.left;
        if state.time < START + self.setting.ticks {
            actions.push(Action::Tick);
        }
        let next = state.attempts.iter().position(|it| it.phase == Phase::Idle);
        if let Some(id) = next.filter(|id| *id < self.setting.attempts) {
            let id = id as Id;
            actions.extend([0, 1].map(|node| Action::Send { id, node }));
        }
        for id in 0..ATTEMPTS as Id {
            self.possible_for(state, id, actions);
        }
        for (at, message) in state.late.iter().enumerate() {
            if at == 0 || state.late[at - 1] != *message {
                actions.push(Action::ApplyLate(*message));
            }
        }
        if left.crashes > 0 {
            actions.extend([0, 1].map(|node| Action::Crash { node }));
        }
        if left.jumps > 0 {
            actions.push(Action::Jump);
        }
        actions.push(Action::Sweep);
        if self.setting.bug == Bug::EvictLock {
            actions.push(Action::Evict);
        }
    }

    fn possible_for(&self, state: &State, id: Id, actions: &mut Vec<Action>) {
        let attempt = state.attempt(id);
        let left = state.left;
        if call_of(state, id).is_some() {
            actions.push(Action::Apply(id));
            if left.faults > 0 {
                actions.extend([Action::ApplyTwice(id), Action::GiveUp(id)]);
            }
        }
        let hangs_up = left.leaves > 0 && !attempt.is_left;
        if self.beat(state, id).is_some() {
            actions.push(Action::Renew(id));
            if left.faults > 0 {
                actions.push(Action::RenewLate(id));
            }
        }
        match attempt.phase {
            Phase::Inserting(_) => actions.push(Action::Apply(id)),
            Phase::At(At::Claiming { .. }) if hangs_up => actions.push(Action::HangUp(id)),
            Phase::At(At::Waiting) if self.may_claim_again(state, id) => {
                actions.push(Action::ClaimAgain(id));
            }
            Phase::At(At::Looking { .. }) => actions.push(Action::LookBack(id)),
            Phase::Granted => {
                actions.push(Action::Receive(id));
                if hangs_up {
                    actions.push(Action::HangUp(id));
                }
            }
            Phase::At(At::AskingFirst { .. } | At::AskingAfter) => {
                actions.push(Action::Ask { id, knows: true });
                if left.odds > 0 {
                    actions.push(Action::Ask { id, knows: false });
                }
            }
            Phase::At(At::Running) if attempt.fate == Fate::NotStarted => {
                actions.push(Action::Start(id));
            }
            Phase::At(At::Running) => {
                self.possible_ends(state, id, actions);
                if hangs_up {
                    actions.push(Action::HangUp(id));
                }
            }
            Phase::At(At::Retrying { .. }) => actions.push(Action::Retry(id)),
            _ => {}
        }
    }

    fn possible_ends(&self, state: &State, id: Id, actions: &mut Vec<Action>) {
        let keeps_ledger = self.setting.policy == Policy::Reconcile;
        let has_effect = state.ledger.effects & 1 << id != 0;
        if keeps_ledger && !has_effect {
            actions.push(Action::Effect(id));
        } else {
            actions.push(Action::Finish(id, End::Final));
        }
        if state.left.odds > 0 {
            actions.push(Action::Finish(id, End::Unknown));
            if !has_effect {
                actions.push(Action::Finish(id, End::NothingDone));
            }
        }
    }

    /// What comes of `action`; `None` when it changes nothing.
    pub(crate) fn perform(&self, before: &State, action: Action) -> Option<State> {
        let mut after = before.clone();
        let state = &mut after;
        match action {
            Action::Tick => {
                state.time += 1;
                forget_lapsed(state);
            }
            Action::Jump => {
                state.left.jumps -= 1;
                state.is_ahead = !state.is_ahead;
                self.seen(Seen::ClockWentBack);
            }
            Action::Send { id, node } => self.send(state, id, node),
            Action::Apply(id) => self.apply(state, id),
            Action::ApplyTwice(id) => {
                state.left.faults -= 1;
                let copy = call_of(state, id)?;
                self.apply(state, id);
                state.set_adrift(copy);
            }
            Action::GiveUp(id) => {
                state.left.faults -= 1;
                let adrift = call_of(state, id)?;
                state.set_adrift(adrift);
                self.not_answered(state, id);
            }
            Action::ApplyLate(message) => {
                let at = state.late.binary_search(&message).ok()?;
                state.late.remove(at);
                self.apply_late(state, message);
            }
            Action::Receive(id) => self.receive(state, id),
            Action::ClaimAgain(id) => {
                let waits_for = state
                    .attempt(id)
                    .waits_for
                    .map(|holder| *state.attempt(holder));
                let attempt = state.attempt_mut(id);
                // Its end is known on the node, or will be.
                attempt.has_waited_in_vain |=
                    waits_for.is_some_and(|holder| is_alive_on(&holder, attempt.node));
                attempt.waits_for = None;
                self.tell(state, id, Event::WaitOver, None);
            }
            Action::LookBack(id) => return self.look_back(state, id).then_some(after),
            Action::Start(id) => self.start(state, id),
            Action::Effect(id) => self.effect(state, id),
            Action::Finish(id, end) => {
                if end != End::Final {
                    state.left.odds -= 1;
                }
                self.finish(state, id, end);
            }
            Action::Ask { id, knows } => {
                if !knows {
                    state.left.odds -= 1;
                }
                self.ask(state, id, knows);
            }
            Action::Renew(id) => {
                let deadline = self.beat(state, id)?;
                return self.renewed(state, id, deadline).then_some(after);
            }
            Action::RenewLate(id) => {
                state.left.faults -= 1;
                let deadline = self.beat(state, id)?;
                let owner = owner_id(state, id);
                state.set_adrift(Message {
                    owner,
                    call: Call::Renew { deadline },
                });
            }
            Action::Retry(id) => {
                let Phase::At(At::Retrying { write, .. }) = state.attempt(id).phase else {
                    return None;
                };
                self.retry(state, id, write);
            }
            Action::Crash { node } => {
                state.left.crashes -= 1;
                return self.crash(state, node).then_some(after);
            }
            Action::HangUp(id) => {
                state.left.leaves -= 1;
                self.hang_up(state, id);
            }
            Action::Sweep => return self.sweep(state).then_some(after),
            Action::Evict => match state.record {
                Record::InProgress(_) => state.record = Record::Absent,
                _ => return None,
            },
        }
        Some(after)
    }

    pub(crate) fn seen(&self, seen: Seen) {
        self.witness.note(seen);
    }
}

/// A lease that has lapsed by the slowest clock stays so: when, makes no difference any more.
fn forget_lapsed(state: &mut State) {
    let time = state.time;
    for attempt in &mut state.attempts {
        if attempt.has_ended() && attempt.deadline < time {
            attempt.deadline = EPOCH;
            attempt.node = 0;
        }
    }
}
