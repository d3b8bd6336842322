//! The conditions and updates that the store sends.
//!
//! They name each attribute by its default name after a `#`, whatever it is called in the table;
//! many of the names are reserved words.

use std::borrow::Cow;
use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::item::{
    COMPLETED, FORMAT, IN_PROGRESS, Unreadable, binary, number, string, time_to_live,
};
use super::table::{Attribute, Item, Table};
use crate::protocol::clock::Timestamp;
use crate::protocol::record::{Holder, Lease, Owner};

/// An expression with the attributes and the values that it uses.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    pub(super) text: Cow<'static, str>,
    attributes: Vec<Attribute>,
    values: Vec<(String, AttributeValue)>,
}

impl Expression {
    pub(super) fn new<const N: usize>(
        text: &'static str,
        attributes: &[Attribute],
        values: [(&str, AttributeValue); N],
    ) -> Self {
        Self {
            text: Cow::Borrowed(text),
            attributes: attributes.to_vec(),
            values: values.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    /// Goes on with `text`, which uses `attribute` and may use a value.
    fn push(&mut self, text: &str, attribute: Attribute, value: Option<(String, AttributeValue)>) {
        self.text.to_mut().push_str(text);
        self.attributes.push(attribute);
        self.values.extend(value);
    }
}

/// What the attributes that these expressions use are called in the table.
pub(super) fn names(expressions: &[&Expression], table: &Table) -> HashMap<String, String> {
    // As many as an update and its condition use together.
    let mut names = HashMap::with_capacity(7);
    for expression in expressions {
        for &attribute in &expression.attributes {
            let name = table.attribute(attribute).to_owned();
            names.insert(attribute.placeholder().to_owned(), name);
        }
    }
    names
}

/// The values that these expressions use, if there are any: DynamoDB takes no values, but not none
/// of them.
pub(super) fn values<const N: usize>(expressions: [Expression; N]) -> Option<Item> {
    let mut values = Item::with_capacity(7);
    for expression in expressions {
        values.extend(expression.values);
    }
    Some(values).filter(|values| !values.is_empty())
}

/// There is no record, or an answer whose time is over.
pub(super) fn is_free(now: Timestamp) -> Expression {
    Expression::new(
        "attribute_not_exists(#id) OR \
         (#status = :completed AND #format <= :format AND #expires_at <= :now)",
        &[
            Attribute::Id,
            Attribute::Status,
            Attribute::Format,
            Attribute::ExpiresAt,
        ],
        [
            (":completed", string(COMPLETED)),
            (":format", number(FORMAT)),
            (":now", number(now.as_micros())),
        ],
    )
}

/// The record is in progress just as it was seen. The deadline belongs to it: a holder that
/// renews its lease after it was seen to have lapsed keeps it.
pub(super) fn is_still(lease: &Lease) -> Expression {
    Expression::new(
        "#owner = :owner AND #status = :in_progress AND #deadline = :deadline",
        &[Attribute::Owner, Attribute::Status, Attribute::Deadline],
        [
            (":owner", binary(lease.owner.as_bytes())),
            (":in_progress", string(IN_PROGRESS)),
            (":deadline", number(lease.deadline.as_micros())),
        ],
    )
}

/// The answer is the one that was seen.
pub(super) fn is_still_completed(owner: Owner, expires_at: Timestamp) -> Expression {
    Expression::new(
        "#owner = :owner AND #status = :completed AND #expires_at = :expires_at",
        &[Attribute::Owner, Attribute::Status, Attribute::ExpiresAt],
        [
            (":owner", binary(owner.as_bytes())),
            (":completed", string(COMPLETED)),
            (":expires_at", number(expires_at.as_micros())),
        ],
    )
}

/// What could not be read has the times and the status that it was seen with.
pub(super) fn is_still_unreadable(seen: &Unreadable) -> Expression {
    let mut expression = Expression::new("#expiration = :expiration", &[Attribute::Expiration], []);
    let expiration = seen.expiration.clone();
    let expiration = expiration.map(|value| (":expiration".to_owned(), value));
    expression.values.extend(expiration);
    let mut has = |attribute: Attribute, value: Option<&AttributeValue>| {
        let name = attribute.default_name();
        match value {
            Some(value) => {
                let value = (format!(":{name}"), value.clone());
                expression.push(&format!(" AND #{name} = :{name}"), attribute, Some(value));
            }
            None => {
                let text = format!(" AND attribute_not_exists(#{name})");
                expression.push(&text, attribute, None);
            }
        }
    };
    has(Attribute::Status, seen.status.as_ref());
    let lease = seen.in_progress_expiration.as_ref();
    has(Attribute::InProgressExpiration, lease);
    expression
}

/// The attempt still owns the record.
pub(super) fn is_held_by(holder: &Holder) -> Expression {
    Expression::new(
        "#owner = :owner AND #status = :in_progress",
        &[Attribute::Owner, Attribute::Status],
        [
            (":owner", binary(holder.owner.as_bytes())),
            (":in_progress", string(IN_PROGRESS)),
        ],
    )
}

/// The attempt still owns the record, and its deadline is not later than this one.
pub(super) fn is_held_no_longer_than(holder: &Holder, deadline: Timestamp) -> Expression {
    let mut expression = is_held_by(holder);
    let deadline = (":new_deadline".to_owned(), number(deadline.as_micros()));
    let text = " AND #deadline <= :new_deadline";
    expression.push(text, Attribute::Deadline, Some(deadline));
    expression
}

/// Moves the times of a lease, and with them what would delete the item before.
pub(super) fn set_times(deadline: Timestamp, expires_at: Timestamp) -> Expression {
    Expression::new(
        "SET #deadline = :new_deadline, #in_progress_expiration = :in_progress_expiration, \
         #expires_at = :expires_at, #expiration = :expiration",
        &[
            Attribute::Deadline,
            Attribute::InProgressExpiration,
            Attribute::ExpiresAt,
            Attribute::Expiration,
        ],
        [
            (":new_deadline", number(deadline.as_micros())),
            (
                ":in_progress_expiration",
                number(deadline.as_micros().div_ceil(1_000)),
            ),
            (":expires_at", number(expires_at.as_micros())),
            (":expiration", time_to_live(expires_at.max(deadline))),
        ],
    )
}

/// Makes the record an orphan.
pub(super) fn set_orphan(expires_at: Timestamp, first_status: Option<u16>) -> Expression {
    let mut expression = set_times(Timestamp::EPOCH, expires_at);
    if let Some(status) = first_status {
        let status = (":first_status".to_owned(), number(status.into()));
        let text = ", #first_status = :first_status";
        expression.push(text, Attribute::FirstStatus, Some(status));
    }
    expression
}

/// Makes the record a completed one.
pub(super) fn set_answer(data: AttributeValue, chunks: usize, expires_at: Timestamp) -> Expression {
    let mut expression = Expression::new(
        "SET #status = :completed, #data = :data, #expires_at = :expires_at, \
         #expiration = :expiration",
        &[
            Attribute::Status,
            Attribute::Data,
            Attribute::ExpiresAt,
            Attribute::Expiration,
        ],
        [
            (":completed", string(COMPLETED)),
            (":data", data),
            (":expires_at", number(expires_at.as_micros())),
            (":expiration", time_to_live(expires_at)),
        ],
    );
    if chunks > 0 {
        let chunks = (":chunks".to_owned(), AttributeValue::N(chunks.to_string()));
        expression.push(", #chunks = :chunks", Attribute::Chunks, Some(chunks));
    }
    expression.push(" REMOVE #deadline", Attribute::Deadline, None);
    let lease = Attribute::InProgressExpiration;
    expression.push(", #in_progress_expiration", lease, None);
    expression
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::fingerprint::Fingerprint;
    use crate::protocol::key::RecordKey;
    use crate::protocol::record::{FencingToken, Identity};

    /// What stands after `sigil` in an expression, each once, with it.
    fn used(text: &str, sigil: char) -> BTreeSet<String> {
        let is_of_name = |character: char| character.is_ascii_lowercase() || character == '_';
        let used = text.split(sigil).skip(1);
        used.map(|rest| {
            let end = rest.find(|character| !is_of_name(character));
            format!("{sigil}{}", &rest[..end.unwrap_or(rest.len())])
        })
        .collect()
    }

    #[test]
    fn an_expression_names_what_it_uses_and_nothing_else() {
        let now = Timestamp::from_millis(1);
        let identity = Identity::of_work(Fingerprint::of(["x"]));
        let owner = Owner::from_bytes([1; 16]);
        let holder = Holder::new(RecordKey::from_bytes([1; 32]), owner, identity);
        let lease = Lease::new(&holder, FencingToken::from_u64(1));
        for expression in [
            is_free(now),
            is_still(&lease),
            is_still_completed(owner, now),
            is_held_by(&holder),
            is_held_no_longer_than(&holder, now),
            set_times(now, now),
            set_orphan(now, None),
            set_orphan(now, Some(502)),
            set_answer(string("x"), 0, now),
            set_answer(string("x"), 3, now),
        ] {
            let text = expression.text.clone();
            let names = names(&[&expression], &Table::new("t".to_owned()));
            assert!(
                used(&text, '#')
                    .iter()
                    .eq(names.keys().collect::<BTreeSet<_>>()),
                "{text}"
            );
            let values = values([expression]).expect("it has values");
            assert!(
                used(&text, ':')
                    .iter()
                    .eq(values.keys().collect::<BTreeSet<_>>()),
                "{text}"
            );
        }
    }

    #[test]
    fn an_expression_uses_the_names_of_the_table() {
        let mut table = Table::new("t".to_owned());
        table.rename(Attribute::Expiration, "ttl".to_owned());
        let now = Timestamp::from_millis(1);
        let names = names(&[&set_times(now, now), &is_free(now)], &table);
        assert_eq!(names["#expiration"], "ttl");
        assert_eq!(names["#expires_at"], "expires_at");
        assert_eq!(names["#id"], "id");
    }
}
