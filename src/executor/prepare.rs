//! From a lease to its work: what is asked, looked at and renewed before the work begins.

use super::begin::{Begun, Claimant, Held};
use super::detach::Stage;
use super::end::{Finish, GoingOn, Left, Recordable};
use super::previous::Earlier;
use super::{Conflict, Executor};
use crate::protocol::attempt::{Action, Event, Give, Granted, HeldUntil, Refusal, State, Step};
use crate::protocol::clock::Timestamp;
use crate::protocol::key::IdempotencyKey;
use crate::protocol::record::{Lease, Renewal};
use crate::store::{Fenced, Store};

/// What was found on the way to the work.
#[derive(Default)]
struct Found {
    /// What the record under the earlier name of the key gives.
    begun: Option<Begun>,
    /// The orphan under that name.
    lost: Option<Lease>,
    /// What the business system knows.
    answer: Option<Recordable>,
    /// Why the lease was not renewed.
    conflict: Option<Conflict>,
}

impl<St: Store> Executor<St> {
    /// Goes on with what a claim gave.
    ///
    /// What rarely happens is boxed, so that the rest is small.
    pub(super) async fn begun(
        &self,
        begun: Begun,
        claimant: &Claimant,
        state: State,
        stage: &Stage,
    ) -> Begun {
        let earlier = claimant.earlier.as_deref();
        let begun = match (begun, earlier) {
            (refused @ Begun::Refused(Conflict::OutcomeUnknown { .. }), Some(earlier)) => {
                let recorded = Box::pin(self.recorded_earlier(claimant, earlier)).await;
                recorded.map_or(refused, Begun::Completed)
            }
            (begun, _) => begun,
        };
        let mut state = state;
        let Begun::Held(held) = begun else {
            let _ = self.step(&mut state, Event::Found, claimant.key.record_key());
            return begun;
        };
        let event = Event::Granted(Granted {
            number: held.lease.attempt,
            held: self.held_until(&held.lease, stage),
            has_earlier: earlier.is_some(),
        });
        let step = self.step(&mut state, event, &held.lease.key);
        if step.then == Action::Run {
            return Begun::Held(held);
        }
        let earlier = earlier.map(|earlier| (claimant, earlier));
        Box::pin(self.prepare(held, &claimant.key, earlier, state, step, stage)).await
    }

    /// Asks the business system what the attempts before `held` have done. Work that it says was
    /// not done is not begun for a client that has gone meanwhile.
    pub(crate) async fn reconcile(&self, held: Held, key: &IdempotencyKey, stage: &Stage) -> Begun {
        let number = held.lease.attempt;
        let state = State::AskingFirst { number };
        let step = Step::then(Action::Ask);
        self.prepare(held, key, None, state, step, stage).await
    }

    /// Does what comes before the work, step by step.
    async fn prepare(
        &self,
        mut held: Held,
        key: &IdempotencyKey,
        earlier: Option<(&Claimant, &Earlier)>,
        state: State,
        step: Step,
        stage: &Stage,
    ) -> Begun {
        let (mut state, mut step) = (state, step);
        let mut found = Found::default();
        loop {
            let event = match step.then {
                Action::Run => return Begun::Held(held),
                Action::LookEarlier => {
                    let Some((claimant, earlier)) = earlier else {
                        return Begun::Held(held);
                    };
                    let looked = self.look_at_earlier(&held.lease, claimant, earlier).await;
                    (found.begun, found.lost) = (looked.begun, looked.lost);
                    Event::Earlier {
                        found: looked.says,
                        held: self.held_until(&held.lease, stage),
                    }
                }
                Action::Ask => {
                    let asked = match (&found.lost, earlier) {
                        (Some(lost), Some((_, earlier))) => {
                            let about = Lease {
                                created_at: lost.created_at,
                                ..held.lease.clone()
                            };
                            self.ask(&earlier.key, &about).await
                        }
                        _ => self.ask(key, &held.lease).await,
                    };
                    found.answer = asked.answer;
                    Event::Asked {
                        said: asked.said,
                        held: self.held_until(&held.lease, stage),
                    }
                }
                Action::Renew => match self.still_holds(&held.lease).await {
                    Ok(deadline) => {
                        held.lease.deadline = deadline;
                        Event::Renewed(self.held_until(&held.lease, stage))
                    }
                    Err(conflict) => {
                        found.conflict = Some(conflict);
                        Event::NotRenewed
                    }
                },
                _ => {
                    let left = Left {
                        answer: found.answer.take(),
                        status: held.lease.first_status,
                        // Nobody tries again to record it. A near tier that kept it would never ask
                        // again.
                        is_given_unrecorded: false,
                        ..Left::default()
                    };
                    let first_seen = match &found.lost {
                        Some(lost) => lost.created_at,
                        None => held.lease.created_at,
                    };
                    let going_on = GoingOn {
                        state,
                        step,
                        ready: None,
                        left,
                        told: None,
                    };
                    let finish = self.finish(held, going_on).await;
                    return found.gives(finish, first_seen);
                }
            };
            step = self.step(&mut state, event, key.record_key());
        }
    }

    fn held_until(&self, lease: &Lease, stage: &Stage) -> HeldUntil {
        HeldUntil {
            deadline: lease.deadline,
            now: self.now(),
            is_left: stage.is_left(),
        }
    }

    /// Renews a lease that was granted so long ago that only the store can tell whether the heartbeat
    /// has kept it, and returns its deadline.
    ///
    /// # Errors
    ///
    /// Why work must not begin under it.
    pub(crate) async fn still_holds(&self, lease: &Lease) -> Result<Timestamp, Conflict> {
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
                Fenced::LeaseLost(_) => return Err(Conflict::in_progress()),
            }
        }
        Ok(deadline)
    }
}

impl Found {
    /// What a claimant gets whose work does not begin.
    fn gives(self, finish: Finish, first_seen: Timestamp) -> Begun {
        let refusal = match finish.give {
            Give::Found => return self.begun.unwrap_or_else(Begun::in_progress),
            Give::Reconciled | Give::Superseding => {
                let completed = finish.completed();
                return completed.map_or_else(Begun::in_progress, Begun::Completed);
            }
            Give::Refusal(refusal) | Give::Withheld(refusal, _) => refusal,
            Give::Own(_) => Refusal::InProgress,
        };
        Begun::Refused(match refusal {
            Refusal::InProgress => Conflict::in_progress(),
            Refusal::Left => Conflict::Left,
            Refusal::LeaseLost => Conflict::LeaseLost,
            Refusal::NotRecorded => Conflict::NotRecorded,
            Refusal::OutcomeUnknown => Conflict::OutcomeUnknownYet { first_seen },
            Refusal::Store => self.conflict.unwrap_or_else(Conflict::in_progress),
        })
    }
}
