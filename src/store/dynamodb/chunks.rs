//! Answers that do not lie in the item of their record, so that a claim on it stays cheap.
//!
//! Each chunk has a partition key of its own, where the layout of the table allows it.
//! The chunks are written before the record says that they are there, under ids that no other
//! attempt and no other answer uses. Those of an attempt that never completed its record are
//! found by nobody, and go by the table's time to live.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::config::Config;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::types::KeysAndAttributes;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::DynamoDbStore;
use super::error::damaged;
use super::item::{Answered, Body, binary, time_to_live};
use super::pace::is_throttled;
use super::payload::Head;
use super::table::{Attribute, Item};
use crate::clock::Timestamp;
use crate::digest::hex;
use crate::error::{StoreError, StoreErrorKind};
use crate::key::RecordKey;
use crate::record::{Completed, Owner};

/// DynamoDB's limit for an item, its names included.
const ITEM_LIMIT: usize = 409_600;
/// What is left of it for whatever stands beside an answer: the longest keys that DynamoDB allows,
/// and names as people choose them, do not need more.
const RESERVED: usize = 9_600;
/// The largest answer that an item has room for, with its head.
pub(super) const MOST_INLINE: usize = ITEM_LIMIT - RESERVED;
/// As much of an answer as stays in its record's item unless set otherwise, with its head.
pub(super) const INLINE: usize = 4 * 1_024;
/// The size of the item of a chunk: a whole number of write units and of read units, and small
/// enough that one of them holds nobody up for long.
const CHUNK_ITEM: usize = 64 * 1_024;
/// What an item of a chunk takes beside its key and names, in bytes: a number of 10 digits.
const CHUNK_NUMBER: usize = 6;
/// More than the largest answer takes, with the longest keys.
const MOST_CHUNKS: usize = 1_024;
/// How many chunks of one answer wait for their turn or are on their way at a time.
const AT_ONCE: usize = 8;
/// How much longer than its record a chunk is kept, so that no clock sees the one without the
/// other.
const LINGER: Duration = Duration::from_secs(60 * 60);
/// How often the rest is asked for that an answer left out, and how long before the first time.
const ROUNDS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const MOST_KEYS: usize = 100;

/// How long a chunk is tried while it is throttled.
const CHUNK_PATIENCE: Duration = Duration::from_secs(30);
/// How long it is remembered which chunks are written of an answer that nobody goes on with.
const UPLOAD_KEPT: Duration = Duration::from_secs(15 * 60);

/// An answer, by its record, attempt and checksum.
type UploadId = (RecordKey, Owner, u32);

/// Which chunks are written of the answers that are not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Uploads(std::sync::Mutex<HashMap<UploadId, Arc<Upload>>>);

#[derive(Debug)]
struct Upload {
    /// Each is locked while its chunk is on its way.
    is_written: Vec<tokio::sync::Mutex<bool>>,
    expires_at: Timestamp,
    began: Instant,
}

impl Uploads {
    /// The upload of an answer, or the beginning of one. Chunks that would go before their record
    /// are written again.
    fn of(&self, id: UploadId, count: usize, expires_at: Timestamp) -> Arc<Upload> {
        let mut uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.retain(|_, upload| upload.began.elapsed() < UPLOAD_KEPT);
        let known = uploads
            .get(&id)
            .filter(|known| known.is_written.len() == count)
            .filter(|known| known.expires_at.plus(LINGER / 2) >= expires_at);
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let upload = Arc::new(Upload {
            is_written: (0..count).map(|_| tokio::sync::Mutex::default()).collect(),
            expires_at,
            began: Instant::now(),
        });
        uploads.insert(id, Arc::clone(&upload));
        upload
    }

    fn end(&self, id: &UploadId) {
        let mut uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.remove(id);
    }
}

/// Chunks on their way, which arrive also when nobody waits for them any more.
struct Detached(JoinSet<Result<(), StoreError>>);

impl Drop for Detached {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

impl DynamoDbStore {
    /// Writes `body` in chunks, and says how many they are.
    pub(super) async fn write_chunks(
        &self,
        key: &RecordKey,
        owner: Owner,
        head: Head,
        body: &Bytes,
        expires_at: Timestamp,
    ) -> Result<usize, StoreError> {
        let size = self.chunk_size(key, owner, head);
        let count = body.len().div_ceil(size);
        let chunk = |index: usize| {
            let mut item = self.chunk_key(key, owner, head, index);
            let end = body.len().min((index + 1) * size);
            let data = body.slice(index * size..end);
            item.extend([
                (self.name(Attribute::Data), binary(data)),
                (
                    self.name(Attribute::Expiration),
                    time_to_live(expires_at.plus(LINGER)),
                ),
            ]);
            item
        };
        let upload = self
            .uploads
            .of((*key, owner, head.checksum()), count, expires_at);
        let mut writing = Detached(JoinSet::new());
        let mut next = 0..count;
        loop {
            while writing.0.len() < AT_ONCE
                && let Some(index) = next.next()
            {
                let item = chunk(index);
                writing
                    .0
                    .spawn(self.clone().write_chunk(Arc::clone(&upload), index, item));
            }
            let Some(written) = writing.0.join_next().await else {
                break;
            };
            written.map_err(|error| {
                let message = "a task that wrote a part of an answer did not end";
                StoreError::new(StoreErrorKind::Unavailable, message).with_source(error)
            })??;
        }
        Ok(count)
    }

    /// As much of an answer as fills the item of a chunk.
    fn chunk_size(&self, key: &RecordKey, owner: Owner, head: Head) -> usize {
        let id = self.chunk_key(key, owner, head, MOST_CHUNKS - 1);
        let beside: usize = id
            .iter()
            .map(|(name, value)| name.len() + value.as_s().map_or(0, String::len))
            .sum();
        let names = [Attribute::Data, Attribute::Expiration].map(|name| self.name(name).len());
        CHUNK_ITEM - CHUNK_NUMBER - beside - names.iter().sum::<usize>()
    }

    /// Whatever fails, the record is not completed by it.
    async fn write_chunk(
        self,
        upload: Arc<Upload>,
        index: usize,
        item: Item,
    ) -> Result<(), StoreError> {
        let mut is_written = upload.is_written[index].lock().await;
        if *is_written {
            return Ok(());
        }
        let gives_up = Instant::now() + CHUNK_PATIENCE;
        let call = self.client.put_item().table_name(&self.table.name);
        let call = call.set_item(Some(item));
        loop {
            // The retries of the SDK would come on top, and not know of each other.
            let once = Config::builder().retry_config(RetryConfig::disabled());
            let turn = self.pace.turn().await;
            let sent = call.clone().customize().config_override(once).send().await;
            match sent {
                Ok(_) => {
                    turn.succeeded();
                    *is_written = true;
                    return Ok(());
                }
                Err(error) if is_throttled(&error) && Instant::now() < gives_up => turn.throttled(),
                Err(error) => return Err(self.call("PutItem").failed(error)),
            }
        }
    }

    /// Forgets which chunks of an answer are written: its record names them, or never will.
    pub(super) fn end_upload(&self, key: &RecordKey, owner: Owner, head: Head) {
        self.uploads.end(&(*key, owner, head.checksum()));
    }

    /// The record with its answer, whole.
    pub(super) async fn completed(
        &self,
        key: &RecordKey,
        answered: Answered,
    ) -> Result<Completed, StoreError> {
        let Answered {
            owner,
            identity,
            created_at,
            expires_at,
            head,
            body,
        } = answered;
        let body = match body {
            Body::Inline(body) => body.into(),
            Body::Chunked { chunks } => self.read_chunks(key, owner, head, chunks).await?,
        };
        Ok(Completed {
            identity,
            payload: head.decode(body)?,
            created_at,
            expires_at,
        })
    }

    async fn read_chunks(
        &self,
        key: &RecordKey,
        owner: Owner,
        head: Head,
        count: usize,
    ) -> Result<Bytes, StoreError> {
        if count > MOST_CHUNKS {
            return Err(damaged(format!(
                "the record {key} says that its answer has {count} parts, which cannot be"
            )));
        }
        // A chunk never changes, so any that is found is right. One that was written just now may
        // not be found by such a read, which costs half of one that sees every write.
        let mut chunks = HashMap::with_capacity(count);
        for is_consistent in [false, true] {
            let missing = (0..count).filter(|&index| {
                let id = self.chunk_id(key, owner, head, index);
                !chunks.contains_key(&id)
            });
            let keys = missing.map(|index| self.chunk_key(key, owner, head, index));
            let keys: Vec<_> = keys.collect();
            for keys in keys.chunks(MOST_KEYS) {
                for item in self.read_all(keys.to_vec(), is_consistent).await? {
                    if let Some((id, data)) = self.chunk_in(item) {
                        chunks.insert(id, data);
                    }
                }
            }
        }
        let mut body = Vec::with_capacity(chunks.values().map(Vec::len).sum());
        for index in 0..count {
            let id = self.chunk_id(key, owner, head, index);
            let data = chunks.remove(&id).ok_or_else(|| {
                let table = &self.table.name;
                damaged(format!(
                    "the item `{id}` of the DynamoDB table `{table}`, a part of an answer, is missing or damaged"
                ))
            })?;
            body.extend_from_slice(&data);
        }
        Ok(body.into())
    }

    /// The items of these keys, those that are there. DynamoDB answers with up to 16 MB at a
    /// time, and with less under load; the rest is asked for again.
    pub(super) async fn read_all(
        &self,
        keys: Vec<Item>,
        is_consistent: bool,
    ) -> Result<Vec<Item>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        let mut wanted = keys;
        let mut pause = FIRST_PAUSE;
        for _ in 0..ROUNDS {
            let asked = wanted.len();
            let (items, rest) = self.read_some(wanted, is_consistent).await?;
            found.extend(items);
            if rest.is_empty() {
                return Ok(found);
            }
            if rest.len() == asked {
                sleep(pause).await;
                pause *= 2;
            }
            wanted = rest;
        }
        Err(StoreError::new(
            StoreErrorKind::Unavailable,
            format!("DynamoDB did not hand out all parts of an answer in {ROUNDS} rounds"),
        ))
    }

    async fn read_some(
        &self,
        keys: Vec<Item>,
        is_consistent: bool,
    ) -> Result<(Vec<Item>, Vec<Item>), StoreError> {
        let wanted = KeysAndAttributes::builder()
            .set_keys(Some(keys))
            .consistent_read(is_consistent)
            .build()
            .map_err(|error| {
                let message = "a read of the parts of an answer could not be put together";
                StoreError::new(StoreErrorKind::Unusable, message).with_source(error)
            })?;
        let output = self
            .client
            .batch_get_item()
            .request_items(&self.table.name, wanted)
            .send()
            .await
            .map_err(|error| self.call("BatchGetItem").failed(error))?;
        // There is one table in either map, which may be named by its ARN.
        let items = output.responses.unwrap_or_default().into_values().flatten();
        let rest = output
            .unprocessed_keys
            .unwrap_or_default()
            .into_values()
            .flat_map(|unprocessed| unprocessed.keys);
        Ok((items.collect(), rest.collect()))
    }

    fn chunk_key(&self, key: &RecordKey, owner: Owner, head: Head, index: usize) -> Item {
        self.table.key_of(self.chunk_id(key, owner, head, index))
    }

    /// With the checksum, so that no second answer of an attempt touches the first one's.
    fn chunk_id(&self, key: &RecordKey, owner: Owner, head: Head, index: usize) -> String {
        let record = self.table.id_of(key);
        let owner = hex(owner.as_bytes());
        format!("{record}#{owner}#{:08x}#{index}", head.checksum())
    }

    fn chunk_in(&self, mut item: Item) -> Option<(String, Vec<u8>)> {
        let id = self.table.id_in(&item)?.to_owned();
        let data = item.remove(self.table.attribute(Attribute::Data))?;
        match data {
            aws_sdk_dynamodb::types::AttributeValue::B(data) => Some((id, data.into_inner())),
            _ => None,
        }
    }

    fn name(&self, attribute: Attribute) -> String {
        self.table.attribute(attribute).to_owned()
    }
}
