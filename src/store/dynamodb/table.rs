//! How a table is laid out: its name, its key, and the names of the attributes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::format::digest::hex;
use crate::protocol::key::RecordKey;

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
    /// Unix epoch: an hour after the record has expired, so that it outlasts every clock that is
    /// behind.
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
    /// `attempt` (N): which attempt at the key it is. In items of format 1 alone.
    Attempt,
    /// `chunks` (N): how many further items hold the answer, if this one does not.
    Chunks,
    /// `claim` (B): what a claim writes and nothing else changes, in 28 bytes: fencing token
    /// (8 bytes), which attempt at the key it is (4), when the key was first claimed (8) and when
    /// the attempt began (8). Numbers are big-endian, times microseconds since the Unix epoch.
    Claim,
    /// `created_at` (N): when the key was first claimed, in microseconds since the Unix epoch. In
    /// items of format 1 alone.
    CreatedAt,
    /// `deadline` (N): when the lease lapses, in microseconds since the Unix epoch.
    Deadline,
    /// `expires_at` (N): when the record is forgotten, in microseconds since the Unix epoch.
    ExpiresAt,
    /// `extras` (B): what else is known of the attempt, such as its trace, as
    /// [`Extras::as_bytes`](crate::protocol::record::Extras::as_bytes) has it. Only where there is
    /// anything.
    Extras,
    /// `first_status` (N): the HTTP status that left the outcome of an orphan unknown.
    FirstStatus,
    /// `format` (N): the version of the item's form. 2; items of format 1 are read as well.
    Format,
    /// `key_parts` (M): namespace, scope, method, target and key, for operators to read.
    KeyParts,
    /// `owner` (B): the random id of the attempt.
    Owner,
    /// `started_at` (N): when the attempt began, in microseconds since the Unix epoch. In items of
    /// format 1 alone.
    StartedAt,
    /// `token` (N): the fencing token. In items of format 1 alone.
    Token,
}

impl Attribute {
    pub(super) const ALL: [Self; 19] = [
        Self::Id,
        Self::Expiration,
        Self::InProgressExpiration,
        Self::Status,
        Self::Data,
        Self::Validation,
        Self::Attempt,
        Self::Chunks,
        Self::Claim,
        Self::CreatedAt,
        Self::Deadline,
        Self::ExpiresAt,
        Self::Extras,
        Self::FirstStatus,
        Self::Format,
        Self::KeyParts,
        Self::Owner,
        Self::StartedAt,
        Self::Token,
    ];

    /// Its name unless it is renamed.
    pub const fn default_name(self) -> &'static str {
        self.placeholder().split_at(1).1
    }

    /// What expressions call it, whatever its name: many names are reserved words.
    pub(super) const fn placeholder(self) -> &'static str {
        match self {
            Self::Id => "#id",
            Self::Expiration => "#expiration",
            Self::InProgressExpiration => "#in_progress_expiration",
            Self::Status => "#status",
            Self::Data => "#data",
            Self::Validation => "#validation",
            Self::Attempt => "#attempt",
            Self::Chunks => "#chunks",
            Self::Claim => "#claim",
            Self::CreatedAt => "#created_at",
            Self::Deadline => "#deadline",
            Self::ExpiresAt => "#expires_at",
            Self::Extras => "#extras",
            Self::FirstStatus => "#first_status",
            Self::Format => "#format",
            Self::KeyParts => "#key_parts",
            Self::Owner => "#owner",
            Self::StartedAt => "#started_at",
            Self::Token => "#token",
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

/// DynamoDB's limits, in bytes.
const LONGEST_NAME: usize = 255;
const LONGEST_PARTITION_KEY: usize = 2_048;
const LONGEST_SORT_KEY: usize = 1_024;
/// How long the id of a chunk is, without the prefix: the id of its record, `#`, its attempt in
/// 32 digits, `#`, a checksum in 8, `#`, and its number in up to 4.
const LONGEST_ID: usize = 64 + 33 + 9 + 5;

/// Why a layout cannot serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Two attributes have this name.
    Ambiguous(String),
    Empty(&'static str),
    TooLong {
        what: &'static str,
        length: usize,
        limit: usize,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambiguous(name) => write!(
                f,
                "two attributes are named `{name}`; rename one of them with `DynamoDbStore::rename`"
            ),
            Self::Empty(what) => write!(f, "{what} is empty"),
            Self::TooLong {
                what,
                length,
                limit,
            } => write!(
                f,
                "{what} takes {length} bytes, and DynamoDB allows for {limit}"
            ),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) layout: Layout,
    pub(super) prefix: String,
    /// All that write to a key are in one Region.
    pub(super) one_region: bool,
    names: [Cow<'static, str>; Attribute::ALL.len()],
}

impl Table {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            layout: Layout::Partition,
            prefix: String::new(),
            one_region: false,
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

    /// Why it cannot serve, if it cannot, as far as that shows without asking DynamoDB.
    pub(super) fn misfit(&self) -> Option<Misfit> {
        if let Some(name) = self.ambiguous_name() {
            return Some(Misfit::Ambiguous(name.to_owned()));
        }
        let names = self.names.iter().map(|name| name.len());
        let id = self.prefix.len() + LONGEST_ID;
        let mut lengths = vec![("the name of the table", self.name.len(), usize::MAX)];
        lengths.extend(names.map(|length| ("the name of an attribute", length, LONGEST_NAME)));
        lengths.extend(match &self.layout {
            Layout::Partition => vec![("an id with its prefix", id, LONGEST_PARTITION_KEY)],
            Layout::Sort {
                name,
                partition_value,
            } => vec![
                ("the name of the sort key", name.len(), LONGEST_NAME),
                ("an id with its prefix", id, LONGEST_SORT_KEY),
                (
                    "the value of the partition key",
                    partition_value.len(),
                    LONGEST_PARTITION_KEY,
                ),
            ],
            Layout::PartitionAndFixedSort { name, value } => vec![
                ("the name of the sort key", name.len(), LONGEST_NAME),
                ("an id with its prefix", id, LONGEST_PARTITION_KEY),
                ("the value of the sort key", value.len(), LONGEST_SORT_KEY),
            ],
        });
        lengths.into_iter().find_map(|(what, length, limit)| {
            if length == 0 {
                return Some(Misfit::Empty(what));
            }
            (length > limit).then_some(Misfit::TooLong {
                what,
                length,
                limit,
            })
        })
    }

    /// A name that stands for more than one attribute.
    fn ambiguous_name(&self) -> Option<&str> {
        let mut names: Vec<&str> = self.names.iter().map(|name| &**name).collect();
        names.extend(self.sort_key());
        names.sort_unstable();
        names
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| pair[0])
    }

    /// Whether an item with this key is a record of this store, or a part of an answer.
    pub(super) fn is_own(&self, item: &Item) -> bool {
        let id = self
            .id_in(item)
            .and_then(|id| id.strip_prefix(&*self.prefix));
        let digits = id.and_then(|id| id.split('#').next());
        digits.is_some_and(|digits| {
            digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
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
        assert_eq!(Table::new("t".to_owned()).misfit(), None);
    }

    #[test]
    fn a_name_given_twice_is_found() {
        let mut table = Table::new("t".to_owned());
        table.rename(Attribute::Owner, "status".to_owned());
        assert_eq!(table.misfit(), Some(Misfit::Ambiguous("status".to_owned())));
        let mut table = Table::new("t".to_owned());
        table.layout = Layout::PartitionAndFixedSort {
            name: "token".to_owned(),
            value: "v".to_owned(),
        };
        assert_eq!(table.misfit(), Some(Misfit::Ambiguous("token".to_owned())));
    }

    #[test]
    fn the_longest_id_is_that_of_a_chunk() {
        let digits = |count| "f".repeat(count);
        let id = format!("{}#{}#{}#1023", digits(64), digits(32), digits(8));
        assert_eq!(id.len(), LONGEST_ID);
        for (prefix, fits) in [(2_048 - LONGEST_ID, true), (2_049 - LONGEST_ID, false)] {
            let mut table = Table::new("t".to_owned());
            table.prefix = "p".repeat(prefix);
            assert_eq!(table.misfit().is_none(), fits);
        }
    }

    #[test]
    fn what_belongs_to_others_is_not_its_own() {
        let mut table = Table::new("t".to_owned());
        table.prefix = "idempotency#".to_owned();
        let digits = "0123456789abcdef".repeat(4);
        for (id, is_own) in [
            (format!("idempotency#{digits}"), true),
            (format!("idempotency#{digits}#00#1"), true),
            (digits.clone(), false),
            (format!("idempotency#{}", &digits[1..]), false),
            (format!("idempotency#{digits}0"), false),
            ("idempotency#order".to_owned(), false),
        ] {
            assert_eq!(table.is_own(&table.key_of(id.clone())), is_own, "{id}");
        }
    }
}
