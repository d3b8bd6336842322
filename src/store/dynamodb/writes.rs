//! Writes of an attempt that has to own its record still.

use std::time::Duration;

use tracing::warn;

use super::DynamoDbStore;
use super::calls::Verdict;
use super::expression::{is_held_by, is_held_no_longer_than, set_answer, set_orphan, set_times};
use super::item::{Found, binary};
use super::payload::Encoded;
use super::table::Item;
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::record::{Holder, Renewal};
use crate::store::{Completion, Fenced};

impl DynamoDbStore {
    /// Moves the deadline, unless it is later already.
    pub(super) async fn prolong(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let deadline = renewal.deadline(now);
        let update = || set_times(deadline, renewal.expires_at(now));
        let condition = || is_held_no_longer_than(holder, deadline);
        match self.update(&holder.key, update, condition).await? {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => {
                let seen = self.refuser(&holder.key, seen).await?;
                if self.is_held(holder, seen.as_ref()) {
                    // A later renewal came first.
                    return Ok(Fenced::Applied);
                }
                self.lost(holder, seen, now).await
            }
        }
    }

    /// Leaves the record as an orphan.
    pub(super) async fn orphan(
        &self,
        holder: &Holder,
        retention: Duration,
        first_status: Option<u16>,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let update = || set_orphan(now.plus(retention), first_status);
        let condition = || is_held_by(holder);
        match self.update(&holder.key, update, condition).await? {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => {
                let seen = self.refuser(&holder.key, seen).await?;
                self.lost(holder, seen, now).await
            }
        }
    }

    pub(super) async fn record(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let expires_at = now.plus(completion.retention);
        let beside = self.table.bytes_beside_answer(&holder.key);
        let answer = Encoded::new(&completion.payload, beside, self.most_inline)?;
        let chunks = if answer.is_inline(self.most_inline) {
            0
        } else {
            let Encoded { head, body } = &answer;
            self.write_chunks(&holder.key, holder.owner, *head, body, expires_at)
                .await?
        };
        let update = || {
            let data = match chunks {
                0 => binary(answer.inline()),
                _ => binary(answer.head.to_bytes()),
            };
            set_answer(data, chunks, expires_at)
        };
        let condition = || is_held_by(holder);
        let verdict = self.update(&holder.key, update, condition).await?;
        self.end_upload(&holder.key, holder.owner, answer.head);
        match verdict {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => {
                let seen = self.refuser(&holder.key, seen).await?;
                if self.is_repeat(holder, completion, seen.as_ref()) {
                    return Ok(Fenced::Applied);
                }
                self.lost(holder, seen, now).await
            }
        }
    }

    pub(super) async fn free(&self, holder: &Holder, now: Timestamp) -> Result<Fenced, StoreError> {
        match self.delete(&holder.key, || is_held_by(holder)).await? {
            Verdict::Applied => Ok(Fenced::Applied),
            Verdict::Refused(seen) => match self.refuser(&holder.key, seen).await? {
                // A key that is free already is as it was to be: this may repeat an own release.
                None => Ok(Fenced::Applied),
                seen => self.lost(holder, seen, now).await,
            },
        }
    }

    /// Whether the attempt still owns the record.
    fn is_held(&self, holder: &Holder, seen: Option<&Item>) -> bool {
        let found = seen.map(|item| self.table.found(&holder.key, item));
        matches!(found, Some(Ok(Found::InProgress(held))) if held.owner == holder.owner)
    }

    /// Whether the very answer was recorded by this attempt before.
    fn is_repeat(&self, holder: &Holder, completion: &Completion, seen: Option<&Item>) -> bool {
        let found = seen.map(|item| self.table.found(&holder.key, item));
        matches!(
            found,
            Some(Ok(Found::Completed(answered)))
                if answered.owner == holder.owner && answered.head.is_of(&completion.payload)
        )
    }

    /// What became of the record of an attempt that does not own it any more.
    async fn lost(
        &self,
        holder: &Holder,
        seen: Option<Item>,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let found = seen.map(|item| self.table.found(&holder.key, &item));
        let answered = match found {
            Some(Ok(Found::Completed(answered))) if answered.identity == holder.identity => {
                answered
            }
            _ => return Ok(Fenced::LeaseLost(None)),
        };
        match self.completed(&holder.key, answered).await {
            Ok(completed) => Ok(Fenced::LeaseLost(Some(completed.seen_at(now)))),
            Err(error) if error.kind() == StoreErrorKind::Damaged => {
                // The lease is lost either way, and the answer will not become whole.
                warn!(record = %holder.key, %error, "the answer recorded in a run's place is damaged");
                Ok(Fenced::LeaseLost(None))
            }
            Err(error) => Err(error),
        }
    }
}
