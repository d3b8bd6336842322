//! Claims: one conditional write, and a second one for an orphan.

use super::DynamoDbStore;
use super::calls::Verdict;
use super::expression::{Expression, is_free, is_still, is_still_completed, is_still_unreadable};
use super::item::{Found, Unreadable};
use super::table::Item;
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::record::{ClaimRequest, Decision, Lease, Owner, decide};
use crate::store::Claim;

/// How often a claim is tried while others change the record under it. Two are enough for
/// whoever is alone: one that sees an orphan, and one that takes it.
const ROUNDS: usize = 4;

/// A lease that is written if the record is as it was seen.
struct Bid {
    lease: Lease,
    seen: Seen,
}

/// What the claim gets its lease in place of.
enum Seen {
    /// Nothing, or an answer whose time is over.
    Free(Timestamp),
    Lease(Lease),
    Answer {
        owner: Owner,
        expires_at: Timestamp,
    },
    Unreadable(Box<Unreadable>),
}

impl Seen {
    fn is_still_so(&self) -> Expression {
        match self {
            Self::Free(now) => is_free(*now),
            Self::Lease(lease) => is_still(lease),
            Self::Answer { owner, expires_at } => is_still_completed(*owner, *expires_at),
            Self::Unreadable(unreadable) => is_still_unreadable(unreadable),
        }
    }
}

enum Judged {
    Answer(Claim),
    Bid(Bid),
}

impl DynamoDbStore {
    pub(super) async fn claim_in_rounds(
        &self,
        request: &ClaimRequest<'_>,
    ) -> Result<Claim, StoreError> {
        let mut bid = Bid::on_free_key(request)?;
        for _ in 0..ROUNDS {
            let item = || self.table.item_of(&bid.lease, request.parts);
            let condition = || bid.seen.is_still_so();
            let seen = match self.put(item, condition).await? {
                Verdict::Applied => {
                    return Ok(Claim::Acquired(bid.lease.seen_at(request.now)));
                }
                Verdict::Refused(seen) => self.refuser(request.key, seen).await?,
            };
            bid = match seen {
                None => Bid::on_free_key(request)?,
                Some(item) => match self.judge(&item, request).await? {
                    Judged::Answer(claim) => return Ok(claim),
                    Judged::Bid(bid) => bid,
                },
            };
        }
        Err(StoreError::new(
            StoreErrorKind::Unavailable,
            format!("the record changed under each of {ROUNDS} tries to claim it"),
        ))
    }

    /// Decides the claim by the item that kept it from being written.
    async fn judge(&self, item: &Item, request: &ClaimRequest<'_>) -> Result<Judged, StoreError> {
        let found = match self.table.found(request.key, item) {
            Ok(found) => found,
            Err(unreadable) if unreadable.is_over(request.now) => {
                return Ok(Judged::Bid(Bid {
                    seen: Seen::Unreadable(unreadable),
                    ..Bid::on_free_key(request)?
                }));
            }
            Err(unreadable) => return Err(unreadable.into()),
        };
        let decision = decide(Some(found.held()), request);
        if let Some(lease) = lease_by(decision, request) {
            let seen = match found {
                Found::InProgress(seen) => Seen::Lease(seen),
                Found::Completed(seen) => Seen::Answer {
                    owner: seen.owner,
                    expires_at: seen.expires_at,
                },
            };
            return Ok(Judged::Bid(Bid { lease, seen }));
        }
        let now = request.now;
        let claim = match (decision, found) {
            (Decision::Orphaned, Found::InProgress(lease)) => Claim::Orphaned(lease.seen_at(now)),
            (Decision::CallerDiffers, _) => Claim::CallerDiffers,
            (Decision::Reused, _) => Claim::Reused,
            (Decision::SettingsChanged { recorded }, _) => Claim::SettingsChanged { recorded },
            (Decision::Own, Found::InProgress(lease)) => Claim::Acquired(lease.seen_at(now)),
            (_, Found::InProgress(lease)) => Claim::in_progress(lease.seen_at(now), None),
            (_, Found::Completed(answered)) => {
                let completed = self.completed(request.key, answered).await?;
                Claim::Completed(completed.seen_at(now))
            }
        };
        Ok(Judged::Answer(claim))
    }
}

impl Bid {
    fn on_free_key(request: &ClaimRequest<'_>) -> Result<Self, StoreError> {
        let lease = lease_by(decide(None, request), request).ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Unusable,
                "a claim on an absent record was not let through",
            )
        })?;
        let seen = Seen::Free(request.now);
        Ok(Self { lease, seen })
    }
}

/// The lease that a decision gives, if it gives one.
fn lease_by(decision: Decision, request: &ClaimRequest<'_>) -> Option<Lease> {
    match decision {
        Decision::Acquire {
            token,
            attempt,
            created_at,
        } => Some(request.lease(token, attempt, created_at)),
        _ => None,
    }
}
