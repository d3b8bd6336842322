//! Records under an earlier naming of the same key.
//!
//! When a deploy gives keys another namespace, scope or operation, the records of before are not
//! found under the new names. So a claim that found nothing looks for the earlier record before
//! work begins.

use tracing::info;

use super::begin::{Begun, Claimant, InFlight};
use super::{Conflict, Executor};
use crate::protocol::attempt::Earlier as Says;
use crate::protocol::clock::Timestamp;
use crate::protocol::key::{IdempotencyKey, KeyParts};
use crate::protocol::record::{ClaimRequest, Completed, Decision, Identity, Lease, Record, decide};
use crate::store::Store;

/// The same request under the earlier naming.
pub(crate) struct Earlier {
    pub(crate) key: IdempotencyKey,
    pub(crate) identity: Identity,
    pub(crate) accepted: Vec<Identity>,
}

/// What the record under the earlier naming says.
pub(super) struct Looked {
    pub(super) says: Says,
    /// What a claimant gets by that.
    pub(super) begun: Option<Begun>,
    /// The orphan that may be taken over.
    pub(super) lost: Option<Lease>,
}

impl Looked {
    const NOTHING: Self = Self {
        says: Says::Nothing,
        begun: None,
        lost: None,
    };

    const fn refused(conflict: Conflict) -> Self {
        Self {
            says: Says::Found,
            begun: Some(Begun::Refused(conflict)),
            lost: None,
        }
    }
}

impl<St: Store> Executor<St> {
    /// Looks what the earlier record of a key says, whose new name was free.
    pub(super) async fn look_at_earlier(
        &self,
        held: &Lease,
        claimant: &Claimant,
        earlier: &Earlier,
    ) -> Looked {
        let now = self.now();
        let key = earlier.key.record_key();
        let record = match self.bounded(self.shared.store.get(key, now)).await {
            Ok(Some(record)) => record.by_clock(now),
            Ok(None) => return Looked::NOTHING,
            Err(error) => return Looked::refused(Conflict::Store(error)),
        };
        let parts = earlier.key.parts();
        let request = self.earlier_request(claimant, earlier, &parts, now);
        info!(record = %held.key, earlier = %key, "the key has a record under its earlier name");
        match (decide(Some((&record).into()), &request), record) {
            (Decision::Replay, Record::Completed(completed)) => Looked {
                says: Says::Found,
                begun: Some(Begun::Completed(completed)),
                lost: None,
            },
            (Decision::InProgress | Decision::Own, Record::InProgress(lease)) => {
                let in_flight = InFlight {
                    lease,
                    waiter: None,
                };
                Looked::refused(in_flight.conflict(now))
            }
            (Decision::Acquire { .. }, Record::InProgress(lost)) => Looked {
                says: Says::Orphan,
                begun: None,
                lost: Some(lost),
            },
            (Decision::Orphaned, Record::InProgress(lost)) => {
                Looked::refused(Conflict::OutcomeUnknown {
                    first_seen: lost.created_at,
                    first_status: lost.first_status,
                })
            }
            (Decision::CallerDiffers, _) => Looked::refused(Conflict::CallerDiffers),
            (Decision::Reused, _) => Looked::refused(Conflict::Reused),
            (Decision::SettingsChanged { .. }, _) => Looked::refused(Conflict::SettingsChanged),
            // It expired in this moment.
            (Decision::Acquire { .. }, Record::Completed(_)) => Looked::NOTHING,
            (Decision::Replay | Decision::InProgress | Decision::Own | Decision::Orphaned, _) => {
                Looked::refused(Conflict::in_progress())
            }
        }
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
}
