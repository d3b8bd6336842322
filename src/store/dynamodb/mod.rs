//! A store of record for a fleet, in a DynamoDB table.

mod admin;
mod ambiguity;
mod calls;
mod chunks;
mod claim;
mod download;
mod error;
mod expression;
#[cfg(feature = "aws-config")]
mod from_env;
mod item;
mod pace;
mod payload;
mod sweep;
mod table;
mod table_error;
mod upload;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;

use self::ambiguity::Watch;
use self::chunks::{INLINE, MOST_INLINE};
use self::download::Downloads;
use self::item::Found;
use self::pace::Pace;
use self::table::{Layout, Misfit, Table};
use self::upload::Uploads;
use super::{Claim, Completion, Fenced, Release, Store};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::RecordKey;
use crate::protocol::record::{ClaimRequest, Holder, Record, Renewal, Seen};

pub use self::table::Attribute;
pub use self::table_error::TableError;

/// A store of record for a fleet, in a DynamoDB table. Clones share the client and the table.
///
/// ```no_run
/// use tower_idempotency::IdempotencyLayer;
/// use tower_idempotency::store::DynamoDbStore;
///
/// # async fn start(config: &aws_sdk_dynamodb::Config) -> Result<(), Box<dyn std::error::Error>> {
/// let config = config
///     .to_builder()
///     .timeout_config(DynamoDbStore::timeouts())
///     .retry_config(DynamoDbStore::retries())
///     .build();
/// let client = aws_sdk_dynamodb::Client::from_conf(config);
///
/// let store = DynamoDbStore::new(client, "idempotency");
/// store.check().await?;
/// let layer: IdempotencyLayer<DynamoDbStore> = IdempotencyLayer::new(store);
/// # Ok(())
/// # }
/// ```
///
/// # Calls
///
/// A claim is one conditional write. If the condition does not hold, DynamoDB sends the record
/// that is there back with its refusal, and the claim is decided by that.
///
/// | event | calls | write units |
/// |---|---|---|
/// | first request | 2 | 1, and 1 for each KB of the record with its answer |
/// | replay, duplicate in flight, key reused | 1 | 1 for each KB of the record's item |
/// | orphan taken over | 2 | 2 |
/// | renewal, every third of the lease while a run lasts | 1 | 1 |
/// | release | 1 | 1 |
/// | answer in `n` chunks: completed | `n` + 2 in all | 2, and 1 for each KB of the answer |
/// | answer in chunks: replayed | 1, and 1 for each 100 chunks | 1; and 1 read unit for each 8 KB |
///
/// An answer of more than [4 KB](Self::max_inline_answer), after compression, lies in chunks of
/// 64 KB beside its record, so that a claim on the record costs the same however large the answer
/// is. Chunks never change: they are read without strong consistency, at half the price, and again
/// with it if one is not seen. All other reads are strongly consistent. Everything is decided by
/// the times that the callers hand in and by those in the records; DynamoDB's time to live only
/// clears away what has expired.
///
/// # What a million payments cost
///
/// A million of anything costs its write units × 0.625 USD and its read units × 0.125 USD: the
/// price of on-demand tables in `us-east-1`, by
/// <https://aws.amazon.com/dynamodb/pricing/on-demand/>, in force since November 2024. The units
/// are counted in `tests/dynamodb/calls.rs`.
///
/// | event | write units | read units | a million of them |
/// |---|---|---|---|
/// | first request, answer of 200 bytes | 2 | 0 | 1.25 USD |
/// | its replay by another process | 1 | 0 | 0.63 USD |
/// | first request, 10 KB of JSON | 4 | 0 | 2.50 USD |
/// | its replay by another process | 3 | 0 | 1.88 USD |
/// | first request, 100 KB that do not compress | 100 | 0 | 62.50 USD |
/// | its replay by another process | 1 | 13 | 2.25 USD |
/// | refused claim: in flight, or reused after 100 KB | 1 | 0 | 0.63 USD |
///
/// * The record without its answer takes some 300 to 400 bytes, so an answer of 200 bytes costs
///   1 + 1 = 2 units: 1,000,000 × 2 × 0.625 / 1,000,000 = **1.25 USD**.
/// * 10 KB of JSON are compressed to some 2.3 KB, which costs 1 + 3 = 4 units: **2.50 USD**.
/// * If 5 of 100 are sent twice, and the second one reaches another process, that is 50,000
///   refused claims more, at the size of their record: 0.03 USD for small answers, 0.09 USD for
///   those of 10 KB.
/// * Storage: a million payments in a month, kept for a day and deleted within two more, are
///   100,000 records at a time, or 0.3 GB of 3 KB each, at 0.25 USD for 1 GB: 0.08 USD. What time
///   to live deletes costs nothing.
///
/// Answers are compressed with zstd when that saves a write unit. The readable parts of the key
/// in the record are counted as 128 bytes there, because an attempt does not know them any more
/// when it completes.
///
/// # The table
///
/// The partition key is the string `id`, and time to live goes by `expiration`:
/// [`create_table`](Self::create_table) makes it, and [`check`](Self::check) says at start-up
/// what is wrong with the one that is there. [`Attribute`] lists the attributes. The default
/// names are those of AWS Lambda Powertools where there is one, so that a table which was made
/// for it serves; [`rename`](Self::rename), [`sort_key`](Self::sort_key) and
/// [`fixed_sort_key`](Self::fixed_sort_key) are for tables with other names and keys. The records
/// themselves are not those of Powertools: one that it wrote under the id of a key is
/// [`Damaged`](crate::StoreErrorKind::Damaged) until its `expiration`, and never counts as
/// absent.
///
/// Records are up to [`MAX_ANSWER`](Self::MAX_ANSWER) large. Chunks are written before the record
/// that names them; those of an attempt that did not come to its end are deleted by time to live.
/// So are the chunks of a record that was removed. Each chunk has a partition key of its own,
/// except where the ids are [sort keys](Self::sort_key) of one partition. Records of an earlier
/// version, whose items held up to 400,000 bytes of an answer, are read as before; so are those of
/// format 1, which had an attribute of its own for each part of [`Attribute::Claim`].
///
/// Do not put the table behind DAX, and in a global table send all requests with a key to one
/// region, unless the table is of multi-region strong consistency: elsewhere, DynamoDB does not
/// compare before it writes. A table of that consistency has no time to live:
/// [`sweep`](Self::sweep) deletes what has expired there.
///
/// # Permissions
///
/// ```json
/// {
///   "Version": "2012-10-17",
///   "Statement": [{
///     "Effect": "Allow",
///     "Action": [
///       "dynamodb:BatchGetItem",
///       "dynamodb:DeleteItem",
///       "dynamodb:DescribeTable",
///       "dynamodb:DescribeTimeToLive",
///       "dynamodb:GetItem",
///       "dynamodb:PutItem",
///       "dynamodb:UpdateItem"
///     ],
///     "Resource": "arn:aws:dynamodb:REGION:ACCOUNT:table/idempotency"
///   }]
/// }
/// ```
///
/// The two that describe are for [`check`](Self::check) alone;
/// [`create_table`](Self::create_table) needs `dynamodb:CreateTable` and
/// `dynamodb:UpdateTimeToLive` as well, and [`sweep`](Self::sweep) `dynamodb:Scan`.
///
/// # Errors
///
/// Whatever may pass is [`Unavailable`](crate::StoreErrorKind::Unavailable): no connection, no
/// answer, throttling, credentials that cannot be had, have expired or were rotated. A table that
/// is missing, a permission that is missing, a request that is not valid and names or ids that do
/// not fit are [`Unusable`](crate::StoreErrorKind::Unusable); an item that cannot be read,
/// and a chunk that is missing or changed, are [`Damaged`](crate::StoreErrorKind::Damaged).
/// [`may_have_been_applied`](StoreError::may_have_been_applied) looks at each try that the SDK
/// made, not only at the last one. The SDK's error is the source.
///
/// # Throttling
///
/// Claims and ends of attempts go first: one that is throttled after the SDK's own retries is tried
/// again for 3 s, and this process writes no chunk meanwhile. A chunk that is throttled is tried
/// again by itself for 30 s. One that was written is not written again when the completion is
/// made anew, and the number of chunks on their way follows what DynamoDB lets through. Chunks that
/// are throttled or left out of a batch are read again for 3 s; duplicates that come to one process
/// at the same time read them once. The tests in `tests/dynamodb/throttled.rs` run against limits
/// for each table and each partition; `docs/performance.md` has the figures.
///
/// A try that repeats one whose answer was lost finds its own record, and gives what the first one
/// would have given.
///
/// # Rust
///
/// The newest AWS crates need Rust 1.94.1. With an older one, from 1.88 on, let Cargo choose
/// those that fit, as it does where `rust-version` is set and the edition is 2024.
#[derive(Clone)]
pub struct DynamoDbStore {
    client: Client,
    table: Arc<Table>,
    /// Why no call can succeed, if none can.
    misfit: Option<Misfit>,
    most_inline: usize,
    pace: Arc<Pace>,
    uploads: Arc<Uploads>,
    downloads: Arc<Downloads>,
}

impl DynamoDbStore {
    /// The largest answer that it keeps, in bytes: 32 MiB.
    pub const MAX_ANSWER: usize = 32 << 20;

    /// A store in the table named `table`, or with this ARN, whose partition key is the string
    /// `id` and which has no sort key.
    ///
    /// It calls through a client of its own with the configuration of `client`. The two share
    /// connections and credentials where that configuration has an HTTP client and an identity
    /// cache.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "clients are cheap to clone, and handed over by value as elsewhere"
    )]
    pub fn new(client: Client, table: impl Into<String>) -> Self {
        let table = Table::new(table.into());
        Self {
            client: Watch::over(&client),
            misfit: table.misfit(),
            most_inline: INLINE,
            pace: Arc::default(),
            uploads: Arc::default(),
            downloads: Arc::default(),
            table: Arc::new(table),
        }
    }

    /// Gives an attribute another name than its [default name](Attribute::default_name), of up to
    /// 255 bytes. All processes have to agree on the names, from the first record on. While two
    /// attributes have one name, the sort key's included, every call is refused as
    /// [`Unusable`](crate::StoreErrorKind::Unusable).
    #[must_use]
    pub fn rename(self, attribute: Attribute, name: impl Into<String>) -> Self {
        self.set(|table| table.rename(attribute, name.into()))
    }

    /// For a table with a sort key: the id of a record stands in the sort key `name`, and every
    /// record has the partition key `partition_value` (up to 2,048 bytes), as Powertools does it.
    ///
    /// All records then share one partition, which takes 1,000 write units a second at most:
    /// some 400 to 500 first requests. Where there may be more, prefer
    /// [`fixed_sort_key`](Self::fixed_sort_key).
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
    /// record has the sort key `value` (up to 1,024 bytes) under `name`. Records spread over all
    /// partitions.
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
    /// shared table. Up to 1,937 bytes; 913 where ids are [sort keys](Self::sort_key). With a
    /// longer one every call is refused as [`Unusable`](crate::StoreErrorKind::Unusable).
    #[must_use]
    pub fn id_prefix(self, prefix: impl Into<String>) -> Self {
        self.set(|table| table.prefix = prefix.into())
    }

    /// Says of a global table that all requests with a key go to one Region, so that
    /// [`check`](Self::check) lets it pass. Elsewhere, DynamoDB does not compare before it writes:
    /// two Regions that claim one key both get it. A table with multi-Region strong consistency
    /// does not need this.
    #[must_use]
    pub fn writes_in_one_region(self) -> Self {
        self.set(|table| table.one_region = true)
    }

    /// Sets how large an answer may be to lie in the item of its record, in bytes after
    /// compression; a larger one lies in items of its own. Default: 4 KB (4,096), at most 400,000.
    ///
    /// Every claim on a record, also one that is refused, is billed by the size of its item. So a
    /// larger value saves a read for each replay by another process, and makes each one dearer.
    /// Processes need not agree on it.
    #[must_use]
    pub fn max_inline_answer(mut self, bytes: usize) -> Self {
        self.most_inline = bytes.min(MOST_INLINE);
        self
    }

    /// Timeouts for the client: 1 s to connect, 1.5 s for a try, and 4 s for a call with all its
    /// tries, less than the layer waits for a store by default. The SDK has none of its own but
    /// for the first.
    pub fn timeouts() -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(1))
            .operation_attempt_timeout(Duration::from_millis(1_500))
            .operation_timeout(Duration::from_secs(4))
            .build()
    }

    /// Retries for the client: up to 3 tries in the SDK's standard mode, after pauses that are
    /// left to chance and grow from 50 ms, also when DynamoDB throttles.
    pub fn retries() -> RetryConfig {
        RetryConfig::standard()
            .with_max_attempts(3)
            .with_initial_backoff(Duration::from_millis(50))
    }

    fn set(mut self, change: impl FnOnce(&mut Table)) -> Self {
        let table = Arc::make_mut(&mut self.table);
        change(table);
        self.misfit = table.misfit();
        self
    }

    /// Refuses a call that cannot succeed before anything is sent.
    fn fits(&self) -> Result<(), StoreError> {
        match &self.misfit {
            None => Ok(()),
            Some(misfit) => Err(StoreError::new(
                StoreErrorKind::Unusable,
                format!("the DynamoDB store cannot work as it is set up: {misfit}"),
            )),
        }
    }

    /// The record of a key as it counts at `now`.
    async fn look(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        let Some(item) = self.read(key).await? else {
            return Ok(None);
        };
        let record = match self.table.found(key, &item) {
            Ok(Found::InProgress(lease)) => Record::InProgress(lease),
            Ok(Found::Completed(answered)) if answered.expires_at <= now => return Ok(None),
            Ok(Found::Completed(answered)) => {
                Record::Completed(self.completed(key, answered).await?)
            }
            Err(unreadable) if unreadable.is_over(now) => return Ok(None),
            Err(unreadable) => return Err(unreadable.into()),
        };
        Ok(record.seen_at(now))
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

/// The futures of the SDK are large. They are boxed here, so that what waits for a store is small
/// where it is seldom asked, as behind a near tier.
impl Store for DynamoDbStore {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        self.fits()?;
        Box::pin(self.claim_in_rounds(request)).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.fits()?;
        Box::pin(self.prolong(holder, renewal, now)).await
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.fits()?;
        Box::pin(self.record(holder, completion, now)).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.fits()?;
        match release {
            Release::Free => Box::pin(self.free(holder, now)).await,
            Release::Orphan {
                retention,
                first_status,
            } => Box::pin(self.orphan(holder, retention, first_status, now)).await,
        }
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        self.fits()?;
        Box::pin(self.look(key, now)).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.fits()?;
        Box::pin(self.delete_any(key)).await
    }

    fn is_shared(&self) -> bool {
        true
    }
}
