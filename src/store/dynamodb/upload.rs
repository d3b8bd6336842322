//! Writes the chunks of an answer, each once.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::config::Config;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::DynamoDbStore;
use super::chunks::ChunkedId;
use super::item::{binary, time_to_live};
use super::pace::is_throttled;
use super::payload::Head;
use super::table::{Attribute, Item};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::RecordKey;
use crate::protocol::record::Owner;
use crate::runtime::{self, Instant};

/// How many chunks of one answer wait for their turn or are on their way at a time.
const AT_ONCE: usize = 8;
/// How much longer than its record a chunk is kept, so that no clock sees the one without the
/// other.
const LINGER: Duration = Duration::from_secs(60 * 60);
/// How long a chunk is tried while it is throttled.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is remembered which chunks are written of an answer that nobody goes on with.
const KEPT: Duration = Duration::from_secs(15 * 60);

/// Which chunks are written of the answers that are not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Uploads(std::sync::Mutex<HashMap<ChunkedId, Arc<Upload>>>);

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
    fn of(&self, id: ChunkedId, count: usize, expires_at: Timestamp) -> Arc<Upload> {
        let mut uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.retain(|_, upload| upload.began.elapsed() < KEPT);
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
            began: runtime::now(),
        });
        uploads.insert(id, Arc::clone(&upload));
        upload
    }

    fn end(&self, id: &ChunkedId) {
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
        let gives_up = runtime::now() + PATIENCE;
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
                Err(error) if is_throttled(&error) && runtime::now() < gives_up => turn.throttled(),
                Err(error) => return Err(self.call("PutItem").failed(error)),
            }
        }
    }

    /// Forgets which chunks of an answer are written: its record names them, or never will.
    pub(super) fn end_upload(&self, key: &RecordKey, owner: Owner, head: Head) {
        self.uploads.end(&(*key, owner, head.checksum()));
    }
}
