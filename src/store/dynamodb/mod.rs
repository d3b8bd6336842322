//! A store of record for a fleet, in a DynamoDB table.

mod admin;
mod calls;
mod chunks;
mod claim;
mod doubt;
#[cfg(feature = "aws-config")]
mod env;
mod error;
mod expression;
mod fenced;
mod item;
mod payload;
mod table;
mod trouble;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;

use self::item::Found;
use self::table::{Layout, Table};
use super::{Claim, Completion, Fenced, Release, Store};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::key::RecordKey;
use crate::record::{ClaimRequest, Lease, Record, has_lapsed};

pub use self::table::Attribute;
pub use self::trouble::TableError;

/// A store of record for a fleet, in a DynamoDB table. Clones share the client and the table.
#[derive(Clone)]
pub struct DynamoDbStore {
    client: Client,
    table: Arc<Table>,
}

impl DynamoDbStore {
    /// The largest answer that it keeps, in bytes: 32 MiB.
    pub const MAX_ANSWER: usize = 32 << 20;

    /// A store in the table named `table`, or with this ARN, whose partition key is the string
    /// `id` and which has no sort key.
    pub fn new(client: Client, table: impl Into<String>) -> Self {
        Self {
            client,
            table: Arc::new(Table::new(table.into())),
        }
    }

    /// Gives an attribute another name than its
    /// [default name](Attribute::default_name).
    #[must_use]
    pub fn rename(self, attribute: Attribute, name: impl Into<String>) -> Self {
        self.set(|table| table.rename(attribute, name.into()))
    }

    /// For a table with a sort key: the id of a record stands in the sort key `name`, and every
    /// record has the partition key `partition_value`, as Powertools does it.
    #[must_use]
    pub fn sort_key(self, name: impl Into<String>, partition_value: impl Into<String>) -> Self {
        self.set(|table| {
            table.layout = Layout::Sort {
                name: name.into(),
                partition_value: partition_value.into(),
            };
        })
    }

    /// For a table with a sort key: the id of a record stands in the partition key, and every
    /// record has the sort key `value` under `name`.
    #[must_use]
    pub fn fixed_sort_key(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set(|table| {
            table.layout = Layout::PartitionAndFixedSort {
                name: name.into(),
                value: value.into(),
            };
        })
    }

    /// Puts `prefix` before each id, such as `idempotency#`, to tell it from other items of a
    /// shared table.
    #[must_use]
    pub fn id_prefix(self, prefix: impl Into<String>) -> Self {
        self.set(|table| table.prefix = prefix.into())
    }

    /// Timeouts.
    pub fn timeouts() -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(1))
            .operation_attempt_timeout(Duration::from_millis(1_500))
            .operation_timeout(Duration::from_secs(4))
            .build()
    }

    /// Retries.
    pub fn retries() -> RetryConfig {
        RetryConfig::standard()
            .with_max_attempts(3)
            .with_initial_backoff(Duration::from_millis(50))
    }

    fn set(mut self, change: impl FnOnce(&mut Table)) -> Self {
        change(Arc::make_mut(&mut self.table));
        self
    }
}

impl fmt::Debug for DynamoDbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDbStore")
            .field("table", &self.table.name)
            .field("layout", &self.table.layout)
            .finish_non_exhaustive()
    }
}

impl Store for DynamoDbStore {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        self.claim_in_rounds(request).await
    }

    async fn renew(&self, lease: &Lease, deadline: Timestamp) -> Result<Fenced, StoreError> {
        self.move_deadline(lease, deadline).await
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<Fenced, StoreError> {
        self.record(lease, completion).await
    }

    async fn release(&self, lease: &Lease, release: Release) -> Result<Fenced, StoreError> {
        match release {
            Release::Free => self.free(lease).await,
            Release::Orphan => self.move_deadline(lease, Timestamp::EPOCH).await,
        }
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
        let Some(item) = self.read(key).await? else {
            return Ok(None);
        };
        match self.table.found(key, &item) {
            Ok(Found::InProgress(lease)) => {
                let forgotten = has_lapsed(&lease, now, Duration::ZERO) && lease.expires_at <= now;
                Ok((!forgotten).then_some(Record::InProgress(lease)))
            }
            Ok(Found::Completed(answered)) if answered.expires_at <= now => Ok(None),
            Ok(Found::Completed(answered)) => {
                let completed = self.completed(key, answered).await?;
                Ok(Some(Record::Completed(completed)))
            }
            Err(unreadable) if unreadable.is_over(now) => Ok(None),
            Err(unreadable) => Err(unreadable.into()),
        }
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.delete_any(key).await
    }
}
