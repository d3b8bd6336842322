//! Proof by exhaustion and by chance: requests dropped at every await point, and histories of
//! many clients on several nodes under faults, held against what one node without faults would
//! have done.

mod cancel;
mod dynamo;
#[path = "../../examples/embedded"]
mod embedded {
    pub(crate) mod units;
}
mod fleet;
mod history;
mod pace;
#[expect(dead_code, reason = "the tests of the store itself use more of it")]
#[path = "../dynamodb/wire.rs"]
mod wire;
