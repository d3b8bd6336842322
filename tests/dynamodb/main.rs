//! The DynamoDB store, on a DynamoDB in the process.

mod answers;
mod blocked;
mod calls;
mod clocks;
mod conditions;
mod conformance;
mod decision;
#[path = "../../examples/embedded/mod.rs"]
mod embedded;
mod end_to_end;
mod env;
mod faults;
mod foreign;
mod formats;
mod golden;
mod late;
mod limits;
#[path = "../contract/support/node.rs"]
mod node;
mod nodes;
mod payments;
mod support;
mod sweep;
mod table;
mod throttled;
mod tiered;
mod wire;
mod work;
