//! Records under an earlier naming of the same key.
//!
//! When a deploy gives keys another namespace, scope or operation, the records of before are not
//! found under the new names. So a claim that found nothing looks for the earlier record before
//! work begins.

use std::time::Duration;

use tracing::info;

use super::begin::{Begun, Claimant, Held, InFlight};
use super::{Conflict, Executor};
use crate::clock::Timestamp;
use crate::key::{IdempotencyKey, KeyParts};
use crate::policy::{Orphan, Reconciled};
use crate::record::{ClaimRequest, Completed, Decision, Identity, Lease, Record, decide};
use crate::store::Store;

/// The same request under the earlier naming.
pub(crate) struct Earlier {
    pub(crate) key: IdempotencyKey,
    pub(crate) identity: Identity,
    pub(crate) accepted: Vec<Identity>,
}

impl<St: Store> Executor<St> {
    /// Looks what the earlier record of a key says, whose new name was free.
    pub(super) async fn look_at_earlier(
        &self,
        held: Held,
        claimant: &Claimant,
        earlier: &Earlier,
    ) -> Begun {
        let now = self.now();
        let key = earlier.key.record_key();
        let record = match self.bounded(self.shared.store.get(key, now)).await {
            Ok(Some(record)) => record.by_clock(now),
            Ok(None) => return Begun::Held(held),
            Err(error) => {
                self.undo(held).await;
                return Begun::Refused(Conflict::Store(error));
            }
        };
        let parts = earlier.key.parts();
        let request = self.earlier_request(claimant, earlier, &parts, now);
        info!(record = %held.lease.key, earlier = %key, "the key has a record under its earlier name");
        let found = match (decide(Some((&record).into()), &request), record) {
            (Decision::Replay, Record::Completed(completed)) => Begun::Completed(completed),
            (Decision::InProgress | Decision::Own, Record::InProgress(lease)) => {
                let in_flight = InFlight {
                    lease,
                    waiter: None,
                };
                Begun::Refused(in_flight.conflict(now))
            }
            (Decision::Acquire { .. }, Record::InProgress(lost)) => {
                return self.take_earlier_over(held, earlier, &lost).await;
            }
            (Decision::Orphaned, Record::InProgress(lost)) => {
                Begun::Refused(Conflict::OutcomeUnknown {
                    first_seen: lost.created_at,
                    first_status: lost.first_status,
                })
            }
            (Decision::CallerDiffers, _) => Begun::Refused(Conflict::CallerDiffers),
            (Decision::Reused, _) => Begun::Refused(Conflict::Reused),
            (Decision::SettingsChanged { .. }, _) => Begun::Refused(Conflict::SettingsChanged),
            // It expired in this moment.
            (Decision::Acquire { .. }, Record::Completed(_)) => return Begun::Held(held),
            (Decision::Replay | Decision::InProgress | Decision::Own | Decision::Orphaned, _) => {
                Begun::Refused(Conflict::InProgress {
                    retry_after: Duration::from_secs(1),
                    owner: None,
                })
            }
        };
        self.undo(held).await;
        found
    }

    /// Looks for the answer under the earlier name of a key that is held under its new one: the
    /// attempt at that may have died before it looked.
    pub(super) async fn recorded_earlier(
        &self,
        claimant: &Claimant,
        earlier: &Earlier,
    ) -> Option<Completed> {
        let now = self.now();
        let key = earlier.key.record_key();
        let record = self.bounded(self.shared.store.get(key, now)).await.ok()??;
        let record = record.by_clock(now);
        let parts = earlier.key.parts();
        let request = self.earlier_request(claimant, earlier, &parts, now);
        match (decide(Some((&record).into()), &request), record) {
            (Decision::Replay, Record::Completed(completed)) => Some(completed),
            _ => None,
        }
    }

    fn earlier_request<'a>(
        &'a self,
        claimant: &Claimant,
        earlier: &'a Earlier,
        parts: &'a KeyParts<'a>,
        now: Timestamp,
    ) -> ClaimRequest<'a> {
        let key = earlier.key.record_key();
        ClaimRequest {
            owner: claimant.owner,
            ..self.request(parts, key, earlier.identity, &earlier.accepted, now)
        }
    }

    /// The attempt under the earlier name was lost, and the policy is not to hold it.
    async fn take_earlier_over(&self, held: Held, earlier: &Earlier, lost: &Lease) -> Begun {
        let Orphan::Reconcile(reconcile) = &self.shared.settings.orphan else {
            return Begun::Held(held);
        };
        let lease = Lease {
            created_at: lost.created_at,
            ..held.lease.clone()
        };
        match self.ask(reconcile, &earlier.key, &lease).await {
            Reconciled::NotExecuted => Begun::Held(held),
            Reconciled::Completed(answer) => self.complete_reconciled(held, &answer).await,
            Reconciled::Unknown => {
                self.undo(held).await;
                Begun::Refused(Conflict::OutcomeUnknownYet {
                    first_seen: lost.created_at,
                })
            }
        }
    }
}
