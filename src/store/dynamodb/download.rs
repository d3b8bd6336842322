//! Reads an answer back, from its record or from its chunks.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use aws_sdk_dynamodb::config::Config;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::types::KeysAndAttributes;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::DynamoDbStore;
use super::chunks::{ChunkedId, MOST_CHUNKS};
use super::error::damaged;
use super::item::{Answered, Body};
use super::pace::jittered;
use super::payload::Head;
use super::table::Item;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::RecordKey;
use crate::protocol::record::{Completed, Owner};
use crate::runtime::{self, sleep};

/// How many items DynamoDB reads in one call.
const MOST_KEYS: usize = 100;
/// How long chunks are asked for that are throttled, left out or out of reach: less than the layer
/// waits for a store.
const PATIENCE: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The answers in chunks that are being read, so that duplicates that come at the same time read
/// them once.
#[derive(Debug, Default)]
pub(super) struct Downloads(std::sync::Mutex<HashMap<ChunkedId, Weak<OnceCell<Bytes>>>>);

impl Downloads {
    /// Returns the download of an answer, which begins with the first call. It is forgotten when nobody
    /// waits for it any more.
    fn of(&self, id: ChunkedId) -> Arc<OnceCell<Bytes>> {
        let mut downloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = downloads.get(&id).and_then(Weak::upgrade) {
            return known;
        }
        downloads.retain(|_, download| download.strong_count() > 0);
        let download = Arc::default();
        downloads.insert(id, Arc::downgrade(&download));
        download
    }
}

impl DynamoDbStore {
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
            extras,
            head,
            body,
        } = answered;
        let body = match body {
            Body::Inline(body) => body.into(),
            Body::Chunked { chunks } => {
                let download = self.downloads.of((*key, owner, head.checksum()));
                let read = || self.read_chunks(key, owner, head, chunks);
                // If that read fails or is dropped, the next duplicate reads.
                download.get_or_try_init(read).await?.clone()
            }
        };
        Ok(Completed {
            identity,
            payload: head.decode(body)?,
            created_at,
            expires_at,
            extras,
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
    /// time, and with less or nothing under load; the rest is asked for again.
    pub(super) async fn read_all(
        &self,
        keys: Vec<Item>,
        is_consistent: bool,
    ) -> Result<Vec<Item>, StoreError> {
        let gives_up = runtime::now() + PATIENCE;
        let mut found = Vec::with_capacity(keys.len());
        let mut wanted = keys;
        let mut pause = FIRST_PAUSE;
        loop {
            let asked = wanted.len();
            let failed = match self.read_some(&wanted, is_consistent).await {
                Ok((items, rest)) => {
                    found.extend(items);
                    wanted = rest;
                    None
                }
                Err(error) if error.kind() == StoreErrorKind::Unavailable => Some(error),
                Err(error) => return Err(error),
            };
            if wanted.is_empty() {
                return Ok(found);
            }
            if runtime::now() >= gives_up {
                return Err(failed.unwrap_or_else(left_out));
            }
            if wanted.len() == asked {
                sleep(jittered(pause)).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    async fn read_some(
        &self,
        keys: &[Item],
        is_consistent: bool,
    ) -> Result<(Vec<Item>, Vec<Item>), StoreError> {
        let wanted = KeysAndAttributes::builder()
            .set_keys(Some(keys.to_vec()))
            .consistent_read(is_consistent)
            .build()
            .map_err(|error| {
                let message = "a read of the parts of an answer could not be put together";
                StoreError::new(StoreErrorKind::Unusable, message).with_source(error)
            })?;
        // The retries of the SDK would come on top, and share a quota with the claims.
        let once = Config::builder().retry_config(RetryConfig::disabled());
        let output = self
            .client
            .batch_get_item()
            .request_items(&self.table.name, wanted)
            .customize()
            .config_override(once)
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
}

fn left_out() -> StoreError {
    StoreError::new(
        StoreErrorKind::Unavailable,
        format!("DynamoDB did not hand out all parts of an answer in {PATIENCE:?}"),
    )
}
