//! Records as items, and items as records.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use super::payload::{HEAD_LENGTH, Head};
use super::table::{Attribute, Item, Table};
// An item keeps its format until it is claimed anew.
pub(super) use crate::format::version::DYNAMODB_ITEM as FORMAT;
use crate::format::version::DYNAMODB_ITEM_BEFORE as FORMAT_BEFORE;
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::{KeyParts, RecordKey};
use crate::protocol::record::{Extras, FencingToken, Held, Identity, Lease, Owner};

pub(super) const IN_PROGRESS: &str = "INPROGRESS";
pub(super) const COMPLETED: &str = "COMPLETED";
/// How many attributes the item of a lease has, with a sort key.
const ATTRIBUTES: usize = 12;
/// The length of [`Attribute::Claim`].
const CLAIM_LENGTH: usize = 28;
/// What the readable parts of a key are counted as where they are not at hand, in bytes.
const KEY_PARTS: usize = 128;
/// As much of each as is kept, in bytes.
const LONGEST_KEY_PART: usize = 512;

/// A record as its item has it.
#[derive(Debug)]
pub(super) enum Found {
    InProgress(Lease),
    Completed(Answered),
}

/// A completed record whose answer is still in its stored form.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) owner: Owner,
    pub(super) identity: Identity,
    pub(super) created_at: Timestamp,
    pub(super) expires_at: Timestamp,
    pub(super) extras: Extras,
    pub(super) head: Head,
    pub(super) body: Body,
}

/// What comes after the head of an answer.
#[derive(Debug)]
pub(super) enum Body {
    Inline(Vec<u8>),
    Chunked { chunks: usize },
}

/// An item in the place of a record that is none of ours, or is damaged.
#[derive(Debug)]
pub(super) struct Unreadable {
    why: String,
    /// Whether a later version of this crate wrote it.
    is_newer: bool,
    pub(super) status: Option<AttributeValue>,
    pub(super) expiration: Option<AttributeValue>,
    pub(super) in_progress_expiration: Option<AttributeValue>,
}

impl Found {
    pub(super) fn held(&self) -> Held<'_> {
        match self {
            Self::InProgress(lease) => Held::InProgress(lease),
            Self::Completed(answered) => Held::Completed {
                identity: answered.identity,
                expires_at: answered.expires_at,
            },
        }
    }
}

impl Unreadable {
    /// Whether its own times say that it is over, in the units of Powertools. What a later version
    /// wrote is for that version to say.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        if self.is_newer {
            return false;
        }
        let number = |value: &Option<AttributeValue>| value.as_ref().and_then(as_u64);
        let Some(expiration) = number(&self.expiration) else {
            return false;
        };
        let lease = number(&self.in_progress_expiration).unwrap_or(0);
        Timestamp::from_micros(expiration.saturating_mul(1_000_000)) <= now
            && Timestamp::from_millis(lease) < now
    }
}

impl From<Box<Unreadable>> for StoreError {
    fn from(unreadable: Box<Unreadable>) -> Self {
        let kind = match unreadable.is_newer {
            true => StoreErrorKind::Newer,
            false => StoreErrorKind::Damaged,
        };
        Self::new(kind, unreadable.why)
    }
}

impl Table {
    /// The item of a lease.
    pub(super) fn item_of(&self, lease: &Lease, parts: &KeyParts<'_>) -> Item {
        let mut item = Item::with_capacity(ATTRIBUTES);
        item.extend(self.key_of(self.id_of(&lease.key)));
        let attributes = [
            (Attribute::Format, number(FORMAT)),
            (Attribute::Status, string(IN_PROGRESS)),
            (Attribute::Validation, binary(lease.identity.to_bytes())),
            (Attribute::Owner, binary(lease.owner.as_bytes())),
            (Attribute::Claim, binary(Claimed::by(lease).to_bytes())),
            (Attribute::Deadline, number(lease.deadline.as_micros())),
            (
                Attribute::InProgressExpiration,
                number(lease.deadline.as_micros().div_ceil(1_000)),
            ),
            (Attribute::ExpiresAt, number(lease.expires_at.as_micros())),
            (
                Attribute::Expiration,
                time_to_live(lease.expires_at.max(lease.deadline)),
            ),
            (Attribute::KeyParts, readable(parts)),
        ];
        item.extend(
            attributes.map(|(attribute, value)| (self.attribute(attribute).to_owned(), value)),
        );
        if !lease.extras.is_empty() {
            let name = self.attribute(Attribute::Extras).to_owned();
            item.insert(name, binary(lease.extras.as_bytes()));
        }
        item
    }

    /// What a completed item takes beside its answer, in bytes; see [`KEY_PARTS`].
    pub(super) fn bytes_beside_answer(&self, key: &RecordKey) -> usize {
        let names: usize = Attribute::ALL
            .into_iter()
            .filter(|attribute| {
                !matches!(
                    attribute,
                    Attribute::Deadline
                        | Attribute::InProgressExpiration
                        | Attribute::Chunks
                        | Attribute::Extras
                        | Attribute::FirstStatus
                        | Attribute::Attempt
                        | Attribute::CreatedAt
                        | Attribute::StartedAt
                        | Attribute::Token
                )
            })
            .map(|attribute| self.attribute(attribute).len())
            .sum();
        let keys: usize = self
            .key_of(self.id_of(key))
            .iter()
            .map(|(name, value)| name.len() + value.as_s().map_or(0, String::len))
            .sum();
        // In their order: identity, owner, claim, status, one number each of 10, of 16 and of one
        // digit, and the head of the answer.
        let values =
            Identity::LENGTH + 16 + CLAIM_LENGTH + COMPLETED.len() + 6 + 9 + 2 + HEAD_LENGTH;
        names - self.attribute(Attribute::Id).len() + keys + values + KEY_PARTS
    }

    /// Reads an item back.
    pub(super) fn found(&self, key: &RecordKey, item: &Item) -> Result<Found, Box<Unreadable>> {
        let reader = Reader { table: self, item };
        reader.read(key).map_err(|problem| {
            let attribute = |attribute| item.get(self.attribute(attribute)).cloned();
            Box::new(Unreadable {
                is_newer: reader.is_newer(),
                why: format!(
                    "the item `{}` of the DynamoDB table `{}` {problem}",
                    self.id_of(key),
                    self.name
                ),
                status: attribute(Attribute::Status),
                expiration: attribute(Attribute::Expiration),
                in_progress_expiration: attribute(Attribute::InProgressExpiration),
            })
        })
    }
}

/// Looks for the attributes of an item, and says what is wrong with them.
struct Reader<'a> {
    table: &'a Table,
    item: &'a Item,
}

impl Reader<'_> {
    fn read(&self, key: &RecordKey) -> Result<Found, String> {
        self.check_format()?;
        match self.text(Attribute::Status)? {
            IN_PROGRESS => self.lease(key).map(Found::InProgress),
            COMPLETED => self.answered().map(Found::Completed),
            other => Err(format!("has the status `{other}`, which is not known here")),
        }
    }

    fn is_newer(&self) -> bool {
        self.number(Attribute::Format)
            .is_ok_and(|format| format > FORMAT)
    }

    fn check_format(&self) -> Result<(), String> {
        let name = self.table.attribute(Attribute::Format);
        if !self.item.contains_key(name) {
            return Err(format!(
                "was not written by this store: it has no attribute `{name}`"
            ));
        }
        match self.number(Attribute::Format)? {
            FORMAT | FORMAT_BEFORE => Ok(()),
            other => Err(format!("is of format {other}, which is not known here")),
        }
    }

    fn lease(&self, key: &RecordKey) -> Result<Lease, String> {
        let claimed = self.claimed()?;
        Ok(Lease {
            key: *key,
            identity: self.identity()?,
            owner: self.owner()?,
            token: FencingToken::from_u64(claimed.token),
            attempt: claimed.attempt,
            created_at: claimed.created_at,
            started_at: claimed.started_at,
            deadline: self.time(Attribute::Deadline)?,
            expires_at: self.time(Attribute::ExpiresAt)?,
            first_status: self.first_status()?,
            extras: self.extras()?,
        })
    }

    fn first_status(&self) -> Result<Option<u16>, String> {
        let attribute = Attribute::FirstStatus;
        if !self.item.contains_key(self.table.attribute(attribute)) {
            return Ok(None);
        }
        let status = u16::try_from(self.number(attribute)?);
        status.map(Some).map_err(|_| self.no(attribute, "number"))
    }

    fn extras(&self) -> Result<Extras, String> {
        let attribute = Attribute::Extras;
        if !self.item.contains_key(self.table.attribute(attribute)) {
            return Ok(Extras::NONE);
        }
        let extras = Extras::from_bytes(self.bytes(attribute)?);
        extras.ok_or_else(|| self.no(attribute, "list of fields"))
    }

    fn answered(&self) -> Result<Answered, String> {
        let data = self.bytes(Attribute::Data)?;
        let (head, body) =
            Head::split(data).map_err(|problem| format!("has data that {problem}"))?;
        let body = if self
            .item
            .contains_key(self.table.attribute(Attribute::Chunks))
        {
            let chunks = self.number(Attribute::Chunks)?;
            let chunks =
                usize::try_from(chunks).map_err(|_| self.no(Attribute::Chunks, "number"))?;
            Body::Chunked { chunks }
        } else {
            Body::Inline(body.to_vec())
        };
        Ok(Answered {
            owner: self.owner()?,
            identity: self.identity()?,
            created_at: self.claimed()?.created_at,
            expires_at: self.time(Attribute::ExpiresAt)?,
            extras: self.extras()?,
            head,
            body,
        })
    }

    fn claimed(&self) -> Result<Claimed, String> {
        if self.number(Attribute::Format)? == FORMAT_BEFORE {
            let attempt = self.number(Attribute::Attempt)?;
            return Ok(Claimed {
                token: self.number(Attribute::Token)?,
                attempt: u32::try_from(attempt)
                    .map_err(|_| self.no(Attribute::Attempt, "number"))?,
                created_at: self.time(Attribute::CreatedAt)?,
                started_at: self.time(Attribute::StartedAt)?,
            });
        }
        let bytes = self.bytes(Attribute::Claim)?;
        Claimed::from_bytes(bytes).ok_or_else(|| self.no(Attribute::Claim, "28 bytes"))
    }

    fn owner(&self) -> Result<Owner, String> {
        let bytes = self.bytes(Attribute::Owner)?.try_into();
        let bytes = bytes.map_err(|_| self.no(Attribute::Owner, "16 bytes"))?;
        Ok(Owner::from_bytes(bytes))
    }

    fn identity(&self) -> Result<Identity, String> {
        let bytes = self.bytes(Attribute::Validation)?;
        Identity::from_bytes(bytes).ok_or_else(|| self.no(Attribute::Validation, "56 bytes"))
    }

    fn time(&self, attribute: Attribute) -> Result<Timestamp, String> {
        self.number(attribute).map(Timestamp::from_micros)
    }

    fn number(&self, attribute: Attribute) -> Result<u64, String> {
        as_u64(self.value(attribute)?).ok_or_else(|| self.no(attribute, "number"))
    }

    fn text(&self, attribute: Attribute) -> Result<&str, String> {
        let text = self.value(attribute)?.as_s();
        text.map(String::as_str)
            .map_err(|_| self.no(attribute, "string"))
    }

    fn bytes(&self, attribute: Attribute) -> Result<&[u8], String> {
        let bytes = self.value(attribute)?.as_b();
        bytes
            .map(Blob::as_ref)
            .map_err(|_| self.no(attribute, "binary"))
    }

    fn value(&self, attribute: Attribute) -> Result<&AttributeValue, String> {
        let name = self.table.attribute(attribute);
        let value = self.item.get(name);
        value.ok_or_else(|| format!("has no attribute `{name}`"))
    }

    fn no(&self, attribute: Attribute, what: &str) -> String {
        let name = self.table.attribute(attribute);
        format!("has an attribute `{name}` that is not a {what} as it should be")
    }
}

/// What a claim writes and nothing else changes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Claimed {
    token: u64,
    attempt: u32,
    created_at: Timestamp,
    started_at: Timestamp,
}

impl Claimed {
    fn by(lease: &Lease) -> Self {
        Self {
            token: lease.token.as_u64(),
            attempt: lease.attempt,
            created_at: lease.created_at,
            started_at: lease.started_at,
        }
    }

    fn to_bytes(self) -> [u8; CLAIM_LENGTH] {
        let mut bytes = [0; CLAIM_LENGTH];
        bytes[..8].copy_from_slice(&self.token.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.attempt.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.created_at.as_micros().to_be_bytes());
        bytes[20..].copy_from_slice(&self.started_at.as_micros().to_be_bytes());
        bytes
    }

    /// None: it has another length.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (token, rest) = bytes.split_first_chunk()?;
        let (attempt, rest) = rest.split_first_chunk()?;
        let (created_at, rest) = rest.split_first_chunk()?;
        let started_at = rest.try_into().ok()?;
        let time = |bytes| Timestamp::from_micros(u64::from_be_bytes(bytes));
        Some(Self {
            token: u64::from_be_bytes(*token),
            attempt: u32::from_be_bytes(*attempt),
            created_at: time(*created_at),
            started_at: time(started_at),
        })
    }
}

pub(super) fn string(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(super) fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// How much longer than its record an item stays. DynamoDB deletes by a clock of its own, and must
/// not take what a holder or a reader whose clock is behind still believes in.
const TIME_TO_LIVE_MARGIN: Duration = Duration::from_secs(60 * 60);

/// When time to live may delete what expires then: in seconds, rounded up, and the margin later.
pub(super) fn time_to_live(expires_at: Timestamp) -> AttributeValue {
    let deleted_at = expires_at.plus(TIME_TO_LIVE_MARGIN);
    number(deleted_at.as_micros().div_ceil(1_000_000))
}

pub(super) fn binary(bytes: impl Into<Vec<u8>>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

pub(super) fn as_u64(value: &AttributeValue) -> Option<u64> {
    value.as_n().ok()?.parse().ok()
}

/// For people alone, so each is cut where it would make the item dear.
fn readable(parts: &KeyParts<'_>) -> AttributeValue {
    let all = [
        ("namespace", parts.namespace),
        ("scope", parts.scope.unwrap_or_default()),
        ("method", parts.method),
        ("target", parts.target),
        ("key", parts.key),
    ];
    let mut map = HashMap::with_capacity(all.len());
    for (name, text) in all {
        if !text.is_empty() {
            map.insert(name.to_owned(), string(cut(text)));
        }
    }
    AttributeValue::M(map)
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_KEY_PART);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fingerprint::Fingerprint;
    use crate::protocol::record::Holder;

    #[test]
    fn a_lease_has_its_extras_in_its_item() {
        let key = RecordKey::from_bytes([7; 32]);
        let identity = Identity::of_work(Fingerprint::from_bytes([9; 32]));
        let holder = Holder::new(key, Owner::from_bytes([1; 16]), identity);
        let mut lease = Lease::new(&holder, FencingToken::from_u64(1));
        let table = Table::new("t".to_owned());
        let item = table.item_of(&lease, &KeyParts::default());
        assert!(!item.contains_key("extras"), "{item:?}");
        lease.extras = Extras::NONE.with_trace([7; 16], [8; 8]).with_secret_id(3);
        let item = table.item_of(&lease, &KeyParts::default());
        match table.found(&key, &item) {
            Ok(Found::InProgress(found)) => assert_eq!(found, lease),
            other => panic!("not the lease but {other:?}"),
        }
    }
}
