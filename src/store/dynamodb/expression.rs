//! The conditions and updates that the store sends.
//!
//! They name each attribute by its default name after a `#`, whatever it is called in the table;
//! many of the names are reserved words.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::item::{
    COMPLETED, FORMAT, IN_PROGRESS, Unreadable, binary, number, string, time_to_live,
};
use super::table::{Attribute, Table};
use crate::clock::Timestamp;
use crate::record::{Holder, Lease, Owner};

/// An expression with the values that it uses.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    pub(super) text: String,
    pub(super) values: HashMap<String, AttributeValue>,
}

impl Expression {
    pub(super) fn new<const N: usize>(
        text: impl Into<String>,
        values: [(&str, AttributeValue); N],
    ) -> Self {
        Self {
            text: text.into(),
            values: values.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    /// What the attributes that it uses are called in the table.
    pub(super) fn names(&self, table: &Table) -> HashMap<String, String> {
        let is_of_name = |character: char| character.is_ascii_lowercase() || character == '_';
        let used = self.text.split('#').skip(1).map(|rest| {
            rest.split_once(|character| !is_of_name(character))
                .map_or(rest, |(name, _)| name)
        });
        used.filter_map(|name| {
            let attribute = Attribute::ALL
                .into_iter()
                .find(|attribute| attribute.default_name() == name)?;
            Some((format!("#{name}"), table.attribute(attribute).to_owned()))
        })
        .collect()
    }
}

/// There is no record, or an answer whose time is over.
pub(super) fn is_free(now: Timestamp) -> Expression {
    Expression::new(
        "attribute_not_exists(#id) OR \
         (#status = :completed AND #format = :format AND #expires_at <= :now)",
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
        "#owner = :owner AND #status = :in_progress AND #token = :token AND #deadline = :deadline",
        [
            (":owner", binary(lease.owner.as_bytes())),
            (":in_progress", string(IN_PROGRESS)),
            (":token", number(lease.token.as_u64())),
            (":deadline", number(lease.deadline.as_micros())),
        ],
    )
}

/// The answer is the one that was seen.
pub(super) fn is_still_completed(owner: Owner, expires_at: Timestamp) -> Expression {
    Expression::new(
        "#owner = :owner AND #status = :completed AND #expires_at = :expires_at",
        [
            (":owner", binary(owner.as_bytes())),
            (":completed", string(COMPLETED)),
            (":expires_at", number(expires_at.as_micros())),
        ],
    )
}

/// What could not be read has the times and the status that it was seen with.
pub(super) fn is_still_unreadable(seen: &Unreadable) -> Expression {
    let mut expression = Expression::new("#expiration = :expiration", []);
    let mut has = |name: &str, value: Option<&AttributeValue>| {
        let condition = match value {
            Some(value) => {
                expression.values.insert(format!(":{name}"), value.clone());
                format!(" AND #{name} = :{name}")
            }
            None => format!(" AND attribute_not_exists(#{name})"),
        };
        expression.text.push_str(&condition);
    };
    has("status", seen.status.as_ref());
    has(
        "in_progress_expiration",
        seen.in_progress_expiration.as_ref(),
    );
    expression.values.extend(
        seen.expiration
            .clone()
            .map(|value| (":expiration".to_owned(), value)),
    );
    expression
}

/// The attempt still owns the record.
pub(super) fn is_held_by(holder: &Holder) -> Expression {
    Expression::new(
        "#owner = :owner AND #status = :in_progress",
        [
            (":owner", binary(holder.owner.as_bytes())),
            (":in_progress", string(IN_PROGRESS)),
        ],
    )
}

/// The attempt still owns the record, and its deadline is not later than this one.
pub(super) fn is_held_no_longer_than(holder: &Holder, deadline: Timestamp) -> Expression {
    let mut expression = is_held_by(holder);
    expression.text.push_str(" AND #deadline <= :new_deadline");
    let deadline = number(deadline.as_micros());
    let value = (":new_deadline".to_owned(), deadline);
    expression.values.extend([value]);
    expression
}

/// Moves the times of a lease, and with them what would delete the item before.
pub(super) fn set_times(deadline: Timestamp, expires_at: Timestamp) -> Expression {
    Expression::new(
        "SET #deadline = :new_deadline, #in_progress_expiration = :in_progress_expiration, \
         #expires_at = :expires_at, #expiration = :expiration",
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
        expression.text.push_str(", #first_status = :first_status");
        let status = number(status.into());
        expression.values.insert(":first_status".to_owned(), status);
    }
    expression
}

/// Makes the record a completed one.
pub(super) fn set_answer(data: AttributeValue, chunks: usize, expires_at: Timestamp) -> Expression {
    let mut expression = Expression::new(
        "SET #status = :completed, #data = :data, #expires_at = :expires_at, \
         #expiration = :expiration",
        [
            (":completed", string(COMPLETED)),
            (":data", data),
            (":expires_at", number(expires_at.as_micros())),
            (":expiration", time_to_live(expires_at)),
        ],
    );
    if chunks > 0 {
        expression.text.push_str(", #chunks = :chunks");
        let chunks = AttributeValue::N(chunks.to_string());
        expression.values.insert(":chunks".to_owned(), chunks);
    }
    expression
        .text
        .push_str(" REMOVE #deadline, #in_progress_expiration");
    expression
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_names_what_it_uses_and_nothing_else() {
        let mut table = Table::new("t".to_owned());
        table.rename(Attribute::Expiration, "ttl".to_owned());
        let expression = Expression::new("#expiration = :e AND (#expires_at > :x OR #id)", []);
        let names = expression.names(&table);
        assert_eq!(names.len(), 3);
        assert_eq!(names["#expiration"], "ttl");
        assert_eq!(names["#expires_at"], "expires_at");
        assert_eq!(names["#id"], "id");
    }
}
