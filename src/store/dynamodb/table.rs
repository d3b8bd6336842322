//! How a table is laid out: its name, its key, and the names of the attributes.

use std::borrow::Cow;
use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::digest::hex;
use crate::key::RecordKey;

pub(super) type Item = HashMap<String, AttributeValue>;

/// An attribute of an item, for those who [rename](super::DynamoDbStore::rename) it.
///
/// The first six are those of AWS Lambda Powertools, under its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Attribute {
    /// `id` (S): the partition key.
    Id,
    /// `expiration` (N): when the table's time to live may delete the item, in seconds since the
    /// Unix epoch, rounded up.
    Expiration,
    /// `in_progress_expiration` (N): when the lease lapses, in milliseconds since the Unix
    /// epoch, rounded up. For people and for Powertools; this crate goes by
    /// [`Deadline`](Self::Deadline).
    InProgressExpiration,
    /// `status` (S): `INPROGRESS` or `COMPLETED`.
    Status,
    /// `data` (B): the answer.
    Data,
    /// `validation` (B): the digests of caller and request, and the recipe that made them.
    Validation,
    /// `attempt` (N): which attempt at the key it is.
    Attempt,
    /// `chunks` (N): how many further items hold the answer, if it does not fit into this one.
    Chunks,
    /// `created_at` (N): when the key was first claimed, in microseconds since the Unix epoch.
    CreatedAt,
    /// `deadline` (N): when the lease lapses, in microseconds since the Unix epoch.
    Deadline,
    /// `expires_at` (N): when the record is forgotten, in microseconds since the Unix epoch.
    ExpiresAt,
    /// `first_status` (N): the HTTP status that left the outcome of an orphan unknown.
    FirstStatus,
    /// `format` (N): the version of the item's form.
    Format,
    /// `key_parts` (M): namespace, scope, method, target and key, for operators to read.
    KeyParts,
    /// `owner` (B): the random id of the attempt.
    Owner,
    /// `started_at` (N): when the attempt began, in microseconds since the Unix epoch.
    StartedAt,
    /// `token` (N): the fencing token.
    Token,
}

impl Attribute {
    pub(super) const ALL: [Self; 17] = [
        Self::Id,
        Self::Expiration,
        Self::InProgressExpiration,
        Self::Status,
        Self::Data,
        Self::Validation,
        Self::Attempt,
        Self::Chunks,
        Self::CreatedAt,
        Self::Deadline,
        Self::ExpiresAt,
        Self::FirstStatus,
        Self::Format,
        Self::KeyParts,
        Self::Owner,
        Self::StartedAt,
        Self::Token,
    ];

    /// Its name unless it is renamed.
    pub const fn default_name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Expiration => "expiration",
            Self::InProgressExpiration => "in_progress_expiration",
            Self::Status => "status",
            Self::Data => "data",
            Self::Validation => "validation",
            Self::Attempt => "attempt",
            Self::Chunks => "chunks",
            Self::CreatedAt => "created_at",
            Self::Deadline => "deadline",
            Self::ExpiresAt => "expires_at",
            Self::FirstStatus => "first_status",
            Self::Format => "format",
            Self::KeyParts => "key_parts",
            Self::Owner => "owner",
            Self::StartedAt => "started_at",
            Self::Token => "token",
        }
    }
}

/// Where the id of a record stands in the key of an item.
#[derive(Clone, Debug)]
pub(super) enum Layout {
    /// It is the partition key, and there is no sort key.
    Partition,
    /// It is the sort key, under a partition key that never changes.
    Sort {
        name: String,
        partition_value: String,
    },
    /// It is the partition key, and the sort key never changes.
    PartitionAndFixedSort { name: String, value: String },
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) layout: Layout,
    pub(super) prefix: String,
    names: [Cow<'static, str>; Attribute::ALL.len()],
}

impl Table {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            layout: Layout::Partition,
            prefix: String::new(),
            names: Attribute::ALL.map(|attribute| Cow::Borrowed(attribute.default_name())),
        }
    }

    pub(super) fn rename(&mut self, attribute: Attribute, name: String) {
        self.names[attribute as usize] = Cow::Owned(name);
    }

    pub(super) fn attribute(&self, attribute: Attribute) -> &str {
        &self.names[attribute as usize]
    }

    /// The name of the sort key, if the table has one.
    pub(super) fn sort_key(&self) -> Option<&str> {
        match &self.layout {
            Layout::Partition => None,
            Layout::Sort { name, .. } | Layout::PartitionAndFixedSort { name, .. } => Some(name),
        }
    }

    /// The id of a record: what its item, and in part its chunks, are found by.
    pub(super) fn id_of(&self, key: &RecordKey) -> String {
        format!("{}{}", self.prefix, hex(key.as_bytes()))
    }

    /// The key of the item with this id.
    pub(super) fn key_of(&self, id: String) -> Item {
        let partition_name = self.attribute(Attribute::Id).to_owned();
        let string = AttributeValue::S;
        match &self.layout {
            Layout::Partition => Item::from([(partition_name, string(id))]),
            Layout::Sort {
                name,
                partition_value,
            } => Item::from([
                (partition_name, string(partition_value.clone())),
                (name.clone(), string(id)),
            ]),
            Layout::PartitionAndFixedSort { name, value } => Item::from([
                (partition_name, string(id)),
                (name.clone(), string(value.clone())),
            ]),
        }
    }

    /// The key attributes of an item alone.
    pub(super) fn id_in<'a>(&self, item: &'a Item) -> Option<&'a str> {
        let name = match &self.layout {
            Layout::Sort { name, .. } => name,
            Layout::Partition | Layout::PartitionAndFixedSort { .. } => {
                self.attribute(Attribute::Id)
            }
        };
        item.get(name)?.as_s().ok().map(String::as_str)
    }

    /// A name that stands for more than one attribute.
    pub(super) fn ambiguous_name(&self) -> Option<&str> {
        let mut names: Vec<&str> = self.names.iter().map(|name| &**name).collect();
        names.extend(self.sort_key());
        names.sort_unstable();
        names
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| pair[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attribute_has_its_own_place_and_name() {
        for (index, attribute) in Attribute::ALL.into_iter().enumerate() {
            assert_eq!(attribute as usize, index);
        }
        assert_eq!(Table::new("t".to_owned()).ambiguous_name(), None);
    }

    #[test]
    fn a_name_given_twice_is_found() {
        let mut table = Table::new("t".to_owned());
        table.rename(Attribute::Owner, "status".to_owned());
        assert_eq!(table.ambiguous_name(), Some("status"));
        let mut table = Table::new("t".to_owned());
        table.layout = Layout::PartitionAndFixedSort {
            name: "token".to_owned(),
            value: "v".to_owned(),
        };
        assert_eq!(table.ambiguous_name(), Some("token"));
    }
}
