//! Claims: one conditional write, and a second one for an orphan.

use super::DynamoDbStore;
use super::calls::Verdict;
use super::expression::{Expression, is_free, is_still, is_still_completed, is_still_unreadable};
use super::item::Found;
use super::table::Item;
use crate::error::{StoreError, StoreErrorKind};
use crate::record::{ClaimRequest, Decision, Lease, decide};
use crate::store::Claim;

/// How often a claim is tried while others change the record under it. Two are enough for
/// whoever is alone: one that sees an orphan, and one that takes it.
const ROUNDS: usize = 4;

/// What a claim does next.
enum Next {
    Answer(Claim),
    /// Writes this lease if the record is as it was seen.
    Take(Lease, Expression),
}

impl DynamoDbStore {
    pub(super) async fn claim_in_rounds(
        &self,
        request: &ClaimRequest<'_>,
    ) -> Result<Claim, StoreError> {
        let (mut lease, mut condition) = self.on_free_key(request)?;
        for _ in 0..ROUNDS {
            let item = self.table.item_of(&lease, request.parts);
            let seen = match self.put(item, condition).await? {
                Verdict::Applied => return Ok(Claim::Acquired(lease)),
                Verdict::Refused(seen) => seen,
            };
            let next = match seen {
                Some(item) => self.judge(&item, request).await?,
                None => {
                    // It went away meanwhile, or this DynamoDB does not tell.
                    match self.read(request.key).await? {
                        Some(item) => self.judge(&item, request).await?,
                        None => {
                            let (lease, condition) = self.on_free_key(request)?;
                            Next::Take(lease, condition)
                        }
                    }
                }
            };
            match next {
                Next::Answer(claim) => return Ok(claim),
                Next::Take(next_lease, next_condition) => {
                    (lease, condition) = (next_lease, next_condition);
                }
            }
        }
        Err(StoreError::new(
            StoreErrorKind::Unavailable,
            format!("the record changed under each of {ROUNDS} tries to claim it"),
        ))
    }

    fn on_free_key(&self, request: &ClaimRequest<'_>) -> Result<(Lease, Expression), StoreError> {
        match lease_by(decide(None, request), request) {
            Some(lease) => Ok((lease, is_free(request.now))),
            None => Err(StoreError::new(
                StoreErrorKind::Unusable,
                "a claim on an absent record was not let through",
            )),
        }
    }

    /// Decides the claim by the item that kept it from being written.
    async fn judge(&self, item: &Item, request: &ClaimRequest<'_>) -> Result<Next, StoreError> {
        let found = match self.table.found(request.key, item) {
            Ok(found) => found,
            Err(unreadable) if unreadable.is_over(request.now) => {
                let (lease, _) = self.on_free_key(request)?;
                return Ok(Next::Take(lease, is_still_unreadable(&unreadable)));
            }
            Err(unreadable) => return Err(unreadable.into()),
        };
        let decision = decide(Some(found.held()), request);
        let claim = match (decision, found) {
            (Decision::Acquire { .. }, found) => {
                return self.take(decision, &found, request);
            }
            (Decision::Own, Found::InProgress(lease)) => Claim::Acquired(lease),
            (Decision::Replay, Found::Completed(answered)) => {
                Claim::Completed(self.completed(request.key, answered).await?)
            }
            (Decision::InProgress, Found::InProgress(lease)) => Claim::InProgress {
                started_at: lease.started_at,
                deadline: lease.deadline,
                waiter: None,
            },
            (Decision::Orphaned, _) => Claim::Orphaned,
            (Decision::Reused, _) => Claim::Reused,
            (Decision::Own | Decision::Replay | Decision::InProgress, _) => {
                return Err(StoreError::new(
                    StoreErrorKind::Unusable,
                    "a claim was decided by the wrong kind of record",
                ));
            }
        };
        Ok(Next::Answer(claim))
    }

    fn take(
        &self,
        decision: Decision,
        found: &Found,
        request: &ClaimRequest<'_>,
    ) -> Result<Next, StoreError> {
        let Some(lease) = lease_by(decision, request) else {
            return self
                .on_free_key(request)
                .map(|(lease, condition)| Next::Take(lease, condition));
        };
        let condition = match found {
            Found::InProgress(lease) => is_still(lease),
            Found::Completed(answered) => is_still_completed(answered.owner, answered.expires_at),
        };
        Ok(Next::Take(lease, condition))
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
