//! Asking the business system what became of a lost attempt.

use tokio::time::timeout;
use tracing::{Instrument, Span, warn};

use super::begin::{Begun, Held};
use super::detach::Stage;
use super::faults::log_fault;
use super::{Conflict, Executor};
use crate::key::IdempotencyKey;
use crate::policy::{Orphan, Orphaned, Reconcile, Reconciled};
use crate::record::Lease;
use crate::response::Answer;
use crate::store::{Completion, Fenced, Store};

impl<St: Store> Executor<St> {
    /// Whether the business system is asked before work begins under this lease: an attempt before
    /// it left no outcome, and the policy is to ask.
    pub(crate) fn reconciles(&self, held: &Held) -> bool {
        held.lease.attempt > 1 && self.reconciles_orphans()
    }

    /// Asks the business system what the attempts before `held` have done. Work that it says was
    /// not done is not begun for a client that has gone meanwhile.
    pub(crate) async fn reconcile(&self, held: Held, key: &IdempotencyKey, stage: &Stage) -> Begun {
        let Orphan::Reconcile(reconcile) = &self.shared.settings.orphan else {
            return Begun::Held(held);
        };
        match self.ask(reconcile, key, &held.lease).await {
            Reconciled::NotExecuted => match self.still_holds(Some(&held.lease)).await {
                Ok(()) if !stage.is_left() => Begun::Held(held),
                Ok(()) => {
                    self.undo(held).await;
                    Begun::Refused(Conflict::Left)
                }
                Err(conflict) => {
                    self.undo(held).await;
                    Begun::Refused(conflict)
                }
            },
            Reconciled::Unknown => {
                let first_seen = held.lease.created_at;
                self.undo(held).await;
                Begun::Refused(Conflict::OutcomeUnknownYet { first_seen })
            }
            Reconciled::Completed(answer) => self.complete_reconciled(held, &answer).await,
        }
    }

    pub(super) async fn complete_reconciled(&self, held: Held, answer: &Answer) -> Begun {
        let (lease, now) = (&held.lease, self.now());
        let completion = Completion {
            // Nobody tries again to record it. A near tier that kept it would never ask again.
            is_given_unrecorded: false,
            ..self.completion(lease, answer.encode(), None, now)
        };
        let completed = completion.record(lease.identity, lease.created_at, now);
        let holder = lease.holder();
        let completing = self.shared.store.complete(&holder, &completion, now);
        match self.bounded(completing).await {
            Ok(Fenced::Applied) => Begun::Completed(completed),
            Ok(Fenced::LeaseLost(Some(recorded))) if *recorded.identity() == lease.identity => {
                Begun::Completed(recorded.by_clock(now))
            }
            Ok(Fenced::LeaseLost(_)) => Begun::Refused(Conflict::LeaseLost),
            Err(error) => {
                // The next request asks again.
                log_fault(&lease.key, &error, "a reconciled answer was not recorded");
                match self.shared.settings.answer_unrecorded {
                    true => Begun::Completed(completed),
                    false => Begun::Refused(Conflict::NotRecorded),
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
}
