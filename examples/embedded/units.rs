//! What calls are billed.

use dynoxide::types::{item_size, read_capacity_units_with_consistency, write_capacity_units};
use serde_json::Value;

/// Write units and read units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Units {
    pub(crate) writes: f64,
    pub(crate) reads: f64,
}

impl Units {
    pub(crate) fn writes(writes: f64) -> Self {
        Self { writes, reads: 0.0 }
    }

    pub(crate) fn reads(reads: f64) -> Self {
        Self { writes: 0.0, reads }
    }
}

/// What a call was billed. A single one has to have asked for its consumed capacity. A write that
/// was refused by its condition is billed by the larger of the item that is there and the one that
/// was to be.
pub(crate) fn billed(operation: &str, sent: &Value, answered: &Value) -> Units {
    if operation == "BatchGetItem" {
        return Units::reads(of_batch(sent, answered));
    }
    match answered["ConsumedCapacity"]["CapacityUnits"].as_f64() {
        Some(units) if is_write(operation) => Units::writes(units),
        Some(units) => Units::reads(units),
        None if is_refused(answered) => Units::writes(write_capacity_units(
            size(&answered["Item"]).max(size(&sent["Item"])),
        )),
        None => Units::default(),
    }
}

fn of_batch(sent: &Value, answered: &Value) -> f64 {
    let tables = sent["RequestItems"].as_object().into_iter().flatten();
    let of_table = |(table, wanted): (&String, &Value)| {
        let is_consistent = wanted["ConsistentRead"] == true;
        let found = answered["Responses"][table].as_array();
        let units = |item| read_capacity_units_with_consistency(size(item), is_consistent);
        found.map_or(0.0, |found| found.iter().map(units).sum())
    };
    tables.map(of_table).sum()
}

pub(crate) fn is_write(operation: &str) -> bool {
    ["PutItem", "UpdateItem", "DeleteItem"].contains(&operation)
}

/// The size of an item as DynamoDB counts it; of none, nothing.
pub(crate) fn size(item: &Value) -> usize {
    let item = serde_json::from_value(item.clone());
    item.map_or(0, |item| item_size(&item))
}

fn is_refused(answered: &Value) -> bool {
    let code = answered["__type"].as_str();
    code.is_some_and(|code| code.ends_with("#ConditionalCheckFailedException"))
}
