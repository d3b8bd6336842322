//! Writes of an attempt that has to own its record still.

use tracing::warn;

use super::DynamoDbStore;
use super::calls::Verdict;
use super::chunks::CHUNK;
use super::expression::{is_held_by, is_held_no_longer_than, set_answer, set_orphan, set_times};
use super::item::{Found, binary};
use super::payload::{Encoded, HEAD_LENGTH};
use super::table::Item;
use crate::clock::Timestamp;
use crate::error::{StoreError, StoreErrorKind};
use crate::record::{Lease, Renewal};
use crate::store::{Completion, Fenced};

impl DynamoDbStore {
    /// Moves the deadline, unless it is later already.
    pub(super) async fn prolong(
        &self,
        lease: &Lease,
        renewal: Renewal,
    ) -> Result<Fenced, StoreError> {
        let update = set_times(renewal);
        let condition = is_held_no_longer_than(lease, renewal.deadline);
        match self.update(&lease.key, update, condition).await? {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => {
                let seen = self.refuser(&lease.key, seen).await?;
                if self.is_held(lease, seen.as_ref()) {
                    // A later renewal came first.
                    return Ok(Fenced::Applied);
                }
                self.lost(lease, seen).await
            }
        }
    }

    /// Leaves the record as an orphan.
    pub(super) async fn orphan(
        &self,
        lease: &Lease,
        expires_at: Timestamp,
        first_status: Option<u16>,
    ) -> Result<Fenced, StoreError> {
        let update = set_orphan(expires_at, first_status);
        match self.update(&lease.key, update, is_held_by(lease)).await? {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => {
                let seen = self.refuser(&lease.key, seen).await?;
                self.lost(lease, seen).await
            }
        }
    }

    pub(super) async fn record(
        &self,
        lease: &Lease,
        completion: &Completion,
    ) -> Result<Fenced, StoreError> {
        let expires_at = completion.expires_at;
        let beside = self.table.bytes_beside_answer(&lease.key);
        let answer = Encoded::new(&completion.payload, beside)?;
        let update = if HEAD_LENGTH + answer.body.len() <= CHUNK {
            set_answer(binary(answer.inline()), 0, expires_at)
        } else {
            let Encoded { head, body } = &answer;
            let chunks = self
                .write_chunks(&lease.key, lease.owner, *head, body, expires_at)
                .await?;
            set_answer(binary(head.to_bytes()), chunks, expires_at)
        };
        match self.update(&lease.key, update, is_held_by(lease)).await? {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => {
                let seen = self.refuser(&lease.key, seen).await?;
                if self.is_repeat(lease, completion, seen.as_ref()) {
                    return Ok(Fenced::Applied);
                }
                self.lost(lease, seen).await
            }
        }
    }

    pub(super) async fn free(&self, lease: &Lease) -> Result<Fenced, StoreError> {
        match self.delete(&lease.key, is_held_by(lease)).await? {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => match self.refuser(&lease.key, seen).await? {
                // A key that is free already is as it was to be: this may repeat an own release.
                None => Ok(Fenced::Applied),
                seen => self.lost(lease, seen).await,
            },
        }
    }

    /// Whether the attempt still owns the record.
    fn is_held(&self, lease: &Lease, seen: Option<&Item>) -> bool {
        let found = seen.map(|item| self.table.found(&lease.key, item));
        matches!(found, Some(Ok(Found::InProgress(held))) if held.owner == lease.owner)
    }

    /// Whether the very answer was recorded by this attempt before.
    fn is_repeat(&self, lease: &Lease, completion: &Completion, seen: Option<&Item>) -> bool {
        let found = seen.map(|item| self.table.found(&lease.key, item));
        matches!(
            found,
            Some(Ok(Found::Completed(answered)))
                if answered.owner == lease.owner && answered.head.is_of(&completion.payload)
        )
    }

    /// What became of the record of an attempt that does not own it any more.
    async fn lost(&self, lease: &Lease, seen: Option<Item>) -> Result<Fenced, StoreError> {
        let found = seen.map(|item| self.table.found(&lease.key, &item));
        let answered = match found {
            Some(Ok(Found::Completed(answered))) if answered.identity == lease.identity => answered,
            _ => return Ok(Fenced::LeaseLost(None)),
        };
        match self.completed(&lease.key, answered).await {
            Ok(completed) => Ok(Fenced::LeaseLost(Some(completed))),
            Err(error) if error.kind() == StoreErrorKind::Damaged => {
                // The lease is lost either way, and the answer will not become whole.
                warn!(record = %lease.key, %error, "the answer recorded in a run's place is damaged");
                Ok(Fenced::LeaseLost(None))
            }
            Err(error) => Err(error),
        }
    }
}
