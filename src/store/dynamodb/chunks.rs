//! Answers that do not lie in the item of their record, so that a claim on it stays cheap.
//!
//! Each chunk has a partition key of its own, where the layout of the table allows it.
//! The chunks are written before the record says that they are there, under ids that no other
//! attempt and no other answer uses. Those of an attempt that never completed its record are
//! found by nobody, and go by the table's time to live.

use super::DynamoDbStore;
use super::payload::Head;
use super::table::{Attribute, Item};
use crate::format::digest::hex;
use crate::protocol::key::RecordKey;
use crate::protocol::record::Owner;

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
pub(super) const MOST_CHUNKS: usize = 1_024;

/// An answer in chunks, by its record, attempt and checksum.
pub(super) type ChunkedId = (RecordKey, Owner, u32);

impl DynamoDbStore {
    /// As much of an answer as fills the item of a chunk.
    pub(super) fn chunk_size(&self, key: &RecordKey, owner: Owner, head: Head) -> usize {
        let id = self.chunk_key(key, owner, head, MOST_CHUNKS - 1);
        let beside: usize = id
            .iter()
            .map(|(name, value)| name.len() + value.as_s().map_or(0, String::len))
            .sum();
        let names = [Attribute::Data, Attribute::Expiration].map(|name| self.name(name).len());
        CHUNK_ITEM - CHUNK_NUMBER - beside - names.iter().sum::<usize>()
    }

    pub(super) fn chunk_key(
        &self,
        key: &RecordKey,
        owner: Owner,
        head: Head,
        index: usize,
    ) -> Item {
        self.table.key_of(self.chunk_id(key, owner, head, index))
    }

    /// With the checksum, so that no second answer of an attempt touches the first one's.
    pub(super) fn chunk_id(
        &self,
        key: &RecordKey,
        owner: Owner,
        head: Head,
        index: usize,
    ) -> String {
        let record = self.table.id_of(key);
        let owner = hex(owner.as_bytes());
        format!("{record}#{owner}#{:08x}#{index}", head.checksum())
    }

    pub(super) fn chunk_in(&self, mut item: Item) -> Option<(String, Vec<u8>)> {
        let id = self.table.id_in(&item)?.to_owned();
        let data = item.remove(self.table.attribute(Attribute::Data))?;
        match data {
            aws_sdk_dynamodb::types::AttributeValue::B(data) => Some((id, data.into_inner())),
            _ => None,
        }
    }

    pub(super) fn name(&self, attribute: Attribute) -> String {
        self.table.attribute(attribute).to_owned()
    }
}
